"""A training run, from its configuration to a folder with the model, its figures and its pictures."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae import data, networks, pictures, precision, schedules
from keras_vae._version import __version__
from keras_vae.data import sources
from keras_vae.distributions import check_likelihood
from keras_vae.errors import InputError, check_weight
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.files import is_writable, write_aside
from keras_vae.models import CHECKPOINT_FOLDER, CONFIG_FILE, MODEL_FILE, checkpoints, is_run
from keras_vae.objectives import DEFAULT_LAYERS, DEFAULT_PERCEPTUAL_WEIGHT
from keras_vae.perceptual import PerceptualLoss, check_perceptual_weight
from keras_vae.progress import SECONDS_BETWEEN_LINES
from keras_vae.vae import LEARNING_RATE, VAE

DEFAULT_EPOCHS = 5
PICTURED = 24  # images in the grids of each epoch
SKIPPED_FILE = "skipped.csv"
MEASURED = 1024  # held-out images on which the final figures are taken
CHECKPOINTS_KEPT = 2
KL_SCHEDULES = {
    "linear": schedules.LinearWarmup,
    "cosine": schedules.CosineWarmup,
    "cyclical": schedules.CyclicalAnnealing,
}
STEPS_BETWEEN_CHECKS = 50  # of the loss, each of which waits for the device


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything a run depends on; `config.json` holds it.

    Attributes:
        data: as `keras_vae.data.load` takes it.
        out: the run folder.
        epochs, steps, minutes: training ends at whichever of those given comes first; after five epochs where
            none is. Minutes count from the first training step's start.
        perceptual: feature network, or None for the plain ELBO.
        precision: a name of `keras_vae.precision.PRECISIONS`.
        seed: of weights, noise and shuffling.
        kl_schedule: "constant", or a key of `KL_SCHEDULES`: beta rises over the first `kl_steps` training steps.
        kl_target: nats to steer the KL to, with beta as the first weight; instead of a schedule.
        learning_rate: of Adam; multiplied by `learning_rate_decay` after each epoch.
        ema: momentum of an exponential moving average of the weights, such as 0.999, which evaluation, pictures and
            the saved model use; None for none.
        Others: as `VAE` and `keras_vae.data.load` take them.
    """

    data: str
    out: str
    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 64
    image_size: int | None = None
    crop: int | None = None
    flip: bool = False
    random_crop: int = 0
    strict: bool = False
    latent_dim: int = 100
    network: str = "dfc"
    network_options: Mapping[str, Any] = field(default_factory=dict)
    perceptual: str | None = "vgg19"
    perceptual_layers: str | tuple[str, ...] = DEFAULT_LAYERS
    perceptual_weight: float | tuple[float, ...] | str = DEFAULT_PERCEPTUAL_WEIGHT
    pixel_weight: float = 1.0
    likelihood: str = "gaussian-calibrated"
    beta: float = 1.0
    kl_schedule: str = "constant"
    kl_steps: int = 1000
    kl_target: float | None = None
    free_bits: float = 0.0
    learning_rate: float = LEARNING_RATE
    learning_rate_decay: float = 1.0
    ema: float | None = None
    precision: str = "auto"
    seed: int = 0


def train(config: TrainingConfig) -> dict[str, Any]:
    """Trains a VAE and writes its run folder.

    Everything that can be refused is refused before the folder is made.

    Returns:
        The run's figures: `run`, `run_id`, `steps`, `epochs`, `minutes`, `images_per_second`, `precision`, the last
        `loss`, `elbo`, `reconstruction`, `kl`, `perceptual` and their `val_` counterparts, on held-out images the
        `psnr` (dB) and `sharpness` (1 is the originals') of reconstructions, and how many images were `skipped`, which
        `skipped.csv` in the run folder names.

    Raises:
        InputError: a setting, the data or the output folder cannot be used.
    """
    out = Path(config.out)
    perceptual = None
    if config.perceptual is not None:
        perceptual = PerceptualLoss(config.perceptual, config.perceptual_layers)
    _check(config, out, perceptual)
    policy, reason = precision.choose(config.precision)
    print(f"precision: {policy} ({reason})")
    # Weights, data and model before the folder: each may turn out to be unusable.
    if perceptual is not None:
        perceptual.load(policy)
    keras.utils.set_random_seed(config.seed)
    images = data.load(
        config.data,
        config.image_size,
        config.batch_size,
        config.seed,
        crop=config.crop,
        flip=config.flip,
        random_crop=config.random_crop,
        strict=config.strict,
    )
    vae = VAE(
        image_shape=images.image_shape,
        latent_dim=config.latent_dim,
        network=config.network,
        network_options=config.network_options,
        perceptual=perceptual,
        perceptual_weight=config.perceptual_weight,
        pixel_weight=config.pixel_weight,
        beta=config.beta,
        free_bits=config.free_bits,
        likelihood=config.likelihood,
        seed=config.seed,
        dtype=policy,
    )
    steps_per_epoch = images.train_size // config.batch_size
    vae.compile(keras.optimizers.Adam(_learning_rate(config, steps_per_epoch), **_averaging(config)))
    height, width, channels = images.image_shape
    print(
        f"data: {images.name}, {images.train_size} images to train on, {images.test_size} held out, "
        f"{height}x{width}x{channels}\nmodel: {config.network}, {vae.count_params():,} parameters, run folder {out}"
    )
    _make_folder(out, config, policy)

    progress = _Progress(config, steps_per_epoch)
    examples = _examples(images)
    try:
        _fit(vae, images, config, out, progress, examples)
    except tf.errors.OpError:
        if images.skips.error is not None:  # raised within the pipeline, which words it anew
            raise images.skips.error from None
        raise
    except KeyboardInterrupt:
        kept = checkpoints(out)
        left = f"{kept[-1]} is kept" if kept else f"no checkpoint was made yet; remove {out} to begin again"
        print(f"stopped at step {progress.steps}: {left}", file=sys.stderr)
        raise
    _save(vae, out / MODEL_FILE)
    _report_skips(images, out)
    reached = progress.logs.get("val_kl", math.nan)
    if config.kl_target is not None and abs(reached / config.kl_target - 1) > 0.1:
        print(
            f"the held-out KL is {reached:.0f} nats, not {config.kl_target:g}: train longer, or begin at another beta",
            file=sys.stderr,
        )
    # Keras's averages begin with the first step's weights.
    if config.ema is not None and config.ema**progress.steps > 0.05:
        print(
            f"ema {config.ema:g} is much for {progress.steps} steps: {config.ema**progress.steps:.0%} of the averages "
            "are the first step's weights; train longer, or average less",
            file=sys.stderr,
        )
    return {**_finish(vae, out, examples, progress, policy, config), "skipped": len(images.skips)}


def _fit(
    vae: VAE, images: data.ImageData, config: TrainingConfig, out: Path, progress: _Progress, examples: np.ndarray
) -> None:
    vae.fit(
        images.train,
        epochs=progress.planned,
        validation_data=images.test,
        shuffle=False,  # the pipeline shuffles
        verbose=0,  # `progress` shows Keras's bar, with headings that fit a run bounded by minutes
        callbacks=[
            progress,
            *_kl_schedule(config),
            keras.callbacks.TensorBoard(out / "logs", write_graph=False),
            _MetricsLog(out / "metrics.jsonl", progress),
            _EpochPictures(out, examples[:PICTURED], config.seed),
            _Checkpoints(out / CHECKPOINT_FOLDER, progress),
        ],
    )


def _report_skips(images: data.ImageData, out: Path) -> None:
    if len(images.skips):
        with write_aside(out / SKIPPED_FILE) as aside:
            images.skips.write(aside)
        print(f"{images.skips.summary()} ({out / SKIPPED_FILE})", file=sys.stderr)


def _learning_rate(config: TrainingConfig, steps_per_epoch: int) -> Any:
    if config.learning_rate_decay == 1.0:
        return config.learning_rate
    return keras.optimizers.schedules.ExponentialDecay(
        config.learning_rate, steps_per_epoch, config.learning_rate_decay, staircase=True
    )


def _averaging(config: TrainingConfig) -> dict[str, Any]:
    return {} if config.ema is None else {"use_ema": True, "ema_momentum": config.ema}


def _kl_schedule(config: TrainingConfig) -> list[keras.callbacks.Callback]:
    if config.kl_target is not None:
        return [schedules.TargetKL(config.kl_target)]
    if config.kl_schedule == "constant":
        return []
    return [KL_SCHEDULES[config.kl_schedule](config.kl_steps)]


def _check(config: TrainingConfig, out: Path, perceptual: PerceptualLoss | None) -> None:
    """Refuses what can be refused before any work."""
    for name in ("epochs", "steps", "minutes", "crop", "kl_target", "kl_steps", "learning_rate_decay"):
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}={value}: give a number above 0")
    check_weight("beta", config.beta)
    check_perceptual_weight(config.perceptual_weight, perceptual)
    check_weight("free_bits", config.free_bits)
    if not check_weight("pixel_weight", config.pixel_weight) and perceptual is None:
        raise InputError("pixel_weight=0 and no perceptual network: nothing says what an image should look like")
    if config.kl_schedule != "constant" and config.kl_schedule not in KL_SCHEDULES:
        raise InputError(
            f"unknown kl_schedule {config.kl_schedule!r}: choose one of constant, {', '.join(KL_SCHEDULES)}"
        )
    if config.kl_target is not None and config.kl_schedule != "constant":
        raise InputError(f"kl_target and kl_schedule {config.kl_schedule!r} both set beta: give one of them")
    if config.kl_target is not None and not config.beta:
        raise InputError("kl_target multiplies beta, which is 0: give a positive beta to begin with, such as 1")
    if config.kl_target is not None:
        schedules.check_target(config.kl_target, config.free_bits, config.latent_dim)
    if config.ema is not None and not 0.0 < config.ema < 1.0:
        raise InputError(f"ema={config.ema}: give a momentum between 0 and 1, such as 0.999")
    if not (math.isfinite(config.learning_rate) and config.learning_rate > 0):
        raise InputError(f"learning_rate={config.learning_rate}: give a number above 0")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed={config.seed}: give a whole number from 0 to 4294967295")
    size = config.image_size or sources.DEFAULT_SIZE
    networks.check(config.network, (size, size, 3), config.latent_dim, config.network_options)
    precision.check(config.precision)
    check_likelihood(config.likelihood)
    check_folder(out)
    sources.check_outside(out, config.data)
    sources.check(config.data, config.image_size, config.batch_size)


def check_folder(out: Path) -> None:
    """Refuses a run folder that is taken or cannot be made.

    Raises:
        InputError: it is refused.
    """
    if is_run(out):
        raise InputError(f"{out} already holds a run: give another folder, or remove it first")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a run: give a new or an empty folder")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not is_writable(parent):
        raise InputError(f"cannot make {out}: {parent} is not a folder that can be written to")


def _make_folder(out: Path, config: TrainingConfig, policy: str) -> None:
    try:
        for part in (out, out / CHECKPOINT_FOLDER, out / "samples", out / "logs"):
            part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the run folder {out}: {error.strerror}; give another") from error
    packages = ("tensorflow", "keras", "numpy")
    folder = sources.folder_of(config.data)
    record = {
        "run_id": uuid.uuid4().hex,
        "keras_vae_version": __version__,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "policy": policy,
        **asdict(config),
        "data": config.data if folder is None else str(folder.absolute()),  # later commands may run from elsewhere
    }
    with write_aside(out / CONFIG_FILE) as aside:
        aside.write_text(json.dumps(record, indent=2) + "\n")


def _examples(images: data.ImageData) -> np.ndarray:
    batches = []
    for batch in images.test:
        batches.append(batch.numpy())
        if sum(map(len, batches)) >= MEASURED:
            break
    return np.concatenate(batches)[:MEASURED]


def _save(vae: VAE, path: Path) -> None:
    with write_aside(path) as aside:
        vae.save(aside)


def _finish(
    vae: VAE, out: Path, examples: np.ndarray, progress: _Progress, policy: str, config: TrainingConfig
) -> dict[str, Any]:
    reconstructions = vae.predict(examples, batch_size=config.batch_size, verbose=0)
    pictures.save(
        pictures.side_by_side(examples[:PICTURED], reconstructions[:PICTURED]), out / "samples" / "reconstructions.png"
    )
    pictures.save(pictures.grid(_sample(vae, 64, config.seed)), out / "samples" / "samples.png")
    run = json.loads((out / CONFIG_FILE).read_text())
    return {
        "run": str(out),
        "run_id": run["run_id"],
        "steps": progress.steps,
        "epochs": progress.epoch,
        "minutes": round(progress.seconds / 60, 2),
        "images_per_second": round(progress.images_per_second, 1),
        "precision": policy,
        **progress.logs,
        "psnr": psnr(examples, reconstructions),
        "sharpness": sharpness_ratio(examples, reconstructions),
    }


def _sample(vae: VAE, count: int, seed: int) -> np.ndarray:
    return keras.ops.convert_to_numpy(vae.sample(count, seed))


class _Progress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar, the end of the run at a number of steps or minutes, and the clock.

    Keras tells fit's epochs alone, which for a run bounded by minutes is no number anyone chose.
    """

    def __init__(self, config: TrainingConfig, steps_per_epoch: int) -> None:
        super().__init__()
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.steps = 0
        self.epoch = 0
        self.seconds = 0.0
        self.logs: dict[str, float] = {}
        self._training_seconds = 0.0
        self._timed_steps = 0
        limits = [] if config.epochs is None else [config.epochs]
        if config.steps is not None:
            limits.append(math.ceil(config.steps / steps_per_epoch))
        if not limits:
            limits.append(DEFAULT_EPOCHS if config.minutes is None else sys.maxsize)
        self.planned = min(limits)

    @property
    def images_per_second(self) -> float:
        """Speed of the training steps, without the first (where there are more), in which TensorFlow compiles."""
        if not self._timed_steps:
            return self.steps * self.config.batch_size / self.seconds if self.steps else 0.0
        return self._timed_steps * self.config.batch_size / self._training_seconds

    def set_params(self, params: dict[str, Any]) -> None:
        # fit is told to be silent, so that it adds no second bar. Where the bar cannot be redrawn, lines are printed.
        super().set_params({**params, "verbose": 1 if sys.stdout.isatty() else 2})

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        self._start = self._spoke = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._reset_progbar()
        self._maybe_init_progbar()
        heading = f"Epoch {epoch + 1}" if self.planned == sys.maxsize else f"Epoch {epoch + 1}/{self.planned}"
        if self.config.minutes is not None:
            heading += f" ({(time.perf_counter() - self._start) / 60:.1f} of {self.config.minutes:g} minutes)"
        print(heading, flush=True)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._step_start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        self.steps += 1
        now = time.perf_counter()
        if self.steps > 1:
            self._training_seconds += now - self._step_start
            self._timed_steps += 1
        self.seconds = now - self._start
        if self.steps % STEPS_BETWEEN_CHECKS == 1:
            self._check(logs)
        if self.verbose == 2 and now - self._spoke > SECONDS_BETWEEN_LINES:
            self._spoke = now
            shown = ", ".join(f"{name} {float(value):.4g}" for name, value in (logs or {}).items())
            print(
                f"  step {batch + 1}/{self.steps_per_epoch}: {shown}; {self.images_per_second:.0f} images/s", flush=True
            )
        done = self.config.steps is not None and self.steps >= self.config.steps
        late = self.config.minutes is not None and self.seconds >= 60 * self.config.minutes
        if done or late:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._check(logs)
        # Keras would fill the bar of an epoch cut short, and divide its time by all the steps it never made.
        self.target = self.progbar.target = self.seen
        super().on_epoch_end(epoch, logs)
        self.target = self.steps_per_epoch
        self.epoch = epoch + 1
        self.logs = {name: float(value) for name, value in (logs or {}).items()}

    def _check(self, logs: Any) -> None:
        """Stops a run whose loss is no number: it does not recover, and must not be kept as a result."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            kept = checkpoints(Path(self.config.out))
            instead = f"; {kept[-1]} is from before" if kept else ""
            raise InputError(
                f"the loss became {loss} within {self.steps} steps: give a lower learning rate than "
                f"{self.config.learning_rate:g}, or another precision{instead}"
            )


class _MetricsLog(keras.callbacks.Callback):
    """Appends a line of JSON for each epoch."""

    def __init__(self, path: Path, progress: _Progress) -> None:
        super().__init__()
        self.path = path
        self.progress = progress

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        record = {
            "epoch": epoch + 1,
            "step": self.progress.steps,
            "seconds": round(self.progress.seconds, 1),
            "images_per_second": round(self.progress.images_per_second, 1),
            "learning_rate": float(self.model.optimizer.learning_rate),
            **{name: float(value) for name, value in (logs or {}).items()},
        }
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


class _EpochPictures(keras.callbacks.Callback):
    """After each epoch, held-out images above their reconstructions, and samples, as PNG and in TensorBoard."""

    def __init__(self, run: Path, examples: np.ndarray, seed: int) -> None:
        super().__init__()
        self.run = run
        self.examples = examples
        self.seed = seed
        self.writer = tf.summary.create_file_writer(str(run / "logs" / "pictures"))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self.model.averaged_weights():
            reconstructions = keras.ops.convert_to_numpy(self.model(self.examples, training=False))
            samples = _sample(self.model, PICTURED, self.seed)
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


class _Checkpoints(keras.callbacks.Callback):
    """Saves model and optimizer after each epoch, in one piece, and keeps the last few."""

    def __init__(self, folder: Path, progress: _Progress) -> None:
        super().__init__()
        self.folder = folder
        self.progress = progress

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        _save(self.model, self.folder / f"step-{self.progress.steps:08d}.keras")
        for old in sorted(self.folder.glob("step-*.keras"))[:-CHECKPOINTS_KEPT]:
            old.unlink()
