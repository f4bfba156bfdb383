"""Mean and variance of data that comes in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

# Count, mean, and sum of products of deviations from the mean: arrays or tensors.
Moments: TypeAlias = tuple[Any, Any, Any]


def merge(one: Moments, other: Moments, product: Callable[[Any], Any]) -> Moments:
    """The moments of two sets together, without a difference of large sums (Chan et al. 1979).

    Args:
        one, other: the sets' moments. At most one of the sets is empty.
        product: of a deviation with itself: its square for variances, the outer product for covariances.
    """
    (count, mean, products), (more, their_mean, their_products) = one, other
    total = count + more
    shift = their_mean - mean
    return total, mean + shift * (more / total), products + their_products + product(shift) * (count * more / total)
