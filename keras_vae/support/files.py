"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_vae.export.files import is_writable
from keras_vae.support.errors import InputError

ASIDE = ".aside-"  # how temporary files begin


@contextmanager
def write_aside(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well, removed when it does not.

    Args:
        path: the file to write.
        durable: whether the file is to be on the disk when the block ends, should the machine lose its power.
    """
    aside = path.with_name(f"{ASIDE}{os.getpid()}.{path.name}")  # keeps the ending, by which writers pick the format
    try:
        yield aside
        if durable:
            _sync(aside)
        aside.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # of a folder that is gone, or can no longer be written to
            aside.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Removes what processes left that were killed while they wrote in a folder, which must be in no one's use."""
    for left in folder.glob(f"{ASIDE}*"):
        left.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output_file(path: Path, endings: tuple[str, ...]) -> None:
    """Refuses, before any work, a path that cannot become a file of one of these endings.

    Raises:
        InputError: it is refused.
    """
    if path.suffix.lower() not in endings:
        raise InputError(f"{path}: name a file that ends in {' or '.join(endings)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it first")
    if not is_writable(path.absolute().parent):
        raise InputError(f"{path}: the folder {path.parent} cannot be written to")


def check_output_folder(path: Path) -> None:
    """Refuses, before any work, a path that cannot become a folder with files in it.

    Raises:
        InputError: it is refused.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: name a folder")
    parent = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not parent.is_dir() or not is_writable(parent):
        raise InputError(f"{path}: {parent} is no folder that can be written to")
