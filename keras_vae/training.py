"""A training run, from its configuration to a folder with the model, its figures and its pictures."""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import keras
import numpy as np
import tensorflow as tf

from keras_vae import (
    callbacks,
    checkpoints,
    data,
    networks,
    pictures,
    precision,
    priors,
    schedules,
    strategies,
    weight_files,
)
from keras_vae._version import __version__
from keras_vae.data import sources
from keras_vae.distributions import check_likelihood
from keras_vae.errors import InputError, NotFiniteError, RunError, check_count, check_weight
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.export.reference import true_float32
from keras_vae.files import is_writable, sweep, write_aside
from keras_vae.models import (
    BATCH,
    CHECKPOINT_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    MODEL_FILE,
    is_run,
    load_vae,
    read_config,
)
from keras_vae.models import checkpoints as checkpoints_of
from keras_vae.objectives import DEFAULT_LAYERS, DEFAULT_PERCEPTUAL_WEIGHT
from keras_vae.perceptual import PerceptualLoss, check_perceptual_weight
from keras_vae.sampling import check_prior
from keras_vae.vae import LEARNING_RATE, VAE

SKIPPED_FILE = "skipped.csv"
RECONSTRUCTIONS_FILE = "reconstructions.png"
SAMPLES_FILE = "samples.png"
FEW_IMAGES = 2000
# On two cores, beside the default objective with images of 64x64: so many images are trained on in ten times the time
# that a step of fitting the prior takes, or the encoding of an image. Without deep features training is faster.
MEASURED_PIXELS = 64 * 64
IMAGES_PER_PRIOR_STEP = 60
PLAIN_IMAGES_PER_PRIOR_STEP = 180
IMAGES_PER_CODE = 8
LEAST_CODES = 2000
MEASURED = 1024  # held-out images on which the final figures are taken
KL_SCHEDULES = {
    "linear": schedules.LinearWarmup,
    "cosine": schedules.CosineWarmup,
    "cyclical": schedules.CyclicalAnnealing,
}
LOCK_FILE = ".lock"
AUTO = "auto"
LIMITS = ("epochs", "steps", "minutes")
# What may change when a run is taken up again; the rest would make another run of it.
CHANGEABLE = (*LIMITS, "prior", "learning_rate", "strategy", "deterministic", "checkpoint_minutes", "checkpoints_kept")
# What TensorFlow's collectives raise where a worker is gone.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.InternalError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything a run depends on; `config.json` holds it.

    Attributes:
        data: as `keras_vae.data.load` takes it.
        out: the run folder.
        epochs, steps, minutes: training ends at whichever of those given comes first; after five epochs where
            none is. They count from the run's beginning, however often it is resumed; minutes from the first training
            step's start.
        perceptual: feature network; None for the plain ELBO, "auto" for the best that needs no download.
        precision: a name of `keras_vae.precision.PRECISIONS`.
        seed: of weights, noise and shuffling.
        kl_schedule: "constant", or a key of `KL_SCHEDULES`: beta rises over the first `kl_steps` training steps.
        kl_target: nats to steer the KL to, with beta as the first weight; instead of a schedule.
        learning_rate: of Adam; multiplied by `learning_rate_decay` after each epoch.
        strategy: devices to train on, a name of `keras_vae.strategies.STRATEGIES`; `batch_size` is of all together.
        deterministic: whether TensorFlow's operations are to give the same bits each time, where they can be slower.
        resume: go on with the run in `out`, where there is one, from its last checkpoint.
        checkpoint_minutes: a checkpoint is written so often, and after each epoch.
        checkpoints_kept: how many of them are kept.
        prior: "learned", fitted to the codes of training images when training ends, or "standard", the standard normal.
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
    perceptual: str | None = AUTO
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
    prior: str = "learned"
    ema: float | None = None
    precision: str = "auto"
    strategy: str = "auto"
    deterministic: bool = False
    seed: int = 0
    resume: bool = False
    checkpoint_minutes: float = 5.0
    checkpoints_kept: int = 3


def continued(run: Path, changes: Mapping[str, Any]) -> TrainingConfig:
    """The configuration with which a run is taken up: its own, less what is changed.

    Args:
        run: the run folder.
        changes: settings by name. A limit, of epochs, steps or minutes, takes the place of all the run had.

    Raises:
        InputError: it is no run, or a change would make another run of it.
    """
    record = read_config(run)
    settings = {each.name: record[each.name] for each in fields(TrainingConfig) if each.name in record}
    settings |= {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    for name, value in changes.items():
        own = settings.get(name)
        if name not in CHANGEABLE and (_absolute(value) if name == "data" else value) != own:
            raise InputError(
                f"{run} was begun with {name}={own!r}, not {value!r}: leave it out to go on, or begin another run "
                f"(what may change is {', '.join(CHANGEABLE)})"
            )
    limits = dict.fromkeys(LIMITS) if set(changes) & set(LIMITS) else {}
    settings |= {**limits, **{name: value for name, value in changes.items() if name in CHANGEABLE}}
    return TrainingConfig(**{**settings, "out": str(run), "resume": True})


def train(config: TrainingConfig) -> dict[str, Any]:
    """Trains a VAE and writes its run folder.

    Everything that can be refused is refused before the folder is made.

    Returns:
        The run's figures: `run`, `pictures`, `run_id`, `steps`, `epochs`, `minutes`, `images_per_second`, `precision`,
        `train_images`, `test_images`, the last `loss`, `elbo`, `reconstruction`, `kl`, `perceptual` and their `val_`
        counterparts, on held-out images the `psnr` (dB) and `sharpness` (1 is the originals') of reconstructions, and
        how many images were `skipped`, which `skipped.csv` in the run folder names. Of several workers the chief alone
        writes and measures; the others return `run`, `steps` and their last figures.

    Raises:
        InputError: a setting, the data or the output folder cannot be used, or the run has reached its limits already.
        NotFiniteError: the loss or its gradient became infinite or NaN.
        RunError: the folder can no longer be written to, the data no longer be read, or a worker was lost.
        StoppedError: SIGTERM or Ctrl-C was received, and where training is was saved.
    """
    out = Path(config.out)
    chief = strategies.is_chief() or not strategies.is_multi_worker(config.strategy)
    resumes = config.resume and is_run(out)
    why = None
    if config.perceptual == AUTO:
        if strategies.is_multi_worker(config.strategy):  # they would add up gradients of different losses
            raise InputError("workers may have different feature networks at hand: name one, as --perceptual hed-vgg16")
        name, why = weight_files.best_at_hand()
        config = replace(config, perceptual=name)
    perceptual = None
    if config.perceptual is not None:
        perceptual = PerceptualLoss(config.perceptual, config.perceptual_layers)
    _check(config, perceptual)
    if chief and not resumes:
        check_folder(out)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy, devices = strategies.choose(config.strategy)
    policy, reason = precision.choose(config.precision)
    with ExitStack() as stack:
        if resumes and chief:
            stack.enter_context(_held(out))
        found = _found(out, config, strategy, chief, resumes)
        if found is not None:
            _refuse_finished(out, config, *found)
        vae, images = _prepared(config, strategy, perceptual, policy, None if found is None else found[0])
        policy = vae.dtype_policy.name
        if chief:
            height, width, channels = images.image_shape
            print(
                f"precision: {policy} ({reason if found is None else 'as the run was begun'})\n"
                + (f"features: {config.perceptual} ({why})\n" if why else "")
                + f"data: {images.name}, {images.train_size} images to train on, {images.test_size} held out, "
                f"{height}x{width}x{channels}\n"
                f"model: {config.network}, {vae.count_params():,} parameters, run folder {out}"
            )
            if images.train_size < FEW_IMAGES:
                print(
                    f"{images.train_size:,} images are few to train on: others will come out soft. {FEW_IMAGES:,} do "
                    f"better{'' if config.flip else '; --flip adds mirror images'}",
                    file=sys.stderr,
                )
            if strategy.num_replicas_in_sync > 1:
                print(f"strategy: {devices}")
            if config.resume and not resumes:
                print(f"no run in {out} to resume: beginning one", file=sys.stderr)
            if not resumes:
                stack.enter_context(_made(out))
            _write_config(out, config, policy, images)
            if resumes:
                where = "the beginning: it has no checkpoint"
                if found is not None:
                    path, state = found
                    limits = callbacks.limits_of(config, images.train_size // config.batch_size)
                    where = f"step {state.step} ({path}); left: {limits.left(state.step, state.seconds)}"
                print(f"going on from {where}", flush=True)
        return _trained(vae, images, config, strategy, found and found[1], chief)


def _found(
    out: Path, config: TrainingConfig, strategy: tf.distribute.Strategy, chief: bool, resumes: bool
) -> tuple[Path, checkpoints.State] | None:
    """The checkpoint to go on from; of several workers the chief's choice."""
    found = None
    if chief and resumes:
        for folder in (out, out / CHECKPOINT_FOLDER, out / "samples"):
            sweep(folder)
        found = checkpoints.latest(out)
    step = int(strategies.agreed(strategy, [found[1].step + 1.0 if found else 0.0])[0]) - 1
    if step < 0 or found:
        return found
    path = checkpoints.path(out, step)
    return path, checkpoints.read(path)


def next_commands(figures: Mapping[str, Any]) -> list[str]:
    """What to type after a training of these figures."""
    run = shlex.quote(figures["run"])
    return [f"keras-vae evaluate {run}", f"keras-vae sample {run}", f"keras-vae export {run}"]


def _refuse_finished(out: Path, config: TrainingConfig, checkpoint: Path, state: checkpoints.State) -> None:
    """Refuses a run that has nothing left to do. One that was killed after its last step has its model to write."""
    steps_per_epoch = read_config(out).get("train_images", 0) // config.batch_size
    if not steps_per_epoch:
        return
    limits = callbacks.limits_of(config, steps_per_epoch)
    written = (out / MODEL_FILE, out / "samples" / SAMPLES_FILE)  # the last of what training writes
    if not limits.reached(state.step, state.seconds) or not all(_is_newer(path, checkpoint) for path in written):
        return
    done = f"{state.seconds / 60:.3g} minutes, {state.step / steps_per_epoch:.3g} epochs or {state.step} steps"
    raise InputError(
        f"{out} has trained for {done}, and {limits} counts from the run's beginning: nothing is left to do; "
        f"{limits.extension(state.step, state.seconds)}"
    )


def _is_newer(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_mtime_ns >= other.stat().st_mtime_ns


def _prepared(
    config: TrainingConfig,
    strategy: tf.distribute.Strategy,
    perceptual: PerceptualLoss | None,
    policy: str,
    checkpoint: Path | None,
) -> tuple[VAE, data.ImageData]:
    """The model, new or from a checkpoint, and its data: before the folder is made, for each may be unusable."""
    if perceptual is not None and checkpoint is None:
        with strategy.scope():
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
        share=strategies.share(strategy),
    )
    steps_per_epoch = images.train_size // config.batch_size
    with strategy.scope():
        if checkpoint is not None:
            _check_data_is_the_same(config, images)
            vae = load_vae(checkpoint)
            vae.load_perceptual()
            if config.learning_rate_decay == 1.0:
                vae.optimizer.learning_rate = config.learning_rate
            return vae, images
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
        vae.compile(keras.optimizers.Adam(_learning_rate(config, steps_per_epoch), **_averaging(config)))
    return vae, images


def _check_data_is_the_same(config: TrainingConfig, images: data.ImageData) -> None:
    record = read_config(Path(config.out))
    for name, now in (("train_images", images.train_size), ("test_images", images.test_size)):
        if record.get(name, now) != now:
            raise InputError(
                f"{images.name} has changed: {now} {name} where the run was begun with {record[name]}: restore it, "
                "or begin another run"
            )


def _trained(
    vae: VAE,
    images: data.ImageData,
    config: TrainingConfig,
    strategy: tf.distribute.Strategy,
    state: checkpoints.State | None,
    chief: bool,
) -> dict[str, Any]:
    out = Path(config.out)
    progress = callbacks.Progress(config, images.train_size // config.batch_size, state, shown=chief)
    examples = _examples(images)
    with _failures(vae, images, config, strategy, progress, chief):
        try:
            _fit(vae, images, config, strategy, state, progress, examples, chief)
        finally:
            progress.hush()
        if not chief:
            return {"run": str(out), "steps": progress.steps, **progress.logs}
        if config.prior == "learned":
            _fit_prior(vae, images, config, progress.steps)
        _save(vae, out / MODEL_FILE)
        _report_skips(images, out)
        figures = _finish(vae, images, out, examples, progress, config)
    _warn_of_overfitting(out)
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
    return {**figures, "skipped": len(images.skips)}


def _fit(
    vae: VAE,
    images: data.ImageData,
    config: TrainingConfig,
    strategy: tf.distribute.Strategy,
    state: checkpoints.State | None,
    progress: callbacks.Progress,
    examples: np.ndarray,
    chief: bool,
) -> None:
    out = Path(config.out)
    signals = callbacks.Signals()

    def fit(last_epoch: int, steps: int, *more: keras.callbacks.Callback) -> None:
        ours: list[keras.callbacks.Callback] = []
        if chief:
            ours = [
                callbacks.TensorBoard(out / "logs"),
                callbacks.MetricsLog(out, progress),
                callbacks.EpochPictures(out, examples, config.seed, config.prior == "learned"),
            ]
        saving = callbacks.Checkpoints(out, config, progress, signals, strategy, writes=chief)
        distributed = strategy.num_replicas_in_sync > 1
        vae.fit(
            strategies.distributed(strategy, images.train_from(progress.steps)),
            initial_epoch=progress.steps // progress.steps_per_epoch,
            epochs=last_epoch,
            steps_per_epoch=steps,
            validation_data=strategies.distributed(strategy, images.test),
            validation_steps=math.ceil(images.test_size / config.batch_size) if distributed else None,
            shuffle=False,  # the pipeline shuffles
            verbose=0,  # `progress` speaks
            callbacks=[progress, *_kl_schedule(config), *ours, *more, saving],
        )

    with signals.noted():
        if state is not None and progress.within_epoch and not progress.done:
            rest = callbacks.RestOfEpoch(state)
            already = progress.steps % progress.steps_per_epoch
            fit(progress.epochs_begun, progress.steps_per_epoch - already, rest)
            if vae.stop_training:
                return
            rest.undo_averaging()
        if not progress.done:
            fit(progress.limits.last_epoch or sys.maxsize, progress.steps_per_epoch)
        elif state is not None:  # what `fit` does in the end
            for variable, average in vae.averages():
                variable.assign(average)


@contextmanager
def _failures(
    vae: VAE,
    images: data.ImageData,
    config: TrainingConfig,
    strategy: tf.distribute.Strategy,
    progress: callbacks.Progress,
    chief: bool,
) -> Iterator[None]:
    """Words what ends training, and says what is kept."""
    out = Path(config.out)
    at = f"at step {progress.steps + 1}"
    try:
        yield
    except NotFiniteError as error:
        if not chief or strategy.num_replicas_in_sync > 1:
            raise NotFiniteError(f"{error}; {_kept(out)}") from None
        path = out / "last-finite.keras"
        with _writing(out):
            _save(vae, path)
        raise NotFiniteError(f"{error}; {path} holds the last good weights, and {_kept(out)}") from None
    except tf.errors.OpError as error:
        at = f"at step {progress.steps + 1}"
        text = _reason(error)
        if images.skips.error is not None:  # raised within the pipeline, which words it anew
            raise InputError(f"{images.skips.error}; {_kept(out)}") from None
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and isinstance(error, LOST):
            raise RunError(f"another worker was lost {at}: start all of them again; {_kept(out)}") from error
        if str(out) in text:
            reason = "No space left on device" if "no space left on device" in text.lower() else text
            raise RunError(f"cannot write to {out} {at}: {reason}; mend that; {_kept(out)}") from error
        # oneDNN and CUDA have their own words for it.
        words = ("could not create a memory object", "out of memory", "OUT_OF_MEMORY")
        if isinstance(error, tf.errors.ResourceExhaustedError) or any(each in str(error) for each in words):
            height, width, _ = images.image_shape
            raise InputError(
                f"out of memory {at}: batch size {config.batch_size} of {height}x{width} in {vae.dtype_policy.name}: "
                f"give a smaller --batch-size or --image-size, or another --precision ({text})"
            ) from error
        if isinstance(error, tf.errors.DataLossError | tf.errors.NotFoundError | tf.errors.PermissionDeniedError):
            raise RunError(f"cannot read {images.name} {at}: {text}; mend it; {_kept(out)}") from error
        raise
    except OSError as error:
        where = error.filename or out
        raise RunError(
            f"cannot write {where} at step {progress.steps}: {error.strerror or error}; mend that; {_kept(out)}"
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
    """What went wrong, of an error of TensorFlow's, whose messages hold the places in the code too."""
    noise = ("File ", "[[", "Detected at node", "Graph execution error", "<stack traces", "0 successful", "0 derived")
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(noise)]
    return (said or [type(error).__name__])[-1].partition(" [Op:")[0][:200]


def _kept(out: Path) -> str:
    """What of a run can be gone on from, and how."""
    kept = checkpoints_of(out)
    if not kept:
        return f"no checkpoint was made yet; remove {out} to begin again" if out.exists() else f"{out} is gone"
    return f"{kept[-1]} is kept; go on with: {callbacks.resuming(out)}"


def _warn_of_overfitting(out: Path) -> None:
    """Says so where most of what training gains is of no use for other images.

    That is where the ELBO of held-out images has risen by less than half of what that of training images has, from the
    second quarter of the epochs to the last, and they are further apart than the nats that latents carry.
    """
    epochs = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
    quarter = len(epochs) // 4
    if not quarter:
        return
    train, held_out = (np.array([each[name] for each in epochs]) for name in ("elbo", "val_elbo"))
    gained, theirs = (each[-quarter:].mean() - each[quarter : 2 * quarter].mean() for each in (train, held_out))
    if theirs >= gained / 2 or train[-1] - held_out[-1] < epochs[-1]["val_kl"]:
        return
    best = int(held_out.argmax())
    sooner = ""
    if best < len(epochs) - quarter:
        sooner = f", fewer minutes: epoch {epochs[best]['epoch']} of {epochs[-1]['epoch']} was best"
    print(
        f"overfitting: the ELBO is {train[-1]:,.0f} nats on training images and {held_out[-1]:,.0f} on held-out ones, "
        f"which gained less than half as much lately. What helps is more images, --flip{sooner}",
        file=sys.stderr,
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


def _check(config: TrainingConfig, perceptual: PerceptualLoss | None) -> None:
    """Refuses what can be refused before any work."""
    strategies.check(config.strategy)
    check_count("checkpoints_kept", config.checkpoints_kept)
    for name in (
        "checkpoint_minutes",
        "epochs",
        "steps",
        "minutes",
        "crop",
        "kl_target",
        "kl_steps",
        "learning_rate_decay",
    ):
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
    check_prior(config.prior)
    check_likelihood(config.likelihood)
    sources.check_outside(Path(config.out), config.data)
    sources.check(config.data, config.image_size, config.batch_size)


def check_folder(out: Path) -> None:
    """Refuses a run folder that is taken or cannot be made.

    Raises:
        InputError: it is refused.
    """
    if is_run(out):
        raise InputError(f"{out} already holds a run: --resume goes on with it; for a new one give another --out")
    if out.exists() and (not out.is_dir() or any(path.name != LOCK_FILE for path in out.iterdir())):
        raise InputError(f"{out} exists and is not a run: give a new or an empty folder")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not is_writable(parent):
        raise InputError(f"cannot make {out}: {parent} is not a folder that can be written to")


@contextmanager
def _made(out: Path) -> Iterator[None]:
    """Makes the run folder, and holds it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the run folder {out}: {error.strerror}; give another") from error
    with _held(out):
        check_folder(out)  # another process may have come first
        yield


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """Keeps other processes from training in the folder; the system drops the lock of one that is killed."""
    lock = filelock.FileLock(out / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(f"another process trains in {out}: wait for its end, or give another --out") from error
    except OSError as error:
        raise InputError(f"{out} cannot be written to: {error.strerror}; mend that, or give another --out") from error
    try:
        yield
    finally:
        lock.release()


def _write_config(out: Path, config: TrainingConfig, policy: str, images: data.ImageData) -> None:
    packages = ("tensorflow", "keras", "numpy")
    before = read_config(out) if is_run(out) else {}
    record = {
        "run_id": before.get("run_id") or uuid.uuid4().hex,
        "keras_vae_version": __version__,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "policy": policy,
        "train_images": images.train_size,
        "test_images": images.test_size,
        **asdict(config),
        "data": _absolute(config.data),  # later commands may run from elsewhere
    }
    del record["resume"]
    try:
        for part in (CHECKPOINT_FOLDER, "samples", "logs"):
            (out / part).mkdir(exist_ok=True)
        with write_aside(out / CONFIG_FILE) as aside:
            aside.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to the run folder {out}: {error.strerror}; give another") from error


def _absolute(source: str) -> str:
    folder = sources.folder_of(source)
    return source if folder is None else str(folder.absolute())


def _examples(images: data.ImageData) -> np.ndarray:
    batches = []
    for batch in images.test:
        batches.append(batch.numpy())
        if sum(map(len, batches)) >= MEASURED:
            break
    return np.concatenate(batches)[:MEASURED]


def _fit_prior(vae: VAE, images: data.ImageData, config: TrainingConfig, steps: int) -> None:
    """Fits the prior, in a tenth of the time that training took or less.

    How many codes and steps follows from what was trained, not from a clock: the same run gives the same prior.
    """
    seen = steps * config.batch_size
    limit = min(images.train_size, max(LEAST_CODES, seen // IMAGES_PER_CODE), priors.MOST_CODES)
    batches = images.train_from(0).unbatch().take(limit).batch(BATCH)
    per_step = IMAGES_PER_PRIOR_STEP if config.perceptual is not None else PLAIN_IMAGES_PER_PRIOR_STEP
    worth = seen * math.prod(images.image_shape[:2]) / MEASURED_PIXELS
    vae.fit_prior(batches, max(1, min(priors.STEPS, int(worth / per_step))), config.seed)


def _save(vae: VAE, path: Path) -> None:
    with write_aside(path, durable=True) as aside:
        vae.save(aside)


@true_float32(device=None)
def _finish(
    vae: VAE,
    images: data.ImageData,
    out: Path,
    examples: np.ndarray,
    progress: callbacks.Progress,
    config: TrainingConfig,
) -> dict[str, Any]:
    # Not `predict`, in which all the workers would have to take part.
    batches = range(0, len(examples), config.batch_size)
    reconstructions = np.concatenate(
        [keras.ops.convert_to_numpy(vae(examples[start:][: config.batch_size], training=False)) for start in batches]
    )
    first = callbacks.PICTURED
    written = [out / "samples" / RECONSTRUCTIONS_FILE, out / "samples" / SAMPLES_FILE]
    pictures.save(pictures.side_by_side(examples[:first], reconstructions[:first]), written[0])
    samples = keras.ops.convert_to_numpy(vae.sample(64, config.seed))
    pictures.save(pictures.grid(samples), written[1])
    return {
        "run": str(out),
        "pictures": [str(path) for path in written],
        "run_id": read_config(out)["run_id"],
        "steps": progress.steps,
        "epochs": progress.epochs_begun,
        "minutes": round(progress.seconds / 60, 2),
        "images_per_second": round(progress.images_per_second, 1),
        "precision": vae.dtype_policy.name,
        "train_images": images.train_size,
        "test_images": images.test_size,
        **progress.logs,
        "psnr": psnr(examples, reconstructions),
        "sharpness": sharpness_ratio(examples, reconstructions),
    }
