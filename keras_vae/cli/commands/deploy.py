"""`keras-vae explore`, `export` and `verify`: a model outside of Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_vae.cli import printing
from keras_vae.cli.late_imports import with_tensorflow
from keras_vae.cli.options import (
    WHOLE_MODEL,
    JsonOption,
    ModelArgument,
    RunDataOption,
    WholeModelArgument,
    check_exists,
    path,
    typed,
    whole_model,
)
from keras_vae.export.formats import FORMATS, PRECISIONS, check_output
from keras_vae.support.errors import InputError

DEFAULT_FORMATS = "tf_saved_model,onnx"


def explore(
    model: Annotated[
        Path | None,
        typer.Argument(parser=whole_model, metavar="MODEL", help=f"{WHOLE_MODEL} By default avatars."),
    ] = None,
    out: Annotated[Path | None, typer.Option(parser=path, help="Folder to write instead of serving the page.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Local port to serve on; 0 takes a free one.")] = 8000,
    runtime: Annotated[
        Path | None, typer.Option(parser=path, help="Folder of onnxruntime-web's files, as npm installs them.")
    ] = None,
    data: RunDataOption = None,
    title: Annotated[str, typer.Option(help="Title of the page; by default the model's name.")] = "",
) -> None:
    """Explore a model on a page in the browser.

    Sliders for latents and attributes, samples to pick and morph between, pictures to start from. Everything is
    computed in the browser: a folder written with --out works on any web server.
    """
    model = model or whole_model("avatars")
    check_exists(model, whole=True)
    with_tensorflow("keras_vae.cli.explorer").explore(model, out, port, runtime, data, title)


def _every_format() -> tuple[str, ...]:
    return (*FORMATS, "triton")


def export(
    context: typer.Context,
    model: WholeModelArgument,
    out: Annotated[
        Path | None, typer.Option(parser=path, help="Folder for the artifacts; by default the run's export/.")
    ] = None,
    format: Annotated[
        str, typer.Option(help=f"Comma-separated, of {', '.join(_every_format())}; or all.")
    ] = DEFAULT_FORMATS,
    precision: Annotated[
        str, typer.Option(help="float32, or for a smaller ONNX file float16, or int8 calibrated on training images.")
    ] = "float32",
    output: Annotated[
        str, typer.Option(help="Type of the images: float32 in [0, 1], or uint8, 0 to 255, a quarter of the bytes.")
    ] = "float32",
    data: Annotated[
        str | None, typer.Option(help="Images for int8 calibration; by default those the run was trained on.")
    ] = None,
    encoder: Annotated[
        bool, typer.Option("--encoder", help="Also export the encoder: a SavedModel signature, and encoder.onnx.")
    ] = False,
    scorer: Annotated[
        bool,
        typer.Option(
            "--scorer", help="Also export what finds unusual images: a SavedModel signature, and scorer.onnx."
        ),
    ] = False,
    version: Annotated[int, typer.Option(min=0, help="Version of the SavedModel; TF Serving serves the highest.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Export decoder (latents to images) and generator (noise to images), to run without Keras.

    Each is checked against the Keras decoder before it is put in place: equal in float32, close in lower precision.
    """
    formats = tuple(name.strip() for name in format.split(","))
    unknown = [name for name in formats if name not in (*_every_format(), "all")]
    if unknown:
        raise InputError(f"unknown export format {unknown[0]!r}: choose of all, {', '.join(_every_format())}")
    if "all" in formats:
        formats = _every_format()
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    check_output(output)
    if precision != "float32" and not typed(context, "format"):
        formats = tuple(name for name in formats if precision in FORMATS[name].precisions)
    if data is not None and precision != "int8":
        raise InputError("--data calibrates int8: add --precision int8, or leave it out")
    check_exists(model, whole=True)
    with printing.results(as_json, printing.export) as show:
        deployment = with_tensorflow("keras_vae.cli.deployment")
        show(deployment.export(model, out, formats, precision, output, data, encoder, version, scorer))


def verify(
    model: ModelArgument,
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[ARTIFACT]...", help="Exported decoders; by default the run's own."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check that decoders make the same images from the same latents.

    Compares exported decoders with the Keras one, and with their checksums; exits with 1 if they differ.
    """
    for each in (model, *(artifacts or [])):
        check_exists(each, whole=False)
    with printing.results(as_json, printing.verification) as show:
        result = with_tensorflow("keras_vae.cli.verifying").verify(model, artifacts or [])
        show(result)
    if not result["passed"]:
        raise typer.Exit(1)
