"""The run folder: the names of its files, and its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from keras_vae.support.errors import InputError

MODEL_FILE = "model.keras"
CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"
METRICS_FILE = "metrics.jsonl"
VECTORS_FILE = "vectors.npz"


def is_run(path: Path) -> bool:
    """Whether the folder is a run: it has the configuration that training writes first of all."""
    return (path / CONFIG_FILE).is_file()


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, the last one last."""
    return sorted((run / CHECKPOINT_FOLDER).glob("step-*.keras"))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The figures of a run's epochs; none where there is no file. A line that was cut off is left out."""
    found = []
    for line in (run / METRICS_FILE).read_text().splitlines() if (run / METRICS_FILE).is_file() else ():
        try:
            figures = json.loads(line)
        except ValueError:
            continue
        if isinstance(figures, dict) and "step" in figures:
            found.append(figures)
    return found


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a run.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return json.loads((run / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {run / CONFIG_FILE} ({error}): restore it, or give the run's {MODEL_FILE} elsewhere"
        ) from error
