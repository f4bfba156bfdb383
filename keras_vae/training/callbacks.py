"""What goes on while a run trains: the clock and its line, figures, pictures, checkpoints, and the end."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae.model import priors
from keras_vae.runs import checkpoints
from keras_vae.runs.folder import METRICS_FILE
from keras_vae.runs.opening import in_batches
from keras_vae.support import heap, pictures, progress
from keras_vae.support.errors import StoppedError
from keras_vae.support.files import write_aside
from keras_vae.training import strategies
from keras_vae.training.limits import Limits

if TYPE_CHECKING:
    from keras_vae.training.config import TrainingConfig

PICTURED = 24  # images in the grids of each epoch
ENCODED = 512  # held-out images whose codes the prior is a Gaussian of until it is fitted


class Progress(keras.callbacks.Callback):
    """The clock of a run, its end at a number of steps, and the line that says how far it is.

    Args:
        config: the run's.
        steps_per_epoch: number of batches.
        state: where training is taken up.
        shown: whether this process speaks.
    """

    def __init__(
        self, config: TrainingConfig, steps_per_epoch: int, state: checkpoints.State | None, shown: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.limits = limits_of(config, steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.shown = shown
        state = state or checkpoints.State(0, 0.0, 0, 0.0, {}, [], 0.0)
        self.steps = state.step
        self.seconds = state.seconds
        self.logs = state.logs
        self._timed_steps, self._timed_seconds = state.timed_steps, state.timed_seconds
        self._compiled: tuple[int, float] | None = None  # steps and seconds after the first step of this process
        self._status: progress.Status | None = None

    @property
    def epochs_begun(self) -> int:
        """Epochs begun so far."""
        return math.ceil(self.steps / self.steps_per_epoch)

    @property
    def within_epoch(self) -> bool:
        """Whether an epoch's batches are not all done."""
        return bool(self.steps % self.steps_per_epoch)

    @property
    def done(self) -> bool:
        """Whether there is no step left to do."""
        return self.limits.reached(self.steps, self.seconds)

    @property
    def late(self) -> bool:
        """Whether the minutes are over."""
        return self.limits.is_late(self.seconds)

    @property
    def images_per_second(self) -> float:
        """Speed of the training steps, without the first (where there are more), in which TensorFlow compiles."""
        if not self._timed_steps:
            return self.steps * self.config.batch_size / self.seconds if self.steps else 0.0
        return self._timed_steps * self.config.batch_size / self._timed_seconds

    def state(self) -> checkpoints.State:
        """Where training is, for a checkpoint."""
        metrics = checkpoints.metrics_of(self.model) if self.within_epoch else []
        timed = (self._timed_steps, self._timed_seconds)
        return checkpoints.State(self.steps, self.seconds, *timed, self.logs, metrics, self.model.last_kl)

    def on_train_begin(self, logs: Any = None) -> None:
        self._start = time.perf_counter() - self.seconds
        self._status = progress.Status() if self.shown else None
        self._kept = True  # whether the last epoch's figures stand on a line of their own

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._step_start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        now = time.perf_counter()
        self.seconds = now - self._start
        if self._compiled is None:
            self._compiled = (self.steps, self.seconds)
        else:
            self._timed_seconds += now - self._step_start
            self._timed_steps += 1
        if self._status is not None and self._status.due:
            self._status.show(self._line_within_epoch(logs or {}))
        if self.limits.last_step is not None and self.steps >= self.limits.last_step:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.logs = {name: float(value) for name, value in (logs or {}).items()}
        if self._status is not None:
            self._kept = self._status.keep(self._line_of_epoch())

    def on_train_end(self, logs: Any = None) -> None:
        if self._status is not None:
            if not self._kept:
                self._status.keep(self._line_of_epoch(), always=True)
            self.hush()

    def hush(self) -> None:
        """Takes the line off the terminal, however training ended."""
        if self._status is not None:
            self._status.end()

    def _line_within_epoch(self, logs: dict[str, Any]) -> str:
        step = (self.steps - 1) % self.steps_per_epoch + 1
        share = f"{step / self.steps_per_epoch:.0%}"
        # The first step's time says nothing: TensorFlow compiles it.
        speed = [f"{self.images_per_second:,.0f} images/s"] if self._timed_steps else []
        reconstruction, kl = self._figures({name: float(value) for name, value in logs.items()})
        parts = [self._epoch(), share, f"reconstruction {' '.join(reconstruction)}", f"KL {kl} nats", *speed]
        return progress.fitting([*parts, *self._left()], less=[share, *speed])

    def _line_of_epoch(self) -> str:
        (number, unit), kl = self._figures(self.logs)
        held_out = {name.removeprefix("val_"): value for name, value in self.logs.items() if name.startswith("val_")}
        parts = [f"reconstruction {number} {unit}", f"KL {kl} nats"]
        if held_out:
            (their_number, their_unit), their_kl = self._figures(held_out, training=False)
            theirs = their_number if their_unit == unit else f"{their_number} {their_unit}"
            parts = [f"{parts[0]} (held out {theirs})", f"{parts[1]} (held out {their_kl})"]
        left = self._left()
        return progress.fitting([self._epoch(), *parts, *left], less=left)

    def _epoch(self) -> str:
        last = self.limits.last_epoch
        return f"epoch {self.epochs_begun}" + ("" if last is None else f"/{last}")

    def _left(self) -> list[str]:
        per_step = None
        if self._compiled is not None and self.steps > self._compiled[0]:
            per_step = (self.seconds - self._compiled[1]) / (self.steps - self._compiled[0])
        left = self.limits.seconds_left(self.steps, self.seconds, per_step)
        return [f"{progress.duration(left)} left"] if left else []

    def _figures(self, logs: dict[str, float], training: bool = True) -> tuple[tuple[str, str], str]:
        """The reconstruction, in dB where its nats tell the squared error, with its unit, and the KL."""
        nats = logs["reconstruction"]
        error = self.model.likelihood.mean_squared_error(nats, math.prod(self.model.image_shape), training)
        reconstruction = (f"{nats:,.0f}", "nats") if error is None else (f"{-10 * math.log10(error):.1f}", "dB")
        return reconstruction, f"{logs['kl']:,.{0 if logs['kl'] >= 10 else 1}f}"


def limits_of(config: TrainingConfig, steps_per_epoch: int) -> Limits:
    """When a run ends."""
    return Limits(steps_per_epoch, config.epochs, config.steps, config.minutes)


class MetricsLog(keras.callbacks.Callback):
    """Appends a line of JSON for each epoch; of a run that is taken up, lines of steps to come are dropped."""

    def __init__(self, run: Path, progress: Progress) -> None:
        super().__init__()
        self.path = run / METRICS_FILE
        self.progress = progress
        if self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= progress.steps]
            with write_aside(self.path) as aside:
                aside.write_text("".join(f"{line}\n" for line in kept))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        record = {
            "epoch": epoch + 1,
            "step": self.progress.steps,
            "seconds": round(self.progress.seconds, 1),
            "images_per_second": round(self.progress.images_per_second, 1),
            "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            **{name: float(value) for name, value in (logs or {}).items()},
        }
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def _step(line: str) -> float:
    """The step of a line of figures; infinite of one that is cut off."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's, of epochs alone.

    Keras 3.15 hands each batch's figures to TensorFlow even where none are to be written, and TensorFlow keeps every
    number that it makes a tensor of: 4 kB a step, for ever.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, write_graph=False)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        pass

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        pass


class EpochPictures(keras.callbacks.Callback):
    """After each epoch, held-out images above their reconstructions, and samples, as PNG and in TensorBoard.

    Args:
        run: the run folder.
        examples: held-out images.
        seed: of the samples.
        learns_prior: whether samples are drawn from the Gaussian with the codes' moments, which the prior is until
            training ends and it is fitted, or from the standard normal.
    """

    def __init__(self, run: Path, examples: np.ndarray, seed: int, learns_prior: bool) -> None:
        super().__init__()
        self.run = run
        self.examples = examples[:PICTURED]
        self.encoded = examples[:ENCODED] if learns_prior else None
        self.seed = seed
        self.writer = tf.summary.create_file_writer(str(run / "logs" / "pictures"))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self.model.averaged_weights():
            if self.encoded is not None:
                self.model.set_prior(self._gaussian(self.encoded))
            reconstructions = keras.ops.convert_to_numpy(self.model(self.examples, training=False))
            samples = keras.ops.convert_to_numpy(self.model.sample(PICTURED, self.seed))
        shown = {
            "reconstructions": pictures.side_by_side(self.examples, reconstructions),
            "samples": pictures.grid(samples, columns=12),
        }
        for name, picture in shown.items():
            pictures.save(picture, self.run / "samples" / f"epoch-{epoch + 1:04d}-{name}.png")
        with self.writer.as_default(step=epoch):
            for name, picture in shown.items():
                tf.summary.image(name, np.asarray(picture)[np.newaxis])
        self.writer.flush()

    def _gaussian(self, images: np.ndarray) -> priors.Prior:
        def posterior(part: np.ndarray) -> np.ndarray:
            found = self.model.encode(part)
            return np.stack([keras.ops.convert_to_numpy(each) for each in (found.mean, found.log_var)], axis=1)

        mean, log_var = np.moveaxis(in_batches(posterior, images), 1, 0)
        return priors.gaussian(mean, log_var)


class Checkpoints(keras.callbacks.Callback):
    """Saves model, optimizer and position, after each epoch and now and then within, and ends where it is asked to.

    Last of the callbacks: what the others set at the end of a step belongs to it.

    Args:
        run: the run folder.
        config: the run's.
        progress: its clock.
        signals: what this process is asked.
        strategy: how many workers have to agree.
        writes: whether this process is the one to write.
    """

    def __init__(
        self,
        run: Path,
        config: TrainingConfig,
        progress: Progress,
        signals: Signals,
        strategy: tf.distribute.Strategy,
        writes: bool = True,
    ) -> None:
        super().__init__()
        self.run = run
        self.config = config
        self.progress = progress
        self.signals = signals
        self.strategy = strategy
        self.writes = writes
        self._saved = time.perf_counter()
        self.path: Path | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        due = time.perf_counter() - self._saved >= 60 * self.config.checkpoint_minutes
        # The chief's clock counts; whoever is sent a signal stops them all.
        stop, late, due = self._agreed(
            bool(self.signals.number), self.writes and self.progress.late, self.writes and due
        )
        if late:
            self.model.stop_training = True
        if self.progress.within_epoch and not self.model.stop_training:  # else the epoch's end is next
            if stop or due:
                self.save()
            if stop:
                raise self._stopped()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.save()
        if self._agreed(bool(self.signals.number))[0]:
            raise self._stopped()

    def save(self) -> None:
        """Writes a checkpoint of this moment, and gives freed memory back to the system.

        Raises:
            OSError: it cannot be written.
        """
        self.model.watch.look(self.model)  # a bad step of which nobody knows yet would be forgotten
        state = self.progress.state()  # of every worker: each has a part of the epoch's figures
        if self.writes:
            self.path = checkpoints.write(self.run, self.model.save, state, self.config.checkpoints_kept)
        heap.trim()  # each worker's: else a long run's memory grows by what was freed
        self._saved = time.perf_counter()

    def _agreed(self, *asked: bool) -> list[bool]:
        return [total > 0 for total in strategies.agreed(self.strategy, [float(each) for each in asked])]

    def _stopped(self) -> StoppedError:
        where = f"stopped at step {self.progress.steps}"
        if self.path is not None:
            where += f", which {self.path} holds"
        return StoppedError(f"{where}; go on with: {resuming(self.run)}", self.signals.number or signal.SIGTERM)


class RestOfEpoch(keras.callbacks.Callback):
    """Lets an epoch that was broken off go on with its figures so far.

    Args:
        state: where it was broken off.
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
        """Puts back the weights in whose place `fit` has put their averages: it ended too early."""
        for (variable, _), value in zip(self.model.averages(), self._own, strict=True):
            variable.assign(value)


def resuming(run: Path) -> str:
    """The command that takes a run up."""
    return f"keras-vae train --resume --out {shlex.quote(str(run))}"


class Signals:
    """Notes SIGTERM and Ctrl-C, so that training can end after a step; a second one ends it at once.

    Attributes:
        number: of the signal that was sent; 0 while none was.
    """

    def __init__(self) -> None:
        self.number = 0

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Within it, signals are noted."""
        if threading.current_thread() is not threading.main_thread():  # where Python hands out no signals
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        name = signal.Signals(number).name
        print(
            f"\n{name}: stopping after this step, or the validation under way; once more stops at once", file=sys.stderr
        )
