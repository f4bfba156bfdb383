"""What scorers return, wherever they run."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Scored(NamedTuple):
    """How unusual images are.

    Attributes:
        score: float32 (batch,); larger is more unusual.
        rank: among the usual images that the scorer was exported with, float32 (batch,) in [0, 1): 0.99 is more unusual
            than 99 of 100 of them.
        error_map: where it shows, float32 (batch, height, width).
        reconstruction: float32 (batch, height, width, channels) in [0, 1].
    """

    score: np.ndarray
    rank: np.ndarray
    error_map: np.ndarray
    reconstruction: np.ndarray
