"""Pictures of what a model makes: grids of samples, or originals above their reconstructions.

Example:
    >>> keras_vae.pictures.grid(vae.sample(64)).save("samples.png")
    >>> keras_vae.pictures.side_by_side(images, vae.predict(images)).save("reconstructions.png")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keras_vae.support.conditions import Condition, in_words
from keras_vae.support.errors import InputError
from keras_vae.support.files import write_aside
from keras_vae.support.pixels import to_float, to_uint8

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
GAP = 2
# Small images are enlarged by an integer factor, without smoothing, until a row is about this wide.
ROW_PIXELS = 1024
TEXT_PIXELS = 16
LABEL_PIXELS = 320  # of a row's label, at most
NAMED = 20  # rows of a picture of conditions
MAP_PIXELS = 2048
MAP_ROOM = 1.6  # cells of a map for each thumbnail
# Weights of ITU-R BT.601, with which image libraries turn colour into grey.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

__all__ = ["by_condition", "grid", "labelled_rows", "scattered", "side_by_side"]


def grid(images: Any, columns: int | None = None) -> Image.Image:
    """Lays images out row by row on white; small ones are enlarged. `.save("grid.png")` writes the picture.

    Args:
        images: array or tensor (count, height, width, 1 or 3), of floats in [0, 1] or of uint8.
        columns: images per row; by default about as many as there are rows.

    Raises:
        InputError: an array of another shape, or with values that are not finite.
    """
    images = _floats(images)
    if not np.isfinite(images).all():
        raise InputError("the model's images are not numbers: its training diverged; train at a lower learning rate")
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    pixels = to_uint8(images)
    if channels == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    for index, image in enumerate(pixels):
        top = GAP + (index // columns) * (height + GAP)
        left = GAP + (index % columns) * (width + GAP)
        canvas[top : top + height, left : left + width] = image
    factor = max(1, ROW_PIXELS // canvas.shape[1])
    picture = Image.fromarray(canvas)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def side_by_side(*rows: Any, columns: int = 12, labels: Sequence[str] | None = None) -> Image.Image:
    """Originals with what was made of them: each row of the first set above the same images of the other sets.

    Args:
        *rows: sets of equally many images, as `grid` takes them.
        columns: images per row.
        labels: what to call each set, in front of its rows.

    Raises:
        InputError: as for `grid`, or sets of different shapes.
    """
    rows = tuple(_floats(each) for each in rows)
    if len({each.shape for each in rows}) != 1:
        raise InputError(f"images of shapes {', '.join(str(each.shape) for each in rows)}: give sets of one shape")
    count = len(rows[0])
    columns = min(columns, count)
    blank = np.ones((-count % columns, *rows[0].shape[1:]), np.float32)
    padded = [np.concatenate([images, blank]) for images in rows]
    starts = range(0, len(padded[0]), columns)
    ordered = [images[start : start + columns] for start in starts for images in padded]
    if labels is None:
        return grid(np.concatenate(ordered), columns)
    return labelled_rows(np.stack(ordered), [*labels] * len(starts))


def _shortened(label: str, font: Any) -> str:
    label = " ".join(label.split())
    if font.getlength(label) <= LABEL_PIXELS:
        return label
    fitting = next(end for end in range(LABEL_PIXELS, -1, -1) if font.getlength(label[:end] + "…") <= LABEL_PIXELS)
    return label[:fitting] + "…"


def _floats(images: Any) -> np.ndarray:
    """Images as float in [0, 1]."""
    found = np.asarray(images)
    if found.ndim != 4 or not len(found) or found.shape[-1] not in (1, 3):
        raise InputError(f"images of shape {found.shape}: give (count, height, width, 1 or 3 channels)")
    return to_float(found)


def labelled_rows(rows: np.ndarray, labels: list[str], heads: list[str] | None = None) -> Image.Image:
    """Rows of images, each with a label in front of it, and optionally a heading above each column.

    Args:
        rows: float (rows, columns, height, width, channels) in [0, 1].
        labels: one per row; what is too long for a label ends in an ellipsis.
        heads: one per column.
    """
    count, columns = rows.shape[:2]
    images = grid(rows.reshape(count * columns, *rows.shape[2:]), columns)
    font = ImageFont.load_default(TEXT_PIXELS)
    labels = [_shortened(label, font) for label in labels]
    margin = TEXT_PIXELS + math.ceil(max(font.getlength(label) for label in labels))
    top = 2 * TEXT_PIXELS if heads else 0
    picture = Image.new("RGB", (margin + images.width, top + images.height), "white")
    picture.paste(images, (margin, top))
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(labels):
        middle = top + (row + 0.5) * images.height / count
        draw.text((TEXT_PIXELS // 2, middle), label, "black", font, anchor="lm")
    for column, head in enumerate(heads or ()):
        draw.text((margin + (column + 0.5) * images.width / columns, TEXT_PIXELS), head, "black", font, anchor="mm")
    return picture


def by_condition(
    draw: Callable[[np.ndarray], Any], condition: Condition, columns: int, asked: Sequence[Any] | None = None
) -> Image.Image:
    """A row of samples for each class or attribute, and before them one of any kind.

    Args:
        draw: from conditions, float32 (columns, names), to as many images, as `grid` takes them. Where it takes the
            same noise each time, a column shows one code as of each class.
        condition: the model's.
        columns: images in a row.
        asked: the rows' own, as `Condition.rows` takes them; by default each class, or each attribute with and
            without, 20 at most.
    """
    if asked is None:
        each: Any = condition.names
        if not condition.exclusive:
            each = [{name: has_it} for name in condition.names for has_it in (True, False)]
        asked = [None, *each[:NAMED]]
    rows = np.stack([_floats(draw(condition.rows(one, columns))) for one in asked])
    return labelled_rows(rows, [in_words(one) for one in asked])


def scattered(images: np.ndarray, places: np.ndarray, side: int = MAP_PIXELS) -> Image.Image:
    """Thumbnails at their places in a plane; if two would overlap, one moves to the nearest free place.

    Args:
        images: float (count, height, width, 1 or 3) in [0, 1].
        places: float (count, 2).
        side: pixels of the picture.
    """
    cells = math.ceil(math.sqrt(MAP_ROOM * len(images)))
    thumbnail = side // cells
    low, high = places.min(axis=0), places.max(axis=0)
    wanted = np.round((places - low) / np.maximum(high - low, 1e-9) * (cells - 1)).astype(int)
    free = np.stack(np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij"), axis=-1).reshape(-1, 2)
    picture = Image.new("RGB", (cells * thumbnail, cells * thumbnail), "white")
    pixels = to_uint8(images)
    for image, place in zip(pixels, wanted, strict=True):
        nearest = int(np.abs(free - place).sum(axis=1).argmin())
        column, row = free[nearest]
        free = np.delete(free, nearest, axis=0)
        small = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
        small = small.resize((thumbnail, thumbnail), Image.Resampling.LANCZOS)
        picture.paste(small, (int(column) * thumbnail, int(cells - 1 - row) * thumbnail))
    return picture


def save(picture: Image.Image, path: Path) -> None:
    """Writes a picture, in one piece or not at all."""
    with write_aside(path) as aside:
        picture.save(aside)
