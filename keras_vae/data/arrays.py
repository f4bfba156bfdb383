"""Arrays of images as a source: NumPy's, and .npy and .npz files of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_vae.data import image_batches
from keras_vae.data.image_files import fit_array, held_out_of
from keras_vae.data.images import Images, Skips, fits_in_memory
from keras_vae.data.pipelines import Indexed
from keras_vae.data.sources import Named, Opened, Request, Source, is_named
from keras_vae.support.errors import InputError
from keras_vae.support.pixels import to_uint8


def takes(source: Source) -> bool:
    """Whether it is an array, or a file of arrays by its name."""
    return isinstance(source, np.ndarray) or (is_named(source) and Path(source).suffix.lower() in (".npy", ".npz"))


def check(source: Named | np.ndarray, image_size: int | None) -> None:
    """Refuses a file that is missing or holds no arrays.

    Raises:
        InputError: it is refused.
    """
    if not isinstance(source, np.ndarray):
        _load(Path(source))


def open(source: Named | np.ndarray, request: Request) -> Opened:
    """Images by index: all but the last tenth to train on, or `x_train` where a file has `x_train` and `x_test`.

    Raises:
        InputError: it holds no images, fewer than two, or values outside [0, 1].
    """
    if isinstance(source, np.ndarray):
        return _opened("array", source, request)
    path = Path(source)
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        # In memory where it fits: a mapped file that another program truncates would kill the process.
        return _opened(str(path), np.array(loaded) if fits_in_memory(loaded.nbytes) else loaded, request)
    with loaded:
        names = set(loaded.files)
        try:
            if {"x_train", "x_test"} <= names:  # as Keras's own sets are stored
                train, test = loaded["x_train"], loaded["x_test"]
                if train.shape[1:] != test.shape[1:]:
                    raise InputError(f"{path}: x_train is {train.shape}, x_test {test.shape}: give images of one size")
                return _opened(str(path), np.concatenate([train, test]), request, len(train))
            if "images" in names or len(names) == 1:
                return _opened(str(path), loaded["images" if "images" in names else names.pop()], request)
        except InputError:
            raise
        except Exception as error:  # what zipfile and NumPy raise on damaged or pickled members
            raise InputError(f"{path} is damaged, or holds no arrays of numbers: {error}") from error
    raise InputError(f"{path} holds {', '.join(sorted(names))}: name the array of images `images`")


def _load(path: Path) -> Any:
    """The array of an .npy file, memory-mapped, or the open archive of an .npz file."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give another .npy or .npz file") from error
    except Exception as error:  # OSError, ValueError, EOFError, and zipfile's own
        raise InputError(f"{path} is not an array of numbers that NumPy can read: save one with numpy.save") from error


def _opened(name: str, pixels: np.ndarray, request: Request, train_size: int | None = None) -> Opened:
    """An array's images, the first ones for training: by default all but the last tenth."""
    if pixels.ndim == 3:
        pixels = pixels[..., np.newaxis]
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise InputError(f"{name} of shape {pixels.shape}: give (count, height, width) or (..., 1 or 3 channels)")
    try:
        image_batches.check(pixels)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    count = len(pixels)
    if count < 2:
        raise InputError(f"{name} of {count} images: give at least 2, one of them to hold out")
    train_size = count - held_out_of(count) if train_size is None else train_size
    if not 0 < train_size < count:
        raise InputError(f"{name} has {train_size} images to train on and {count - train_size} held out: give both")
    if pixels.dtype != np.uint8:
        pixels = to_uint8(pixels.astype(np.float32))
    skips = Skips(name, count)
    images = _fitted(pixels, request.image_size, request.crop, skips)
    order = np.arange(count)
    train, test = Indexed(images, order[:train_size]), Indexed(images, order[train_size:])
    return Opened(name, images.shape, train, test, skips, own_shape=pixels.shape[1:])


def _fitted(pixels: np.ndarray, size: int | None, crop: int | None, skips: Skips) -> Images:
    """Images of uint8 (count, height, width, channels), cropped and resized where they need to be."""
    if size is None or (pixels.shape[1:3] == (size, size) and crop is None):
        return Images.of_array(pixels)

    def decode(indices: np.ndarray) -> Iterable[np.ndarray]:
        for index in indices:
            yield fit_array(pixels[index], size, crop)

    return Images(len(pixels), (size, size, pixels.shape[-1]), decode, str, skips)
