"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.files import is_writable
from keras_vae.errors import InputError


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well, removed when it does not."""
    aside = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the ending, by which writers pick the format
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


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
