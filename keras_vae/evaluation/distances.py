"""Distances between two sets of images, from their features: Fréchet distance, kernel distance, precision and recall.

The features are the rows of an array (count, channels). They may be those of any network; figures of different networks
do not compare.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import pairwise_distances_chunked
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from keras_vae.support import moments
from keras_vae.support.errors import InputError

NEIGHBOURS = 3  # Kynkaanniemi et al. 2019
MEBIBYTES = 64.0  # of a table of distances, at a time
ROUNDING = 1e-12  # of squared distances, relative to squared lengths
SUBSET = 1000  # Binkowski et al. 2018
SUBSETS = 100


class Moments:
    """Mean and covariance of features that come in batches, in float64. Memory does not grow with their number."""

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
        self.count, self.mean, self._products = moments.merge(
            (self.count, self.mean, self._products),
            (len(features), mean, deviations.T @ deviations),
            lambda shift: np.outer(shift, shift),
        )

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """The moments of features (count, channels)."""
        found = cls(features.shape[1])
        found.update(features)
        return found

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, (channels, channels)."""
        return self._products / (self.count - 1)


def least_for_frechet(channels: int) -> int:
    """The least number of features for a Fréchet distance: the covariance of fewer is singular."""
    return channels + 1


def frechet_distance(one: Moments, other: Moments) -> float:
    """Squared Fréchet distance of Gaussians with the features' moments (Heusel et al. 2017, arXiv 1706.08500, eq. 6).

    It is biased upwards, and more so with fewer features: compare it between sets of equal size.

    Raises:
        InputError: fewer features than the number of channels plus one.
    """
    least = least_for_frechet(len(one.mean))
    for side in (one, other):
        if side.count < least:
            raise InputError(f"a Frechet distance of {len(one.mean)} channels needs {least} images, not {side.count}")
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    # The square roots of C1 C2 and of the symmetric C1^1/2 C2 C1^1/2 have the same trace.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ other.covariance @ root), 0.0)).sum()
    means = np.square(one.mean - other.mean).sum()
    return max(0.0, float(means + np.trace(one.covariance) + np.trace(other.covariance) - 2.0 * cross))


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance.

    Attributes:
        mean: over the subsets; it can fall below 0, because the estimate is unbiased.
        deviation: standard deviation between the subsets.
        subset: number of features of each set in a subset.
    """

    mean: float
    deviation: float
    subset: int


def kernel_distance(
    one: np.ndarray, other: np.ndarray, subset: int = SUBSET, subsets: int = SUBSETS, seed: int = 0
) -> KernelDistance:
    """Squared maximum mean discrepancy with a cubic kernel, k(x, y) = (x . y / channels + 1)^3.

    Binkowski et al. 2018, arXiv 1801.01401: the unbiased estimate (section 4), averaged over random subsets. With the
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
    # scikit-learn's polynomial kernel is this one by default.
    for _ in range(subsets):
        x = np.asarray(one[rng.choice(len(one), subset, replace=False)], np.float64)
        y = np.asarray(other[rng.choice(len(other), subset, replace=False)], np.float64)
        inner = sum(kernel.sum() - np.trace(kernel) for kernel in (polynomial_kernel(x), polynomial_kernel(y)))
        found.append(inner / (subset * (subset - 1)) - 2.0 * polynomial_kernel(x, y).mean())
    return KernelDistance(float(np.mean(found)), float(np.std(found)), subset)


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares of images, in [0, 1].

    Attributes:
        precision: of the made images, those that lie among the real ones: how good they are.
        recall: of the real images, those that lie among the made ones: how varied the made ones are.
    """

    precision: float
    recall: float


def precision_recall(real: np.ndarray, made: np.ndarray, neighbours: int = NEIGHBOURS) -> PrecisionRecall:
    """Improved precision and recall of Kynkaanniemi et al. 2019, arXiv 1904.06991, equation 2.

    A set's manifold is the union of the balls around its features, each reaching to its k-th nearest neighbour.

    Raises:
        InputError: fewer features than the number of neighbours plus one.
    """
    for side in (real, made):
        if len(side) <= neighbours:
            raise InputError(f"precision and recall need {neighbours + 1} images of each set, not {len(side)}")
    return PrecisionRecall(_share_within(made, real, neighbours), _share_within(real, made, neighbours))


def _share_within(points: np.ndarray, of: np.ndarray, neighbours: int) -> float:
    points, of = np.asarray(points, np.float64), np.asarray(of, np.float64)
    lengths, _ = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(of).kneighbors()
    # A little more, so that a copy of a point lies within the point's ball.
    radii = np.sqrt(np.square(lengths[:, -1]) + ROUNDING * np.square(of).sum(axis=1).max())
    inside = pairwise_distances_chunked(
        points, of, reduce_func=lambda table, start: (table <= radii).any(axis=1), working_memory=MEBIBYTES
    )
    return float(np.concatenate(list(inside)).mean())
