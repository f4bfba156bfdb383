"""One entry point for images: `load` turns a name, a folder, a file, an array or a dataset into tf.data pipelines."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import psutil
import tensorflow as tf

from keras_vae.data import decoding, image_batches, pipelines, tables, tfds_sets
from keras_vae.data.decoding import UnreadableError
from keras_vae.data.images import Images, fits_in_memory, fits_on_disk
from keras_vae.data.listing import HELD_OUT_PERCENT, Listing, held_out_of, scan, shown
from keras_vae.data.skips import Skips
from keras_vae.support import progress
from keras_vae.support.errors import InputError, check_count

logger = logging.getLogger(__name__)

DEFAULT_SIZE = 64
SAMPLE = 4096  # images read at once, so that a folder of something else is refused before work begins

Source: TypeAlias = str | os.PathLike[str] | np.ndarray | tf.data.Dataset


@dataclass(frozen=True)
class _Parts:
    """Two parts of a source, and what is known about them, as `ImageData` says."""

    name: str
    image_shape: tuple[int, int, int]
    train: tf.data.Dataset
    test: tf.data.Dataset
    train_size: int
    test_size: int
    attribute_names: tuple[str, ...]
    skips: Skips
    own_shape: tuple[int | None, ...] | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class ImageData(_Parts):
    """Two pipelines of image batches and what is known about them.

    Attributes:
        name: the source, as it was given.
        image_shape: (height, width, channels).
        train: batches float32 (batch_size, height, width, channels) in [0, 1], shuffled anew each epoch;
            the images left over from full batches take their turn in another epoch.
        test: the held-out images in a fixed order, the last batch smaller where it must be.
        train_size, test_size: number of images, less those found unreadable when the source was loaded: of a folder
            that reads the first 4,096. Others are found in the first epoch, and their places taken by other images.
        attribute_names: names of the 0/1 attributes; with `attributes=True` a batch is
            `{"image": ..., "attributes": uint8 (batch, len(attribute_names))}`.
        skips: images of the source that are not used, and why; it fills as they are read.
        own_shape: of the images before they were cropped and resized; None where each has its own.
        train_from: gives training batches without end from a step on, counted from 0: what follows depends on the seed
            and that step alone, so that training that goes on sees what it would have seen.
    """

    train_from: Callable[[int], tf.data.Dataset]


def load(
    source: Source,
    image_size: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    attributes: bool | None = False,
    crop: int | None = None,
    flip: bool = False,
    random_crop: int = 0,
    strict: bool = False,
    share: pipelines.Share = pipelines.ALONE,
    only_held_out: bool = False,
) -> ImageData:
    """Loads images as tf.data pipelines of float32 batches in [0, 1].

    Args:
        source: one of
            "avatars", drawn at the first use;
            "tfds:NAME[/CONFIG][:SPLIT]", a TensorFlow Datasets set with an `image` feature, downloaded at the first
            use; its test or validation split is held out, else the last tenth;
            a folder of images, nested or flat, a tenth of them held out by a hash of their paths in it. Attributes
            come from a CSV file or CelebA's list_attr_celeba.txt in the folder or beside it, or, where there is none
            and all images lie in subfolders, are their subfolders;
            the folder of a prepared TFDS set, such as `keras_vae.data.build` makes;
            an .npy file, or an .npz file with an array `images`, or x_train and x_test;
            an array (count, height, width[, channels]) of uint8, or of floats in [0, 1], the last tenth held out;
            a `tf.data.Dataset` of such images, one by one or in batches, alone, with labels, or as dicts with the key
            `image`; it is read once, and a tenth is held out by a hash of the pixels.
        image_size: pixels a side; images are cropped to a square about their centre and resized. By default 64 for
            avatars, folders and sets of varying sizes, and the images' own size for all else.
        batch_size: images in a batch.
        seed: of the shuffling and augmentation.
        attributes: yield dicts with the images' attributes too; images without are skipped. None: where it has any.
        crop: pixels a side of the centred square that is cut out before resizing; the largest there is by default,
            and where an image is smaller.
        flip: mirror half of the training images, drawn anew each epoch.
        random_crop: move each training image by up to so many pixels each way, its edges mirrored.
        strict: refuse a source of which any image would be skipped; reads all of a folder first.
        share: the replicas of distributed training that this process makes batches for; an element of the pipelines is
            then one replica's rows of a batch.
        only_held_out: whether held-out images are all that is wanted. There may then be none to train on: the source
            may be one image file, or a folder with one image in it.

    Raises:
        InputError: the source is unknown, cannot be had, is empty, holds no images, more than a tenth of it cannot be
            read, or there are fewer than a batch for training.
    """
    _check_arguments(source, image_size, batch_size)
    if crop is not None:
        check_count("crop", crop)
    if random_crop:
        check_count("random_crop", random_crop)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r}: give a whole number of at least 0")
    parts = _open(source, image_size, crop, attributes, strict, only_held_out)
    if attributes and not parts.attribute_names:
        hint = tables.hint(Path(parts.name)) if Path(parts.name).is_dir() else ""
        raise InputError(
            f"{parts.name} has no attributes: {hint or 'give a table of them, attributes.csv, or a subfolder a class'}"
        )
    height, width, _ = parts.image_shape
    if not 0 <= random_crop < min(height, width):
        raise InputError(
            f"random_crop={random_crop}: give 0 or more pixels, fewer than the images' {min(height, width)}"
        )
    if parts.train_size < batch_size and not only_held_out:
        raise InputError(
            f"batch size {batch_size} is larger than the {parts.train_size} training images of {parts.name}: "
            f"give one (--batch-size) of at most {parts.train_size}"
        )
    if batch_size % share.replicas:
        raise InputError(f"batch size {batch_size} cannot be shared among {share.replicas} replicas: give a multiple")
    attributes = bool(parts.attribute_names) if attributes is None else attributes
    batches = pipelines.Batches(batch_size, attributes, seed, flip, random_crop, share)
    epoch, test = parts.pipelines(batches)
    steps = parts.train_size // batch_size
    return ImageData(
        name=parts.name,
        image_shape=parts.image_shape,
        train=pipelines.epochs(epoch, steps, batches) if steps else test.take(0),
        test=test,
        train_size=parts.train_size,
        test_size=parts.test_size,
        attribute_names=parts.attribute_names,
        skips=parts.skips,
        own_shape=parts.own_shape,
        train_from=lambda step: pipelines.continued(epoch, steps, batches, step),
    )


def check(source: Source, image_size: int | None = None, batch_size: int = 64) -> None:
    """Refuses what `load` would refuse, as far as that can be told at once.

    Raises:
        InputError: as `load`.
    """
    _check_arguments(source, image_size, batch_size)
    if isinstance(source, np.ndarray | tf.data.Dataset):
        return
    if str(source) == "avatars":
        _avatars_builder(image_size or DEFAULT_SIZE)
    elif str(source).startswith("tfds:"):
        tfds_sets.check(tfds_sets.find(_tfds_name(source).builder))
    elif _is_array_file(Path(source)):
        _open_array_file(Path(source))
    elif is_image_file(Path(source)):
        raise _one_image(Path(source))
    elif not is_prepared_set(Path(source)) and next(scan(Path(source)), None) is None:
        raise _no_images(Path(source))


def _check_arguments(source: Source, image_size: int | None, batch_size: int) -> None:
    check_count("batch_size", batch_size)
    if image_size is not None:
        check_count("image_size", image_size)
        batch = 4 * 3 * batch_size * image_size**2
        if 4 * batch > psutil.virtual_memory().available:  # some batches are in the making at a time
            raise InputError(
                f"image_size={image_size}: a batch of {batch_size} takes {batch / 1e9:.3g} GB, too much for the free "
                "memory: give a smaller one, or smaller batches"
            )
    if isinstance(source, np.ndarray | tf.data.Dataset):
        return
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"source {source!r}: give a folder, a name such as 'avatars', an array or a tf.data.Dataset")
    if not str(source):
        raise InputError("the source is empty: give a folder, 'avatars' or tfds:NAME")


def check_outside(out: Path, source: str) -> None:
    """Refuses an output that lies in the folder a source names.

    Raises:
        InputError: it does.
    """
    folder = folder_of(source)
    if folder is not None and out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{out} lies in the data folder {folder}, whose images it would join: give --out elsewhere")


def folder_of(source: str) -> Path | None:
    """The folder or file that a source names; None where it names a data set."""
    return None if source == "avatars" or source.startswith("tfds:") else Path(source)


# What sources end as -----------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomAccess:
    """Images that can be had by index."""

    name: str
    images: Images
    train: np.ndarray
    test: np.ndarray
    attribute_names: tuple[str, ...]
    skips: Skips
    own_shape: tuple[int | None, ...] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape

    @property
    def train_size(self) -> int:
        return len(self.train)

    @property
    def test_size(self) -> int:
        return len(self.test)

    def pipelines(self, batches: pipelines.Batches) -> tuple[pipelines.Epoch, tf.data.Dataset]:
        return (
            pipelines.shuffled(self.images, self.train, batches),
            pipelines.in_order(self.images, self.test, batches),
        )


@dataclass(frozen=True)
class _Sequential(_Parts):
    """Images that come one after the other, as single examples {"image": uint8, "attributes": uint8}."""

    def pipelines(self, batches: pipelines.Batches) -> tuple[pipelines.Epoch, tf.data.Dataset]:
        return (
            pipelines.shuffled_examples(self.train, self.image_shape, self.train_size, batches),
            pipelines.examples_in_order(self.test, self.test_size, batches),
        )


def _open(
    source: Source,
    image_size: int | None,
    crop: int | None,
    attributes: bool | None,
    strict: bool,
    only_held_out: bool,
) -> RandomAccess | _Sequential:
    if crop is not None and image_size is None:
        image_size = DEFAULT_SIZE
    if isinstance(source, np.ndarray):
        return _from_array("array", source, image_size, crop)
    if isinstance(source, tf.data.Dataset):
        return _from_dataset(source, image_size, crop)
    if str(source) == "avatars":
        return _from_avatars(image_size, crop)
    if str(source).startswith("tfds:"):
        name = _tfds_name(source)
        builder = tfds_sets.find(name.builder)
        tfds_sets.prepare(builder)
        return _from_builder(str(source), builder, image_size, crop, name.split)
    path = Path(source)
    if _is_array_file(path):
        return _from_array_file(path, image_size, crop)
    if is_prepared_set(path):
        return _from_builder(str(path), tfds_sets.from_folder(path), image_size, crop)
    least = 1 if only_held_out else 2
    return open_folder(path, image_size or DEFAULT_SIZE, crop, attributes, strict, least=least)


# Arrays ------------------------------------------------------------------------------------------


def _from_array(
    name: str, images: np.ndarray, image_size: int | None, crop: int | None, train_size: int | None = None
) -> RandomAccess:
    """Images in an array, the first ones for training: by default all but the last tenth."""
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(f"{name} of shape {images.shape}: give (count, height, width) or (..., 1 or 3 channels)")
    try:
        image_batches.check(images)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    if len(images) < 2:
        raise InputError(f"{name} of {len(images)} images: give at least 2, one of them to hold out")
    train_size = len(images) - held_out_of(len(images)) if train_size is None else train_size
    if not 0 < train_size < len(images):
        raise InputError(
            f"{name} has {train_size} images to train on and {len(images) - train_size} held out: give both"
        )
    if images.dtype != np.uint8:
        images = np.round(np.clip(images.astype(np.float32), 0.0, 1.0) * 255.0).astype(np.uint8)
    skips = Skips(name, len(images))
    if image_size is None or (images.shape[1:3] == (image_size, image_size) and crop is None):
        opened = Images.of_array(images)
    else:

        def decode(indices: np.ndarray) -> Iterable[np.ndarray]:
            for index in indices:
                yield decoding.fit_array(images[index], image_size, crop)

        opened = Images(len(images), (image_size, image_size, images.shape[-1]), decode, str, skips)
    order = np.arange(len(images))
    return RandomAccess(name, opened, order[:train_size], order[train_size:], (), skips, images.shape[1:])


def _is_array_file(path: Path) -> bool:
    return path.suffix.lower() in (".npy", ".npz")


def _open_array_file(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give another .npy or .npz file") from error
    except Exception as error:  # OSError, ValueError, EOFError, and zipfile's own
        raise InputError(f"{path} is no array of numbers that NumPy can read: save one with numpy.save") from error


def _from_array_file(path: Path, image_size: int | None, crop: int | None) -> RandomAccess:
    opened = _open_array_file(path)
    if isinstance(opened, np.ndarray):
        # In memory where it fits: a mapped file that another program cuts short would end the process.
        opened = np.array(opened) if fits_in_memory(opened.nbytes) else opened
        return _from_array(str(path), opened, image_size, crop)
    with opened:
        names = set(opened.files)
        try:
            if {"x_train", "x_test"} <= names:  # as Keras's own sets are stored
                train, test = opened["x_train"], opened["x_test"]
                if train.shape[1:] != test.shape[1:]:
                    raise InputError(f"{path}: x_train is {train.shape}, x_test {test.shape}: give images of one size")
                return _from_array(str(path), np.concatenate([train, test]), image_size, crop, len(train))
            if "images" in names or len(names) == 1:
                return _from_array(str(path), opened["images" if "images" in names else names.pop()], image_size, crop)
        except InputError:
            raise
        except Exception as error:  # what zipfile and NumPy raise on damaged or pickled members
            raise InputError(f"{path} is damaged, or holds no arrays of numbers: {error}") from error
    raise InputError(f"{path} holds {', '.join(sorted(names))}: name the array of images `images`")


# tf.data -----------------------------------------------------------------------------------------


def _from_dataset(dataset: tf.data.Dataset, image_size: int | None, crop: int | None) -> RandomAccess | _Sequential:
    """A dataset, read once: its images are held out by a hash of their pixels, for it may shuffle them each time."""
    name = "dataset"

    def image_of(*element: Any) -> Any:
        first = element[0]
        return first.get("image") if isinstance(first, dict) else first

    spec = dataset.element_spec
    spec = image_of(*spec) if isinstance(spec, tuple) else image_of(spec)
    no_images = InputError(
        "the dataset's elements are no images: give (height, width, channels), or dicts with `image`"
    )
    if not isinstance(spec, tf.TensorSpec):
        raise no_images
    image_batches.check_dtype(spec.dtype)
    images = dataset.map(image_of)
    if spec.shape.rank is None or None in spec.shape[-1:]:  # as of files decoded in a map: the first one tells
        try:
            first = next(iter(images.take(1)), None)
        except tf.errors.OpError as error:
            raise InputError(f"{name} fails at its first image: {' '.join(str(error).split())[:200]}") from error
        if first is None:
            raise image_batches.empty_dataset()
        spec = tf.TensorSpec([None] * (len(first.shape) - 1) + list(first.shape[-1:]), spec.dtype)
        images = images.map(lambda image: tf.ensure_shape(image, spec.shape))
    rank = spec.shape.rank
    if rank not in (3, 4):
        raise no_images
    if rank == 4:
        images, spec = images.unbatch(), tf.TensorSpec(spec.shape[1:], spec.dtype)
    known = int(images.cardinality())
    if known == tf.data.INFINITE_CARDINALITY:
        raise InputError("the dataset never ends: give it without .repeat()")
    shape = _shape(name, tuple(spec.shape), image_size)

    def prepare(image: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        found = tf.constant([0.0, 0.0, 1.0])
        if image.dtype != tf.uint8:
            image = tf.cast(image, tf.float32)
            found = image_batches.summary(image)
            image = tf.cast(tf.round(tf.clip_by_value(image, 0.0, 1.0) * 255.0), tf.uint8)
        prepared = _prepared(image, tuple(spec.shape), shape, crop)
        bucket = tf.strings.to_hash_bucket_fast(tf.io.serialize_tensor(prepared["image"]), 100)
        return prepared, found, bucket

    prepared = images.map(prepare, num_parallel_calls=pipelines.CORES)
    kept: list[np.ndarray] | None = []
    buckets: list[int] = []
    with progress.bar(known if known >= 0 else None, "reading the dataset", "images") as bar:
        try:
            for example, found, bucket in prepared.as_numpy_iterator():
                total, low, high = map(float, found)
                image_batches.check_summary(total, low, high, where=f" in image {len(buckets)}")
                # What is kept is copied in the end: as much again has to fit.
                if kept is not None and len(kept) % 1024 == 0 and not fits_in_memory(len(kept) * example["image"].size):
                    kept = None
                if kept is not None:
                    kept.append(example["image"])
                buckets.append(bucket)
                bar.update(1)
        except tf.errors.OpError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{name} fails after {len(buckets)} images: {reason}") from error
    if len(buckets) < 2:
        raise InputError(f"{name} of {len(buckets)} images: give at least 2, one of them to hold out")
    held_out = np.array(buckets) < HELD_OUT_PERCENT
    skips = Skips(name, len(buckets))
    if kept is not None:
        if held_out.all() or not held_out.any():  # a handful, where chance left one side empty
            held_out = np.arange(len(buckets)) == int(np.argmin(buckets))
        pixels = Images.of_array(np.stack(kept))
        return RandomAccess(
            name, pixels, np.flatnonzero(~held_out), np.flatnonzero(held_out), (), skips, tuple(spec.shape)
        )

    def part(test: bool) -> tf.data.Dataset:
        return prepared.filter(lambda *each: (each[2] < HELD_OUT_PERCENT) == test).map(lambda *each: each[0])

    sizes = (int((~held_out).sum()), int(held_out.sum()))
    train, test = _cached((part(False), part(True)), sizes, shape)
    return _Sequential(name, shape, train, test, *sizes, (), skips, own_shape=tuple(spec.shape))


def _shape(name: str, shape: Sequence[int | None], image_size: int | None) -> tuple[int, int, int]:
    """The size in which images of a shape, known or varying, are given."""
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise InputError(f"the images of {name} are of shape {tuple(shape)}: give images of 1 or 3 channels")
    if image_size is None and (shape[0] is None or shape[1] is None):
        image_size = DEFAULT_SIZE
    if image_size is not None:
        return image_size, image_size, shape[2]
    return shape[0], shape[1], shape[2]  # type: ignore[return-value]


def _prepared(
    image: tf.Tensor, own: Sequence[int | None], shape: tuple[int, int, int], crop: int | None
) -> dict[str, tf.Tensor]:
    if tuple(own) != shape or crop is not None:
        image = _crop_and_resize(image, shape[0], shape[1], crop)
    return {"image": tf.ensure_shape(image, shape), "attributes": tf.zeros((0,), tf.uint8)}


def _crop_and_resize(image: tf.Tensor, height: int, width: int, limit: int | None) -> tf.Tensor:
    """The largest centred part of the wanted proportions, up to a limit of its sides, without aliasing, as uint8."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    if limit is not None:
        size = tf.minimum(size, float(limit))
    scale = tf.minimum(size[0] / height, size[1] / width)
    crop = tf.maximum(1, tf.cast(tf.round(scale * tf.constant([height, width], tf.float32)), tf.int32))
    offset = (tf.shape(image)[:2] - crop) // 2
    image = tf.image.crop_to_bounding_box(image, offset[0], offset[1], crop[0], crop[1])
    image = tf.image.resize(image, (height, width), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


_CACHES: list[tempfile.TemporaryDirectory[str]] = []  # removed when the program ends


def _cached(
    parts: tuple[tf.data.Dataset, tf.data.Dataset], sizes: tuple[int, int], shape: tuple[int, int, int]
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Examples kept after the first epoch: in memory where all fit, else on disk, else not.

    An iterator that is given up tells what it reads from to stop, and a `prefetch` there answers that it has come to
    its end (TensorFlow 2.21): the cache would take what it has for all there is. Sizes that are asserted keep it from
    that.
    """
    parts = tuple(
        part.apply(tf.data.experimental.assert_cardinality(size)) for part, size in zip(parts, sizes, strict=True)
    )
    size = sum(sizes) * int(np.prod(shape))
    if fits_in_memory(size):
        return parts[0].cache(), parts[1].cache()
    if fits_on_disk(size):
        _CACHES.append(tempfile.TemporaryDirectory(prefix="keras_vae"))
        folder = Path(_CACHES[-1].name)
        return parts[0].cache(str(folder / "train")), parts[1].cache(str(folder / "test"))
    return parts


# TFDS --------------------------------------------------------------------------------------------


def _avatars_builder(size: int) -> Any:
    from keras_vae.data.avatars import Avatars

    sizes = sorted(config.size for config in Avatars.BUILDER_CONFIGS)
    drawn = next((candidate for candidate in sizes if candidate >= size), None)
    if drawn is None:
        raise InputError(f"avatars are drawn at up to {sizes[-1]} pixels a side: image size {size} is too large")
    return tfds_sets.find(f"avatars/{drawn}x{drawn}")


def _from_avatars(image_size: int | None, crop: int | None) -> RandomAccess | _Sequential:
    size = image_size or DEFAULT_SIZE
    builder = _avatars_builder(size)
    if not tfds_sets.is_prepared(builder):
        print("the avatars are drawn: a minute or so")
    tfds_sets.prepare(builder)
    return _from_builder("avatars", builder, size, crop)


def _tfds_name(source: object) -> tfds_sets.Name:
    return tfds_sets.Name.parse(str(source).removeprefix("tfds:"))


def is_prepared_set(folder: Path) -> bool:
    """Whether a folder holds a prepared TFDS set."""
    try:
        return (folder / "dataset_info.json").is_file()
    except OSError:  # a folder that cannot be read, of which listing it says more
        return False


def _from_builder(
    name: str, builder: Any, image_size: int | None, crop: int | None, split: str | None = None
) -> RandomAccess | _Sequential:
    opened = tfds_sets.Opened.of(name, builder, split)
    shape = _shape(name, opened.image_shape, image_size)
    if opened.random_access:
        return _from_records(name, opened, shape, crop)
    attribute_names = opened.attribute_names

    def prepare(example: dict[str, Any]) -> dict[str, tf.Tensor]:
        prepared = _prepared(example["image"], opened.image_shape, shape, crop)
        return prepared | {"attributes": opened.attributes(example)} if attribute_names else prepared

    def part(examples: tf.data.Dataset) -> tf.data.Dataset:
        return examples.map(prepare, num_parallel_calls=pipelines.CORES)

    sizes = (opened.train_size, opened.test_size)
    train, test = _cached((part(opened.train()), part(opened.test())), sizes, shape)
    skips = Skips(name, sum(sizes))
    return _Sequential(name, shape, train, test, *sizes, attribute_names, skips, own_shape=tuple(opened.image_shape))


def _from_records(name: str, opened: tfds_sets.Opened, shape: tuple[int, int, int], crop: int | None) -> RandomAccess:
    records = opened.records()
    names = opened.attribute_names
    attributes = np.zeros((len(records), len(names)), np.uint8)
    fits = opened.image_shape == shape and crop is None

    def decode(indices: np.ndarray) -> Iterable[np.ndarray]:
        for index, example in zip(indices, records[indices], strict=True):
            attributes[index] = opened.attributes_of_record(example)
            image = example["image"]
            yield image if fits else decoding.fit_array(image, shape[0], crop)

    skips = Skips(name, len(records))
    images = Images(len(records), shape, decode, str, skips, attributes)
    order = np.arange(len(records))
    parts = order[: opened.train_size], order[opened.train_size :]
    return RandomAccess(name, images, *parts, names, skips, tuple(opened.image_shape))


# Folders -----------------------------------------------------------------------------------------


def open_folder(
    folder: Path,
    size: int,
    crop: int | None,
    attributes: bool | None,
    strict: bool,
    keep: bool = True,
    least: int = 2,
) -> RandomAccess:
    """A folder's images by index; with `keep=False` they are decoded each time they are asked for.

    With `least=1` it may have a single one, which is held out, or be the image file itself.

    Raises:
        InputError: as `load`.
    """
    faults: list[tuple[str, str]] = []

    def sound() -> Iterable[str]:
        for name, fault in scan(folder):
            if fault is None:
                yield name
            else:
                faults.append((name, fault))

    root = str(folder)
    if is_image_file(folder):
        if least > 1:
            raise _one_image(folder)
        root, listing = str(folder.parent), Listing([folder.name])
    else:
        listing = Listing(sound())
    if not len(listing):
        raise _no_images(folder)
    skips = Skips(str(folder), len(listing) + len(faults), strict)
    names, values = ((), None) if is_image_file(folder) else _folder_attributes(folder, listing, attributes, skips)

    def decode(indices: np.ndarray) -> Iterable[np.ndarray | UnreadableError]:
        for index in indices:
            try:
                yield decoding.decode(os.path.join(root, listing[index]), size, crop)  # noqa: PTH118 (five times faster)
            except UnreadableError as error:
                yield error

    def name_of(index: int) -> str:
        return shown(listing[index])

    images = Images(len(listing), (size, size, 3), decode, name_of, skips, values, keep)
    held_out = listing.held_out
    usable = np.arange(len(listing)) if values is None else np.flatnonzero(_has_attributes(values))
    train, test = usable[~held_out[usable]], usable[held_out[usable]]
    sample = np.concatenate([test, train])[: None if strict else SAMPLE]
    with skips.sampling(len(sample)):
        for name, fault in faults:
            skips.add(shown(name), fault)
        with progress.bar(len(sample), f"reading {folder.name}", "images") as bar:
            for parcel, _ in images.in_parcels(sample):
                bar.update(len(parcel))
    train, test = images.readable(train), images.readable(test)
    if len(skips):
        logger.warning(skips.summary())
    count = len(train) + len(test)
    if not len(test) or count < least:
        held = f"{count} image{'s'[: count != 1]}" + (
            f" of {skips.total} that can be read" if skips.total > count else ""
        )
        few = "" if least == 1 else "; to learn anything takes hundreds"
        raise InputError(f"{folder} holds {held}: give at least {least}{few}")
    return RandomAccess(str(folder), images, train, test, names, skips)


def is_image_file(path: Path) -> bool:
    """Whether this is a file with an image's extension."""
    return path.suffix.lower().removeprefix(".") in decoding.EXTENSIONS and os.path.isfile(path)  # noqa: PTH113


def _one_image(path: Path) -> InputError:
    return InputError(
        f"{path} is one image: give a folder of images, of hundreds to train on; a trained model takes one with "
        f"--image: keras-vae reconstruct MODEL --image {path}"
    )


def _no_images(folder: Path) -> InputError:
    return InputError(f"{folder} holds no images: give a folder with JPEG or PNG images, in it or below it")


def _has_attributes(values: np.ndarray) -> np.ndarray:
    return (values != tables.ABSENT).all(axis=1)


def _folder_attributes(
    folder: Path, listing: Listing, wanted: bool | None, skips: Skips
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Names and values of a folder's attributes, the values only where they are wanted."""
    try:
        path = tables.find(folder)
        table = None if path is None else tables.read(path)
    except InputError as error:
        if wanted:
            raise
        logger.warning("no attributes: %s", error)
        return (), None
    if table is None:
        return _classes(listing, wanted is not False)
    if wanted is False:
        return table.names, None
    for column, value in table.ignored:
        logger.warning("column %r of %s is no attribute: it holds %r", column, table.path, value)
    matched = tables.match(table, listing)
    if matched.unused:
        head = ", ".join(matched.unused[:3])
        logger.warning("%s names %d images that are not in %s: %s", table.path, len(matched.unused), folder, head)
    for index, reason in matched.faults.items():
        skips.add(shown(listing[index]), reason, unreadable=False)
    if len(matched.faults) == len(listing):
        raise InputError(
            f"{table.path} names none of the images in {folder}: its first column has {next(iter(table.rows))!r}, an "
            f"image is called {shown(listing[0])!r}"
        )
    return table.names, matched.values


def _classes(listing: Listing, wanted: bool) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Subfolders as attributes, where there are several and every image lies in one of them."""
    found: dict[str, None] = {}
    for name in listing:
        subfolder, slash, rest = name.partition("/")
        found[subfolder] = None
        if not slash or "/" in rest or len(found) > tfds_sets.CLASSES_AT_MOST:
            return (), None
    if len(found) < 2:
        return (), None
    names = sorted(found)
    if not wanted:
        return tuple(map(shown, names)), None
    values = np.zeros((len(listing), len(names)), np.uint8)
    place = {name: index for index, name in enumerate(names)}
    for index, name in enumerate(listing):
        values[index, place[name.partition("/")[0]]] = 1
    return tuple(map(shown, names)), values
