"""When a run ends: after so many epochs, steps or minutes, counted from its beginning."""

from __future__ import annotations

import math
from dataclasses import dataclass

from keras_vae.training.config import DEFAULT_EPOCHS, TrainingConfig


@dataclass(frozen=True)
class Limits:
    """The limits of a run, which ends at the first one reached; five epochs where none is given.

    Attributes:
        steps_per_epoch: number of batches.
        epochs, steps, minutes: as `TrainingConfig` has them.
    """

    steps_per_epoch: int
    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None and self.minutes is None:
            object.__setattr__(self, "epochs", DEFAULT_EPOCHS)

    @property
    def last_step(self) -> int | None:
        """The last training step; None where only the minutes end training."""
        ends = [] if self.steps is None else [self.steps]
        if self.epochs is not None:
            ends.append(self.epochs * self.steps_per_epoch)
        return min(ends, default=None)

    @property
    def last_epoch(self) -> int | None:
        """The epoch, counted from 1, in which training ends; None where only the minutes end it."""
        return None if self.last_step is None else math.ceil(self.last_step / self.steps_per_epoch)

    def is_late(self, seconds: float) -> bool:
        """Whether the minutes are up."""
        return self.minutes is not None and seconds >= 60 * self.minutes

    def reached(self, step: int, seconds: float) -> bool:
        """Whether there is no step left to take."""
        return self.is_late(seconds) or (self.last_step is not None and step >= self.last_step)

    def share(self, step: int, seconds: float) -> float:
        """How much of the run is behind, from 0 to 1."""
        shares = [] if self.minutes is None else [seconds / (60 * self.minutes)]
        if self.last_step is not None:
            shares.append(step / self.last_step)
        return min(max(shares), 1.0)

    def seconds_left(self, step: int, seconds: float, seconds_per_step: float | None) -> float | None:
        """Seconds until training ends; None while that cannot be estimated."""
        left = [] if self.minutes is None else [60 * self.minutes - seconds]
        if self.last_step is not None and seconds_per_step is not None:
            left.append((self.last_step - step) * seconds_per_step)
        return max(0.0, min(left)) if left else None

    def left(self, step: int, seconds: float) -> str:
        """What is left of each limit, in words: "2 of 3 minutes, 10 of 40 steps"."""
        rest = []
        if self.minutes is not None:
            rest.append(f"{_number(max(0.0, self.minutes - seconds / 60))} of {_number(self.minutes)} minutes")
        if self.steps is not None:
            rest.append(f"{max(0, self.steps - step)} of {self.steps} steps")
        if self.epochs is not None:
            rest.append(f"{_number(max(0.0, self.epochs - step / self.steps_per_epoch))} of {self.epochs} epochs")
        return ", ".join(rest)

    def extension(self, step: int, seconds: float) -> str:
        """The option that makes a finished run train for as long again as was asked for."""
        if self.minutes is not None and self.is_late(seconds):
            total = seconds / 60 + self.minutes
            total = round(total, 1) if self.minutes >= 1 else math.ceil(10 * total) / 10
            return f"--minutes {total:g} trains {_number(self.minutes)} more"
        if self.steps is not None and step >= self.steps:
            return f"--steps {step + self.steps} trains {self.steps} more"
        assert self.epochs is not None
        done = step // self.steps_per_epoch
        return f"--epochs {done + self.epochs} trains {self.epochs} more"

    def __str__(self) -> str:
        given = {"minutes": self.minutes, "steps": self.steps, "epochs": self.epochs}
        return " ".join(f"--{name} {_number(value)}" for name, value in given.items() if value is not None)


def limits_of(config: TrainingConfig, steps_per_epoch: int) -> Limits:
    """The limits that a run's configuration sets."""
    return Limits(steps_per_epoch, config.epochs, config.steps, config.minutes)


def _number(value: float) -> str:
    """A number with as many digits as a reader needs: 3, 2.5, 0.05."""
    return f"{value:.0f}" if value >= 100 else f"{round(value, 1 if value >= 1 else 2):g}"
