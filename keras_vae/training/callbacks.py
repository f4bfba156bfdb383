"""What a run writes while it trains: metrics, TensorBoard summaries, pictures of each epoch, and checkpoints."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae.model import priors
from keras_vae.runs import checkpoints
from keras_vae.runs.folder import METRICS_FILE, read_metrics
from keras_vae.runs.opening import BATCH
from keras_vae.support import memory, pictures
from keras_vae.support.errors import StoppedError
from keras_vae.support.files import write_aside
from keras_vae.training import results, resuming, strategies
from keras_vae.training.clock import Progress
from keras_vae.training.signals import Signals
from keras_vae.training.stages import Stages

if TYPE_CHECKING:
    from keras_vae.training.config import TrainingConfig

PICTURED = 24  # images in the grids of each epoch
ENCODED = 512  # held-out images to whose codes a Gaussian is fitted, the prior until training ends


class MetricsLog(keras.callbacks.Callback):
    """Appends a line of JSON for each epoch; a resumed run drops the lines of steps after its checkpoint."""

    def __init__(self, run: Path, progress: Progress, stages: Stages) -> None:
        super().__init__()
        self.path = run / METRICS_FILE
        self.progress = progress
        self.stages = stages
        if self.path.exists():
            # An epoch that a run ended in gets its line when it is whole.
            begun = progress.epochs_begun if progress.within_epoch else None
            kept = [each for each in read_metrics(run) if each["step"] <= progress.steps and each["epoch"] != begun]
            with write_aside(self.path) as aside:
                aside.write_text("".join(f"{json.dumps(each)}\n" for each in kept))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        record = {
            "epoch": epoch + 1,
            "step": self.progress.steps,
            "seconds": round(self.progress.seconds, 1),
            "images_per_second": round(self.progress.images_per_second, 1),
            "learning_rate": float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)),
            **{name: float(value) for name, value in (logs or {}).items()},
            **self.progress.psnr(logs or {}),
            "seconds_by_stage": {stage: round(seconds, 2) for stage, seconds in self.stages.seconds.items()},
        }
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's callback, without its work for each batch.

    Keras 3.15 passes each batch's figures to TensorFlow even where none are to be written, and TensorFlow caches every
    number that it converts to a tensor: 4 kB a step, never freed.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, write_graph=False)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        pass

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        pass


class EpochPictures(keras.callbacks.Callback):
    """At the end of epochs, held-out images above their reconstructions, and samples, as PNG and in TensorBoard.

    Args:
        run: the run folder.
        stages: of the run; they say after which epochs.
        examples: held-out images.
        seed: of the samples.
        learns_prior: whether samples are drawn from a Gaussian with the moments of the codes, which stands in for the
            prior until that is fitted at the end of training, or from the standard normal.
    """

    def __init__(self, run: Path, stages: Stages, examples: results.Examples, seed: int, learns_prior: bool) -> None:
        super().__init__()
        self.run = run
        self.stages = stages
        self.examples = examples.part(0, PICTURED)
        self.encoded = examples.part(0, ENCODED) if learns_prior else None
        self.seed = seed
        self.writer = tf.summary.create_file_writer(str(run / "logs" / "pictures"))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.stages.due:
            with self.stages.timed("pictures"):
                self._draw(epoch)

    def _draw(self, epoch: int) -> None:
        with self.model.averaged_weights():
            if self.encoded is not None:
                self.model.set_prior(self._gaussian(self.encoded))
            images, condition = self.examples
            made = keras.ops.convert_to_numpy(self.model(images, training=False, condition=condition))
            samples = results.samples_picture(self.model, PICTURED, self.seed, columns=12)
        shown = {"reconstructions": pictures.side_by_side(images, made), "samples": samples}
        for name, picture in shown.items():
            pictures.save(picture, self.run / "samples" / f"epoch-{epoch + 1:04d}-{name}.png")
        with self.writer.as_default(step=epoch):
            for name, picture in shown.items():
                tf.summary.image(name, np.asarray(picture)[np.newaxis])
        self.writer.flush()

    def _gaussian(self, examples: results.Examples) -> priors.Prior:
        parts = (examples.part(start, start + BATCH) for start in range(0, len(examples.images), BATCH))
        found = [self.model.encode(each.images, condition=each.condition) for each in parts]
        mean, log_var = (
            np.concatenate([keras.ops.convert_to_numpy(getattr(each, name)) for each in found])
            for name in ("mean", "log_var")
        )
        return priors.gaussian(mean, log_var, self.model.condition_dim)


class Checkpoints(keras.callbacks.Callback):
    """Saves model, optimizer and position at the end of epochs and every few minutes; ends training when asked to.

    Must be the last callback: a checkpoint includes what the others set at the end of a step.

    Args:
        run: the run folder.
        config: the run's.
        progress: its clock.
        stages: of the run; they say after which epochs.
        signals: those that this process has received.
        strategy: of the workers, which have to agree when to stop.
        writes: whether this process writes the checkpoints.
    """

    def __init__(
        self,
        run: Path,
        config: TrainingConfig,
        progress: Progress,
        stages: Stages,
        signals: Signals,
        strategy: tf.distribute.Strategy,
        writes: bool = True,
    ) -> None:
        super().__init__()
        self.run = run
        self.config = config
        self.progress = progress
        self.stages = stages
        self.signals = signals
        self.strategy = strategy
        self.writes = writes
        self._saved = time.perf_counter()
        self.path: Path | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # The chief's clock counts; a signal to any worker stops them all.
        stop, late, due = self._agreed(
            bool(self.signals.number), self.writes and self.progress.late, self.writes and self._due
        )
        if late:
            self.model.stop_training = True
        if self.progress.within_epoch and not self.model.stop_training:  # else the epoch's end is next
            if stop or due:
                self.save()
            if stop:
                raise self._stopped()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        stop, due = self._agreed(bool(self.signals.number), self.writes and self._due)
        if self.stages.due or due or stop:
            self.save()
        if stop:
            raise self._stopped()

    def save(self) -> None:
        """Writes a checkpoint, and returns freed memory to the system.

        Raises:
            OSError: it cannot be written.
        """
        with self.stages.timed("checkpoints"):
            self.model.watch.look(self.model)  # else a step that was not finite and is not reported yet would be lost
            state = self.progress.state()  # on every worker: each has a part of the epoch's metrics
            if self.writes:
                self.path = checkpoints.write(self.run, self.model.save, state, self.config.checkpoints_kept)
            memory.trim()  # on every worker: else a long run's memory grows by what was freed
        self._saved = time.perf_counter()

    @property
    def _due(self) -> bool:
        return time.perf_counter() - self._saved >= 60 * self.config.checkpoint_minutes

    def _agreed(self, *asked: bool) -> list[bool]:
        return [total > 0 for total in strategies.agreed(self.strategy, [float(each) for each in asked])]

    def _stopped(self) -> StoppedError:
        where = f"stopped at step {self.progress.steps}"
        if self.path is not None:
            where += f", saved in {self.path}"
        return StoppedError(
            f"{where}; resume with: {resuming.command(self.run)}", self.signals.number or signal.SIGTERM
        )
