"""Random access to decoded images, each decoded once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator

import joblib
import numpy as np
import psutil

from keras_vae.data.decoding import UnreadableError
from keras_vae.data.skips import Skips

# Decoded images are kept in memory up to this share of what is free when they are loaded, else in a file that takes
# up to this share of the free disk.
SHARE = 0.5
UNREAD, READ, UNREADABLE = 0, 1, 2
PARCEL = 64  # images that a thread reads at a time


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
        """Images that are there already: uint8 (count, height, width, channels)."""
        images = cls.__new__(cls)
        images.shape = pixels.shape[1:]
        images.attributes = attributes
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
        """Those of the indices that were not found unreadable so far."""
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
