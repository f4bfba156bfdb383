"""One entry point for images: `load` turns a name, a folder or an array into tf.data pipelines."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
import tensorflow as tf
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from keras_vae.errors import InputError

logger = logging.getLogger(__name__)

DEFAULT_SIZE = 64
HELD_OUT_PERCENT = 10
SHUFFLE_BUFFER = 16_384
CORES = os.cpu_count() or 1
PREFETCH = 2  # batches made ready while the model works on one
# A set is kept decoded in memory up to this share of what is free when it is loaded.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class ImageData:
    """Two pipelines of image batches and what is known about them.

    Attributes:
        name: the source, as it was given.
        image_shape: (height, width, channels).
        train: batches float32 (batch_size, height, width, channels) in [0, 1], shuffled anew each epoch;
            the images left over from full batches take their turn in another epoch.
        test: the held-out images in a fixed order, the last batch smaller where it must be.
        train_size, test_size: number of images.
        attribute_names: names of the 0/1 attributes; with `attributes=True` a batch is
            `{"image": ..., "attributes": uint8 (batch, len(attribute_names))}`.
    """

    name: str
    image_shape: tuple[int, int, int]
    train: tf.data.Dataset
    test: tf.data.Dataset
    train_size: int
    test_size: int
    attribute_names: tuple[str, ...] = ()


def load(
    source: str | os.PathLike[str] | np.ndarray,
    image_size: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    attributes: bool = False,
    crop: int | None = None,
) -> ImageData:
    """Loads images as tf.data pipelines of float32 batches in [0, 1].

    Args:
        source: "avatars" (drawn at the first use), "tfds:NAME" or "tfds:NAME/CONFIG" (a prepared TensorFlow
            Datasets set with an `image` feature), a folder of images, nested or flat, or an array
            (count, height, width[, channels]) of uint8, or of floats in [0, 1].
        image_size: pixels a side; images are cropped to a square about their centre and resized. By default
            64 for avatars and folders, and the images' own size for arrays and for sets of one size.
        batch_size: images in a batch.
        seed: of the shuffling.
        attributes: yield dicts with the images' attributes too, where the source has any.
        crop: pixels a side of the centred square that is cut out before resizing; the largest there is by default,
            and where an image is smaller.

    Raises:
        InputError: the source is unknown, empty, holds no images, or fewer than a batch for training.
    """
    check(source, image_size, batch_size)
    if crop is not None and image_size is None:
        image_size = DEFAULT_SIZE
    if isinstance(source, np.ndarray):
        parts = _from_array(source, image_size, crop)
    elif str(source) == "avatars":
        parts = _from_avatars(image_size, crop)
    elif str(source).startswith("tfds:"):
        parts = _from_tfds(str(source).removeprefix("tfds:"), image_size, crop)
    else:
        parts = _from_folder(Path(source), image_size, crop)
    if attributes and not parts.attribute_names:
        raise InputError(f"{parts.name} has no attributes: load it without them")
    _check_batch(parts.name, parts.train_size, batch_size)
    finish = _batch(batch_size, attributes)
    train = parts.train.shuffle(min(parts.train_size, SHUFFLE_BUFFER), seed=seed, reshuffle_each_iteration=True)
    return ImageData(
        name=parts.name,
        image_shape=parts.image_shape,
        train=finish(train, True),
        test=finish(parts.test, False),
        train_size=parts.train_size,
        test_size=parts.test_size,
        attribute_names=parts.attribute_names,
    )


def check(source: str | os.PathLike[str] | np.ndarray, image_size: int | None = None, batch_size: int = 64) -> None:
    """Refuses what `load` would refuse, as far as that can be told without reading an image.

    Raises:
        InputError: as `load`.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: give at least 1 image a batch")
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size={image_size}: give a positive number of pixels")
    if isinstance(source, np.ndarray):
        return
    if str(source) == "avatars":
        _avatars_builder(image_size or DEFAULT_SIZE)
    elif str(source).startswith("tfds:"):
        _tfds_builder(str(source).removeprefix("tfds:"))
    else:
        folder = Path(source)
        names = [path.relative_to(folder).as_posix() for path in _image_files(folder)]
        _check_batch(str(folder), len(names) - int(_held_out(names).sum()), batch_size)


def folder_of(source: str) -> Path | None:
    """The folder that a source names; None where it names a data set."""
    return None if source == "avatars" or source.startswith("tfds:") else Path(source)


def _check_batch(name: str, train_size: int, batch_size: int) -> None:
    if train_size < batch_size:
        raise InputError(
            f"batch size {batch_size} is larger than the {train_size} training images of {name}: "
            f"give at most {train_size}"
        )


def _batch(batch_size: int, attributes: bool) -> Callable[[tf.data.Dataset, bool], tf.data.Dataset]:
    # With autotuning (TensorFlow 2.21) four runs stood idle for 33 to 57 s, three of them where one epoch's iterator
    # gives way to the next; without it none did. Why was not established; a guess is its thread, which sleeps at times.
    options = tf.data.Options()
    options.autotune.enabled = False

    def scale(example: dict[str, tf.Tensor]) -> Any:
        image = tf.cast(example["image"], tf.float32) / 255.0
        return {"image": image, "attributes": example["attributes"]} if attributes else image

    def finish(examples: tf.data.Dataset, drop_remainder: bool) -> tf.data.Dataset:
        batches = examples.batch(batch_size, drop_remainder=drop_remainder)
        return batches.map(scale, num_parallel_calls=CORES).prefetch(PREFETCH).with_options(options)

    return finish


# Where images come from -----------------------------------------------------------------------
# Each source ends as an ImageData whose pipelines hold single examples {"image": uint8, ...}.


def _from_array(images: np.ndarray, image_size: int | None, crop: int | None) -> ImageData:
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(f"array of shape {images.shape}: give (count, height, width) or (..., 1 or 3 channels)")
    if len(images) < 2:
        raise InputError(f"array of {len(images)} images: give at least 2, one of them to hold out")
    if images.dtype != np.uint8:
        if not (images.min() >= 0 and images.max() <= 1):
            raise InputError(
                f"array with values from {images.min():g} to {images.max():g}: scale it to [0, 1], or give uint8"
            )
        images = np.round(images * 255.0).astype(np.uint8)
    if image_size is not None and (images.shape[1:3] != (image_size, image_size) or crop):
        images = np.stack([_fit(Image.fromarray(image.squeeze()), image_size, crop) for image in images])
        images = images.reshape(len(images), image_size, image_size, -1)
    held_out = max(1, len(images) * HELD_OUT_PERCENT // 100)
    return _from_arrays("array", images[:-held_out], images[-held_out:])


def _from_arrays(name: str, train: np.ndarray, test: np.ndarray) -> ImageData:
    def pipeline(images: np.ndarray) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices({"image": images})

    height, width, channels = train.shape[1:]
    return ImageData(name, (height, width, channels), pipeline(train), pipeline(test), len(train), len(test))


def _avatars_builder(size: int) -> Any:
    from keras_vae.data.avatars import Avatars

    sizes = sorted(config.size for config in Avatars.BUILDER_CONFIGS)
    drawn = next((candidate for candidate in sizes if candidate >= size), None)
    if drawn is None:
        raise InputError(f"avatars are drawn at up to {sizes[-1]} pixels a side: image size {size} is too large")
    with _tidy():
        return _described(Avatars(config=f"{drawn}x{drawn}"))


def _from_avatars(image_size: int | None, crop: int | None) -> ImageData:
    import tensorflow_datasets as tfds

    size = image_size or DEFAULT_SIZE
    builder = _avatars_builder(size)
    if not _is_prepared(builder):
        print(f"drawing the avatars, once, into {builder.data_path}: a minute or so")
        tfds.disable_progress_bar()  # the builder shows one that knows its end
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare()
        except OSError as error:
            raise InputError(
                f"cannot write the avatars into {builder.data_path}: {error.strerror or error}; set TFDS_DATA_DIR to a "
                "folder that can be written to"
            ) from error
        finally:
            tfds.enable_progress_bar()
    return _from_builder("avatars", builder, size, crop)


def _tfds_builder(name: str) -> Any:
    import tensorflow_datasets as tfds

    from keras_vae.data import avatars  # noqa: F401 (registers tfds:avatars)

    if not name:
        raise InputError("tfds: names no set: give tfds:NAME, as in tfds:mnist")
    try:
        with _tidy():
            builder = _described(tfds.builder(name))
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name.partition("/")[0], tfds.list_builders(with_community_datasets=False), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`tfds.list_builders()` names those there are"
        raise InputError(f"unknown TFDS set {name!r}: {hint}") from error
    except (ValueError, AssertionError) as error:
        raise InputError(f"tfds:{name}: {str(error).splitlines()[0]}") from error
    if not _is_prepared(builder):
        raise InputError(
            f"tfds:{name} is not prepared under {builder.data_path.parent}: run `tfds build {name}` once, "
            "where there is a network, or set TFDS_DATA_DIR to the folder that holds it"
        )
    return builder


@contextlib.contextmanager
def _tidy() -> Iterator[None]:
    """Takes away the empty temporary folder that TFDS leaves behind for each builder it describes."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _described(builder: Any) -> Any:
    builder.info  # noqa: B018 (made at the first look)
    return builder


def _is_prepared(builder: Any) -> bool:
    # TFDS warns of a folder that does not exist as of a damaged one.
    return builder.data_path.exists() and builder.is_prepared()


def _from_tfds(name: str, image_size: int | None, crop: int | None) -> ImageData:
    return _from_builder(f"tfds:{name}", _tfds_builder(name), image_size, crop)


def _from_builder(name: str, builder: Any, image_size: int | None, crop: int | None) -> ImageData:
    features = dict(getattr(builder.info.features, "items", tuple)())
    shape: tuple[int | None, ...] = features["image"].shape if "image" in features else ()
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise InputError(
            f"{name} has no feature `image` of 1 or 3 channels: its features are {', '.join(features) or 'unnamed'}"
        )
    height, width, channels = (image_size, image_size, shape[2]) if image_size is not None else shape
    if height is None or width is None:
        raise InputError(f"the images of {name} vary in size: give an image size, such as 64")
    image_shape = (height, width, int(channels or 0))
    names = tuple(features.get("attributes", ()))

    def prepare(example: dict[str, Any]) -> dict[str, tf.Tensor]:
        image = example["image"]
        if shape != image_shape or crop is not None:
            image = _crop_and_resize(image, height, width, crop)
        prepared = {"image": tf.ensure_shape(image, image_shape)}
        if names:
            prepared["attributes"] = tf.stack([tf.cast(example["attributes"][key], tf.uint8) for key in names])
        return prepared

    train_split, test_split = _splits(name, builder)
    sizes = [builder.info.splits[split].num_examples for split in (train_split, test_split)]
    in_memory = _fits_in_memory(sum(sizes), image_shape)

    def pipeline(split: str) -> tf.data.Dataset:
        examples = builder.as_dataset(split=split, shuffle_files=False)
        examples = examples.map(prepare, num_parallel_calls=CORES)
        return examples.cache() if in_memory else examples

    train, test = pipeline(train_split), pipeline(test_split)
    return ImageData(name, image_shape, train, test, sizes[0], sizes[1], names)


def _splits(name: str, builder: Any) -> tuple[str, str]:
    splits = builder.info.splits
    if "train" not in splits:
        raise InputError(f"{name} has no train split: it has {', '.join(splits) or 'none'}")
    held_out = next((split for split in ("test", "validation") if split in splits), None)
    if held_out is not None:
        return "train", held_out
    return f"train[:{100 - HELD_OUT_PERCENT}%]", f"train[{100 - HELD_OUT_PERCENT}%:]"


def _crop_and_resize(image: tf.Tensor, height: int, width: int, limit: int | None) -> tf.Tensor:
    """The largest centred part of the wanted proportions, up to a limit of its sides, without aliasing, as uint8."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    if limit is not None:
        size = tf.minimum(size, float(limit))
    scale = tf.minimum(size[0] / height, size[1] / width)
    crop = tf.cast(tf.round(scale * tf.constant([height, width], tf.float32)), tf.int32)
    offset = (tf.shape(image)[:2] - crop) // 2
    image = tf.image.crop_to_bounding_box(image, offset[0], offset[1], crop[0], crop[1])
    image = tf.image.resize(image, (height, width), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def _image_files(folder: Path) -> list[Path]:
    if not folder.exists():
        raise InputError(
            f"unknown data source {str(folder)!r}: it is no folder here, and neither 'avatars' nor tfds:NAME"
        )
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: give the folder that holds the images")
    extensions = Image.registered_extensions()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    candidates = [path for path in files if path.suffix.lower() in extensions]
    if not candidates:
        found = f"{len(files)} files but no images" if files else "no files"
        raise InputError(f"{folder} holds {found}: give a folder with JPEG or PNG images, in it or below it")
    return candidates


def _from_folder(folder: Path, image_size: int | None, crop: int | None) -> ImageData:
    candidates = _image_files(folder)
    size = image_size or DEFAULT_SIZE
    if not _fits_in_memory(len(candidates), (size, size, 3)):
        raise InputError(
            f"{folder} holds {len(candidates)} images, too many to keep in memory at {size}x{size}: "
            "give a smaller image size, or make a TFDS set of them"
        )
    progress = tqdm(candidates, unit=" images", desc=f"reading {folder.name}", disable=None)
    decoded = joblib.Parallel(n_jobs=-1, prefer="threads")(
        joblib.delayed(_decode)(path, size, crop) for path in progress
    )
    unreadable = [path for path, image in zip(candidates, decoded, strict=True) if image is None]
    if unreadable:
        head = ", ".join(str(path.relative_to(folder)) for path in unreadable[:3])
        logger.warning("skipped %d of %d files that are no images: %s", len(unreadable), len(candidates), head)
    images = {path: image for path, image in zip(candidates, decoded, strict=True) if image is not None}
    if len(images) < 2:
        raise InputError(
            f"{folder} holds {len(images)} readable images among {len(candidates)} candidates: give at least 2"
        )
    held_out = _held_out([path.relative_to(folder).as_posix() for path in images])
    pixels = np.stack(list(images.values()))
    return _from_arrays(str(folder), pixels[~held_out], pixels[held_out])


def _decode(path: Path, size: int, crop: int | None = None) -> np.ndarray | None:
    """The image in RGB, upright, cropped to a square and resized; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            return _fit(ImageOps.exif_transpose(image).convert("RGB"), size, crop)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _fit(image: Image.Image, size: int, crop: int | None) -> np.ndarray:
    if crop is not None:
        width, height = (min(side, crop) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


def _held_out(names: list[str]) -> np.ndarray:
    """Which images are held out: by a hash of their names, so that adding files never moves one."""
    hashes = np.array([int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % 100 for name in names])
    held_out = hashes < HELD_OUT_PERCENT
    if held_out.all() or not held_out.any():  # a handful of images, where chance left one side empty
        held_out = np.arange(len(names)) == np.argmin(hashes)
    return held_out


def _fits_in_memory(count: int, image_shape: tuple[int, int, int]) -> bool:
    return count * int(np.prod(image_shape)) <= MEMORY_SHARE * psutil.virtual_memory().available
