"""`keras_vae.data.load`: a folder, a name, a file, an array or a dataset as tf.data pipelines of image batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import tensorflow as tf

from keras_vae.data import arrays, avatars, datasets, folders, pipelines
from keras_vae.data.images import Skips
from keras_vae.data.sources import DEFAULT_SIZE, Kind, Request, Source, is_named
from keras_vae.data.tfds import sets
from keras_vae.support.conditions import Condition
from keras_vae.support.errors import InputError, check_count

# The first that takes a source opens it; whatever none of the others takes is a folder.
KINDS: tuple[Kind, ...] = (arrays, datasets, avatars, sets, folders)
FIRST = 64  # images at a time of `ImageData.first`


@dataclass(frozen=True)
class ImageData:
    """Two pipelines of image batches and what is known about them.

    Attributes:
        name: the source, as it was given.
        image_shape: (height, width, channels).
        train: batches, float32 (batch_size, height, width, channels) in [0, 1], reshuffled each epoch; an epoch has
            full batches only, and the images left over take their turn in another. uint8 with `scaled=False`.
        test: the held-out images in a fixed order; the last batch may be smaller.
        train_size, test_size: number of images, less those found unreadable when the source was loaded, which of a
            folder reads the first 4,096. Others are found in the first epoch, and other images take their places.
        attribute_names: names of the 0/1 attributes; with `attributes=True` a batch is
            `{"image": ..., "attributes": uint8 (batch, len(attribute_names))}`.
        condition: what the images can be asked for by, as `keras_vae.VAE` takes it, or None; a batch then has
            `"condition"` too, float32 (batch, len(condition)).
        skips: images of the source that are not used, and why; it fills as they are read.
        train_from: gives training batches without end from a step on, counted from 0. They depend on the seed and that
            step alone, so that a resumed run sees the batches it would have seen.
        first: gives so many training images, those of the first epochs in their order, in batches of 64: all of them,
            to each process, where several share the batches of training.
        named: gives all images of the source once, those to train on first, some at a time with their names.
        own_shape: the images' shape before cropping and resizing; None where each has its own.
    """

    name: str
    image_shape: tuple[int, int, int]
    train: tf.data.Dataset
    test: tf.data.Dataset
    train_size: int
    test_size: int
    attribute_names: tuple[str, ...]
    skips: Skips
    train_from: Callable[[int], tf.data.Dataset]
    first: Callable[[int], tf.data.Dataset]
    named: Callable[[], Iterator[pipelines.NamedImages]]
    own_shape: tuple[int | None, ...] | None = None
    condition: Condition | None = None


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
    scaled: bool = True,
    condition: str | Sequence[str] | None = None,
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
        crop: pixels a side of the centred square that is cut out before resizing; by default, and where an image is
            smaller, the largest that fits.
        flip: mirror half of the training images, drawn anew each epoch.
        random_crop: shift each training image by up to this many pixels in each direction, mirroring its edges.
        strict: refuse a source of which any image would be skipped; reads all of a folder first.
        share: the replicas of distributed training that this process makes batches for; an element of the pipelines is
            then one replica's rows of a batch.
        only_held_out: whether only held-out images are needed. There may then be none to train on: the source may be
            one image file, or a folder with one image in it.
        scaled: whether training images are float32 in [0, 1]; else uint8, which `fit` scales on its device: a quarter
            of the bytes to copy to a GPU.
        condition: what a conditional model is told of the images: "label" for their class, names of attributes, or
            "all" for whichever the source has.

    Raises:
        InputError: the source is unknown, unavailable, empty or holds no images, more than a tenth of it is
            unreadable, it has fewer training images than a batch, or an argument is out of range.
    """
    _check_arguments(source, image_size, batch_size)
    if crop is not None:
        check_count("crop", crop)
    if random_crop:
        check_count("random_crop", random_crop)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r}: give a whole number of at least 0")
    if crop is not None and image_size is None:
        image_size = DEFAULT_SIZE
    wanted = attributes if condition is None else True
    request = Request(image_size, crop, wanted, strict, only_held_out, condition)
    opened = kind_of(source).open(source, request)
    known = request.condition_of(opened.name, opened.attribute_names, opened.exclusive)
    name, train_size = opened.name, len(opened.train)
    smallest = min(opened.image_shape[:2])
    if not 0 <= random_crop < smallest:
        raise InputError(f"random_crop={random_crop}: give 0 or more pixels, fewer than the images' {smallest}")
    if train_size < batch_size and not only_held_out:
        raise InputError(
            f"batch size {batch_size} is larger than the {train_size} training images of {name}: "
            f"give one (--batch-size) of at most {train_size}"
        )
    if batch_size % share.replicas:
        raise InputError(f"batch size {batch_size} cannot be shared among {share.replicas} replicas: give a multiple")
    attributes = bool(opened.attribute_names) if attributes is None else attributes
    asked = None
    if known is not None:
        asked = tuple(opened.attribute_names.index(each) for each in known.names), known.exclusive
    batches = pipelines.Batches(batch_size, attributes, seed, flip, random_crop, share, scaled, asked)
    epoch, test = opened.train.shuffled(batches), opened.test.in_order(batches)
    steps = train_size // batch_size
    alone = replace(batches, share=pipelines.ALONE)
    return ImageData(
        name=name,
        image_shape=opened.image_shape,
        train=pipelines.epochs(epoch, steps, batches) if steps else test.take(0),
        test=test,
        train_size=train_size,
        test_size=len(opened.test),
        attribute_names=opened.attribute_names,
        skips=opened.skips,
        train_from=lambda step: pipelines.continued(epoch, steps, batches, step),
        first=lambda count: (
            pipelines.continued(opened.train.shuffled(alone), steps, alone, 0).unbatch().take(count).batch(FIRST)
        ),
        named=lambda: itertools.chain(
            opened.train.named(), (each._replace(held_out=True) for each in opened.test.named())
        ),
        own_shape=opened.own_shape,
        condition=known,
    )


def check(source: Source, image_size: int | None = None, batch_size: int = 64) -> None:
    """Refuses what `load` would refuse, as far as that shows without reading the images.

    Raises:
        InputError: as `load`.
    """
    _check_arguments(source, image_size, batch_size)
    kind_of(source).check(source, image_size)


def kind_of(source: Source) -> Kind:
    """The module that opens a source."""
    return next(kind for kind in KINDS if kind.takes(source))


def folder_of(source: str) -> Path | None:
    """The folder or file that a source names; None where it names a data set."""
    return None if avatars.takes(source) or sets.is_name(source) else Path(source)


def check_outside(out: Path, source: str) -> None:
    """Refuses an output inside the folder that a source names.

    Raises:
        InputError: it lies there.
    """
    folder = folder_of(source)
    if folder is not None and out.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{out} lies in the data folder {folder}, whose images it would join: give --out elsewhere")


def _check_arguments(source: Source, image_size: int | None, batch_size: int) -> None:
    check_count("batch_size", batch_size)
    if image_size is not None:
        check_count("image_size", image_size)
        batch = 4 * 3 * batch_size * image_size**2
        if 4 * batch > psutil.virtual_memory().available:  # several batches are in flight at a time
            raise InputError(
                f"image_size={image_size}: a batch of {batch_size} takes {batch / 1e9:.3g} GB, too much for the free "
                "memory: give a smaller one, or smaller batches"
            )
    if is_named(source):
        if not str(source):
            raise InputError("the source is empty: give a folder, 'avatars' or tfds:NAME")
    elif not arrays.takes(source) and not datasets.takes(source):
        raise InputError(f"source {source!r}: give a folder, a name such as 'avatars', an array or a tf.data.Dataset")
