"""What a source of images holds, in figures and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_vae.data import folders
from keras_vae.data.image_files import scan
from keras_vae.data.loading import check_outside, kind_of, load
from keras_vae.data.tfds import builders
from keras_vae.support import pictures, progress
from keras_vae.support.files import check_output_file

PICTURED = 64
MEASURED = 1000  # files whose sizes are looked up


def describe(
    source: str, out: Path, image_size: int | None = None, crop: int | None = None, limit: int = 10_000
) -> dict[str, Any]:
    """Counts a source's images, sizes and attributes, and draws some.

    Args:
        source: as `keras_vae.data.load` takes it.
        out: the picture to write.
        image_size, crop: as `keras_vae.data.load`.
        limit: images to read at most.

    Returns:
        `source`, `train`, `test`, `image_shape`, for folders `smallest` and `largest` (width x height, of the first
        thousand files), `attributes` (each one's share among the images read), `read`, `skipped`, `reasons`, `picture`.

    Raises:
        InputError: as `load`, or the picture cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    check_outside(out, source)
    images = load(source, image_size, batch_size=1, crop=crop, attributes=None)
    shown, total, read = list[np.ndarray](), np.zeros(len(images.attribute_names)), 0
    with progress.bar(min(limit, images.test_size + images.train_size), "looking at images", "images") as bar:
        for part in (images.test, images.train):
            for batch in part.take(limit - read):
                image, attributes = (batch["image"], batch["attributes"]) if images.attribute_names else (batch, None)
                if len(shown) < PICTURED:
                    shown.append(image.numpy()[0])
                if attributes is not None:
                    total += attributes.numpy()[0]
                read += 1
                bar.update(1)
    pictures.save(pictures.grid(np.stack(shown)), out)
    return {
        "source": source,
        "train": images.train_size,
        "test": images.test_size,
        "image_shape": "x".join(map(str, images.image_shape)),
        **_sizes(source),
        "attributes": {
            name: round(float(count) / read, 3) for name, count in zip(images.attribute_names, total, strict=True)
        },
        "read": read,
        "skipped": len(images.skips),
        "reasons": dict(images.skips.reasons),
        "picture": str(out),
    }


def prepare(name: str) -> dict[str, Any]:
    """Prepares a TFDS set where it is not.

    Args:
        name: NAME[/CONFIG], with or without tfds: before it.

    Returns:
        `set`, `folder`, `splits` and `bytes`.

    Raises:
        InputError: there is no such set, its files cannot be had, or its place cannot be written to.
    """
    parsed = builders.Name.parse(name.removeprefix("tfds:"))
    builder = builders.find(parsed.builder)
    builders.prepare(builder)
    return {
        "set": f"tfds:{parsed.builder}",
        "folder": str(builder.data_path),
        "splits": {str(split): info.num_examples for split, info in builder.info.splits.items()},
        "bytes": int(builder.info.dataset_size),
    }


def _sizes(source: str) -> dict[str, str]:
    if kind_of(source) is not folders:
        return {}
    sizes: list[tuple[int, int]] = []
    for name, fault in scan(Path(source)):
        if len(sizes) == MEASURED:
            break
        if fault is None:
            try:
                with Image.open(Path(source) / name) as image:
                    sizes.append(image.size)
            except Exception:  # counted as unreadable already
                continue
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    return {"smallest": "{}x{}".format(*by_area[0]), "largest": "{}x{}".format(*by_area[-1])} if by_area else {}
