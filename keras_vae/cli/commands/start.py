"""`keras-vae demo` and `doctor`: does it work here?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_vae.cli import printing
from keras_vae.cli.late_imports import with_tensorflow
from keras_vae.cli.options import JsonOption, SeedOption


def demo(
    out: Annotated[Path | None, typer.Option(help="Run folder; by default the next free runs/demo...")] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training.")] = 5.0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Go from nothing to a verified decoder.

    Draws avatars, trains on them, exports the decoder, verifies it, and shows what was made and measured.
    """
    with printing.results(as_json) as show:
        show(with_tensorflow("keras_vae.cli.demo").run(out, minutes, seed))


def doctor(as_json: JsonOption = False) -> None:
    """Report what this machine has, and which of it works.

    Devices, precision, XLA, cuDNN, onnxruntime's providers, and the weights and data found here; downloads nothing.
    Exits with 1 if something that should work does not.
    """
    from keras_vae.cli import doctor  # TensorFlow, which may be broken, is not loaded into this process

    with printing.results(as_json, printing.doctor) as show:
        found = doctor.examine()
        show(found)
    if found["problems"]:
        raise typer.Exit(1)
