"""Resuming a run from its last checkpoint: which one that is, what may not have changed, and the epoch it was in."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_vae.runs import checkpoints
from keras_vae.runs.folder import CHECKPOINT_FOLDER, MODEL_FILE, read_config
from keras_vae.support.errors import InputError
from keras_vae.support.files import sweep
from keras_vae.training import strategies
from keras_vae.training.limits import limits_of
from keras_vae.training.results import SAMPLES_FILE, Examples

if TYPE_CHECKING:
    from keras_vae import data
    from keras_vae.model.vae import VAE
    from keras_vae.training.config import TrainingConfig

SIGNED = 256  # held-out images whose labels tell whether the data are the same
PRINTED = 16  # of them, whose brightness does
# Versions of the libraries that read images differ by less, other images by more.
BRIGHTNESS_TOLERANCE = 0.01


class Checkpoint(NamedTuple):
    """A checkpoint's file, and where training was."""

    path: Path
    state: checkpoints.State


def command(run: Path) -> str:
    """The command that resumes a run."""
    return f"keras-vae train --resume --out {shlex.quote(str(run))}"


def last_checkpoint(out: Path, strategy: tf.distribute.Strategy, chooses: bool) -> Checkpoint | None:
    """The checkpoint to resume from, which one process chooses for all workers.

    Args:
        out: the run folder.
        strategy: of the workers, which all have to call this.
        chooses: whether this process chooses; it also removes what an interrupted one left half-written.

    Returns:
        None where the run has none.

    Raises:
        InputError: a worker finds the checkpoint damaged.
    """
    found = None
    if chooses:
        sweep(out)
        for folder in (out / CHECKPOINT_FOLDER, out / "samples"):  # in which only the one that holds the run writes
            sweep(folder, alone=True)
        latest = checkpoints.latest(out)
        found = None if latest is None else Checkpoint(*latest)
    # What all workers send is added up: the chief's step and 1, and 0 from the others.
    step = int(strategies.agreed(strategy, [0.0 if found is None else found.state.step + 1.0])[0]) - 1
    if step < 0 or found is not None:
        return found
    path = checkpoints.path(out, step)
    return Checkpoint(path, checkpoints.read(path))


def check_unfinished(config: TrainingConfig, checkpoint: Checkpoint) -> None:
    """Refuses a run that has nothing left to do. One killed after its last step still has its model to write.

    Raises:
        InputError: it is refused.
    """
    out, state = Path(config.out), checkpoint.state
    steps_per_epoch = read_config(out).get("train_images", 0) // config.batch_size
    if not steps_per_epoch:
        return
    limits = limits_of(config, steps_per_epoch)
    written = (out / MODEL_FILE, out / "samples" / SAMPLES_FILE)  # the last of what training writes
    if not limits.reached(state.step, state.seconds) or not all(_is_newer(path, checkpoint.path) for path in written):
        return
    done = f"{state.seconds / 60:.3g} minutes, {state.step / steps_per_epoch:.3g} epochs or {state.step} steps"
    raise InputError(
        f"{out} has trained for {done}, and {limits} counts from the run's beginning: nothing is left to do; "
        f"{limits.extension(state.step, state.seconds)}"
    )


def signature(examples: Examples, config: TrainingConfig) -> dict[str, Any]:
    """By what the data of a run are recognized: `brightness` of held-out images, and `condition_sha256`.

    Empty of several workers: how many there are decides which images are the chief's.
    """
    if strategies.is_multi_worker(config.strategy):
        return {}
    brightness = examples.images[:PRINTED].mean(axis=(1, 2, 3), dtype=np.float64).round(3).tolist()
    if examples.condition is None:
        return {"brightness": brightness}
    labels = np.ascontiguousarray(examples.condition[:SIGNED], np.float32)
    return {"brightness": brightness, "condition_sha256": hashlib.sha256(labels.tobytes()).hexdigest()}


def check_same_data(config: TrainingConfig, images: data.ImageData, examples: Examples, vae: VAE) -> None:
    """Refuses data that has changed since the run began.

    Raises:
        InputError: the number of training or held-out images is not what it was, the classes are others than the
            model's, or held-out images or their labels are others.
    """
    if images.condition != vae.condition:
        raise InputError(
            f"the classes or attributes of {images.name} have changed since the run began: restore them, or start "
            "another run"
        )
    record = read_config(Path(config.out))
    for name, now in (("train_images", images.train_size), ("test_images", images.test_size)):
        if record.get(name, now) != now:
            raise InputError(
                f"{images.name} has changed: {now} {name} where the run began with {record[name]}: restore it, "
                "or start another run"
            )
    began, found = record.get("held_out"), signature(examples, config)
    if not began or not found:  # a run of an earlier version, or of several workers
        return
    now, then = found["brightness"], began["brightness"]  # fewer, where some of few images cannot be read any more
    for what, same in (
        ("images", len(now) == len(then) and np.allclose(now, then, rtol=0.0, atol=BRIGHTNESS_TOLERANCE)),
        ("labels", found.get("condition_sha256") == began.get("condition_sha256")),
    ):
        if not same:
            raise InputError(
                f"{images.name} has changed: its {what} are not those the run began with: restore them, or start "
                "another run"
            )


def _is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_mtime_ns >= other.stat().st_mtime_ns


class RestOfEpoch(keras.callbacks.Callback):
    """Resumes an interrupted epoch with its metrics so far.

    Args:
        state: where it was interrupted.
    """

    def __init__(self, state: checkpoints.State) -> None:
        super().__init__()
        self.state = state
        self._own: list[np.ndarray] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.state.metrics:
            checkpoints.restore_metrics(self.model, self.state.metrics)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._own = [keras.ops.convert_to_numpy(variable) for variable, _ in self.model.averages()]

    def undo_averaging(self) -> None:
        """Restores the weights that `fit` replaced by their averages at the end of what it took for all of training."""
        for (variable, _), value in zip(self.model.averages(), self._own, strict=True):
            variable.assign(value)
