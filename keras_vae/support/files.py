"""Writing files and folders so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_vae.support.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ASIDE = ".aside-"  # how the names of temporary folders begin
LOCK = "lock"


@contextmanager
def write_aside(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path that replaces `path` if the block succeeds, and is removed if it does not.

    Args:
        path: the file to write, in a folder that exists.
        durable: whether the file must be on the disk when the block ends, in case the machine loses power.
    """
    with aside(path) as new:
        yield new
        if durable:
            _sync(new)
        replace(new, path)
        if durable:
            _sync(path.parent)


def write_json(path: Path, value: Any, indent: int = 2) -> None:
    """Writes a value as JSON, in one piece or not at all."""
    with write_aside(path) as new:
        new.write_text(json.dumps(value, indent=indent) + "\n")


@contextmanager
def aside(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """A temporary path of the same name on the same disk, for `replace` to move; removed if it was not moved.

    Args:
        path: the file or folder to write.
        beside: the existing folder to make the temporary one in; by default the target's own.

    Raises:
        OSError: nothing can be written there.
    """
    parent = beside or path.absolute().parent
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=ASIDE, dir=parent))
    try:
        with (folder / "unlocked").open("w") as lock:
            if fcntl is not None:
                with contextlib.suppress(
                    OSError
                ):  # some network file systems have no locks: then nothing is swept either
                    fcntl.flock(lock, fcntl.LOCK_EX)
            Path(lock.name).rename(folder / LOCK)  # locked from the moment that `sweep` can see it
            (folder / "new").mkdir()
            yield folder / "new" / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(folder: Path, alone: bool = False) -> None:
    """Removes what processes left in a folder when they were killed while writing: the system dropped their locks.

    Args:
        folder: to look in.
        alone: whether no other process writes there: then also what was left before it had a lock.
    """
    for left in folder.glob(f"{ASIDE}*") if fcntl is not None else ():
        if alone:
            shutil.rmtree(left, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), (left / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if its process is still writing
            shutil.rmtree(left)


def replace(new: Path, path: Path) -> None:
    """Moves a file or folder to a path that may exist, so that at every moment one of the two is there, complete."""
    for companion in new.parent.iterdir():  # OpenVINO's weights: the file that holds their checksum comes last
        if companion != new:
            companion.replace(path.with_name(companion.name))
    if not (new.is_dir() and path.is_dir()):
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
    """Exchanges two paths in one step, if the system can: Linux's renameat2."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    at_current_folder, exchange = -100, 2
    return renameat2(at_current_folder, os.fsencode(new), at_current_folder, os.fsencode(path), exchange) == 0


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_writable(folder: Path) -> bool:
    """Whether files and folders can be made in a folder."""
    try:  # permissions alone do not tell: some file systems refuse even their owner
        with tempfile.TemporaryDirectory(dir=folder):
            return True
    except OSError:
        return False


def check_parent(path: Path, error: type[InputError] = InputError) -> None:
    """Refuses a path whose nearest existing parent folder cannot be written to.

    Raises:
        InputError: it is refused; or the given subclass of it.
    """
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not is_writable(parent):
        raise error(f"cannot write {path}: {parent} is not a folder that can be written to")


def check_output_file(path: Path, endings: tuple[str, ...]) -> None:
    """Refuses, before any work is done, a path that cannot become a file with one of these endings.

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
    """Refuses, before any work is done, a path that cannot become a folder with files in it.

    Raises:
        InputError: it is refused.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: name a folder")
    if path.is_dir():
        if not is_writable(path):
            raise InputError(f"cannot write to {path}: it is a folder that cannot be written to")
    else:
        check_parent(path)
