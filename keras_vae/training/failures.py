"""Turns whatever ends training into one line: what happened, where, and what of the run is kept."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from keras_vae import data
from keras_vae.model.vae import VAE
from keras_vae.runs.folder import checkpoints
from keras_vae.runs.keras_file import save_vae
from keras_vae.support.errors import InputError, NotFiniteError, RunError
from keras_vae.training import resuming
from keras_vae.training.clock import Progress
from keras_vae.training.config import TrainingConfig

LAST_FINITE_FILE = "last-finite.keras"

# What TensorFlow's collectives raise when a worker is gone.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.InternalError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


@contextmanager
def worded(
    vae: VAE,
    images: data.ImageData,
    config: TrainingConfig,
    strategy: tf.distribute.Strategy,
    progress: Progress,
    chief: bool,
) -> Iterator[None]:
    """A block in which training runs: what ends it is re-raised as a message for the user.

    After a step that was not finite, the chief of a single replica also saves the weights before it.

    Raises:
        InputError: too much of the data is unreadable, or the memory is too small.
        NotFiniteError: a step was not finite.
        RunError: the folder cannot be written to, the data not be read, or another worker was lost.
    """
    out = Path(config.out)
    try:
        yield
    except NotFiniteError as error:
        if not chief or strategy.num_replicas_in_sync > 1:
            raise NotFiniteError(f"{error}; {_kept(out)}") from None
        path = out / LAST_FINITE_FILE
        with _writing(out):
            save_vae(vae, path)
        raise NotFiniteError(f"{error}; {path} holds the last good weights, and {_kept(out)}") from None
    except tf.errors.OpError as error:
        at = f"at step {progress.steps + 1}"
        text = _reason(error)
        if images.skips.error is not None:  # raised within the pipeline, which wraps it
            raise InputError(f"{images.skips.error}; {_kept(out)}") from None
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and isinstance(error, LOST):
            raise RunError(f"another worker was lost {at}: start all of them again; {_kept(out)}") from error
        if str(out) in text:
            reason = "No space left on device" if "no space left on device" in text.lower() else text
            raise RunError(f"cannot write to {out} {at}: {reason}; fix that; {_kept(out)}") from error
        # oneDNN and CUDA have their own words for it.
        words = ("could not create a memory object", "out of memory", "OUT_OF_MEMORY")
        if isinstance(error, tf.errors.ResourceExhaustedError) or any(each in str(error) for each in words):
            height, width, _ = images.image_shape
            raise InputError(
                f"out of memory {at}: batch size {config.batch_size} of {height}x{width} in {vae.dtype_policy.name}: "
                f"give a smaller --batch-size or --image-size, or another --precision ({text})"
            ) from error
        if isinstance(error, tf.errors.DataLossError | tf.errors.NotFoundError | tf.errors.PermissionDeniedError):
            raise RunError(f"cannot read {images.name} {at}: {text}; fix that; {_kept(out)}") from error
        raise
    except OSError as error:
        where = error.filename or out
        raise RunError(
            f"cannot write {where} at step {progress.steps}: {error.strerror or error}; fix that; {_kept(out)}"
        ) from error
    except KeyboardInterrupt:
        print(f"stopped at step {progress.steps}: {_kept(out)}", file=sys.stderr)
        raise


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {error.filename or out}: {error.strerror or error}; {_kept(out)}") from error


def _reason(error: tf.errors.OpError) -> str:
    """The cause in an error of TensorFlow's, whose message also holds a stack trace and the names of operations."""
    noise = ("File ", "[[", "Detected at node", "Graph execution error", "<stack traces", "0 successful", "0 derived")
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(noise)]
    return (said or [type(error).__name__])[-1].partition(" [Op:")[0][:200]


def _kept(out: Path) -> str:
    """The last checkpoint of a run, and how to resume from it."""
    kept = checkpoints(out)
    if not kept:
        return f"there is no checkpoint yet; remove {out} to start again" if out.exists() else f"{out} is gone"
    return f"{kept[-1]} is kept; resume with: {resuming.command(out)}"
