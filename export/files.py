"""Putting artifacts in place so that a reader never meets half of one."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """A place for a new artifact on the disk of its target, gone afterwards if it was not moved.

    Args:
        path: the target, whose folder is made where there is none.
        beside: the folder to make that place in; by default the target's own.
    """
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=beside or path.absolute().parent))
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
