"""The scorer as an ONNX file: images to how unusual they are, and where it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_vae.export.runtime import CPU, Scorer
from keras_vae.export.scored import rows
from keras_vae.export.writers import onnx_graph
from keras_vae.export.writers.onnx import check_file, converted_function, log1p, put, relative_difference, save
from keras_vae.support.keras_defaults import keras_defaults
from keras_vae.support.true_float32 import true_float32

TOLERANCE = 1e-4
BATCH_SIZES = (1, 7)


@keras_defaults()
def export_scorer(
    score: Any,
    image_shape: tuple[int, int, int],
    path: Path,
    metadata: Mapping[str, str] | None = None,
) -> float:
    """Writes a scorer as ONNX: `image`, float32 (batch, height, width, channels) in [0, 1], to what `score` returns.

    It is compared with `score` on noise before it is put in place.

    Args:
        score: a function from images, float32, to `score` and `rank`, float32 (batch,), `error_map`, float32
            (batch, height, width), and `reconstruction`, float32 like the images. Its method `rank` gives the ranks of
            scores.
        image_shape: (height, width, channels).
        path: a file ending in .onnx.
        metadata: entries for the file.

    Returns:
        The largest difference from `score` that was found, relative to values above 1.

    Raises:
        ExportError: a path that cannot be written.
        VerificationError: the file differs by more than 1e-4; what was there stays.
    """
    check_file(path)

    def write(new: Path, entries: dict[str, str]) -> None:
        model = converted_function(score, {"image": image_shape}, rows(image_shape), {"Log1p": (log1p, [])})
        onnx_graph.tidy(model.graph, "scorer")
        save(model, new, {"image_shape": json.dumps(list(image_shape)), **entries})

    @true_float32()
    def difference(new: Path) -> float:
        opened = Scorer(new, providers=[CPU])
        found = []
        for batch in BATCH_SIZES:
            images = np.random.default_rng(0).uniform(size=(batch, *image_shape)).astype(np.float32)
            made = opened.score(images)
            # Two scores that are all but equal may change places: ranks are compared for what the file found.
            wanted = {**score(images), "rank": score.rank(made.score)}
            found += [relative_difference(values, wanted[name]) for name, values in made._asdict().items()]
        return max(found)

    return put(path, "scorer", write, difference, TOLERANCE, metadata)
