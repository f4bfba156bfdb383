"""What scorers return, wherever they run."""

# No annotations from the future: pdoc cannot look up those of a named tuple.
from typing import Any, NamedTuple

import numpy as np

from keras_vae.export import latents
from keras_vae.export.errors import ExportError


class Scored(NamedTuple):
    """How unusual images are.

    Attributes:
        score: float32 (batch,); larger is more unusual.
        rank: among the usual images that the scorer was exported with, float32 (batch,) in [0, 1): 0.99 is more unusual
            than 99 of 100 of them.
        error_map: where it shows, float32 (batch, height, width).
        reconstruction: float32 (batch, height, width, channels) in [0, 1].
    """

    score: np.ndarray
    rank: np.ndarray
    error_map: np.ndarray
    reconstruction: np.ndarray


def rows(image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shape of what each field of `Scored` holds for one image, (height, width, channels)."""
    return {"score": (), "rank": (), "error_map": image_shape[:2], "reconstruction": image_shape}


def checked(images: Any, image_shape: tuple[int, ...]) -> np.ndarray:
    """Images for a scorer, float32 (batch, height, width, channels) in [0, 1].

    Args:
        images: such, or uint8.
        image_shape: (height, width, channels).

    Raises:
        ExportError: images of another size, that are not numbers, or outside of [0, 1].
    """
    levels = getattr(images, "dtype", None) == np.uint8
    found = latents.check_batch(images, image_shape, "images", "scorer")
    if levels:
        return found / np.float32(255)
    if len(found) and not 0.0 <= found.min() <= found.max() <= 1.0:
        raise ExportError(f"images range from {found.min():g} to {found.max():g}: scale them to [0, 1], or give uint8")
    return found
