"""Which images a folder holds, kept small enough for millions of names."""

from __future__ import annotations

import hashlib
import heapq
import mmap
import os
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from keras_vae.data.decoding import EXTENSIONS
from keras_vae.support.errors import InputError

HELD_OUT_PERCENT = 10


class Listing(Sequence[str]):
    """Names in the order of their hashes, and which of them are held out.

    The order is the same wherever the same files lie, and a random sample of a listing is its beginning. Names are
    kept in an unnamed temporary file that the system holds in memory as it sees fit; 17 bytes a name stay in memory.

    Attributes:
        held_out: bool (count,), by a hash of the name, so that adding files never moves one.
    """

    def __init__(self, names: Iterable[str]) -> None:
        ends, keys, parts = array("Q", [0]), array("Q"), array("B")
        with tempfile.TemporaryFile() as file:
            end = 0
            for name in names:
                encoded = os.fsencode(name)
                file.write(encoded)
                end += len(encoded)
                ends.append(end)
                digest = hashlib.sha256(encoded).digest()
                parts.append(int.from_bytes(digest[:4]) % 100 < HELD_OUT_PERCENT)
                keys.append(int.from_bytes(digest[4:12]))
            file.flush()
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if end else b""
        self._ends = np.frombuffer(ends, np.uint64)
        self._order = np.argsort(np.frombuffer(keys, np.uint64), kind="stable")
        held_out = np.frombuffer(parts, bool)[self._order]
        if len(held_out) and (held_out.all() or not held_out.any()):  # a handful, where chance left one side empty
            held_out = np.arange(len(held_out)) == 0
        self.held_out = held_out

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = self._order[index]
        return os.fsdecode(self._text[int(self._ends[place]) : int(self._ends[place + 1])])


def scan(folder: Path) -> Iterator[tuple[str, str | None]]:
    """The images in a folder and below it: each one's path from there, and why it cannot be read, where that is plain.

    Hidden files and files without an image's extension are passed over. Links are followed, each folder once.

    Raises:
        InputError: the folder is none.
    """
    if not os.path.lexists(folder):
        also = f"; for a TFDS set give tfds:{folder}" if re.fullmatch(r"[a-z][a-z0-9_/]*", str(folder)) else ""
        raise InputError(
            f"unknown data source {str(folder)!r}: it is no folder here, and neither 'avatars' nor tfds:NAME{also}"
        )
    if not os.path.isdir(folder):  # noqa: PTH112 (Path's raises where the parent cannot be read)
        raise InputError(f"{folder} is a file: give the folder that holds the images, or an .npy or .npz file")
    folders, links, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or links:
        # Links last and in order, so that a folder that also lies here itself goes by its own name.
        below = folders.pop() if folders else heapq.heappop(links)
        try:
            status = (folder / below).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    name = f"{below}{entry.name}"
                    if entry.name.startswith("."):
                        continue
                    if _is_dir(entry):
                        if entry.is_symlink():
                            heapq.heappush(links, f"{name}/")
                        else:
                            folders.append(f"{name}/")
                    elif entry.name.rpartition(".")[2].lower() in EXTENSIONS:
                        yield name, _fault(entry)
        except OSError as error:
            if not below:
                raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
            yield below, f"whole folder that cannot be read ({error.strerror})"


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _fault(entry: os.DirEntry[str]) -> str | None:
    try:
        if entry.is_file():
            return None
    except OSError:
        return "broken link"
    return "broken link" if entry.is_symlink() else "not a regular file"  # opening a pipe would wait for ever


def held_out_of(count: int) -> int:
    """How many of a number of images in a fixed order are held out: the last tenth, and one at least."""
    return max(1, count * HELD_OUT_PERCENT // 100)


def shown(name: str) -> str:
    """A file's name as any terminal can print it."""
    return os.fsencode(name).decode("utf-8", "replace")
