"""The clock of a run: steps and seconds so far, when it ends, and the line that shows how far it is."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras

from keras_vae.runs import checkpoints
from keras_vae.support import progress
from keras_vae.training.limits import limits_of

if TYPE_CHECKING:
    from keras_vae.training.config import TrainingConfig


class Progress(keras.callbacks.Callback):
    """Counts steps and seconds, ends training at the last step, and shows how far it is.

    Args:
        config: the run's.
        steps_per_epoch: number of batches.
        state: where training resumes; None from the beginning.
        shown: whether this process prints the line.
    """

    def __init__(
        self, config: TrainingConfig, steps_per_epoch: int, state: checkpoints.State | None, shown: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.limits = limits_of(config, steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.shown = shown
        state = state or checkpoints.State(0, 0.0, 0, 0.0, {}, [])
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
        """Whether an epoch has begun and not ended."""
        return bool(self.steps % self.steps_per_epoch)

    @property
    def done(self) -> bool:
        """Whether the run has reached one of its limits."""
        return self.limits.reached(self.steps, self.seconds)

    @property
    def late(self) -> bool:
        """Whether the minutes are up."""
        return self.limits.is_late(self.seconds)

    @property
    def share(self) -> float:
        """How much of the run is behind, from 0 to 1."""
        return self.limits.share(self.steps, self.seconds)

    @property
    def images_per_second(self) -> float:
        """Training speed, without this process's first step (if there are more), in which TensorFlow compiles."""
        if not self._timed_steps:
            return self.steps * self.config.batch_size / self.seconds if self.steps else 0.0
        return self._timed_steps * self.config.batch_size / self._timed_seconds

    def state(self) -> checkpoints.State:
        """Where training is, for a checkpoint."""
        metrics = checkpoints.metrics_of(self.model) if self.within_epoch else []
        timed = (self._timed_steps, self._timed_seconds)
        return checkpoints.State(self.steps, self.seconds, *timed, self.logs, metrics)

    def on_train_begin(self, logs: Any = None) -> None:
        self._start = time.perf_counter() - self.seconds
        self._status = progress.Status() if self.shown else None
        self._kept = True  # whether the last epoch's figures were printed on a line of their own

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._step_start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        now = self._step_end = time.perf_counter()
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

    def device_is_done(self) -> None:
        """Counts what a device still had to compute when the epoch's last step was handed to it."""
        now = time.perf_counter()
        self.seconds = now - self._start
        if self._timed_steps:
            self._timed_seconds += now - self._step_end

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
        """Clears the line from the terminal, however training ended."""
        if self._status is not None:
            self._status.end()

    def _line_within_epoch(self, logs: dict[str, Any]) -> str:
        step = (self.steps - 1) % self.steps_per_epoch + 1
        share = f"{step / self.steps_per_epoch:.0%}"
        # The first step's time tells nothing: TensorFlow compiles in it.
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

    def psnr(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """PSNR in dB of training and held-out images, where the reconstruction's nats determine it."""
        found = {}
        for prefix in ("", "val_"):
            if f"{prefix}reconstruction" in logs:
                error = self._squared_error(float(logs[f"{prefix}reconstruction"]), training=not prefix)
                if error is not None:
                    found[f"{prefix}psnr"] = -10 * math.log10(error)
        return found

    def _squared_error(self, nats: float, training: bool) -> float | None:
        return self.model.likelihood.mean_squared_error(nats, math.prod(self.model.image_shape), training)

    def _figures(self, logs: dict[str, float], training: bool = True) -> tuple[tuple[str, str], str]:
        """The reconstruction with its unit, dB where its nats determine the squared error, and the KL."""
        nats = logs["reconstruction"]
        error = self._squared_error(nats, training)
        reconstruction = (f"{nats:,.0f}", "nats") if error is None else (f"{-10 * math.log10(error):.1f}", "dB")
        return reconstruction, f"{logs['kl']:,.{0 if logs['kl'] >= 10 else 1}f}"
