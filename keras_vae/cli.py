"""The `keras-vae` command: parses, calls, prints. What it does is done elsewhere.

TensorFlow is imported by the commands that need it, when they run: `--help` must not wait for it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keras_vae._backend import require_tensorflow
from keras_vae._version import __version__
from keras_vae.errors import InputError

if TYPE_CHECKING:
    from export.verify import Report

app = typer.Typer(
    name="keras-vae",
    help="Train variational autoencoders that make sharp images, and ship their decoders.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Run folder, .keras file, SavedModel folder or .onnx file.")
]
DataOption = Annotated[str, typer.Option(help="'avatars', 'tfds:NAME', or a folder of images.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Figures as JSON on standard output.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same result.")]
VAEArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Run folder or .keras file.")]
FORMAT_CHOICES = ("all", "tf_saved_model", "onnx")


def main() -> None:
    """Runs the command line. Exit status: 0 done, 2 wrong use or bad input, 1 anything else."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs a command line in this process and returns its exit status."""
    from export.errors import ExportError, VerificationError

    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except (InputError, ExportError) as error:
        return _fail(error, 2)
    except VerificationError as error:
        return _fail(error, 1)
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} (see keras-vae --help)", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except Exception as error:
        if os.environ.get("KERAS_VAE_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {error} (KERAS_VAE_TRACEBACK=1 shows where)", 1)


def _fail(message: object, status: int) -> int:
    print("keras-vae: " + " ".join(str(message).split()), file=sys.stderr)
    return status


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"keras-vae {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Run folder; by default the next free runs/demo...")] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training.")] = 5.0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """From nothing to a verified decoder.

    Draws avatars, trains on them, exports the decoder, verifies it, and shows what was made and measured.
    """
    with _reporting(as_json) as report:
        report(_library("keras_vae.demo").run(out, minutes, seed))


@app.command()
def train(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    epochs: Annotated[int | None, typer.Option(help="Epochs; 5 where no limit is given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps at most.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of training at most.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    image_size: Annotated[int | None, typer.Option(help="Pixels a side; 64, or the set's own size.")] = None,
    latent_dim: Annotated[int, typer.Option(help="Number of latents.")] = 100,
    network: Annotated[str, typer.Option(help="Encoder and decoder family: dfc.")] = "dfc",
    perceptual: Annotated[
        str, typer.Option(help="Feature network: vgg19 or vgg16 (downloaded), hed-vgg16 (offline), or none.")
    ] = "vgg19",
    perceptual_layers: Annotated[
        str, typer.Option(help="vae-123, vae-345, or layer names such as relu1_2,relu3_1.")
    ] = "vae-123",
    perceptual_weight: Annotated[float, typer.Option(help="Factor of the perceptual loss.")] = 0.5,
    likelihood: Annotated[str, typer.Option(help="Likelihood of pixels: gaussian or bernoulli.")] = "gaussian",
    beta: Annotated[float, typer.Option(help="Factor of the KL in the loss.")] = 1.0,
    learning_rate: Annotated[float, typer.Option(help="Adam's learning rate.")] = 5e-4,
    precision: Annotated[str, typer.Option(help="auto, float32, mixed_float16 or mixed_bfloat16.")] = "auto",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a VAE and write its run folder."""
    layers: str | tuple[str, ...] = perceptual_layers
    if perceptual_layers.startswith("relu"):
        layers = tuple(name.strip() for name in perceptual_layers.split(","))
    with _reporting(as_json) as report:
        training = _library("keras_vae.training")
        config = training.TrainingConfig(
            data=data,
            out=str(out),
            epochs=epochs,
            steps=steps,
            minutes=minutes,
            batch_size=batch_size,
            image_size=image_size,
            latent_dim=latent_dim,
            network=network,
            perceptual=None if perceptual == "none" else perceptual,
            perceptual_layers=layers,
            perceptual_weight=perceptual_weight,
            likelihood=likelihood,
            beta=beta,
            learning_rate=learning_rate,
            precision=precision,
            seed=seed,
        )
        report(training.train(config))


@app.command()
def sample(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("samples.png"),
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 64,
    seed: SeedOption = 0,
) -> None:
    """Write a picture grid of new images.

    Decodes draws from the prior. The same seed gives the same faces from every kind of MODEL.
    """
    _library("keras_vae.commands").sample(model, out, count, seed)
    print(f"{count} samples written to {out}")


@app.command()
def reconstruct(
    model: VAEArgument,
    data: Annotated[
        str | None, typer.Option(help="'avatars', 'tfds:NAME', or a folder; by default what the run trained on.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("reconstructions.png"),
    count: Annotated[int, typer.Option(min=1, help="Number of held-out images.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Write images above their reconstructions.

    Takes held-out images, and measures how close and how sharp their reconstructions are.
    """
    with _reporting(as_json) as report:
        report(_library("keras_vae.commands").reconstruct(model, data, out, count))


@app.command()
def export(
    model: VAEArgument,
    out: Annotated[Path | None, typer.Option(help="Folder for 1/ and decoder.onnx; a run's own export/.")] = None,
    format: Annotated[str, typer.Option(help="all, tf_saved_model or onnx.")] = "all",
    as_json: JsonOption = False,
) -> None:
    """Export the decoder: SavedModel and ONNX.

    Each is proven equal to the Keras decoder before it takes its place.
    """
    if format not in FORMAT_CHOICES:
        raise InputError(f"unknown export format {format!r}: choose one of {', '.join(FORMAT_CHOICES)}")
    with _reporting(as_json, _print_export) as report:
        report(_library("keras_vae.commands").export(model, out, format))


@app.command()
def verify(
    model: ModelArgument,
    artifacts: Annotated[
        list[Path] | None, typer.Argument(metavar="[ARTIFACT]...", help="Exported decoders; by default the run's own.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare decoders on the same latents.

    Compares exported decoders with the Keras one, and with each other; exit status 1 where they differ.
    """
    with _reporting(as_json, _print_verify) as report:
        result: Report = _library("keras_vae.commands").verify(model, artifacts or [])
        report(result.to_json())
    if not result.passed:
        raise typer.Exit(1)


# Helpers -----------------------------------------------------------------------------------------


def _library(name: str) -> Any:
    """Imports a module that needs TensorFlow, keeping TensorFlow's greetings off the terminal.

    Raises:
        InputError: Keras is set to another backend.
    """
    require_tensorflow()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from export.quiet import quiet_stderr

    with quiet_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for a GPU, and complains where there is none
    return importlib.import_module(name)


@contextlib.contextmanager
def _reporting(as_json: bool, printer: Any = None) -> Iterator[Any]:
    """Yields the function that reports figures: as JSON alone on standard output, or in words."""
    if not as_json:
        yield printer or _print_figures
        return
    figures: list[dict[str, Any]] = []
    with contextlib.redirect_stdout(sys.stderr):
        yield figures.append
    for found in figures:
        print(json.dumps(found, indent=2))


def _print_figures(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, title=figures.get("title"), title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # paths are for copying: never cut short
    for name, value in figures.items():
        if name != "title":
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            table.add_row(name.replace("_", " "), shown)
    Console().print(table)


def _print_export(figures: dict[str, Any]) -> None:
    for artifact in figures["artifacts"]:
        print(f"{artifact['path']}: equal to Keras within {artifact['max_difference']:.2g}")


def _print_verify(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("pair", "largest difference", "mean difference", "result", title=f"{report['latents']} latents")
    for pair in report["pairs"]:
        passed = "pass" if pair["passed"] else f"FAIL (above {report['tolerance']:g})"
        names = f"{pair['first']} / {pair['second']}"
        table.add_row(names, f"{pair['max_difference']:.2e}", f"{pair['mean_difference']:.2e}", passed)
    Console().print(table)


if __name__ == "__main__":
    main()
