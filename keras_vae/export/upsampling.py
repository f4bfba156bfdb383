"""Nearest x2 upsampling with a 3x3 convolution behind it: where a Keras model has it, and the kernel of both in one.

Each of the four pixels of a result sees but 2x2 different ones: with the kernel's weights added up beforehand, one 2x2
convolution at the low resolution computes all four, as in Shi et al. 2016 (arXiv 1609.05158).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

# What an output row 2q - 1 + s of the convolution sees of the rows q - 1 and q below the upsampling: the sums, over the
# three rows of the kernel, that belong to each of the two.
TAPS = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float64)  # [s, row, kernel row]


def doubles(layer: Any) -> bool:
    """Whether a layer is nearest x2 upsampling."""
    return (
        type(layer) is layers.UpSampling2D
        and tuple(layer.size) == (2, 2)
        and layer.interpolation == "nearest"
        and layer.data_format == "channels_last"
    )


def end_crop(layer: Any) -> tuple[int, int] | None:
    """Rows and columns that a layer takes off the end, at most one of each; None where it is another layer."""
    if type(layer) is not layers.Cropping2D or layer.data_format != "channels_last":
        return None
    (top, bottom), (left, right) = layer.cropping
    return (bottom, right) if top == left == 0 and bottom <= 1 and right <= 1 else None


def padding_of(layer: Any, x: Any) -> str:
    """ "zero" or "edge" where a layer pads by one pixel all round and does nothing else."""
    if type(layer) is layers.ZeroPadding2D:
        one_all_round = tuple(map(tuple, layer.padding)) == ((1, 1), (1, 1))
        return "zero" if one_all_round and layer.data_format == "channels_last" else ""
    if layer.weights or not isinstance(x, keras.KerasTensor):
        return ""
    shape = tuple(x.shape[1:])
    if tuple(getattr(layer(x), "shape", ()))[1:] != (shape[0] + 2, shape[1] + 2, shape[2]):
        return ""
    # Whole numbers that no precision rounds.
    probe = np.random.default_rng(0).integers(-64, 64, (2, *shape)).astype(np.float32)
    found = ops.convert_to_numpy(layer(probe))
    return "edge" if np.array_equal(found, np.pad(probe, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")) else ""


def convolves(layer: Any, padded: str, crop: tuple[int, int]) -> str:
    """The padding, "zero" or "edge", of a 3x3 convolution behind an upsampling; nothing where it is another layer.

    Args:
        layer: a Keras layer.
        padded: the padding between the two, if any.
        crop: what was cut off between the two.
    """
    if type(layer) is not layers.Conv2D or layer.data_format != "channels_last":
        return ""
    plain = (layer.kernel_size, layer.strides, layer.dilation_rate, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
    if padded:
        return padded if plain and layer.padding == "valid" else ""
    return "zero" if plain and layer.padding == "same" and not any(crop) else ""
