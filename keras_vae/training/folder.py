"""The run folder while training is at work in it: made, and held against other processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from keras_vae.runs.folder import is_run
from keras_vae.support.errors import InputError
from keras_vae.support.files import is_writable

LOCK_FILE = ".lock"


def check_folder(out: Path) -> None:
    """Refuses a run folder that is taken or cannot be made.

    Raises:
        InputError: it is refused.
    """
    if is_run(out):
        raise InputError(f"{out} already holds a run: --resume goes on with it; for a new one give another --out")
    if out.exists() and (not out.is_dir() or any(path.name != LOCK_FILE for path in out.iterdir())):
        raise InputError(f"{out} exists and is not a run: give a new or an empty folder")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not is_writable(parent):
        raise InputError(f"cannot make {out}: {parent} is not a folder that can be written to")


@contextmanager
def made(out: Path) -> Iterator[None]:
    """Makes the run folder, and holds it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the run folder {out}: {error.strerror}; give another") from error
    with held(out):
        check_folder(out)  # another process may have come first
        yield


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keeps other processes from training in the folder; the system drops the lock of one that is killed."""
    lock = filelock.FileLock(out / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(f"another process trains in {out}: wait for its end, or give another --out") from error
    except OSError as error:
        raise InputError(f"{out} cannot be written to: {error.strerror}; mend that, or give another --out") from error
    try:
        yield
    finally:
        lock.release()
