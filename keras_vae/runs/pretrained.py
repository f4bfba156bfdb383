"""Models that come with the package, trained by this project on data that it may ship."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from keras_vae.runs.keras_file import load_vae
from keras_vae.support.errors import InputError

if TYPE_CHECKING:
    from keras_vae.model.vae import VAE

# In a wheel they lie in the package, in a checkout beside it.
PLACES = tuple(folder / "saved_models" for folder in Path(__file__).resolve().parents[1:3])
WHOLE = "model.keras"
GENERATOR = "generator.onnx"


def names() -> tuple[str, ...]:
    """The models there are."""
    return tuple(sorted({file.parent.name for place in PLACES for file in place.glob(f"*/{WHOLE}")}))


def folder(name: str) -> Path:
    """Where a model lies: `model.keras`, the SavedModel `1`, decoder.onnx, generator.onnx, encoder.onnx, and vectors.

    Raises:
        InputError: there is no such model.
    """
    for place in PLACES:
        if name in names() and (place / name / WHOLE).is_file():
            return place / name
    raise InputError(
        f"no pretrained model {name!r}: there {'is' if len(names()) == 1 else 'are'} {', '.join(names()) or 'none'}"
    )


def from_pretrained(name: str) -> VAE:
    """A model that comes with the package, encoder and decoder, without a network.

    Args:
        name: "avatars" (64x64 cartoon faces) or "fashion_mnist" (32x32 clothes, grey).

    Raises:
        InputError: there is no such model.

    Example:
        >>> vae = keras_vae.from_pretrained("avatars")
        >>> faces = vae.sample(16, seed=0)
    """
    return load_vae(folder(name) / WHOLE)


def resolve(path: Path, whole: bool) -> Path:
    """The file of a pretrained model if a path of the command line is its name, and no file has that name.

    Args:
        path: as it was given.
        whole: whether the encoder is needed too; else it is the ONNX generator, which takes no TensorFlow.
    """
    if path.exists() or len(path.parts) != 1 or path.name not in names():
        return path
    found = folder(path.name) / (WHOLE if whole else GENERATOR)
    print(f"the pretrained model {path.name}: {found}", file=sys.stderr)
    return found
