"""Images that a source lists and that cannot be used: counted, with the reason, as they are met."""

from __future__ import annotations

import collections
import contextlib
import csv
import threading
from collections.abc import Iterator
from pathlib import Path

from keras_vae.support.errors import InputError

LIMIT = 0.1  # share of a source's images that may be unreadable before it is refused
NAMED = 1000  # of each reason, so that memory stays flat
HEAD = 3


class Skips:
    """What was skipped of a source.

    Attributes:
        source: its name.
        total: how many images it lists.
        strict: the first skip is an error.
        reasons: how many were skipped for each reason.
        files: the first thousand of each reason, as (name, reason).
        error: what ended the reading, for those who only see it fail.
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
        """Counts an image. Unreadable ones are part of the tenth that is borne.

        Raises:
            InputError: in strict sources, and where a tenth of all images has turned out unreadable.
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
        """A block in which so many images are read, to refuse the source of which a tenth of them was unreadable.

        Raises:
            InputError: it is so, with all the block's skips counted.
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
        """Writes the named ones as a CSV file with the columns file and reason."""
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
