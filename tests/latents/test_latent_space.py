"""Interpolation, attribute vectors and draws: numpy alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from keras_vae import InputError
from keras_vae.export import latents
from keras_vae.export.errors import ExportError
from keras_vae.latents import directions
from keras_vae.latents.directions import AttributeVectors

VECTORS = arrays(np.float32, 6, elements=st.floats(-3, 3, width=32))


@settings(max_examples=60, deadline=None)
@given(one=VECTORS, other=VECTORS, steps=st.integers(2, 12), method=st.sampled_from(directions.METHODS))
def test_interpolations_end_where_they_are_told(one: np.ndarray, other: np.ndarray, steps: int, method: str) -> None:
    found = directions.interpolate(one, other, steps, method)
    assert (found.shape, found.dtype) == ((steps, 6), np.float32)
    np.testing.assert_allclose(found[[0, -1]], [one, other], atol=1e-5)
    lengths = np.linalg.norm(found, axis=1)
    assert np.isfinite(found).all()
    assert lengths.max() <= max(np.linalg.norm(one), np.linalg.norm(other)) + 1e-4


def test_spherical_interpolation_keeps_the_length_and_the_pace() -> None:
    found = directions.interpolate(np.array([2.0, 0.0]), np.array([0.0, 2.0]), 4)
    angles = np.degrees(np.arctan2(found[:, 1], found[:, 0]))
    np.testing.assert_allclose(angles, [0, 30, 60, 90], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 2.0, rtol=1e-6)
    linear = directions.interpolate(np.array([2.0, 0.0]), np.array([0.0, 2.0]), 3, "linear")
    np.testing.assert_allclose(linear, [[2, 0], [1, 1], [0, 2]])


def test_traversal() -> None:
    found = directions.traverse(np.array([1.0, 2.0, 3.0]), 1, (-1, 0, 5))
    np.testing.assert_array_equal(found, [[1, -1, 3], [1, 0, 3], [1, 5, 3]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: directions.interpolate(np.zeros(3), np.zeros(4)), "give two of"),
        (lambda: directions.interpolate(np.zeros(3), np.zeros(3), 1), "at least 2"),
        (lambda: directions.interpolate(np.zeros(3), np.zeros(3), 4, "bent"), "choose linear or spherical"),
        (lambda: directions.traverse(np.zeros(3), 3, (0,)), "latent 3"),
        (lambda: vectors().direction("smilling"), "did you mean Smiling"),
        (lambda: vectors().direction("x" * 30), "there are Smiling, Male"),
        (lambda: vectors().direction("Male", "median"), "choose mean or linear"),
        (lambda: vectors().save("vectors.txt"), "ends in .npz"),
        (lambda: AttributeVectors(("a",), np.zeros((2, 3)), np.zeros((2, 3))), "1 attributes with vectors"),
        (lambda: AttributeVectors(("a",), np.full((1, 3), np.nan), np.zeros((1, 3))), "no finite numbers"),
    ],
)
def test_wrong_use_says_what_to_do(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def vectors(**metadata: str) -> AttributeVectors:
    rng = np.random.default_rng(0)
    mean, linear = rng.standard_normal((2, 2, 4)).astype(np.float32)
    return AttributeVectors(("Smiling", "Male"), mean, linear, metadata)


def test_vectors_are_saved_and_loaded(tmp_path: Path) -> None:
    vectors(model="abc").save(tmp_path / "v.npz")
    found = AttributeVectors.load(tmp_path / "v.npz", 4, "abc")
    np.testing.assert_array_equal(found.direction("Male"), vectors().mean[1])
    np.testing.assert_array_equal(found.direction("Smiling", "linear"), vectors().linear[0])
    assert (found.names, found.metadata) == (("Smiling", "Male"), {"model": "abc"})
    assert [path.name for path in tmp_path.iterdir()] == ["v.npz"]
    with pytest.raises(InputError, match="vectors of 4 latents, and the model 5"):
        AttributeVectors.load(tmp_path / "v.npz", 5)
    with pytest.raises(InputError, match="for other weights"):
        AttributeVectors.load(tmp_path / "v.npz", 4, "def")
    with pytest.raises(InputError, match="keras-vae attributes"):
        AttributeVectors.load(tmp_path / "none.npz")


def test_draws_are_the_same_for_the_same_seed() -> None:
    drawn = latents.draw(7, 3, 3)
    assert (drawn.shape, drawn.dtype) == ((7, 3), np.float32)
    np.testing.assert_array_equal(drawn, latents.draw(7, 3, 3))
    assert not np.array_equal(drawn, latents.draw(7, 3, 4))
    for count, seed in ((0, 1), (3, -1)):
        with pytest.raises(ExportError, match="give a whole number"):
            latents.draw(count, 3, seed)


def test_neither_takes_tensorflow() -> None:
    code = (
        "import sys, keras_vae.latents.directions, keras_vae.export.latents; "
        "print([name for name in ('tensorflow', 'keras', 'sklearn') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
