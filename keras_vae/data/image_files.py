"""Image files: which ones a folder holds, and the pixels of one, or the reason why it has none.

Needs no TensorFlow.
"""

from __future__ import annotations

import hashlib
import heapq
import mmap
import os
import re
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from keras_vae.support.errors import InputError

HELD_OUT_PERCENT = 10
# Raster formats that Pillow reads by itself; it also knows some that run other programs (EPS).
FORMATS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "MPO": ("mpo",),  # what some cameras write into .jpg
    "PNG": ("png", "apng"),
    "GIF": ("gif",),
    "WEBP": ("webp",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "JPEG2000": ("jp2",),
    "AVIF": ("avif",),
}
EXTENSIONS = frozenset(extension for extensions in FORMATS.values() for extension in extensions)
Image.init()  # without it Pillow knows some formats only after it has met the first file of them
_OPENED = tuple(name for name in FORMATS if name in Image.OPEN)
BACKGROUND = (255, 255, 255)


# Which files a folder holds ---------------------------------------------------------------------


class Listing(Sequence[str]):
    """Names in the order of their hashes, and which of them are held out.

    The order is the same wherever the same files lie, and a random sample of a listing is its beginning. Names are
    kept in an unnamed temporary file that the system holds in memory as it sees fit; 17 bytes a name stay in memory.

    Attributes:
        held_out: bool (count,), by a hash of the name, so that adding files never moves one.
    """

    def __init__(self, names: Iterable[str]) -> None:
        ends, keys, parts = array("Q", [0]), array("Q"), array("B")
        with tempfile.TemporaryFile() as file:
            end = 0
            for name in names:
                encoded = os.fsencode(name)
                file.write(encoded)
                end += len(encoded)
                ends.append(end)
                digest = hashlib.sha256(encoded).digest()
                parts.append(int.from_bytes(digest[:4]) % 100 < HELD_OUT_PERCENT)
                keys.append(int.from_bytes(digest[4:12]))
            file.flush()
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if end else b""
        self._ends = np.frombuffer(ends, np.uint64)
        self._order = np.argsort(np.frombuffer(keys, np.uint64), kind="stable")
        held_out = np.frombuffer(parts, bool)[self._order]
        if len(held_out) and (held_out.all() or not held_out.any()):  # too few images: chance left one side empty
            held_out = np.arange(len(held_out)) == 0
        self.held_out = held_out

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = self._order[index]
        return os.fsdecode(self._text[int(self._ends[place]) : int(self._ends[place + 1])])


def scan(folder: Path) -> Iterator[tuple[str, str | None]]:
    """The images in and below a folder: each one's path in it, and why it is unreadable where that is plain.

    Hidden files and files without an image's extension are ignored. Links are followed, each folder once.

    Raises:
        InputError: it is not a folder, or cannot be read.
    """
    if not os.path.lexists(folder):
        also = f"; for a TFDS set give tfds:{folder}" if re.fullmatch(r"[a-z][a-z0-9_/]*", str(folder)) else ""
        raise InputError(
            f"unknown data source {str(folder)!r}: it is not a folder here, and neither 'avatars' nor tfds:NAME{also}"
        )
    if not os.path.isdir(folder):  # noqa: PTH112 (Path's raises where the parent cannot be read)
        raise InputError(f"{folder} is a file: give the folder that holds the images, or an .npy or .npz file")
    folders, links, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or links:
        # Links last and sorted, so that a folder reached both directly and by a link has its own name.
        below = folders.pop() if folders else heapq.heappop(links)
        try:
            status = (folder / below).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    name = f"{below}{entry.name}"
                    if entry.name.startswith("."):
                        continue
                    if _is_dir(entry):
                        if entry.is_symlink():
                            heapq.heappush(links, f"{name}/")
                        else:
                            folders.append(f"{name}/")
                    elif entry.name.rpartition(".")[2].lower() in EXTENSIONS:
                        yield name, _fault(entry)
        except OSError as error:
            if not below:
                raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
            yield below, f"whole folder that cannot be read ({error.strerror})"


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _fault(entry: os.DirEntry[str]) -> str | None:
    try:
        if entry.is_file():
            return None
    except OSError:
        return "broken link"
    return "broken link" if entry.is_symlink() else "not a regular file"  # opening a pipe would block forever


def held_out_of(count: int) -> int:
    """How many of `count` images in a fixed order are held out: the last tenth, at least one."""
    return max(1, count * HELD_OUT_PERCENT // 100)


def shown(name: str) -> str:
    """A file's name as any terminal can print it."""
    return os.fsencode(name).decode("utf-8", "replace")


# The pixels of one file ------------------------------------------------------------------------


class UnreadableError(Exception):
    """An image that cannot be read; its message says why."""


def decode(path: str | os.PathLike[str], size: int, crop: int | None = None) -> np.ndarray:
    """The image in RGB, upright, cropped to a centred square and resized: uint8 (size, size, 3).

    Of an animation the first frame; what is transparent becomes white; 16 bits a channel become 8.

    Args:
        path: the file.
        size: pixels a side.
        crop: pixels a side of the square that is cut out, at most; None for the largest there is.

    Raises:
        UnreadableError: the file holds no image, a damaged one, or one that is too large.
    """
    try:
        with Image.open(path, formats=_OPENED) as image:
            if crop is None:
                image.draft(None, (2 * size, 2 * size))  # a JPEG is decoded no larger than that takes
            return fit(_rgb(image), size, crop)
    except UnreadableError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6  # where Pillow sees a bomb
        raise UnreadableError(f"too large: more than {limit} megapixels") from error
    except MemoryError as error:
        raise UnreadableError("too large for the memory") from error
    except UnidentifiedImageError as error:
        raise UnreadableError("not an image" if Path(path).stat().st_size else "empty file") from error
    except OSError as error:
        if error.errno is not None:  # the system's, not Pillow's
            raise UnreadableError(f"cannot be read ({error.strerror})") from error
        raise UnreadableError("truncated" if "truncated" in str(error) else "damaged") from error
    # Pillow's readers raise all sorts on damaged files: SyntaxError, ValueError, struct.error, zlib.error, ...
    except Exception as error:
        raise UnreadableError("damaged") from error


def fit(image: Image.Image, size: int, crop: int | None = None) -> np.ndarray:
    """The centred square, `crop` pixels a side at most, resized: uint8 (size, size[, channels])."""
    side = min(image.size) if crop is None else min(*image.size, crop)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=3.0))


def fit_array(image: np.ndarray, size: int, crop: int | None = None) -> np.ndarray:
    """`fit` of an array, uint8 (height, width, 1 or 3): uint8 (size, size, channels)."""
    fitted = fit(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image), size, crop)
    return fitted.reshape(size, size, image.shape[2])


def _rgb(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) * 255 // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnreadableError("32-bit pixels, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
