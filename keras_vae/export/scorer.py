"""The scorer as an ONNX file: images to how unusual they are, and where it shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_vae.export.on_images import TOLERANCE, Run, difference, of_scorer
from keras_vae.export.runtime import CPU, Scorer
from keras_vae.export.scored import rows
from keras_vae.export.writers import onnx_graph
from keras_vae.export.writers.onnx import check_file, converted_function, log1p, put, save
from keras_vae.support.keras_defaults import keras_defaults


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

    def compare(new: Path) -> float:
        return difference(opened(new)[0], of_scorer(score), image_shape)

    return put(path, "scorer", write, compare, TOLERANCE, metadata)


def opened(path: Path) -> tuple[Run, dict[str, str]]:
    """An exported scorer as a function to arrays by name, on the CPU, and its metadata.

    Raises:
        ExportError: as `Scorer`.
    """
    scorer = Scorer(path, [CPU])
    return lambda images: scorer.score(images)._asdict(), scorer.metadata
