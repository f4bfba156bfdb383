"""A training run, from its configuration to a folder with the model, its figures and its pictures."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_vae import data
from keras_vae.features import weight_files
from keras_vae.features.perceptual import PerceptualLoss
from keras_vae.model import schedules
from keras_vae.model.vae import VAE
from keras_vae.networks.ppca import ADAPTED_TO
from keras_vae.runs.folder import MODEL_FILE, is_run
from keras_vae.runs.keras_file import save_vae
from keras_vae.support import precision
from keras_vae.support.errors import InputError
from keras_vae.training import callbacks, failures, model, prior, results, resuming, strategies
from keras_vae.training.checks import check
from keras_vae.training.clock import Progress
from keras_vae.training.config import AUTO, TrainingConfig
from keras_vae.training.learning_rate import CosineDecay
from keras_vae.training.limits import limits_of
from keras_vae.training.run_folder import check_folder, held, made, write_config
from keras_vae.training.signals import Signals
from keras_vae.training.stages import Stages, Validation

FEW_IMAGES = 2000
NAMED = 12  # classes or attributes


def train(config: TrainingConfig) -> dict[str, Any]:
    """Trains a VAE and writes its run folder.

    Everything that can be refused is refused before the folder is made.

    Returns:
        The run's figures: `run`, `pictures`, `run_id`, `steps`, `epochs`, `minutes`, `images_per_second`, `precision`,
        `train_images`, `test_images`, the last `loss`, `elbo`, `reconstruction`, `kl`, `perceptual` and their `val_`
        counterparts, the `psnr` (dB) and `sharpness` (1 is the originals') of reconstructions of held-out images, and
        how many images were `skipped`, which `skipped.csv` in the run folder names. Of several workers only the chief
        writes and measures; the others return `run`, `steps` and their last metrics.

    Raises:
        InputError: a setting, the data or the output folder cannot be used, or the run has reached its limits already.
        NotFiniteError: the loss or its gradient became infinite or NaN.
        RunError: the folder can no longer be written to, the data no longer be read, or a worker was lost.
        StoppedError: SIGTERM or Ctrl-C was received, and a checkpoint saved.
    """
    # Settings
    out = Path(config.out)
    chief = strategies.is_chief() or not strategies.is_multi_worker(config.strategy)
    resumes = config.resume and is_run(out)
    stages = Stages(always=config.deterministic)
    config, why = _with_feature_network(config)
    perceptual = None
    if config.perceptual is not None:
        perceptual = PerceptualLoss(config.perceptual, config.perceptual_layers, texture_layers=config.texture_layers)
    check(config, perceptual)
    if chief and not resumes:
        check_folder(out)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy, devices = strategies.choose(config.strategy)
    policy, reason = precision.choose(config.precision)

    with ExitStack() as stack:
        # The checkpoint, of a run that is resumed
        if chief and resumes:
            stack.enter_context(held(out))
        checkpoint = resuming.last_checkpoint(out, strategy, chooses=chief and resumes)
        if checkpoint is not None:
            resuming.check_unfinished(config, checkpoint)

        # Data
        if perceptual is not None and checkpoint is None:
            with strategy.scope(), stages.timed("features"):
                perceptual.load(policy)
        keras.utils.set_random_seed(config.seed)
        with stages.timed("data"):
            images = data.load(
                config.data,
                config.image_size,
                config.batch_size,
                config.seed,
                crop=config.crop,
                flip=config.flip,
                random_crop=config.random_crop,
                strict=config.strict,
                condition=config.condition,
                share=strategies.share(strategy),
                scaled=False,
            )
        with stages.timed("examples"):
            examples = results.examples_of(images)

        # Model
        with strategy.scope(), stages.timed("model"):
            if checkpoint is None:
                vae = model.new(config, images, perceptual, policy)
            else:
                vae = model.from_checkpoint(config, checkpoint.path)
                resuming.check_same_data(config, images, examples, vae)
        policy = vae.dtype_policy.name

        # Run folder
        if chief:
            reason = reason if checkpoint is None else "as when the run began"
            print(f"precision: {policy} ({reason})\nXLA: {vae.xla.why}")
            if why:
                print(f"features: {config.perceptual} ({why})")
            _announce(config, images, vae, devices if strategy.num_replicas_in_sync > 1 else None)
            if config.resume and not resumes:
                print(f"no run in {out} to resume: starting one", file=sys.stderr)
            if not resumes:
                stack.enter_context(made(out))
            write_config(config, policy, images, resuming.signature(examples, config))
            if resumes:
                _announce_resuming(config, images, checkpoint)

        state = None if checkpoint is None else checkpoint.state
        progress = Progress(config, images.train_size // config.batch_size, state, shown=chief)
        stages.progress = progress
        with failures.worded(vae, images, config, strategy, progress, chief):
            # Adapt
            if vae.needs_adapting:
                with strategy.scope(), stages.timed("statistics"):
                    count = min(images.train_size, ADAPTED_TO)
                    vae.adapt(images.first(count), seed=config.seed)
                if chief:
                    print(f"network: {config.network} adapted to {count:,} images")

            # Fit
            try:
                _fit(vae, images, config, strategy, checkpoint, progress, stages, examples, chief)
            finally:
                progress.hush()
            if not chief:
                return {"run": str(out), "steps": progress.steps, **progress.logs}
            if config.prior == "learned":
                prior.fit(vae, images, config, progress.steps)

            # Save
            save_vae(vae, out / MODEL_FILE)

            # Show
            results.report_skips(images, out)
            figures = results.figures(vae, images, examples, progress, config)
        results.warn(config, progress)
        return {**figures, "skipped": len(images.skips)}


def next_commands(figures: Mapping[str, Any]) -> list[str]:
    """The commands to try after a run, given its figures."""
    run = shlex.quote(figures["run"])
    return [f"keras-vae evaluate {run}", f"keras-vae sample {run}", f"keras-vae export {run}"]


def _with_feature_network(config: TrainingConfig) -> tuple[TrainingConfig, str | None]:
    """The configuration with a feature network in place of "auto", and why that one was chosen."""
    if config.perceptual != AUTO:
        return config, None
    if strategies.is_multi_worker(config.strategy):  # they would add up gradients of different losses
        raise InputError("workers may have different feature networks at hand: name one, as --perceptual hed-vgg16")
    name, why = weight_files.best_at_hand()
    return replace(config, perceptual=name), why


def _announce(config: TrainingConfig, images: data.ImageData, vae: VAE, devices: str | None) -> None:
    height, width, channels = images.image_shape
    if images.condition is not None:
        names = images.condition.names
        what = "classes" if images.condition.exclusive else "attributes"
        print(f"condition: {len(names)} {what}, {', '.join(names[:NAMED])}{', ...'[: 5 * (len(names) > NAMED)]}")
    print(
        f"data: {images.name}, {images.train_size} images to train on, {images.test_size} held out, "
        f"{height}x{width}x{channels}\n"
        f"model: {config.network}, {vae.count_params():,} parameters, run folder {config.out}"
    )
    if images.train_size < FEW_IMAGES:
        print(
            f"{images.train_size:,} images are few to train on: new images will come out blurry. {FEW_IMAGES:,} do "
            f"better{'' if config.flip else '; --flip adds mirror images'}",
            file=sys.stderr,
        )
    if devices is not None:
        print(f"strategy: {devices}")


def _announce_resuming(config: TrainingConfig, images: data.ImageData, checkpoint: resuming.Checkpoint | None) -> None:
    where = "the beginning: it has no checkpoint"
    if checkpoint is not None:
        path, state = checkpoint
        limits = limits_of(config, images.train_size // config.batch_size)
        where = f"step {state.step} ({path}); left: {limits.left(state.step, state.seconds)}"
    print(f"resuming from {where}", flush=True)


def _fit(
    vae: VAE,
    images: data.ImageData,
    config: TrainingConfig,
    strategy: tf.distribute.Strategy,
    checkpoint: resuming.Checkpoint | None,
    progress: Progress,
    stages: Stages,
    examples: results.Examples,
    chief: bool,
) -> None:
    """Trains until a limit is reached; of a resumed run the rest of the interrupted epoch first."""
    out = Path(config.out)
    signals = Signals()
    schedule = _kl_schedule(config)
    if config.learning_rate_schedule == "cosine":
        schedule.append(CosineDecay(config.learning_rate, progress))
    distributed = strategy.num_replicas_in_sync > 1
    validation = Validation(
        stages,
        strategies.distributed(strategy, images.test),
        math.ceil(images.test_size / config.batch_size) if distributed else None,
    )

    def fit(last_epoch: int, steps: int, *more: keras.callbacks.Callback) -> None:
        ours: list[keras.callbacks.Callback] = []
        if chief:
            ours = [
                callbacks.TensorBoard(out / "logs"),
                callbacks.MetricsLog(out, progress, stages),
                callbacks.EpochPictures(out, stages, examples, config.seed, config.prior == "learned"),
            ]
        saving = callbacks.Checkpoints(out, config, progress, stages, signals, strategy, writes=chief)
        vae.fit(
            strategies.distributed(strategy, images.train_from(progress.steps)),
            initial_epoch=progress.steps // progress.steps_per_epoch,
            epochs=last_epoch,
            steps_per_epoch=steps,
            shuffle=False,  # the pipeline shuffles
            verbose=0,  # `progress` speaks
            callbacks=[stages, validation, progress, *schedule, *ours, *more, saving],
        )

    with signals.noted():
        if checkpoint is not None and progress.within_epoch and not progress.done:
            rest = resuming.RestOfEpoch(checkpoint.state)
            already = progress.steps % progress.steps_per_epoch
            fit(progress.epochs_begun, progress.steps_per_epoch - already, rest)
            if vae.stop_training:
                return
            rest.undo_averaging()
        if not progress.done:
            fit(progress.limits.last_epoch or sys.maxsize, progress.steps_per_epoch)
        elif checkpoint is not None:  # what `fit` does in the end
            for variable, average in vae.averages():
                variable.assign(average)


def _kl_schedule(config: TrainingConfig) -> list[keras.callbacks.Callback]:
    if config.kl_target is not None:
        return [schedules.TargetKL(config.kl_target)]
    if config.kl_schedule == "constant":
        return []
    return [schedules.KL_SCHEDULES[config.kl_schedule](config.kl_steps)]
