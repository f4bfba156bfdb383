"""The pages a user reads, and what is in them: code blocks, commands, names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "export").glob("*/README.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [body for found, body in FENCE.findall(page.read_text()) if found == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The `keras-vae` command lines of a page's fenced blocks, as the shell would split them."""
    for language, body in FENCE.findall(page.read_text()):
        if language in ("", "console", "sh", "bash"):
            for line in body.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "keras-vae":
                    yield words[1:]


def inline(page: Path) -> list[str]:
    """What stands between single backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))
