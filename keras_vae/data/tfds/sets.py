"""TensorFlow Datasets sets as a source: `tfds:NAME`, or the folder of a prepared set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import tensorflow as tf

from keras_vae.data import tables
from keras_vae.data.image_files import fit_array, held_out_of
from keras_vae.data.images import Images, Skips
from keras_vae.data.pipelines import CORES, Examples, Indexed, cached
from keras_vae.data.sources import Named, Opened, Request, Source, fitted, is_named, output_shape
from keras_vae.data.tfds import builders
from keras_vae.support.errors import InputError

PREFIX = "tfds:"


def is_name(source: Source) -> TypeGuard[Named]:
    """Whether it is `tfds:` and a name."""
    return is_named(source) and str(source).startswith(PREFIX)


def takes(source: Source) -> bool:
    """Whether it is such a name, or the folder of a prepared set."""
    return is_name(source) or (is_named(source) and _is_prepared_folder(Path(source)))


def check(source: Named, image_size: int | None) -> None:
    """Refuses a name whose set is neither prepared nor can be.

    Raises:
        InputError: it is refused.
    """
    if is_name(source):
        builders.check(builders.find(_name(source).builder))


def open(source: Named, request: Request) -> Opened:
    """Opens a set, which is downloaded and prepared at the first use.

    Raises:
        InputError: there is no such set or split, it cannot be downloaded, is damaged, or holds no images.
    """
    if not is_name(source):
        return open_builder(str(source), builders.from_folder(Path(source)), request)
    name = _name(source)
    builder = builders.find(name.builder)
    check_names(str(source), builder, request)
    builders.prepare(builder)
    return open_builder(str(source), builder, request, name.split)


def check_names(name: str, builder: Any, request: Request) -> None:
    """Refuses a set that lacks the attributes or classes that are asked for, before it is downloaded or drawn.

    Raises:
        InputError: it lacks them.
    """
    features = _features(builder)
    if getattr(features.get("label"), "num_classes", 0) is not None:  # some labels are unknown until a set is prepared
        request.condition_of(name, *_names(features))


def open_builder(name: str, builder: Any, request: Request, split: str | None = None) -> Opened:
    """Opens a prepared set.

    Args:
        name: the source, for messages.
        builder: of the set.
        request: how the images are wanted.
        split: what is taken of the set; None for all.

    Raises:
        InputError: it holds no images, or no such split.
    """
    images = ImageSet.of(name, builder, split)
    shape = output_shape(name, images.image_shape, request.image_size)
    skips = Skips(name, images.train_size + images.test_size)
    parts = _by_index if images.random_access else _in_sequence
    train, test = parts(images, shape, request.crop, skips)
    names, own_shape = images.attribute_names, tuple(images.image_shape)
    return Opened(name, shape, train, test, skips, names, own_shape, images.exclusive)


def _name(source: Named) -> builders.Name:
    return builders.Name.parse(str(source).removeprefix(PREFIX))


def _is_prepared_folder(folder: Path) -> bool:
    try:
        return (folder / "dataset_info.json").is_file()
    except OSError:  # an unreadable folder: listing its images says more
        return False


def _in_sequence(
    images: ImageSet, shape: tuple[int, int, int], crop: int | None, skips: Skips
) -> tuple[Examples, Examples]:
    """Both parts of a set whose images can only be read one after the other."""

    def prepare(example: dict[str, Any]) -> dict[str, tf.Tensor]:
        prepared = fitted(example["image"], images.image_shape, shape, crop)
        return prepared | {"attributes": images.attributes(example)} if images.attribute_names else prepared

    def part(examples: tf.data.Dataset, count: int) -> Examples:
        return Examples(examples.map(prepare, num_parallel_calls=CORES), count, shape)

    return cached(part(images.train(), images.train_size), part(images.test(), images.test_size))


def _by_index(images: ImageSet, shape: tuple[int, int, int], crop: int | None, skips: Skips) -> tuple[Indexed, Indexed]:
    """Both parts of a set stored as ArrayRecord."""
    records = images.records()
    attributes = np.zeros((len(records), len(images.attribute_names)), np.uint8)
    fits = images.image_shape == shape and crop is None

    def decode(indices: np.ndarray) -> Iterable[np.ndarray]:
        for index, example in zip(indices, records[indices], strict=True):
            attributes[index] = images.attributes_of_record(example)
            image = example["image"]
            yield image if fits else fit_array(image, shape[0], crop)

    stored = Images(len(records), shape, decode, str, skips, attributes)
    order = np.arange(len(records))
    return Indexed(stored, order[: images.train_size]), Indexed(stored, order[images.train_size :])


@dataclass(frozen=True)
class ImageSet:
    """A prepared set of images: what it holds, and its two parts.

    Attributes:
        builder: of the set.
        split: what is taken of it, or None for all.
        image_shape: (height, width, channels), None where it varies.
        attribute_names: names of the 0/1 attributes, or of the classes.
        exclusive: whether they are classes.
        train_size, test_size: number of images.
    """

    builder: Any
    split: str | None
    image_shape: tuple[int | None, ...]
    attribute_names: tuple[str, ...]
    exclusive: bool
    train_size: int
    test_size: int

    @classmethod
    def of(cls, name: str, builder: Any, split: str | None) -> ImageSet:
        """Looks at a prepared set.

        Raises:
            InputError: it holds no images, or no such split.
        """
        features = _features(builder)
        shape: tuple[int | None, ...] = features["image"].shape if "image" in features else ()
        if len(shape) != 3 or shape[2] not in (1, 3) or features["image"].np_dtype != np.uint8:
            raise InputError(
                f"{name} has no feature `image` of 1 or 3 channels: its features are {', '.join(features) or 'unnamed'}"
            )
        return cls(builder, split, shape, *_names(features), *_sizes(name, builder, split))

    @property
    def random_access(self) -> bool:
        """Whether images can be had by index: in sets stored as ArrayRecord."""
        return self.builder.info.file_format is not None and self.builder.info.file_format.value == "array_record"

    def attributes(self, example: dict[str, Any]) -> tf.Tensor:
        """uint8 (attributes,) of an example."""
        if "attributes" in example:
            return tf.stack([tf.cast(example["attributes"][key], tf.uint8) for key in self.attribute_names])
        return tf.one_hot(example["label"], len(self.attribute_names), dtype=tf.uint8)

    def attributes_of_record(self, example: dict[str, Any]) -> np.ndarray:
        """uint8 (attributes,) of a record."""
        if "attributes" in example:
            return np.array([example["attributes"][key] for key in self.attribute_names], np.uint8)
        if not self.attribute_names:
            return np.empty((0,), np.uint8)
        return np.eye(len(self.attribute_names), dtype=np.uint8)[example["label"]]

    def train(self) -> tf.data.Dataset:
        """Training examples, in their order."""
        return self._examples().take(self.train_size) if self._halved else self._examples("train")

    def test(self) -> tf.data.Dataset:
        """Held-out examples, in their order."""
        return self._examples().skip(self.train_size) if self._halved else self._examples(_held_out(self.builder))

    def records(self) -> Records:
        """All images by index, the training images first."""
        splits = [self.split or "train"] if self._halved else ["train", str(_held_out(self.builder))]
        return Records([self.builder.as_data_source(split) for split in splits])

    @property
    def _halved(self) -> bool:
        """Whether both parts come from one split."""
        return self.split is not None or _held_out(self.builder) is None

    def _examples(self, split: str | None = None) -> tf.data.Dataset:
        return self.builder.as_dataset(split=split or self.split or "train", shuffle_files=False)


class Records:
    """Examples of several data sources by index."""

    def __init__(self, sources: list[Any]) -> None:
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, indices: np.ndarray) -> list[dict[str, Any]]:
        found: list[Any] = [None] * len(indices)
        which = np.searchsorted(self._ends, indices, "right")
        for number, source in enumerate(self._sources):
            places = np.flatnonzero(which == number)
            if len(places):
                first = self._ends[number] - len(source)
                for place, example in zip(places, source.__getitems__((indices[places] - first).tolist()), strict=True):
                    found[place] = example
        return found


def _features(builder: Any) -> dict[str, Any]:
    return dict(getattr(builder.info.features, "items", tuple)())


def _names(features: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """Names of the attributes, or of the classes, and whether they are classes."""
    if "attributes" in features:
        return tuple(sorted(features["attributes"])), False  # TFDS writes them into a file in no order
    return _classes(features.get("label")), True


def _classes(label: Any) -> tuple[str, ...]:
    """Classes as attributes; labels without names are numbered."""
    import tensorflow_datasets as tfds

    if not isinstance(label, tfds.features.ClassLabel) or not 2 <= (label.num_classes or 0) <= tables.CLASSES_AT_MOST:
        return ()
    return tuple(label.names)


def _held_out(builder: Any) -> str | None:
    return next((split for split in ("test", "validation") if split in builder.info.splits), None)


def _sizes(name: str, builder: Any, split: str | None) -> tuple[int, int]:
    splits = builder.info.splits
    held_out = _held_out(builder)
    if split is None and "train" not in splits:
        raise InputError(
            f"{name} has no train split: name one of its own, {', '.join(splits) or 'none'}, as in {name}:SPLIT"
        )
    if split is None and held_out is not None:
        return splits["train"].num_examples, splits[held_out].num_examples
    try:
        count = splits[split or "train"].num_examples
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{name}: no split {split!r}; it has {', '.join(splits)}, or parts such as train[:10%]"
        ) from error
    if count < 2:
        raise InputError(f"{name} holds {count} images: give at least 2, one of them to hold out")
    test_size = held_out_of(count)
    return count - test_size, test_size
