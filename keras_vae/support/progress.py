"""Progress display: redrawn in a terminal, an occasional line elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 10
SECONDS_BETWEEN_STATUSES = 60
SECONDS_BETWEEN_REDRAWS = 0.2
COLUMNS = 80


def bar(total: int | None, description: str, unit: str, unit_scale: bool = False) -> Any:
    """A tqdm bar on standard error; `.update(n)` moves it, and it closes at the end of a `with` block."""
    options: dict[str, Any] = {"total": total, "desc": description, "unit": f" {unit}", "unit_scale": unit_scale}
    if sys.stderr.isatty():
        return tqdm(**options)
    # Nothing is shown of work that ends before the first line is due.
    lines: Any = _Lines()
    return tqdm(
        **options,
        file=lines,
        ascii=True,
        ncols=100,
        delay=SECONDS_BETWEEN_LINES,
        mininterval=SECONDS_BETWEEN_LINES,
        maxinterval=SECONDS_BETWEEN_LINES,
    )


class _Lines:
    """Standard error for a bar: each state on a line of its own."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


class Status:
    """One line on standard output that changes: redrawn in a terminal, elsewhere printed once a minute."""

    def __init__(self) -> None:
        self._bar: Any = None
        if sys.stdout.isatty():
            self._bar = tqdm(bar_format="{desc}", file=sys.stdout, leave=False, ncols=COLUMNS)
        self._shown = time.perf_counter()
        self._kept = -float("inf")

    @property
    def due(self) -> bool:
        """Whether it is time to show something new."""
        interval = SECONDS_BETWEEN_STATUSES if self._bar is None else SECONDS_BETWEEN_REDRAWS
        return time.perf_counter() - self._shown >= interval

    def show(self, text: str) -> None:
        """Replaces the text shown before."""
        self._shown = time.perf_counter()
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.set_description_str(text)

    def keep(self, text: str, always: bool = False) -> bool:
        """Prints a line that stays, if always or if the last one is long enough ago, and says whether it did."""
        now = time.perf_counter()
        interval = SECONDS_BETWEEN_STATUSES if self._bar is None else SECONDS_BETWEEN_LINES
        if not always and now - self._kept < interval:
            return False
        self._kept = self._shown = now
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)
        return True

    def end(self) -> None:
        """Takes the line off the terminal."""
        if self._bar is not None:
            self._bar.close()


def fitting(parts: list[str], *, less: list[str]) -> str:
    """The parts of a line, without less important ones until it fits in 80 columns."""
    parts = list(parts)
    for part in less:
        if len("  ".join(parts)) <= COLUMNS:
            break
        parts.remove(part)
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """In the unit that is read most easily: "80 s", "12 min", "2.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
