"""Whether single latents represent single factors: the mutual information gap, and DCI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import mutual_info_score

from keras_vae.model.encoding import Encoded
from keras_vae.support.errors import InputError

BINS = 20
LEAST_IMAGES = 100
TREES = 30
DEPTH = 12


@dataclass(frozen=True)
class InformationGap:
    """The mutual information gap.

    Attributes:
        mean: over the factors, in [0, 1]; 1 if each factor is in a single latent.
        per_factor: by name.
    """

    mean: float
    per_factor: dict[str, float]


def mutual_information_gap(latents: np.ndarray, factors: np.ndarray, names: tuple[str, ...]) -> InformationGap:
    """The gap between the two latents most informative about a factor, over its entropy (Chen et al. 2018, 1802.04942).

    Mutual information is that of the factor and of 20 equally wide bins of a latent, as in Locatello et al. 2019
    (arXiv 1811.12359), minus what chance alone would give with as many bins (Miller and Madow's correction).

    Args:
        latents: posterior means, float (images, latent_dim).
        factors: integers (images, factors).
        names: of the factors.

    Raises:
        InputError: fewer than 100 images, fewer than 2 latents, or a factor with a single value.
    """
    _check(latents, factors, names)
    bins = np.stack([_binned(column) for column in latents.T])
    gaps = {}
    for name, factor in zip(names, factors.T, strict=True):
        information = sorted((_information(factor, column) for column in bins), reverse=True)
        gaps[name] = float((information[0] - information[1]) / mutual_info_score(factor, factor))
    return InformationGap(float(np.mean(list(gaps.values()))), gaps)


def _binned(column: np.ndarray) -> np.ndarray:
    return np.digitize(column, np.histogram_bin_edges(column, BINS)[1:-1])


def _information(factor: np.ndarray, column: np.ndarray) -> float:
    values, used = len(np.unique(factor)), len(np.unique(column))
    chance = (values - 1) * (used - 1) / (2 * len(factor))
    return max(0.0, mutual_info_score(factor, column) - chance)


@dataclass(frozen=True)
class DCI:
    """Disentanglement, completeness and informativeness, each in [0, 1].

    Attributes:
        disentanglement: 1 if each latent matters for a single factor.
        completeness: 1 if a single latent matters for each factor.
        informativeness: share of correctly predicted values of factors, on held-out images.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def dci(
    latents: np.ndarray,
    factors: np.ndarray,
    unseen_latents: np.ndarray,
    unseen_factors: np.ndarray,
    names: tuple[str, ...],
    seed: int = 0,
    each: Callable[[str], None] = lambda name: None,
) -> DCI:
    """DCI of Eastwood and Williams 2018, with the importances of random forests, as they propose.

    Args:
        latents, factors: to learn from, float (images, latent_dim) and integers (images, factors).
        unseen_latents, unseen_factors: of held-out images.
        names: of the factors.
        seed: of the forests.
        each: called with the name of each factor when it is done.

    Raises:
        InputError: as `mutual_information_gap`.
    """
    _check(latents, factors, names)
    importances, right = [], []
    for name, factor, unseen in zip(names, factors.T, unseen_factors.T, strict=True):
        forest = RandomForestClassifier(TREES, max_depth=DEPTH, random_state=seed, n_jobs=-1).fit(latents, factor)
        importances.append(forest.feature_importances_)
        right.append(float((forest.predict(unseen_latents) == unseen).mean()))
        each(name)
    return dci_of_importances(np.stack(importances, axis=1), float(np.mean(right)))


def dci_of_importances(importances: np.ndarray, informativeness: float) -> DCI:
    """DCI of a table of importances, (latents, factors), none of them negative."""
    importances = np.asarray(importances, np.float64)
    total = importances.sum()
    if total <= 0:
        return DCI(0.0, 0.0, informativeness)
    by_latent = 1.0 - _entropy(importances, axis=1)
    by_factor = 1.0 - _entropy(importances, axis=0)
    return DCI(
        disentanglement=float(by_latent @ importances.sum(axis=1) / total),
        completeness=float(by_factor @ importances.sum(axis=0) / total),
        informativeness=informativeness,
    )


def _entropy(importances: np.ndarray, axis: int) -> np.ndarray:
    """Entropy of the shares along an axis, relative to its maximum; 0 for a single entry, or where all are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(stats.entropy(importances, base=importances.shape[axis], axis=axis))


def factors_of(encoded: Encoded) -> np.ndarray:
    """Attributes as factors: int64 (images, attributes)."""
    return encoded.attributes.astype(np.int64)


def _check(latents: np.ndarray, factors: np.ndarray, names: tuple[str, ...]) -> None:
    if len(latents) < LEAST_IMAGES:
        raise InputError(f"measures of disentanglement need {LEAST_IMAGES} images, not {len(latents)}")
    if latents.shape[1] < 2:
        raise InputError("measures of disentanglement need 2 latents")
    for name, factor in zip(names, factors.T, strict=True):
        if len(np.unique(factor)) < 2:
            raise InputError(f"factor {name!r} has one value alone in these images: leave it out")
