"""Moments of data that comes in parts, against those of the whole."""

from __future__ import annotations

import numpy as np

from keras_vae.support import moments


def of(rows: np.ndarray) -> moments.Moments:
    mean = rows.mean(axis=0)
    return len(rows), mean, np.square(rows - mean).sum(axis=0)


def test_two_parts_have_the_moments_of_the_whole() -> None:
    rows = np.random.default_rng(0).normal(1e6, 1.0, (50, 3))  # a difference of sums would lose six digits
    count, mean, squares = moments.merge(of(rows[:13]), of(rows[13:]), np.square)
    assert count == 50
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(squares / count, rows.var(axis=0), rtol=1e-9)


def test_an_empty_part_changes_nothing() -> None:
    part = of(np.array([[1.0, 2.0], [3.0, 6.0]]))
    count, mean, squares = moments.merge((0, np.zeros(2), np.zeros(2)), part, np.square)
    assert count == 2
    np.testing.assert_array_equal(mean, [2.0, 4.0])
    np.testing.assert_array_equal(squares, [2.0, 8.0])
