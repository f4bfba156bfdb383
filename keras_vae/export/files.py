"""Where artifacts are written before they take their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from keras_vae.export.errors import ExportError
from keras_vae.support import files


def check_parent(path: Path) -> None:
    """Refuses a path whose nearest existing parent folder cannot be written to.

    Raises:
        ExportError: it is refused.
    """
    files.check_parent(path, ExportError)


@contextlib.contextmanager
def aside(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """As `keras_vae.support.files.aside`; makes the target's folder if it does not exist.

    Raises:
        ExportError: nothing can be written there.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
            new = stack.enter_context(files.aside(path, beside))
        except OSError as error:
            raise ExportError(f"cannot write {path} ({error.strerror}): choose another place") from error
        yield new
