"""Interpolation, attribute vectors and samplers: numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from keras_vae import InputError, latent_space
from keras_vae.export import samplers
from keras_vae.export.errors import ExportError
from keras_vae.latent_space import AttributeVectors

VECTORS = arrays(np.float32, 6, elements=st.floats(-3, 3, width=32))


@settings(max_examples=60, deadline=None)
@given(one=VECTORS, other=VECTORS, steps=st.integers(2, 12), method=st.sampled_from(latent_space.METHODS))
def test_interpolations_end_where_they_are_told(one: np.ndarray, other: np.ndarray, steps: int, method: str) -> None:
    found = latent_space.interpolate(one, other, steps, method)
    assert (found.shape, found.dtype) == ((steps, 6), np.float32)
    np.testing.assert_allclose(found[[0, -1]], [one, other], atol=1e-5)
    lengths = np.linalg.norm(found, axis=1)
    assert np.isfinite(found).all()
    assert lengths.max() <= max(np.linalg.norm(one), np.linalg.norm(other)) + 1e-4


def test_spherical_interpolation_keeps_the_length_and_the_pace() -> None:
    found = latent_space.interpolate(np.array([2.0, 0.0]), np.array([0.0, 2.0]), 4)
    angles = np.degrees(np.arctan2(found[:, 1], found[:, 0]))
    np.testing.assert_allclose(angles, [0, 30, 60, 90], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 2.0, rtol=1e-6)
    linear = latent_space.interpolate(np.array([2.0, 0.0]), np.array([0.0, 2.0]), 3, "linear")
    np.testing.assert_allclose(linear, [[2, 0], [1, 1], [0, 2]])


def test_traversal() -> None:
    found = latent_space.traverse(np.array([1.0, 2.0, 3.0]), 1, (-1, 0, 5))
    np.testing.assert_array_equal(found, [[1, -1, 3], [1, 0, 3], [1, 5, 3]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: latent_space.interpolate(np.zeros(3), np.zeros(4)), "give two of"),
        (lambda: latent_space.interpolate(np.zeros(3), np.zeros(3), 1), "at least 2"),
        (lambda: latent_space.interpolate(np.zeros(3), np.zeros(3), 4, "bent"), "choose linear or spherical"),
        (lambda: latent_space.traverse(np.zeros(3), 3, (0,)), "latent 3"),
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


def mixture() -> samplers.GaussianMixture:
    means = np.array([[5.0, 0.0, 0.0], [-5.0, 1.0, 0.0]], np.float32)
    factors = np.array([np.diag([1.0, 0.5, 2.0]), [[0.3, 0, 0], [0.2, 0.1, 0], [0.5, 0.5, 1.0]]], np.float32)
    return samplers.GaussianMixture(np.array([0.25, 0.75], np.float32), means, factors, {"model": "abc"})


def test_a_mixture_draws_its_own_distribution() -> None:
    drawn = mixture().draw(20_000, 0)
    first = drawn[:, 0] > 0
    assert first.mean() == pytest.approx(0.25, abs=0.015)
    for component, rows in ((0, first), (1, ~first)):
        covariance = mixture().factors[component] @ mixture().factors[component].T
        np.testing.assert_allclose(drawn[rows].mean(axis=0), mixture().means[component], atol=0.08)
        np.testing.assert_allclose(np.cov(drawn[rows], rowvar=False), covariance, atol=0.15)
    assert stats.kstest(drawn[first, 1], stats.norm(0, 0.5).cdf).pvalue > 1e-3


def second_stage() -> samplers.SecondStage:
    """Dense layers that leave u as it is: max(u, 0) and max(-u, 0), and u again."""
    both = np.concatenate([np.eye(3), -np.eye(3)], axis=1).astype(np.float32)
    last = np.concatenate([np.zeros((6, 3)), np.eye(3)]).astype(np.float32)
    biases = np.zeros(6, np.float32), np.full(3, 2.0, np.float32)
    shift, scale = np.array([1.0, 0.0, 0.0], np.float32), np.array([1.0, 2.0, 1.0], np.float32)
    return samplers.SecondStage((both, last), biases, np.float32(0.5), shift, scale)


def test_a_second_stage_draws_what_its_layers_make() -> None:
    drawn = second_stage().draw(20_000, 0)
    np.testing.assert_allclose(drawn.mean(axis=0), [3, 4, 2], atol=0.06)
    np.testing.assert_allclose(drawn.var(axis=0), [1.25, 5.0, 1.25], rtol=0.05)


@pytest.mark.parametrize("sampler", [samplers.Prior(3), mixture(), second_stage()], ids=lambda each: each.kind)
def test_samplers_draw_the_same_for_the_same_seed(sampler: samplers.Sampler) -> None:
    drawn = sampler.draw(7, 3)
    assert (drawn.shape, drawn.dtype) == ((7, 3), np.float32)
    np.testing.assert_array_equal(drawn, sampler.draw(7, 3))
    assert not np.array_equal(drawn, sampler.draw(7, 4))
    for wrong in ((0, 1), (3, -1)):
        with pytest.raises(ExportError, match="give a whole number"):
            sampler.draw(*wrong)


@pytest.mark.parametrize("sampler", [mixture(), second_stage()], ids=lambda each: each.kind)
def test_samplers_are_saved_and_loaded(sampler: samplers.Sampler, tmp_path: Path) -> None:
    samplers.save(sampler, tmp_path / "s.npz")
    found = samplers.load(tmp_path / "s.npz", 3, "abc")
    assert (found.kind, found.metadata) == (sampler.kind, sampler.metadata)
    np.testing.assert_array_equal(found.draw(5, 1), sampler.draw(5, 1))
    with pytest.raises(ExportError, match="draws 3 latents, and the decoder takes 4"):
        samplers.load(tmp_path / "s.npz", 4)
    content = bytearray((tmp_path / "s.npz").read_bytes())
    for damaged in (b"", content[:100], content[:-40], b"PK" + bytes(100)):
        (tmp_path / "d.npz").write_bytes(damaged)
        with pytest.raises(ExportError, match="damaged"):
            samplers.load(tmp_path / "d.npz")


def test_a_sampler_of_other_weights_is_refused(tmp_path: Path) -> None:
    samplers.save(mixture(), tmp_path / "s.npz")
    with pytest.raises(ExportError, match="for other weights"):
        samplers.load(tmp_path / "s.npz", 3, "def")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format_version": 2, "kind": "gmm", "metadata": {}}, "version 2"),
        ({"format_version": 1, "kind": "flow", "metadata": {}}, "no sampler of kind 'flow'"),
        ({"format_version": 1, "kind": "second-stage", "metadata": {}}, "no sampler of kind 'second-stage'"),
        ({"kind": "gmm"}, "damaged"),
    ],
)
def test_files_of_something_else(entries: dict[str, object], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", sampler=np.array(json.dumps(entries)), **mixture().arrays())
    with pytest.raises(ExportError, match=message):
        samplers.load(tmp_path / "s.npz")


@pytest.mark.parametrize(
    "change",
    [
        {"weights": np.array([0.5, 0.6], np.float32)},
        {"weights": np.array([1.5, -0.5], np.float32)},
        {"weights": np.array([1.0], np.float32)},
        {"means": np.full((2, 3), np.inf, np.float32)},
        {"factors": np.zeros((2, 3), np.float32)},
    ],
)
def test_mixtures_that_are_none(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ExportError):
        samplers.GaussianMixture(**{**mixture().arrays(), **change})


def test_neither_takes_tensorflow() -> None:
    code = (
        "import sys, keras_vae.latent_space, keras_vae.export.samplers; "
        "print([name for name in ('tensorflow', 'keras', 'sklearn') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
