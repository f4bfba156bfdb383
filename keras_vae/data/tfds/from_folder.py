"""A folder of images as a TFDS set of its own, decoded once and for all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from keras_vae.data import folders, tables
from keras_vae.data.pipelines import Indexed
from keras_vae.data.sources import DEFAULT_SIZE, Request
from keras_vae.data.tfds import builders
from keras_vae.support import progress
from keras_vae.support.errors import InputError, check_count

VERSION = "1.0.0"
SHARDS_AT_LEAST = 8  # so that as many workers can share a set
SHARD_BYTES = 2**27


def build(
    folder: Path | str,
    name: str | None = None,
    data_dir: Path | str | None = None,
    image_size: int = DEFAULT_SIZE,
    crop: int | None = None,
    attributes: bool = True,
    strict: bool = False,
) -> dict[str, Any]:
    """Writes a folder's images, cropped and resized, as a sharded TFDS set of ArrayRecord files.

    Examples are `{"image": uint8 (size, size, 3), "name": the file's path, "attributes": {name: 0 or 1}}`; splits are
    train and test, as `load` holds them out.

    Args:
        folder: as `keras_vae.data.load` takes it, with attributes where it has any.
        name: of the set, lower-case letters, digits and underscores; by default the folder's.
        data_dir: where sets are kept; by default where TFDS keeps them.
        image_size, crop: as `keras_vae.data.load`.
        attributes: keep the attributes where there are any; images without are left out.
        strict: refuse a folder of which any image would be left out.

    Returns:
        `set` (the source to give to `load`), `folder`, `train`, `test`, `attributes` (how many), `skipped` and
        `reasons`.

    Raises:
        InputError: as `load`, or the set is there already, or its place cannot be written to.
    """
    folder = Path(folder)
    check_count("image_size", image_size)
    if crop is not None:
        check_count("crop", crop)
    name = name or re.sub(r"\W+", "_", folder.absolute().name.lower(), flags=re.ASCII).strip("_") or "images"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"{name!r} cannot name a TFDS set: give one of lower-case letters, digits and underscores")
    config = f"{image_size}x{image_size}"
    data_dir = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    target = data_dir / name / config / VERSION
    if target.exists():
        raise InputError(f"{target} is there already: give another name, or remove it first")
    # A table that is damaged is refused rather than left out.
    wanted = (True if folder.is_dir() and tables.find(folder) else None) if attributes else False
    opened = folders.read(folder, Request(image_size, crop, wanted, strict), keep=False)
    train, test = opened.train, opened.test
    assert isinstance(train, Indexed)
    assert isinstance(test, Indexed)
    size = len(train) * image_size * image_size * 3
    shards = min(max(SHARDS_AT_LEAST, size // SHARD_BYTES), len(train), len(test))
    names = opened.attribute_names if attributes else ()
    with progress.bar(len(train) + len(test), "writing", "images") as bar:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings(), builders.tidy(), builders.quiet(progress=False):
                warnings.filterwarnings("ignore", message=".*tasks have been successfully executed")  # when interrupted
                builder = tfds.dataset_builders.AdhocBuilder(
                    name=name,
                    version=VERSION,
                    config=config,
                    data_dir=data_dir,
                    description=f"Images of the folder {folder.absolute().name}, {config}.",
                    features=_features(image_size, names),
                    split_datasets={
                        "train": _Examples(train, opened.attribute_names, bar),
                        "test": _Examples(test, opened.attribute_names, bar),
                    },
                    file_format="array_record",
                    disable_shuffling=True,  # a listing is in the order of hashes already
                )
                builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror or error}; give another --data-dir") from error
        except Exception:
            if opened.skips.error is not None:  # TFDS words errors anew
                raise opened.skips.error from None
            raise
    splits = builder.info.splits
    return {
        "set": f"tfds:{name}/{config}",
        "folder": str(target),
        "train": splits["train"].num_examples,
        "test": splits["test"].num_examples,
        "attributes": len(names),
        "skipped": len(opened.skips),
        "reasons": dict(opened.skips.reasons),
    }


def _features(size: int, names: tuple[str, ...]) -> Any:
    features: dict[str, Any] = {
        # Bare bytes: they need no decoding, which costs more than reading.
        "image": tfds.features.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes"),
        "name": tfds.features.Text(),
    }
    if names:
        features["attributes"] = {name: tfds.features.Scalar(np.uint8) for name in names}
    return tfds.features.FeaturesDict(features)


class _Examples:
    """The examples of a part, decoded on all cores as they are asked for."""

    def __init__(self, part: Indexed, attribute_names: tuple[str, ...], bar: Any) -> None:
        self.part = part
        self.attribute_names = attribute_names
        self.bar = bar

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        images = self.part.images
        for _, (pixels, good) in images.in_parcels(self.part.indices):
            for image, index in zip(pixels, good.tolist(), strict=True):
                example: dict[str, Any] = {"image": image, "name": images.name(index)}
                if images.attributes is not None:
                    values = images.attributes[index].tolist()
                    example["attributes"] = dict(zip(self.attribute_names, values, strict=True))
                yield index, example
            self.bar.update(len(pixels))
