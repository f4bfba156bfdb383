"""PNG files of images, with numpy and the standard library alone."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

from keras_vae.export.errors import ExportError
from keras_vae.support.pixels import to_uint8


def to_png(image: Any) -> bytes:
    """A PNG file of one image, (height, width, 1 or 3), uint8 or float in [0, 1]; what is beyond is cut off.

    Raises:
        ExportError: it has another shape.
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise ExportError(f"an image of shape {pixels.shape}: give (height, width, 1 or 3 channels)")
    height, width, channels = pixels.shape
    pixels = to_uint8(np.nan_to_num(pixels))
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter, none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">2I5B", width, height, 8, 2 if channels == 3 else 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
