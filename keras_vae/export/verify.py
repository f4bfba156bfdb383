"""Compares decoders: do the exported ones compute what Keras computes?

Of levels 0..255 it is known which values round to them. So what counts as their difference from float32 values is the
distance from those: a level may be another one than Keras's only where Keras's value lies within the tolerance of the
boundary between the two. Of two decoders that both round, neither value is known: levels may be one apart, and no more
often than errors within the tolerance make them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from keras_vae.export.conditional import every_kind
from keras_vae.export.formats import Runner
from keras_vae.support.conditions import Condition
from keras_vae.support.pixels import to_float, to_uint8

TOLERANCE = 1e-4
# The least PSNR, in dB, that a decoder of lower precision must keep: at 30 eyes begin to see a difference.
LEAST_PSNR = {"float16": 50.0, "int8": 30.0}
LEAST_PSNR_UINT8 = {**LEAST_PSNR, "float16": 55.0}  # every other level one too low, as if cut off, is 51 dB
DRAWS = 1_000
BATCH_SIZES = (1, 7, 64)
EXTREME, FAR = 5.0, 50.0
# Rounding errors grow with the values they are of, and latents of 50 make values some fifty times as large.
FAR_FACTOR = 10

Rows: TypeAlias = tuple[np.ndarray, ...]  # latents, and conditions of a conditional model


@dataclass(frozen=True)
class Pair:
    """The differences between two decoders' images.

    Attributes:
        first, second: their names.
        max_difference, mean_difference: of pixel values, absolute, over all latents but those of +-50. Of uint8 images
            what rounding does not explain.
        far_difference: the largest over those of +-50.
        psnr: dB, over the draws from the prior; infinite where there is no difference. With uint8 images, of both as
            levels.
        passed: whether they count as equal.
        demanded: what was asked for.
        error: what the second one raised, on one line, where it did not decode all latents.
    """

    first: str
    second: str
    max_difference: float
    mean_difference: float
    far_difference: float
    psnr: float
    passed: bool
    demanded: str
    error: str | None = None


@dataclass(frozen=True, repr=False)
class Report:
    """What `verify` found.

    Attributes:
        pairs: one entry for each decoder but the first, which it is compared with.
        tolerance: the largest absolute difference that passes between decoders in float32; at +-50, ten times as much.
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
        found = (
            f"{pair.first} and {pair.second} {pair.max_difference:.2g}, {pair.psnr:.0f} dB "
            f"({pair.error or pair.demanded})"
            for pair in self.pairs
        )
        return f"largest difference of {'; '.join(found)}"

    __repr__ = summary  # what a prompt shows of `vae.export(...)`

    def to_json(self) -> dict[str, Any]:
        """The report as JSON takes it: an infinite PSNR is None."""
        report = {**asdict(self), "passed": self.passed}
        for pair in report["pairs"]:
            for name in ("psnr", "max_difference", "mean_difference", "far_difference"):
                pair[name] = pair[name] if math.isfinite(pair[name]) else None
        return report


def draws(latent_dim: int, seed: int = 0) -> Iterator[np.ndarray]:
    """A thousand draws from the prior, float32 (batch, latent_dim), in batches of 1, 7 and 64."""
    z = np.random.default_rng(seed).standard_normal((DRAWS, latent_dim), np.float32)
    start = 0
    for size in itertools.cycle(BATCH_SIZES):
        if start >= DRAWS:
            return
        yield z[start : start + size]
        start += size


def extremes(latent_dim: int, seed: int = 0) -> Iterator[np.ndarray]:
    """No latents at all, zeros, and the ends of what a user would try, float32 (batch, latent_dim).

    For 5, then 50: all latents at +value, all at -value, and random signs.
    """
    signs = np.sign(np.random.default_rng(seed).standard_normal((4, latent_dim), np.float32))
    yield np.zeros((0, latent_dim), np.float32)
    yield np.zeros((1, latent_dim), np.float32)
    for extreme in (EXTREME, FAR):
        yield np.float32(extreme) * np.concatenate([np.ones_like(signs[:1]), -np.ones_like(signs[:1]), signs])


def _groups(latent_dim: int, condition: Condition | None) -> Iterator[tuple[list[Rows], bool]]:
    """What decoders are compared on: rows in batches of several sizes, and whether they are draws."""
    drawn, others = list(draws(latent_dim)), list(extremes(latent_dim))
    batches: list[Rows] = [(z,) for z in (*drawn, *others)]
    if condition is not None:
        ends = np.cumsum([len(z) for (z,) in batches])
        asked = np.split(every_kind(condition, ends[-1]), ends[:-1])
        batches = [(z, rows) for (z,), rows in zip(batches, asked, strict=True)]
    for start in range(0, len(drawn), len(BATCH_SIZES)):
        yield batches[start : min(start + len(BATCH_SIZES), len(drawn))], True
    for batch in batches[len(drawn) :]:
        yield [batch], False


def verify(
    decoders: Mapping[str, Runner],
    latent_dim: int,
    tolerance: float = TOLERANCE,
    precisions: Mapping[str, str] | None = None,
    condition: Condition | None = None,
) -> Report:
    """Runs all decoders on the same latents, and conditions, and compares each with the first.

    Args:
        decoders: by name, functions from float32 (batch, latent_dim), and conditions (batch, names), to images, floats
            or uint8. The first is given the batches of a round, of 1, 7 and 64 latents, at once, the others one by one.
        latent_dim: number of latents.
        tolerance: the largest absolute difference of a pixel value that passes; at +-50, ten times as much.
        precisions: of decoders by name, where one does not compute in float32: "float16" or "int8". Pairs with it pass
            by their PSNR (`LEAST_PSNR`, and where there are uint8 images `LEAST_PSNR_UINT8`).
        condition: what the decoders take besides latents, if they are conditional.

    Returns:
        The report. Images that are not finite, or of different shapes, do not pass.
    """
    reference, *others = decoders
    if not others:
        return Report((), tolerance, 0)
    differences = {other: _Difference() for other in others}
    errors: dict[str, str] = {}
    count = 0
    for batches, drawn in _groups(latent_dim, condition):
        # The reference takes a group of batches at once: Keras, operation by operation, is what takes long.
        images = _images(decoders[reference](*map(np.concatenate, zip(*batches, strict=True))))
        ends = np.cumsum([len(rows[0]) for rows in batches])
        for rows, expected in zip(batches, np.split(images, ends[:-1]), strict=True):
            is_far = bool((np.abs(rows[0]) == FAR).any())
            count += len(rows[0])
            for name, difference in differences.items():
                if name in errors:
                    continue
                try:
                    difference.add(expected, _images(decoders[name](*rows)), drawn, is_far)
                except Exception as error:  # runtimes share no base class, and whatever they raise is a finding
                    errors[name] = f"a batch of {len(rows[0])} failed: {' '.join(str(error).split())[:200]}"
    pairs = []
    for name, difference in differences.items():
        floors = LEAST_PSNR_UINT8 if difference.any_rounded else LEAST_PSNR
        lower = [(precisions or {}).get(each, "") for each in (reference, name)]
        floor = min((floors[each] for each in lower if each in floors), default=None)
        if floor is None:
            least = least_psnr_of_levels(tolerance) if difference.both_rounded else -math.inf
            passed = (
                difference.largest <= tolerance
                and difference.far <= FAR_FACTOR * tolerance
                and difference.psnr >= least
            )
            demanded = f"at most {tolerance:g}" + (f", at least {least:.0f} dB" if difference.both_rounded else "")
        else:
            passed = math.isfinite(difference.largest + difference.far) and difference.psnr >= floor
            demanded = f"at least {floor:g} dB"
        found = (difference.largest, difference.mean, difference.far, difference.psnr)
        pairs.append(Pair(reference, name, *found, passed and name not in errors, demanded, errors.get(name)))
    return Report(tuple(pairs), tolerance, count)


def joined(reports: Iterable[Report]) -> Report:
    """Several reports as one."""
    found = list(reports)
    pairs = tuple(pair for report in found for pair in report.pairs)
    return Report(pairs, max(report.tolerance for report in found), sum(report.latents for report in found))


def least_psnr_of_levels(tolerance: float) -> float:
    """PSNR, in dB, of levels whose values differ by the tolerance: 255 times it is the share that are one apart."""
    if not tolerance:
        return math.inf
    return -10 * math.log10(255 * tolerance / 255**2)


def _images(found: Any) -> np.ndarray:
    images = np.asarray(found)
    return images if images.dtype == np.uint8 else images.astype(np.float32, copy=False)


def _values(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest values that images may have had, before they were rounded if they are uint8."""
    values = images.astype(np.float64)
    if images.dtype != np.uint8:
        return values, values
    return (
        np.where(images > 0, (values - 0.5) / 255, -np.inf),  # values beyond are clipped
        np.where(images < 255, (values + 0.5) / 255, np.inf),
    )


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far two decoders' values are apart, absolute; at least, where they were rounded."""
    if one.dtype == other.dtype != np.uint8:
        return np.abs(one.astype(np.float64) - other)
    (low, high), (other_low, other_high) = _values(one), _values(other)
    return np.maximum(np.maximum(low - other_high, other_low - high), 0)


class _Difference:
    """What two decoders differ by, summed up batch by batch."""

    def __init__(self) -> None:
        self.largest = self.far = 0.0
        self.any_rounded = self.both_rounded = False
        self._total, self._values = 0.0, 0
        self._squares, self._drawn_values = 0.0, 0

    @property
    def mean(self) -> float:
        return self._total / max(self._values, 1)

    @property
    def psnr(self) -> float:
        error = self._squares / max(self._drawn_values, 1)
        return -10 * math.log10(error) if error > 0 else math.inf

    def add(self, one: np.ndarray, other: np.ndarray, drawn: bool, is_far: bool) -> None:
        if one.shape != other.shape:
            self.largest = self._total = self._squares = math.inf
            return
        rounded = [each.dtype == np.uint8 for each in (one, other)]
        self.any_rounded, self.both_rounded = any(rounded), all(rounded)
        difference = _apart(one, other)
        # NaN, the one value that max() may lose, counts as an infinite difference.
        difference = np.where(np.isfinite(difference), difference, np.inf)
        if is_far:
            self.far = max(self.far, float(difference.max()))
            return
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self._total += float(difference.sum())
        self._values += difference.size
        if drawn:
            if self.any_rounded and np.isfinite(difference).all():
                one, other = (to_float(to_uint8(each)) for each in (one, other))
                difference = one.astype(np.float64) - other
            self._squares += float(np.square(difference).sum())
            self._drawn_values += difference.size
