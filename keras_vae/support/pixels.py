"""Pixel values as floats in [0, 1] and as 8-bit levels, the one way everywhere: numpy alone."""

from __future__ import annotations

import numpy as np


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as the nearest 8-bit levels, ties to even; values beyond are clipped. uint8 stays as it is."""
    if images.dtype == np.uint8:
        return images
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)


def to_float(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1]: 8-bit levels over 255, as float32. Floats stay as they are."""
    return images / np.float32(255) if images.dtype == np.uint8 else images
