"""Attributes of a folder's images from a table beside them: any CSV file, or CelebA's list_attr_celeba.txt."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_vae.data.image_files import EXTENSIONS
from keras_vae.support.errors import InputError

NAMES = ("attributes.csv", "list_attr_celeba.txt", "list_attr_celeba.csv", "attributes.tsv", "attributes.txt")
DELIMITERS = (",", ";", "\t", "|")
VALUES = {"1": 1, "0": 0, "-1": 0, "true": 1, "false": 0, "yes": 1, "no": 0, "1.0": 1, "0.0": 0, "-1.0": 0}
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
ABSENT = 255  # in values: the table says nothing
LABELS = ("label", "class")  # columns of classes
UNKNOWN_CLASS = MISSING | {"-1"}
CLASSES_AT_MOST = 1000  # labels or subfolders of more classes are names, not attributes


@dataclass(frozen=True)
class Table:
    """Attributes by image.

    Attributes:
        path: where the table was read from.
        names: of the attributes.
        ignored: columns that hold something else than 0 and 1, with the first such value.
        rows: the images' names, as the table gives them, and their row in `values`.
        values: uint8 (images, attributes) of 0 and 1, and 255 where the table says nothing.
        exclusive: whether they are classes, of which each image has one.
    """

    path: Path
    names: tuple[str, ...]
    ignored: tuple[tuple[str, str], ...]
    rows: dict[str, int]
    values: np.ndarray
    exclusive: bool = False


def find(folder: Path) -> Path | None:
    """The table that lies in a folder or beside it, or None.

    In the folder one of the names above or the only CSV file, beside it one of these names or that of the folder.

    Raises:
        InputError: several could be meant.
    """
    for place in (folder, folder.absolute().parent):
        names = NAMES if place == folder else (*NAMES, f"{folder.absolute().name.lower()}.csv")
        found = _tables(place)
        for name in names:
            if name in found:
                return found[name]
        if place == folder:
            tables = sorted(found.values())
            if len(tables) > 1:
                raise InputError(
                    f"{folder} holds {len(tables)} CSV files, {tables[0].name} and {tables[1].name} among them: "
                    "name the one with the attributes attributes.csv"
                )
            if tables:
                return tables[0]
    return None


def hint(folder: Path) -> str:
    """What to do about tables that lie beside a folder under other names; nothing where there are none."""
    others = sorted(_tables(folder.absolute().parent).values())
    if not others:
        return ""
    return f"if they are in {others[0]}, name it {folder.absolute().name}.csv or attributes.csv"


def _tables(folder: Path) -> dict[str, Path]:
    """Tables in a folder, by their names in lower case."""
    try:
        return {
            path.name.lower(): path
            for path in sorted(folder.iterdir())
            if (path.suffix.lower() in (".csv", ".tsv") or path.name.lower() in NAMES) and path.is_file()
        }
    except OSError:
        return {}


def read(path: Path) -> Table:
    """Reads a table whose first column names images.

    Values are 1, true or yes against 0, -1, false or no; an empty one, NA or ? is missing. Columns with other values
    are passed over; but where one called label or class is all there is, its values are classes. Columns are separated
    by commas, semicolons, tabs, bars or, as in CelebA's own files, by spaces.

    Raises:
        InputError: it is no such table.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the attributes in {path}: save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"cannot read the attributes in {path}: {error.strerror}") from error
    rows = _cells(path, lines)
    header = next(rows, [])
    names = header[1:]
    if header and header[0].rpartition(".")[2].lower() in EXTENSIONS:
        raise InputError(f"{path} begins with the image {header[0]!r}: give its columns a heading")
    if "" in names:
        raise InputError(f"{path}: column {names.index('') + 2} has no name: give it one")
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise InputError(f"{path} has two columns {min(repeated)!r}: rename one")
    images: dict[str, int] = {}
    values, strange, cells = list[bytes](), dict[int, str](), list[str]()
    labels = next((column for column, name in enumerate(names) if name.lower() in LABELS), None)
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}, row {number}: {len(row)} columns, but the heading has {len(header)}")
        if row[0] in images:
            raise InputError(f"{path}, row {number}: {row[0]} is there twice")
        images[row[0]] = len(values)
        found = bytearray()
        for column, cell in enumerate(row[1:]):
            value = VALUES.get(cell)
            if value is None:
                cell = cell.strip().lower()
                value = VALUES.get(cell, ABSENT)
                if value == ABSENT and cell not in MISSING:
                    strange.setdefault(column, cell)
            found.append(value)
        values.append(bytes(found))
        if labels is not None:
            cells.append(row[1 + labels])
    table = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), len(names))
    kept = [column for column in range(len(names)) if column not in strange]
    if labels is not None and set(kept) <= {labels}:
        classes = sorted({cell for cell in cells if cell.lower() not in UNKNOWN_CLASS})
        if 2 <= len(classes) <= CLASSES_AT_MOST:
            table = (np.array(cells)[:, np.newaxis] == np.array(classes)).astype(np.uint8)
            table[~table.any(axis=1)] = ABSENT
            others = tuple((names[column], value) for column, value in sorted(strange.items()) if column != labels)
            return Table(path, tuple(classes), others, images, table, exclusive=True)
    if not kept or not values:
        wrong = f"column {names[min(strange)]!r} holds {strange[min(strange)]!r}" if strange else "it has no rows"
        raise InputError(f"{path} has no column of attributes, which are 1 or 0, true or false: {wrong}")
    ignored = tuple((names[column], value) for column, value in sorted(strange.items()))
    return Table(path, tuple(names[column] for column in kept), ignored, images, table[:, kept])


def _cells(path: Path, lines: list[str]) -> Iterator[list[str]]:
    lines = [line for line in lines if line.strip()]
    if len(lines) > 1 and lines[0].strip().isdigit():  # CelebA: the number of images, then names, then rows
        names = lines[1].split()
        return iter([["image", *names], *(line.split() for line in lines[2:])])
    head = lines[:3]
    for delimiter in DELIMITERS:
        widths = {len(row) for row in csv.reader(head, delimiter=delimiter)}
        if len(widths) == 1 and widths.pop() > 1:
            return _parsed(path, lines, delimiter)
    if lines and len({len(line.split()) for line in head}) == 1 and len(lines[0].split()) > 1:
        return (line.split() for line in lines)
    raise InputError(f"cannot tell the columns of {path}: separate them by commas, the images' names first")


def _parsed(path: Path, lines: list[str], delimiter: str) -> Iterator[list[str]]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for number, row in enumerate(reader, 1):
            if reader.line_num != number:
                raise InputError(f"{path}, row {number}: a quotation mark is not closed in its line: close it")
            yield [cell.strip() for cell in row]
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}: mend its quotation marks") from error


@dataclass(frozen=True)
class Matched:
    """A table's rows brought to a listing's order.

    Attributes:
        values: uint8 (count, attributes), 255 where an image has no attributes that could be used.
        faults: for each such image the reason.
        unused: names in the table of images that are not there.
    """

    values: np.ndarray
    faults: dict[int, str]
    unused: list[str]


def match(table: Table, listing: Sequence[str]) -> Matched:
    """Finds each image's row: by its path in the folder, else by its file name where only one image has it."""
    by_path: dict[str, int] = {}
    by_name: dict[str, list[int]] = {}
    for index, name in enumerate(listing):
        by_path[name] = index
        by_name.setdefault(name.rpartition("/")[2], []).append(index)
    values = np.full((len(listing), len(table.names)), ABSENT, np.uint8)
    faults = dict.fromkeys(range(len(listing)), "no attributes")
    unused = []
    for name, row in table.rows.items():
        candidates = [by_path[name]] if name in by_path else by_name.get(name, [])
        if not candidates:
            unused.append(name)
        elif len(candidates) > 1:
            faults.update(dict.fromkeys(candidates, "attributes of a name that several images have"))
        elif ABSENT in table.values[row]:
            faults[candidates[0]] = "an attribute is missing"
        else:
            values[candidates[0]] = table.values[row]
            faults.pop(candidates[0], None)
    values[list(faults)] = ABSENT
    return Matched(values, faults, unused)
