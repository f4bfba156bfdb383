"""Pictures of what a model makes: grids of samples, originals beside reconstructions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from keras_vae.errors import InputError
from keras_vae.files import write_aside

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
GAP = 2
# Small images are enlarged by a whole factor, pixel by pixel, until a row is about this wide.
ROW_PIXELS = 1024


def grid(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """Lays images out row by row on white.

    Args:
        images: float (count, height, width, 1 or 3) in [0, 1].
        columns: images a row; by default as many as there are rows.
    """
    if not np.isfinite(images).all():
        raise InputError("the model's images are no numbers: its training diverged; train at a lower learning rate")
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    pixels = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    if channels == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    for index, image in enumerate(pixels):
        top = GAP + (index // columns) * (height + GAP)
        left = GAP + (index % columns) * (width + GAP)
        canvas[top : top + height, left : left + width] = image
    factor = max(1, ROW_PIXELS // canvas.shape[1])
    picture = Image.fromarray(canvas)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def side_by_side(*rows: np.ndarray, columns: int = 12) -> Image.Image:
    """Originals with what became of them: rows of the first set, each above the same images of the others.

    Args:
        *rows: sets of as many images each, float (count, height, width, channels) in [0, 1].
        columns: images a row.
    """
    count = len(rows[0])
    columns = min(columns, count)
    blank = np.ones((-count % columns, *rows[0].shape[1:]), np.float32)
    padded = [np.concatenate([images, blank]) for images in rows]
    starts = range(0, len(padded[0]), columns)
    ordered = [images[start : start + columns] for start in starts for images in padded]
    return grid(np.concatenate(ordered), columns)


def save(picture: Image.Image, path: Path) -> None:
    """Writes a picture, in one piece or not at all."""
    with write_aside(path) as aside:
        picture.save(aside)
