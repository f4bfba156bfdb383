"""Progress bars: redrawn in a terminal, and as a line now and then where output goes elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 10


def bar(total: int | None, description: str, unit: str, unit_scale: bool = False) -> Any:
    """A tqdm bar on standard error; `.update(n)` moves it, and it closes at the end of a `with` block."""
    options: dict[str, Any] = {"total": total, "desc": description, "unit": f" {unit}", "unit_scale": unit_scale}
    if sys.stderr.isatty():
        return tqdm(**options)
    # Nothing for what is over before the first line is due.
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
