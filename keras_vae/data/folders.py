"""A folder of images as a source: files listed, attributes found, images decoded when they are first needed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from keras_vae.data import tables
from keras_vae.data.image_files import EXTENSIONS, Listing, UnreadableError, decode, scan, shown
from keras_vae.data.images import Images, Skips
from keras_vae.data.pipelines import Indexed
from keras_vae.data.sources import DEFAULT_SIZE, Named, Opened, Request, Source, is_named
from keras_vae.support import progress
from keras_vae.support.errors import InputError

logger = logging.getLogger(__name__)

SAMPLE = 4096  # images read at once, so that a folder of something else is refused before work begins


def takes(source: Source) -> bool:
    """Whether it is a path; whether there is a folder shows when it is read."""
    return is_named(source)


def check(source: Named, image_size: int | None) -> None:
    """Refuses a path at which there are no images to train on.

    Raises:
        InputError: it is refused.
    """
    path = Path(source)
    if is_image_file(path):
        raise _one_image(path)
    if next(scan(path), None) is None:
        raise _no_images(path)


def open(source: Named, request: Request) -> Opened:
    """Opens a folder, nested or flat, a tenth of its images held out by a hash of their paths in it.

    With `request.only_held_out` it may have a single image, which is held out, or be the image file itself.

    Raises:
        InputError: as `read`.
    """
    return read(Path(source), request)


def read(folder: Path, request: Request, keep: bool = True) -> Opened:
    """Lists a folder and reads a sample of its images.

    Args:
        folder: the folder, or with `request.only_held_out` an image file.
        request: how the images are wanted.
        keep: whether decoded images are kept; else each is decoded whenever it is asked for.

    Returns:
        The source, with parts of the type `Indexed`.

    Raises:
        InputError: there are no images, more than a tenth of them is unreadable, or the attributes requested cannot be
            read.
    """
    size, crop = request.image_size or DEFAULT_SIZE, request.crop
    single = is_image_file(folder)
    if single and not request.only_held_out:
        raise _one_image(folder)
    root = str(folder.parent if single else folder)
    faults: list[tuple[str, str]] = []
    listing = Listing([folder.name] if single else _readable(folder, faults))
    if not len(listing):
        raise _no_images(folder)
    skips = Skips(str(folder), len(listing) + len(faults), request.strict)
    names, values, exclusive = (
        _attributes(folder, listing, request.attributes, skips) if not single else ((), None, False)
    )

    def decode_each(indices: np.ndarray) -> Iterable[np.ndarray | UnreadableError]:
        for index in indices:
            try:
                yield decode(os.path.join(root, listing[index]), size, crop)  # noqa: PTH118 (five times faster)
            except UnreadableError as error:
                yield error

    def name_of(index: int) -> str:
        return shown(listing[index])

    images = Images(len(listing), (size, size, 3), decode_each, name_of, skips, values, keep)
    usable = np.arange(len(listing)) if values is None else np.flatnonzero((values != tables.ABSENT).all(axis=1))
    held_out = listing.held_out[usable]
    train, test = usable[~held_out], usable[held_out]
    sample = np.concatenate([test, train])[: None if request.strict else SAMPLE]
    with skips.sampling(len(sample)):
        for name, fault in faults:
            skips.add(shown(name), fault)
        with progress.bar(len(sample), f"reading {folder.name}", "images") as bar:
            for parcel, _ in images.in_parcels(sample):
                bar.update(len(parcel))
    train, test = images.readable(train), images.readable(test)
    if len(skips):
        logger.warning(skips.summary())
    _check_enough(folder, len(train), len(test), skips.total, 1 if request.only_held_out else 2)
    parts = Indexed(images, train), Indexed(images, test)
    return Opened(str(folder), images.shape, *parts, skips, names, exclusive=exclusive)


def is_image_file(path: Path) -> bool:
    """Whether this is a file with an image's extension."""
    return path.suffix.lower().removeprefix(".") in EXTENSIONS and os.path.isfile(path)  # noqa: PTH113


def _readable(folder: Path, faults: list[tuple[str, str]]) -> Iterator[str]:
    """The images of a folder without those that are plainly unreadable, which are added to `faults`."""
    for name, fault in scan(folder):
        if fault is None:
            yield name
        else:
            faults.append((name, fault))


def _check_enough(folder: Path, train: int, test: int, listed: int, least: int) -> None:
    count = train + test
    if test and count >= least:
        return
    readable = f" of {listed} that can be read" if listed > count else ""
    few = "" if least == 1 else "; to learn anything takes hundreds"
    raise InputError(f"{folder} holds {count} image{'s'[: count != 1]}{readable}: give at least {least}{few}")


def _one_image(path: Path) -> InputError:
    return InputError(
        f"{path} is one image: give a folder of images, of hundreds to train on; a trained model takes one with "
        f"--image: keras-vae reconstruct MODEL --image {path}"
    )


def _no_images(folder: Path) -> InputError:
    return InputError(f"{folder} holds no images: give a folder with JPEG or PNG images, in it or below it")


def _attributes(
    folder: Path, listing: Listing, wanted: bool | None, skips: Skips
) -> tuple[tuple[str, ...], np.ndarray | None, bool]:
    """Names of a folder's attributes, their values where they are wanted, and whether they are classes."""
    try:
        path = tables.find(folder)
        table = None if path is None else tables.read(path)
    except InputError as error:
        if wanted:
            raise
        logger.warning("no attributes: %s", error)
        return (), None, False
    if table is None:
        return *_classes(listing, wanted is not False), True
    if wanted is False:
        return table.names, None, table.exclusive
    for column, value in table.ignored:
        logger.warning("column %r of %s is not an attribute: it holds %r", column, table.path, value)
    matched = tables.match(table, listing)
    if matched.unused:
        head = ", ".join(matched.unused[:3])
        logger.warning("%s names %d images that are not in %s: %s", table.path, len(matched.unused), folder, head)
    for index, reason in matched.faults.items():
        skips.add(shown(listing[index]), reason, unreadable=False)
    if len(matched.faults) == len(listing):
        raise InputError(
            f"{table.path} names none of the images in {folder}: its first column has {next(iter(table.rows))!r}, an "
            f"image is called {shown(listing[0])!r}"
        )
    return table.names, matched.values, table.exclusive


def _classes(listing: Listing, wanted: bool) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Subfolders as attributes, where there are several and every image lies in one of them."""
    found: dict[str, None] = {}
    for name in listing:
        subfolder, slash, rest = name.partition("/")
        found[subfolder] = None
        if not slash or "/" in rest or len(found) > tables.CLASSES_AT_MOST:
            return (), None
    if len(found) < 2:
        return (), None
    names = sorted(found)
    if not wanted:
        return tuple(map(shown, names)), None
    values = np.zeros((len(listing), len(names)), np.uint8)
    place = {name: index for index, name in enumerate(names)}
    for index, name in enumerate(listing):
        values[index, place[name.partition("/")[0]]] = 1
    return tuple(map(shown, names)), values
