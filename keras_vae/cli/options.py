"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from keras_vae.export.formats import kinds
from keras_vae.support.errors import InputError

# Parsers ------------------------------------------------------------------------------------------


def path(text: str) -> Path:
    """A path. An empty one comes from an unset shell variable, and does not mean the current folder."""
    if not text:
        raise InputError("a path is empty: give one (. is the current folder)")
    return Path(text)


def model(text: str) -> Path:
    """Any MODEL: a path, or the name of a pretrained one, whose generator is used."""
    from keras_vae.runs import pretrained  # not for --help

    return pretrained.resolve(path(text), whole=False)


def whole_model(text: str) -> Path:
    """A MODEL with its encoder: a path, or the name of a pretrained one."""
    from keras_vae.runs import pretrained  # not for --help

    return pretrained.resolve(path(text), whole=True)


# Models -------------------------------------------------------------------------------------------

ANY_MODEL = f"A run folder, a .keras file, {kinds()}, or the name of a pretrained model."
WHOLE_MODEL = "A run folder, a .keras file, or the name of a pretrained model."
ModelArgument = Annotated[Path, typer.Argument(parser=model, metavar="MODEL", help=ANY_MODEL)]
WholeModelArgument = Annotated[Path, typer.Argument(parser=whole_model, metavar="MODEL", help=WHOLE_MODEL)]
# A decoder will do, but of a pretrained model take the encoder too: there may be images to start from.
StartArgument = Annotated[Path, typer.Argument(parser=whole_model, metavar="MODEL", help=ANY_MODEL)]


def check_exists(model: Path, whole: bool) -> None:
    """Refuses a MODEL that does not exist, before the slow imports.

    Raises:
        InputError: nothing is there.
    """
    from keras_vae.runs import opening  # not for --help

    opening.check_exists(model, whole)


# Images -------------------------------------------------------------------------------------------

RunDataOption = Annotated[
    str | None, typer.Option("--data", help="Images, as for train; by default those the run was trained on.")
]
ImageOption = Annotated[list[Path] | None, typer.Option(parser=path, help="Image file to start from; can be repeated.")]
CropOption = Annotated[int | None, typer.Option(help="Side in pixels of the centred square to cut out first.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Refuse a folder if any of its images would be skipped.")]

# Latents ------------------------------------------------------------------------------------------

CodesOption = Annotated[
    Path | None, typer.Option(parser=path, help=".npy file of latents to start from, shape (count, latents).")
]
PriorOption = Annotated[
    str, typer.Option(help="Draw latents from the model's own prior (learned) or a standard normal (standard).")
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same result.")]

# Conditions ---------------------------------------------------------------------------------------

LabelOption = Annotated[
    list[str] | None, typer.Option(help="Class, of a model trained with --condition label; can be repeated.")
]
AttributeOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Attributes with 1 or 0, such as glasses=1,hat=0, of a model trained with them; names with commas in "
        "quotes; can be repeated."
    ),
]

# Output -------------------------------------------------------------------------------------------

PictureOption = Annotated[Path, typer.Option(help="Picture to write.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as JSON on standard output.")]


def typed(context: typer.Context, parameter: str) -> bool:
    """Whether an option was given on the command line, rather than left at its default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


class Command(TyperCommand):
    """A command whose help lists options under the titles of their panels, which typer leaves to rich."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            title = getattr(parameter, "rich_help_panel", None) or f"{parameter.param_type_name.title()}s"
            if (record := parameter.get_help_record(ctx)) is not None:
                panels.setdefault(title, []).append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)
