"""Putting artifacts in place so that a reader never meets half of one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_vae.export.errors import ExportError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"


def is_writable(folder: Path) -> bool:
    """Whether files and folders can be made in a folder."""
    try:  # permissions alone do not tell: some file systems refuse even their owner
        with tempfile.TemporaryDirectory(dir=folder):
            return True
    except OSError:
        return False


def check_parent(path: Path) -> None:
    """Refuses a path that cannot be made.

    Raises:
        ExportError: the nearest folder that there is cannot be written to.
    """
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not is_writable(parent):
        raise ExportError(f"cannot write {path}: {parent} is not a folder that can be written to")


@contextmanager
def aside(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """A place for a new artifact on the disk of its target, gone afterwards if it was not moved.

    Args:
        path: the target, whose folder is made where there is none.
        beside: the folder to make that place in; by default the target's own.
    """
    parent, prefix = beside or path.absolute().parent, f".{path.name}."
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        raise ExportError(f"cannot write {path} ({error.strerror}): choose another place") from error
    with (folder / LOCK).open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "new").mkdir()
        try:
            yield folder / "new" / path.name
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path, prefix: str) -> None:
    """Removes what exports left that were killed: the system has dropped the locks of those."""
    for folder in parent.glob(f"{prefix}*") if fcntl is not None else ():
        with contextlib.suppress(OSError), (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where one is under way
            shutil.rmtree(folder)


def replace(new: Path, path: Path) -> None:
    """Puts a new artifact in the old one's place, so that at every moment one of the two is there, whole."""
    for companion in new.parent.iterdir():  # OpenVINO's weights: the file that says their sum comes last
        if companion != new:
            companion.replace(path.with_name(companion.name))
    if not path.is_dir():
        new.replace(path)
    elif not _exchange(new, path):  # the old folder steps aside for a moment
        old = new.with_name("old")
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise


def _exchange(new: Path, path: Path) -> bool:
    """Exchanges two paths in one step, as Linux does (renameat2); whether it could."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    at_current_folder, exchange = -100, 2
    return renameat2(at_current_folder, os.fsencode(new), at_current_folder, os.fsencode(path), exchange) == 0
