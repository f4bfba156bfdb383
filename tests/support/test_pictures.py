"""Picture grids, as scripts and notebooks make them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_vae
from keras_vae import Condition, InputError
from keras_vae.support import pictures


def test_a_grid_shows_each_image_at_its_place() -> None:
    images = np.linspace(0, 1, 6, dtype=np.float32)[:, None, None, None] * np.ones((6, 400, 400, 3), np.float32)
    found = np.asarray(keras_vae.pictures.grid(images, columns=3))
    assert found.shape == (2 * 402 + 2, 3 * 402 + 2, 3)
    centres = found[202::402, 202::402][:2, :3, 0]
    np.testing.assert_array_equal(centres.ravel(), np.round(np.linspace(0, 255, 6)))
    assert (found[0] == 255).all()


def test_arrays_tensors_and_bytes_give_the_same_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    floats = pixels.astype(np.float32) / 255
    expected = np.asarray(pictures.grid(floats))
    for images in (pixels, tf.constant(floats), list(floats)):
        np.testing.assert_array_equal(np.asarray(pictures.grid(images)), expected)
    above, below = np.split(np.asarray(pictures.side_by_side(pixels, 1 - tf.constant(floats))), 2)
    assert above.shape == below.shape
    assert (above != below).any()


def test_long_labels_leave_room_for_the_images() -> None:
    row = np.zeros((1, 4, 8, 8, 3), np.float32)
    short, long, longer = (pictures.labelled_rows(row, [text]) for text in ("a\nb", "word " * 200, "word " * 400))
    assert short.width < long.width == longer.width < short.width + 400
    ink = np.flatnonzero((np.asarray(long) < 128).any((0, 2)))
    assert ink[0] < 20
    assert 250 < ink[ink < long.width - short.width].max() < 340


def test_sets_are_called_by_their_labels() -> None:
    sets = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), np.uint8)
    bare = np.asarray(pictures.side_by_side(*sets, columns=3))
    labelled = np.asarray(pictures.side_by_side(*sets, columns=3, labels=["originals", "reconstructions"]))
    np.testing.assert_array_equal(labelled[:, -bare.shape[1] :], bare)
    margin = labelled[:, : -bare.shape[1]]
    rows = np.split(margin[: len(margin) // 4 * 4], 4)  # two of each set
    assert all(row.min() < 128 for row in rows)
    np.testing.assert_array_equal(rows[0], rows[2])
    assert (rows[0] != rows[1]).any()


@pytest.mark.parametrize("shape", [(8, 8, 3), (0, 8, 8, 3), (2, 8, 8, 2)])
def test_other_shapes_are_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"give \(count, height, width, 1 or 3 channels\)"):
        pictures.grid(np.zeros(shape))
    with pytest.raises(InputError, match="give sets of one shape"):
        pictures.side_by_side(np.zeros((2, 8, 8, 3)), np.zeros((3, 8, 8, 3)))


def test_a_row_for_each_name() -> None:
    condition = Condition(("dark", "light"), exclusive=True)

    def draw(rows: np.ndarray) -> np.ndarray:
        assert rows.shape == (3, 2)
        return np.broadcast_to((rows @ np.array([0.2, 0.8]))[:, None, None, None], (3, 4, 4, 1))

    def greys(picture: Image.Image) -> list[int]:
        """The brightness of each row's last image, in its middle."""
        pixels = np.asarray(picture.convert("L"))
        rows = 3 if picture is whole else 1
        height = pixels.shape[0] // rows
        return [int(pixels[int((row + 0.5) * height), -pixels.shape[1] // 8]) for row in range(rows)]

    whole = pictures.by_condition(draw, condition, 3)
    assert greys(whole) == [0, 51, 204]  # of any kind first
    assert greys(pictures.by_condition(draw, condition, 3, ["light"])) == [204]
