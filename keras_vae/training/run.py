"""A training run, from its configuration to a folder with the model, its figures and its pictures."""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae import data
from keras_vae._version import __version__
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.features import weight_files
from keras_vae.features.perceptual import PerceptualLoss
from keras_vae.model import priors, schedules
from keras_vae.model.vae import VAE
from keras_vae.runs import checkpoints
from keras_vae.runs.folder import CHECKPOINT_FOLDER, CONFIG_FILE, METRICS_FILE, MODEL_FILE, is_run, read_config
from keras_vae.runs.keras_file import load_vae, save_vae
from keras_vae.runs.opening import BATCH
from keras_vae.support import pictures, precision
from keras_vae.support.errors import InputError
from keras_vae.support.files import sweep, write_aside
from keras_vae.support.true_float32 import true_float32
from keras_vae.training import callbacks, failures, strategies
from keras_vae.training.checks import check
from keras_vae.training.config import AUTO, TrainingConfig, absolute
from keras_vae.training.folder import check_folder, held, made

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
    check(config, perceptual)
    if chief and not resumes:
        check_folder(out)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy, devices = strategies.choose(config.strategy)
    policy, reason = precision.choose(config.precision)
    with ExitStack() as stack:
        if resumes and chief:
            stack.enter_context(held(out))
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
                stack.enter_context(made(out))
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
    with failures.worded(vae, images, config, strategy, progress, chief):
        try:
            _fit(vae, images, config, strategy, state, progress, examples, chief)
        finally:
            progress.hush()
        if not chief:
            return {"run": str(out), "steps": progress.steps, **progress.logs}
        if config.prior == "learned":
            _fit_prior(vae, images, config, progress.steps)
        save_vae(vae, out / MODEL_FILE)
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
    return [schedules.KL_SCHEDULES[config.kl_schedule](config.kl_steps)]


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
        "data": absolute(config.data),  # later commands may run from elsewhere
    }
    del record["resume"]
    try:
        for part in (CHECKPOINT_FOLDER, "samples", "logs"):
            (out / part).mkdir(exist_ok=True)
        with write_aside(out / CONFIG_FILE) as aside:
            aside.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to the run folder {out}: {error.strerror}; give another") from error


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
