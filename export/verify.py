"""Compares decoders: do the exported ones compute what Keras computes?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Runner = Callable[[np.ndarray], np.ndarray]

TOLERANCE = 1e-4
DRAWS = 1_000
BATCH_SIZES = (1, 7, 64)
EXTREME = 5.0


@dataclass(frozen=True)
class Pair:
    """The differences between two decoders' images, over all latents that were tried."""

    first: str
    second: str
    max_difference: float
    mean_difference: float
    passed: bool


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        pairs: one entry for each two decoders.
        tolerance: the largest absolute difference that passes.
        latents: how many latents were decoded.
    """

    pairs: tuple[Pair, ...]
    tolerance: float
    latents: int

    @property
    def passed(self) -> bool:
        return all(pair.passed for pair in self.pairs)

    def summary(self) -> str:
        """One line: the largest difference of each pair."""
        differences = (f"{pair.first} and {pair.second} {pair.max_difference:.2g}" for pair in self.pairs)
        return f"largest difference {', '.join(differences)} (at most {self.tolerance:g} allowed)"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def latents(latent_dim: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The latents that decoders are compared on, in batches of 1, 7 and 64.

    A thousand draws from the prior, zeros, and the ends of what a user would try: all 5, all -5, and
    each latent at one of the two.
    """
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((DRAWS, latent_dim), np.float32)
    sizes = itertools.cycle(BATCH_SIZES)
    start = 0
    while start < DRAWS:
        batch = draws[start : start + next(sizes)]
        start += len(batch)
        yield batch
    signs = np.sign(rng.standard_normal((4, latent_dim), np.float32))
    yield np.zeros((1, latent_dim), np.float32)
    yield EXTREME * np.concatenate([np.ones_like(signs[:1]), -np.ones_like(signs[:1]), signs])


def verify(decoders: Mapping[str, Runner], latent_dim: int, tolerance: float = TOLERANCE) -> Report:
    """Runs all decoders on the same latents and compares every two of them.

    Args:
        decoders: by name, functions from float32 (batch, latent_dim) to images.
        latent_dim: number of latents.
        tolerance: the largest absolute difference of a pixel value that passes.

    Returns:
        The report. Images that are not finite, or of different shapes, do not pass.
    """
    largest = dict.fromkeys(itertools.combinations(decoders, 2), 0.0)
    sums = dict.fromkeys(largest, 0.0)
    count, values = 0, 0
    for z in latents(latent_dim):
        images = {name: np.asarray(run(z), np.float32) for name, run in decoders.items()}
        count += len(z)
        values += next(iter(images.values())).size
        for first, second in largest:
            if images[first].shape != images[second].shape:
                difference = np.array([np.inf])
            else:
                difference = np.abs(images[first] - images[second])
            # NaN, the one value that max() may lose, counts as an infinite difference.
            difference = np.where(np.isfinite(difference), difference, np.inf)
            largest[first, second] = max(largest[first, second], float(difference.max()))
            sums[first, second] += float(difference.sum(dtype=np.float64))
    pairs = tuple(
        Pair(*names, difference, sums[names] / values, difference <= tolerance) for names, difference in largest.items()
    )
    return Report(pairs, tolerance, count)
