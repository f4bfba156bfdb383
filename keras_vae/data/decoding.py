"""One image file to RGB pixels, or the reason why it has none."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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


class UnreadableError(Exception):
    """An image that cannot be had; its text says why."""


def decode(path: str | os.PathLike[str], size: int, crop: int | None = None) -> np.ndarray:
    """The image in RGB, upright, cropped to a centred square and resized: uint8 (size, size, 3).

    Of an animation the first frame; what is transparent becomes white; 16 bits a channel become 8.

    Args:
        path: the file.
        size: pixels a side.
        crop: pixels a side of the square that is cut out, at most; None for the largest there is.

    Raises:
        UnreadableError: there is no image in it that could be shown, or too large a one.
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
