"""The settings of a training run: what each means, what may not be, and what may change when a run is resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from keras_vae.data import loading
from keras_vae.features.perceptual import PerceptualLoss
from keras_vae.model import networks, schedules
from keras_vae.model.compiling import LEARNING_RATE
from keras_vae.model.distributions import check_likelihood
from keras_vae.model.feature_terms import check_perceptual_weight
from keras_vae.model.presets import DEFAULT_LAYERS, DEFAULT_PERCEPTUAL_WEIGHT, check_prior
from keras_vae.runs.folder import read_config
from keras_vae.support import precision
from keras_vae.support.errors import InputError, check_count, check_weight
from keras_vae.training import strategies

KL_SCHEDULES = {
    "linear": schedules.LinearWarmup,
    "cosine": schedules.CosineWarmup,
    "cyclical": schedules.CyclicalAnnealing,
}
AUTO = "auto"
LIMITS = ("epochs", "steps", "minutes")
# What may change when a run is taken up again; the rest would make another run of it.
CHANGEABLE = (*LIMITS, "prior", "learning_rate", "strategy", "deterministic", "checkpoint_minutes", "checkpoints_kept")


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
        strategy: devices to train on, one of `strategies.STRATEGIES`; `batch_size` is of all together.
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
        if name not in CHANGEABLE and (absolute(value) if name == "data" else value) != own:
            raise InputError(
                f"{run} was begun with {name}={own!r}, not {value!r}: leave it out to go on, or begin another run "
                f"(what may change is {', '.join(CHANGEABLE)})"
            )
    limits = dict.fromkeys(LIMITS) if set(changes) & set(LIMITS) else {}
    settings |= {**limits, **{name: value for name, value in changes.items() if name in CHANGEABLE}}
    return TrainingConfig(**{**settings, "out": str(run), "resume": True})


def check(config: TrainingConfig, perceptual: PerceptualLoss | None) -> None:
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
    check_perceptual_weight(config.perceptual_weight, len(perceptual.keras_layers) if perceptual else None)
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
    size = config.image_size or loading.DEFAULT_SIZE
    networks.check(config.network, (size, size, 3), config.latent_dim, config.network_options)
    precision.check(config.precision)
    check_prior(config.prior)
    check_likelihood(config.likelihood)
    loading.check_outside(Path(config.out), config.data)
    loading.check(config.data, config.image_size, config.batch_size)


def absolute(source: str) -> str:
    folder = loading.folder_of(source)
    return source if folder is None else str(folder.absolute())
