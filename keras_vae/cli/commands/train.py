"""`keras-vae train`: its options are the fields of `TrainingConfig`, and a few that stand for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from keras_vae.cli import printing
from keras_vae.cli.late_imports import with_tensorflow
from keras_vae.cli.options import JsonOption, path, typed
from keras_vae.model.presets import PRESETS
from keras_vae.runs.folder import is_run, read_config
from keras_vae.support.errors import InputError
from keras_vae.training.config import SOURCES, DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig

PANELS = {"Data": DataConfig, "Model": ModelConfig, "Optimizer": OptimizerConfig, "Run": RunConfig}


def _parameters() -> Iterator[inspect.Parameter]:
    """A parameter for each field, annotated for typer."""
    for panel, group in PANELS.items():
        types = get_type_hints(group)
        for each in fields(group):
            typed_as = each.metadata.get("type", types[each.name])
            option = typer.Option(
                each.metadata.get("flag", "--" + each.name.replace("_", "-")),
                help=each.metadata["help"],
                metavar=each.metadata.get("metavar"),
                rich_help_panel=panel,
            )
            default = each.default
            if default is MISSING:
                default = None if NoneType in get_args(typed_as) else inspect.Parameter.empty
            annotation = Annotated[typed_as, option]  # type: ignore[valid-type]
            yield inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _with_fields(command: Callable[..., None]) -> Callable[..., None]:
    """Shows typer a parameter for each field in place of a command's **options."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    kept = [each.replace(kind=each.KEYWORD_ONLY) for each in own if each.kind is not each.VAR_KEYWORD]
    command.__signature__ = inspect.Signature([*_parameters(), *kept])  # type: ignore[attr-defined]
    return command


@_with_fields
def train(
    context: typer.Context,
    width: Annotated[
        int | None,
        typer.Option(help="Channels of the network's first layer; by default 32.", rich_help_panel="Model"),
    ] = None,
    attention: Annotated[
        bool,
        typer.Option(help="Self-attention at the lowest resolution (only --network resnet).", rich_help_panel="Model"),
    ] = False,
    preset: Annotated[
        str | None, typer.Option(help=f"Settings by name, overridden by other options: {', '.join(PRESETS)}.")
    ] = None,
    as_json: JsonOption = False,
    **options: Any,
) -> None:
    """Train a VAE and write its run folder."""
    settings = {each.name: each.metadata["parse"](options[each.name]) for each in fields(TrainingConfig)}
    out = path(settings["out"])
    settings["out"] = str(out)
    given = {name for name in settings if typed(context, name)}
    shorthands = {"width": width} if width is not None else {}
    shorthands |= {"attention": True} if attention else {}
    if shorthands:
        settings["network_options"] |= shorthands
        given.add("network_options")
    chosen = {} if preset is None else _preset(preset, given)
    settings |= chosen
    resumes = settings["resume"] and is_run(out)
    if not resumes:
        if settings["data"] is None:
            no_run = f"no run in {out} to resume, and " if settings["resume"] else ""
            raise InputError(f"{no_run}--data is missing: give {SOURCES}")
        _refuse_idle(given, settings)
    with printing.results(as_json, printing.training) as show:
        training = with_tensorflow("keras_vae.training")
        if resumes:
            # A preset may have gained settings since the run began; those are not for it.
            changes = (given | (set(chosen) & set(read_config(out)))) - {"out", "resume"}
            config = training.continued(out, {name: settings[name] for name in settings if name in changes})
        else:
            config = TrainingConfig(**settings)
        show(training.train(config))


def _preset(name: str, given: set[str]) -> dict[str, Any]:
    """The settings of a preset, less those that were given."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    # A run with another limit does not take the preset's epochs.
    limited = {"epochs"} if given & {"steps", "minutes"} else set()
    return {setting: value for setting, value in PRESETS[name].items() if setting not in given | limited}


def _refuse_idle(given: set[str], settings: dict[str, Any]) -> None:
    """Refuses options that have no effect together with the others.

    Raises:
        InputError: it names the option and what it needs.
    """
    if "kl_steps" in given and settings["kl_schedule"] == "constant":
        raise InputError("--kl-steps needs a schedule: add --kl-schedule linear, cosine or cyclical")
    for name in ("perceptual_layers", "texture_layers", "perceptual_weight"):
        if name in given and settings[name] is not None and settings["perceptual"] is None:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} has no feature network: add --perceptual hed-vgg16, say, or leave it out")
