"""A run's checkpoints: written aside, with checksums, and renamed; the last few are kept, a damaged one is passed over.

A checkpoint is a .keras file, model, optimizer, noise and all, with one member more, `training.json`: where training
is, and the SHA-256 of every other member.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras

from keras_vae.runs import folder
from keras_vae.support.errors import InputError
from keras_vae.support.files import write_aside

STATE_MEMBER = "training.json"
BLOCK = 2**20


@dataclass
class State:
    """Where training is.

    Attributes:
        step: training steps done; it says which batch comes next.
        seconds: of training so far.
        timed_steps, timed_seconds: those that the speed is measured on.
        logs: the figures of the last epoch that ended.
        metrics: within an epoch, the values of its metrics' variables so far; empty at its end.
    """

    step: int
    seconds: float
    timed_steps: int
    timed_seconds: float
    logs: dict[str, float]
    metrics: list[Any]


def write(run: Path, save: Callable[[Path], None], state: State, keep: int) -> Path:
    """Writes a checkpoint and removes those before the last `keep`.

    Args:
        run: the run folder.
        save: writes the model to a path.
        state: where training is.
        keep: number of checkpoints to keep.

    Raises:
        OSError: it cannot be written; those that are there stay as they are.
    """
    written = path(run, state.step)
    with write_aside(written, durable=True) as aside:
        save(aside)
        with zipfile.ZipFile(aside) as archive:
            sums = {name: _sha256(archive, name) for name in archive.namelist()}
        with zipfile.ZipFile(aside, "a") as archive:
            archive.writestr(STATE_MEMBER, json.dumps({**asdict(state), "sha256": sums}))
    for old in folder.checkpoints(run)[:-keep]:
        old.unlink()
    return written


def path(run: Path, step: int) -> Path:
    """Of the checkpoint of a step."""
    return run / folder.CHECKPOINT_FOLDER / f"step-{step:08d}.keras"


def read(file: Path) -> State:
    """Where training was, of a checkpoint that is whole.

    Raises:
        InputError: it is damaged, or no checkpoint.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            state = json.loads(archive.read(STATE_MEMBER))
            sums = state.pop("sha256")
            state.pop("last_kl", None)  # of 0.9.0
            for name in set(archive.namelist()) - {STATE_MEMBER} | set(sums):
                if _sha256(archive, name) != sums.get(name):
                    raise InputError(f"{file} is damaged: {name} is not what was written")
            return State(**state)
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is damaged, or no checkpoint: {error}") from error


def latest(run: Path) -> tuple[Path, State] | None:
    """The last whole checkpoint of a run, and where training was; damaged ones are reported on standard error.

    Returns:
        None where there is none.
    """
    for file in reversed(folder.checkpoints(run)):
        try:
            return file, read(file)
        except InputError as error:
            print(f"{error}; taking the one before", file=sys.stderr)
    return None


def metrics_of(model: Any) -> list[Any]:
    """The values of a model's metrics' variables, for `State.metrics`."""
    return [keras.ops.convert_to_numpy(variable).tolist() for metric in model.metrics for variable in metric.variables]


def restore_metrics(model: Any, values: list[Any]) -> None:
    """Puts such values back."""
    variables = [variable for metric in model.metrics for variable in metric.variables]
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _sha256(archive: zipfile.ZipFile, name: str) -> str:
    digest = hashlib.sha256()
    with archive.open(name) as member:
        while block := member.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
