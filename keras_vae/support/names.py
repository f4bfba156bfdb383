"""Checks names that users give against those that exist."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence

from keras_vae.support.errors import InputError

PRIORS = ("learned", "standard")
LABEL, ALL = "label", "all"  # asked of data: the images' class, and whatever of classes or attributes there is


def split(text: str) -> list[str]:
    """What is typed with commas between, as in a line of a CSV file: quotes hold a name with a comma together.

    Example:
        >>> split('hat, "Hair, blond"=1')
        ['hat', 'Hair, blond=1']
    """
    line = " ".join(text.splitlines())
    return [part.strip() for part in next(csv.reader([line], skipinitialspace=True))] or [""]


def quoted(name: str) -> str:
    """A name as `split` takes it."""
    return '"{}"'.format(name.replace('"', '""')) if set(name) & set(',"') else name


def position(name: str, names: Sequence[str]) -> int:
    """The index of an attribute among names.

    Raises:
        InputError: it is not among them; the message suggests similar ones.
    """
    if name in names:
        return list(names).index(name)
    folded = {each.lower(): each for each in names}
    near = [folded[each] for each in difflib.get_close_matches(name.lower(), folded, 3, 0.5)]
    if near:
        raise InputError(f"no attribute {name!r}: did you mean {' or '.join(near)}?")
    raise InputError(f"no attribute {name!r}: there are {', '.join(names) or 'none'}")


def check_prior(name: str) -> None:
    """Refuses what is not a prior's name.

    Raises:
        InputError: it is refused.
    """
    if name not in PRIORS:
        raise InputError(f"unknown prior {name!r}: choose {' or '.join(PRIORS)}")
