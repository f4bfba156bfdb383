"""Images by index, each decoded once and then kept; and `Skips`, which counts those that cannot be used."""

from __future__ import annotations

import collections
import contextlib
import csv
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import joblib
import numpy as np
import psutil

from keras_vae.data.image_files import UnreadableError
from keras_vae.support.errors import InputError

# Decoded images are kept in memory up to this share of what is free when they are loaded, else in a file that takes
# up to this share of the free disk.
SHARE = 0.5
UNREAD, READ, UNREADABLE = 0, 1, 2
PARCEL = 64  # images that a thread reads at a time
LIMIT = 0.1  # share of a source's images that may be unreadable
NAMED = 1000  # for each reason, so that memory stays bounded
HEAD = 3


class Images:
    """Images by index, decoded when they are first asked for, in as many threads as ask.

    What is decoded is kept in memory where all would fit there, else in an unnamed temporary file, else not at all.

    Args:
        count: number of images.
        shape: (height, width, channels).
        decode: gives for some indices each one's uint8 image, or why it has none.
        name: gives the name of an index, for those that are skipped.
        skips: counts what cannot be decoded.
        attributes: uint8 (count, attributes) of 0 and 1, filled at the latest when the image is decoded, or None.
        keep: whether decoded images are kept.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int],
        decode: Callable[[np.ndarray], Iterable[np.ndarray | UnreadableError]],
        name: Callable[[int], str],
        skips: Skips,
        attributes: np.ndarray | None = None,
        keep: bool = True,
    ) -> None:
        self.shape = shape
        self.attributes = attributes
        self._decode = decode
        self.name = name
        self._skips = skips
        self._state = np.full(count, UNREAD, np.uint8)
        self._kept = _room((count, *shape)) if keep else None

    @classmethod
    def of_array(cls, pixels: np.ndarray, attributes: np.ndarray | None = None) -> Images:
        """Images that are decoded already: uint8 (count, height, width, channels)."""
        images = cls.__new__(cls)
        images.shape = pixels.shape[1:]
        images.attributes = attributes
        images.name = str
        images._state = np.full(len(pixels), READ, np.uint8)
        images._kept = pixels
        return images

    def __len__(self) -> int:
        return len(self._state)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The images of these indices that can be read, uint8 (k, height, width, channels), and which k they are.

        Raises:
            InputError: too many cannot be read.
        """
        unread = indices[self._state[indices] == UNREAD]
        decoded = dict(zip(unread.tolist(), self._decode(unread), strict=True)) if len(unread) else {}
        for index, image in decoded.items():
            if isinstance(image, UnreadableError):
                if self._state[index] != UNREADABLE:  # another thread may have met it too
                    self._state[index] = UNREADABLE
                    self._skips.add(self.name(index), str(image))
            elif self._kept is not None:
                self._kept[index] = image
                self._state[index] = READ
        good = self.readable(indices)
        if self._kept is not None:
            return self._kept[good], good
        pixels = [decoded[index] for index in good.tolist()]
        return np.stack(pixels) if pixels else np.empty((0, *self.shape), np.uint8), good

    def in_parcels(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
        """Reads on all cores: some of the indices at a time, in their order, each with what `read` returns.

        Raises:
            InputError: as `read`.
        """
        parcels = [indices[start : start + PARCEL] for start in range(0, len(indices), PARCEL)]
        reading = joblib.Parallel(n_jobs=-1, prefer="threads", return_as="generator")
        yield from zip(parcels, reading(joblib.delayed(self.read)(parcel) for parcel in parcels), strict=True)

    def readable(self, indices: np.ndarray) -> np.ndarray:
        """The indices less those found unreadable so far."""
        return indices[self._state[indices] != UNREADABLE]


def fits_in_memory(size: int) -> bool:
    """Whether so many bytes may be kept in memory."""
    return size <= SHARE * psutil.virtual_memory().available


def fits_on_disk(size: int) -> bool:
    """Whether so many bytes may be kept in temporary files."""
    return size <= SHARE * shutil.disk_usage(tempfile.gettempdir()).free


def _room(shape: tuple[int, ...]) -> np.ndarray | None:
    size = int(np.prod(shape, dtype=np.int64))
    if fits_in_memory(size):
        return np.zeros(shape, np.uint8)  # memory is taken as it is written to
    if not fits_on_disk(size):
        return None
    with tempfile.TemporaryFile() as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a disk that fills up later would end the process
        else:
            file.truncate(size)
        return np.memmap(file, np.uint8, "r+", shape=shape)


class Skips:
    """What was skipped of a source.

    Attributes:
        source: its name.
        total: how many images it lists.
        strict: the first skip is an error.
        reasons: how many were skipped for each reason.
        files: the first thousand of each reason, as (name, reason).
        error: what ended the reading, for callers that only see TensorFlow or TFDS fail.
    """

    def __init__(self, source: str, total: int, strict: bool = False) -> None:
        self.source = source
        self.total = total
        self.strict = strict
        self.reasons: collections.Counter[str] = collections.Counter()
        self.files: list[tuple[str, str]] = []
        self.unreadable = 0
        self._sampling = False
        self.error: InputError | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{self.summary()}>"

    def __len__(self) -> int:
        return self.reasons.total()

    def add(self, name: str, reason: str, unreadable: bool = True) -> None:
        """Counts an image; up to a tenth of all may be unreadable.

        Raises:
            InputError: the source is strict, or more than a tenth of all images is unreadable.
        """
        with self._lock:
            self.reasons[reason] += 1
            self.unreadable += unreadable
            if self.reasons[reason] <= NAMED:
                self.files.append((name, reason))
            if self.strict:
                raise self._fail(f"{self.source}: {name} is skipped ({reason}), and nothing may be in strict reading")
            if self.unreadable > LIMIT * self.total and not self._sampling:
                raise self._fail_of(self.unreadable, self.total)

    @contextlib.contextmanager
    def sampling(self, size: int) -> Iterator[None]:
        """A block in which a sample of this size is read, to refuse a source early.

        Raises:
            InputError: more than a tenth of the sample was unreadable; all of the block's skips are counted first.
        """
        before, self._sampling = self.unreadable, True
        yield
        self._sampling = False
        if self.unreadable > LIMIT * self.total:
            raise self._fail_of(self.unreadable, self.total)
        if self.unreadable - before > LIMIT * size:
            raise self._fail_of(self.unreadable - before, size)

    def summary(self) -> str:
        """A line such as "skipped 3 of 100 images of faces: 2 truncated (a.jpg, b.jpg), 1 empty file (c.jpg)"."""
        if not len(self):
            return f"nothing skipped of {self.total} images of {self.source}"
        parts = []
        for reason, count in self.reasons.most_common():
            named = [name for name, why in self.files if why == reason][:HEAD]
            parts.append(f"{count} {reason} ({', '.join(named)}{', ...' if count > len(named) else ''})")
        return f"skipped {len(self)} of {self.total} images of {self.source}: " + ", ".join(parts)

    def write(self, path: Path) -> None:
        """Writes `files` as a CSV file with the columns file and reason."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("file", "reason"))
            writer.writerows(self.files)

    def _fail_of(self, unreadable: int, read: int) -> InputError:
        head = ", ".join(f"{name} ({reason})" for name, reason in self.files[:HEAD])
        return self._fail(
            f"{self.source}: {unreadable} of {read} images cannot be read, more than {LIMIT:.0%}: {head}; "
            "remove them, or give another source"
        )

    def _fail(self, message: str) -> InputError:
        self.error = InputError(message)
        return self.error
