"""Distances between sets of images, against closed forms, brute force and torchmetrics."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors

from keras_vae import InputError
from keras_vae.evaluation import distances
from keras_vae.evaluation.distances import Moments

moments = Moments.of


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_moments_do_not_depend_on_batches(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    features = rng.normal(100.0, 3.0, (sum(sizes) + 2, 3)).astype(np.float32)
    found = Moments(3)
    for start, end in zip(np.cumsum([0, *sizes]), [*np.cumsum(sizes), None], strict=True):
        found.update(features[start:end])
    assert found.count == len(features)
    np.testing.assert_allclose(found.mean, features.mean(axis=0, dtype=float), rtol=1e-10)
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(float), rowvar=False), rtol=1e-6, atol=1e-9)


def test_frechet_distance_in_closed_form() -> None:
    """Of Gaussians with diagonal covariances: the squares of what means and deviations differ by."""
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((500, 4))
    whole = (whole - whole.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(whole, rowvar=False))).T
    one = whole * np.array([1.0, 2.0, 3.0, 0.5])
    other = whole * np.array([2.0, 2.0, 1.0, 0.1]) + np.array([1.0, 0.0, -2.0, 0.0])
    expected = (1 + 4) + (1 + 0 + 4 + 0.16)
    assert distances.frechet_distance(moments(one), moments(other)) == pytest.approx(expected, rel=1e-9)
    assert distances.frechet_distance(moments(one), moments(one)) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_is_the_usual_formula_by_scipy() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((300, 8)) @ rng.standard_normal((8, 8)), rng.standard_normal((200, 8)) + 0.3
    covariances = [np.cov(each, rowvar=False) for each in (one, other)]
    root = sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    assert distances.frechet_distance(moments(one), moments(other)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_says_how_many_images_it_needs() -> None:
    features = np.random.default_rng(0).standard_normal((8, 8))
    with pytest.raises(InputError, match="8 channels needs 9 images, not 8"):
        distances.frechet_distance(moments(features), moments(features))


def test_kernel_distance_by_its_definition() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.standard_normal((20, 5)), rng.standard_normal((20, 5)) + 1.0

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    pairs = [(i, j) for i in range(20) for j in range(20)]
    expected = (
        sum(kernel(one[i], one[j]) + kernel(other[i], other[j]) for i, j in pairs if i != j) / (20 * 19)
        - 2 * sum(kernel(one[i], other[j]) for i, j in pairs) / 400
    )
    found = distances.kernel_distance(one, other)
    assert (found.mean, found.subset, found.deviation) == (pytest.approx(expected), 20, 0.0)


def test_kernel_distance_of_the_same_distribution_is_zero_within_its_spread() -> None:
    rng = np.random.default_rng(3)
    one, other, far = (rng.standard_normal((2000, 6)) for _ in range(3))
    same = distances.kernel_distance(one, other, subset=500, subsets=20)
    assert abs(same.mean) < 3 * same.deviation / math.sqrt(20) + 0.02
    assert distances.kernel_distance(one, far + 1.0, subset=500, subsets=20).mean > 1.0
    assert same == distances.kernel_distance(one, other, subset=500, subsets=20)


def test_frechet_and_kernel_distance_are_torchmetrics() -> None:
    """torchmetrics 1.9 itself where it is installed (extra bench); else what it found for these features."""
    rng = np.random.default_rng(7)
    one = rng.standard_normal((120, 16)).astype(np.float32)
    other = (rng.standard_normal((120, 16)) * 1.5 + 0.25).astype(np.float32)
    known = {"frechet": TORCHMETRICS_FRECHET, "kernel": TORCHMETRICS_KERNEL}
    with contextlib.suppress(ImportError):
        known |= torchmetrics_distances(one, other)
    assert distances.frechet_distance(moments(one), moments(other)) == pytest.approx(known["frechet"], rel=1e-4)
    assert distances.kernel_distance(one, other).mean == pytest.approx(known["kernel"], rel=1e-4)


TORCHMETRICS_FRECHET = 7.447930
TORCHMETRICS_KERNEL = 0.723280


def torchmetrics_distances(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Same(torch.nn.Module):
        """What the features of features are."""

        num_features = 16

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    frechet = FrechetInceptionDistance(feature=Same(), normalize=True, input_img_size=(16,))
    kernel = KernelInceptionDistance(feature=Same(), subsets=1, subset_size=120, normalize=True)
    found = {}
    for name, metric in {"frechet": frechet, "kernel": kernel}.items():
        metric.normalize = False
        metric.used_custom_model = True
        metric.update(torch.from_numpy(one), real=True)
        metric.update(torch.from_numpy(other), real=False)
        value = metric.compute()
        found[name] = float(value[0] if isinstance(value, tuple) else value)
    return found


def test_precision_and_recall_of_known_sets() -> None:
    rng = np.random.default_rng(4)
    real = rng.standard_normal((300, 3))
    same = distances.precision_recall(real, real)
    assert (same.precision, same.recall) == (1.0, 1.0)
    apart = distances.precision_recall(real, real + 100.0)
    assert (apart.precision, apart.recall) == (0.0, 0.0)
    collapsed = distances.precision_recall(real, real[:1] + 1e-3 * rng.standard_normal((300, 3)))
    assert collapsed.precision > 0.99  # all good, and all the same
    assert collapsed.recall < 0.05
    copies = np.zeros((10, 3))
    assert distances.precision_recall(copies, copies) == distances.PrecisionRecall(1.0, 1.0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), real=st.integers(4, 60), made=st.integers(4, 60))
def test_precision_and_recall_are_scikit_learns_neighbours(seed: int, real: int, made: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((real, 4)), rng.standard_normal((made, 4)) * 1.3

    def share(points: np.ndarray, of: np.ndarray) -> float:
        radii = NearestNeighbors(n_neighbors=4).fit(of).kneighbors(of)[0][:, 3]
        lengths = np.linalg.norm(points[:, None] - of[None], axis=2)
        return float((lengths <= radii + 1e-12).any(axis=1).mean())

    found = distances.precision_recall(x, y)
    assert (found.precision, found.recall) == (pytest.approx(share(y, x)), pytest.approx(share(x, y)))


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((50, 4)), rng.standard_normal((70, 4))
    whole = distances.precision_recall(x, y)
    monkeypatch.setattr(distances, "MEBIBYTES", 7 * 70 * 8 / 2**20)
    assert distances.precision_recall(x, y) == whole


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: distances.kernel_distance(x[:1], x), "needs 2 images of each set, not 1"),
        (lambda x: distances.precision_recall(x, x[:3]), "need 4 images of each set, not 3"),
    ],
)
def test_too_few_images(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(np.random.default_rng(0).standard_normal((9, 2)))  # type: ignore[operator]
