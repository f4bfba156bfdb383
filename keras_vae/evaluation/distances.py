"""Distances between two sets of images, from their features: Frechet, kernel, precision and recall.

The features are rows of an array (count, channels), of any network; each figure depends on which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_vae.support.errors import InputError

NEIGHBOURS = 3  # Kynkaanniemi et al. 2019
ROWS = 1024  # of a table of pairs, at a time
ROUNDING = 1e-12  # of squared distances, relative to squared lengths
SUBSET = 1000  # Binkowski et al. 2018
SUBSETS = 100


class Moments:
    """Mean and covariance of features that come in batches, in float64; memory does not grow with their number."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = np.zeros(channels)
        self._products = np.zeros((channels, channels))

    def update(self, features: np.ndarray) -> None:
        """Takes in features (batch, channels)."""
        features = np.asarray(features, np.float64)
        if not len(features):
            return
        mean = features.mean(axis=0)
        deviations = features - mean
        shift = mean - self.mean
        total = self.count + len(features)
        # Sets' products of deviations add up as in Chan et al. 1979.
        self._products += deviations.T @ deviations
        self._products += np.outer(shift, shift) * self.count * len(features) / total
        self.mean = self.mean + shift * len(features) / total
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, (channels, channels)."""
        return self._products / (self.count - 1)


def least_for_frechet(channels: int) -> int:
    """Features that a Frechet distance takes at least: with fewer their covariance is singular."""
    return channels + 1


def frechet_distance(one: Moments, other: Moments) -> float:
    """Squared Frechet distance of Gaussians with the features' moments (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    It is biased upwards, the more the fewer the features: compare it between sets of the same sizes.

    Raises:
        InputError: fewer features than channels and one more.
    """
    least = least_for_frechet(len(one.mean))
    for side in (one, other):
        if side.count < least:
            raise InputError(f"a Frechet distance of {len(one.mean)} channels needs {least} images, not {side.count}")
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    # The trace of the root of C1 C2 is that of the root of C1^1/2 C2 C1^1/2, which is symmetric.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other.covariance @ root), 0.0)).sum()
    means = np.square(one.mean - other.mean).sum()
    return max(0.0, float(means + np.trace(one.covariance) + np.trace(other.covariance) - 2.0 * cross))


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance.

    Attributes:
        mean: over the subsets; it can fall below 0, for it is without bias.
        deviation: between the subsets.
        subset: features of each set in a subset.
    """

    mean: float
    deviation: float
    subset: int


def kernel_distance(
    one: np.ndarray, other: np.ndarray, subset: int = SUBSET, subsets: int = SUBSETS, seed: int = 0
) -> KernelDistance:
    """Squared maximum mean discrepancy with a cubic kernel, k(x, y) = (x . y / channels + 1)^3.

    Binkowski et al. 2018, arXiv 1801.01401: the unbiased estimate (section 4), averaged over random subsets. Of the
    original's network it is the KID.

    Raises:
        InputError: fewer than 2 features in a set.
    """
    subset = min(subset, len(one), len(other))
    if subset < 2:
        raise InputError(f"a kernel distance needs 2 images of each set, not {subset}")
    if subset == len(one) == len(other):
        subsets = 1  # all of them are the same
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(subsets):
        x = np.asarray(one[rng.choice(len(one), subset, replace=False)], np.float64)
        y = np.asarray(other[rng.choice(len(other), subset, replace=False)], np.float64)
        own = sum(
            (kernel.sum() - np.trace(kernel)) / (subset * (subset - 1)) for kernel in (_cubic(x, x), _cubic(y, y))
        )
        found.append(own - 2.0 * _cubic(x, y).mean())
    return KernelDistance(float(np.mean(found)), float(np.std(found)), subset)


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares of images, in [0, 1].

    Attributes:
        precision: of the made images that lie among the real ones: how good they are.
        recall: of the real images that lie among the made ones: how varied these are.
    """

    precision: float
    recall: float


def precision_recall(real: np.ndarray, made: np.ndarray, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Improved precision and recall of Kynkaanniemi et al. 2019, arXiv 1904.06991, equation 2.

    A set's manifold is the balls around its features that reach to their k-th nearest neighbours in it.

    Raises:
        InputError: fewer features than neighbours and one more.
    """
    for side in (real, made):
        if len(side) <= neighbours:
            raise InputError(f"precision and recall need {neighbours + 1} images of each set, not {len(side)}")
    return PrecisionRecall(_share_within(made, real, neighbours), _share_within(real, made, neighbours))


def _share_within(points: np.ndarray, of: np.ndarray, neighbours: int) -> float:
    radii = np.concatenate(
        [
            # The nearest of all is the point itself.
            np.partition(_squared_distances(of[start : start + ROWS], of, own=start), neighbours, axis=1)[:, neighbours]
            for start in range(0, len(of), ROWS)
        ]
    )
    radii = radii + ROUNDING * np.square(np.asarray(of, np.float64)).sum(1).max()  # copies of a point lie within it
    inside = [
        (_squared_distances(points[start : start + ROWS], of) <= radii).any(axis=1)
        for start in range(0, len(points), ROWS)
    ]
    return float(np.concatenate(inside).mean())


def _squared_distances(x: np.ndarray, y: np.ndarray, own: int | None = None) -> np.ndarray:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    found = np.square(x).sum(1)[:, None] - 2.0 * x @ y.T + np.square(y).sum(1)
    if own is not None:  # of a point to itself: nothing, without rounding
        found[np.arange(len(x)), own + np.arange(len(x))] = 0.0
    return np.maximum(found, 0.0)
