"""TensorFlow Datasets sets by name: found, prepared where they can be, and read as examples."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow as tf

from keras_vae.data.listing import held_out_of
from keras_vae.support import hosts
from keras_vae.support.errors import InputError

CLASSES_AT_MOST = 1000  # labels or subfolders of more classes are names, not attributes
# Debian's package dataset-fashion-mnist holds the files that TFDS downloads, without the name and time in their heads.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_TIMES = {
    "train-images-idx3-ubyte": 1504176606,
    "train-labels-idx1-ubyte": 1504176606,
    "t10k-images-idx3-ubyte": 1504176627,
    "t10k-labels-idx1-ubyte": 1504176627,
}


@dataclass(frozen=True)
class Name:
    """What follows `tfds:`, as NAME[/CONFIG][:VERSION][:SPLIT]."""

    builder: str
    split: str | None

    @classmethod
    def parse(cls, text: str) -> Name:
        """Takes a name apart.

        Raises:
            InputError: it is empty.
        """
        builder, *rest = text.split(":", 1)
        if not builder:
            raise InputError("tfds: names no set: give tfds:NAME, as in tfds:mnist")
        if rest and (version := re.fullmatch(r"(\d+\.[\d*]+\.[\d*]+)(?::(.*))?", rest[0])):
            return cls(f"{builder}:{version[1]}", version[2] or None)
        return cls(builder, rest[0] if rest and rest[0] else None)


def find(name: str) -> Any:
    """The builder of a set by NAME[/CONFIG][:VERSION], prepared or not.

    Raises:
        InputError: there is none of that name.
    """
    import tensorflow_datasets as tfds

    from keras_vae.data import avatars  # noqa: F401 (registers tfds:avatars)

    try:
        with tidy():
            return _described(tfds.builder(name))
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(
            re.split("[/:]", name)[0], tfds.list_builders(with_community_datasets=False), 3
        )
        hint = f"did you mean {' or '.join(near)}?" if near else "`tfds.list_builders()` names those there are"
        raise InputError(f"unknown TFDS set {name!r}: {hint}") from error
    except (ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"tfds:{name}: {' '.join(str(error).split())[:300]}") from error


def from_folder(folder: Path) -> Any:
    """The builder of a prepared set in a folder of its own.

    Raises:
        InputError: it is damaged.
    """
    import tensorflow_datasets as tfds

    try:
        with tidy():
            return tfds.builder_from_directory(folder)
    except Exception as error:  # whatever parsing a damaged description raises
        raise InputError(f"{folder} is a damaged TFDS set: {str(error).splitlines()[0]}") from error


def is_prepared(builder: Any) -> bool:
    """Whether a set lies ready in the data folder."""
    # TFDS warns of a folder that does not exist as of a damaged one.
    return builder.data_path.exists() and builder.is_prepared()


def check(builder: Any) -> None:
    """Refuses a set that is neither prepared nor can be: TFDS itself would try for minutes to reach a silent host.

    Raises:
        InputError: its files cannot be had.
    """
    if is_prepared(builder) or _local_files(builder) is not None:
        return
    where = (
        f"run `tfds build {builder.name}` where there is a network, or set TFDS_DATA_DIR to the folder that holds it"
    )
    missing = f"tfds:{builder.name} is not prepared under {builder.data_path.parent}"
    if not callable(getattr(builder, "_generate_examples", None)):
        raise InputError(f"{missing}: {where}")
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise InputError(
            f"{missing}, and its files must be fetched by hand (see {builder.info.homepage}): then {where}"
        )
    silent = _silent_hosts(builder)
    if silent:
        raise InputError(f"{missing}, and {', '.join(silent)} cannot be reached: {where}")


def prepare(builder: Any) -> None:
    """Downloads and writes a set, showing progress; does nothing where that is done.

    Raises:
        InputError: its files cannot be had, or the data folder cannot be written to.
    """
    import tensorflow_datasets as tfds

    if is_prepared(builder):
        return
    check(builder)
    print(f"preparing tfds:{builder.name}, once, into {builder.data_path}")
    try:
        with _as_downloaded(_local_files(builder)) as manual_dir:
            config = tfds.download.DownloadConfig(manual_dir=manual_dir)
            with quiet(progress=builder.name != "avatars"):  # that builder shows its own
                builder.download_and_prepare(download_config=config)
    except OSError as error:
        raise InputError(
            f"cannot prepare tfds:{builder.name} in {builder.data_path}: {error.strerror or error}; set TFDS_DATA_DIR "
            "to a folder that can be written to"
        ) from error
    except (tfds.download.DownloadError, tfds.download.NonMatchingChecksumError) as error:
        raise InputError(
            f"cannot download tfds:{builder.name}: {str(error).splitlines()[0]}; try again later"
        ) from error


@dataclass(frozen=True)
class Opened:
    """A prepared set of images: what it holds, and its two parts.

    Attributes:
        builder: of the set.
        split: what is taken of it, or None for all.
        image_shape: (height, width, channels), None where it varies.
        attribute_names: names of the 0/1 attributes, or of the classes.
        train_size, test_size: number of images.
    """

    builder: Any
    split: str | None
    image_shape: tuple[int | None, ...]
    attribute_names: tuple[str, ...]
    train_size: int
    test_size: int

    @classmethod
    def of(cls, name: str, builder: Any, split: str | None) -> Opened:
        """Looks at a prepared set.

        Raises:
            InputError: it holds no images, or no such split.
        """
        features = dict(getattr(builder.info.features, "items", tuple)())
        shape: tuple[int | None, ...] = features["image"].shape if "image" in features else ()
        if len(shape) != 3 or shape[2] not in (1, 3) or features["image"].np_dtype != np.uint8:
            raise InputError(
                f"{name} has no feature `image` of 1 or 3 channels: its features are {', '.join(features) or 'unnamed'}"
            )
        # Sorted, for TFDS writes them into a file in no order.
        names = tuple(sorted(features["attributes"])) if "attributes" in features else _classes(features.get("label"))
        sizes = _sizes(name, builder, split)
        return cls(builder, split, shape, names, *sizes)

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


def _classes(label: Any) -> tuple[str, ...]:
    """Classes as attributes; labels without names are numbered."""
    import tensorflow_datasets as tfds

    if not isinstance(label, tfds.features.ClassLabel) or not 2 <= (label.num_classes or 0) <= CLASSES_AT_MOST:
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


def _silent_hosts(builder: Any) -> list[str]:
    """Hosts of the set's files that do not answer."""
    by_host = {url.split("/")[2]: url for url in builder.url_infos or () if url.startswith("http")}
    failures = hosts.silent(by_host.values())
    return sorted(host for host, url in by_host.items() if url in failures)


def _local_files(builder: Any) -> Path | None:
    if builder.name == "fashion_mnist" and DEBIAN_FASHION_MNIST.is_dir():
        return DEBIAN_FASHION_MNIST
    return None


@contextlib.contextmanager
def _as_downloaded(folder: Path | None) -> Iterator[str | None]:
    """Debian's files of Fashion-MNIST as TFDS's checksums know them: with the original's name and time in each head."""
    if folder is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as rebuilt:
        for name, time in FASHION_MNIST_TIMES.items():
            packed = (folder / f"{name}.gz").read_bytes()
            head = b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + packed[8:10] + name.encode() + b"\0"
            (Path(rebuilt) / f"{name}.gz").write_bytes(head + packed[10:])
        yield rebuilt


def _described(builder: Any) -> Any:
    builder.info  # noqa: B018 (made at the first look)
    return builder


@contextlib.contextmanager
def quiet(progress: bool = True) -> Iterator[None]:
    """Without TFDS's banners, and without its progress bars where they cannot be redrawn or are not wanted."""
    import tensorflow_datasets as tfds

    tfds.display_progress_bar(progress and sys.stderr.isatty())
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(True)
        absl.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """Takes away the empty temporary folder that TFDS leaves behind for each builder it describes."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
