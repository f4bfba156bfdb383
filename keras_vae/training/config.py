"""The options of a training run, each declared once.

A field's metadata has its help text, its check, and how it is typed on the command line if that differs from the field.
`keras-vae train` and `keras_vae.training.checks` follow from the fields. No TensorFlow is imported here: --help needs
this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from keras_vae.model.presets import DEFAULT_LAYERS, DEFAULT_LEARNING_RATE, DEFAULT_PERCEPTUAL_WEIGHT
from keras_vae.runs.folder import read_config
from keras_vae.support.errors import InputError, check_count, check_weight
from keras_vae.support.names import ALL, LABEL, check_prior, split
from keras_vae.support.precision import PRECISIONS
from keras_vae.support.precision import check as check_precision

AUTO = "auto"
OPTIMIZERS = ("adam", "muon")
LEARNING_RATE_SCHEDULES = ("constant", "cosine")
JIT: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}  # as `VAE.compile` takes them
DEFAULT_EPOCHS = 5  # where a run has no limit
SOURCES = "'avatars', 'tfds:NAME[/CONFIG][:SPLIT]', a folder of images, or an .npy or .npz file"
LIMITS = ("epochs", "steps", "minutes")
# What may change when a run is resumed; anything else would make it a different run.
CHANGEABLE = (*LIMITS, "prior", "learning_rate", "strategy", "deterministic", "checkpoint_minutes", "checkpoints_kept")


def option(
    default: Any = MISSING,
    help: str = "",
    check: Callable[[str, Any], object] = lambda name, value: None,
    parse: Callable[[Any], Any] = lambda value: value,
    **typed: Any,
) -> Any:
    """Declares a field.

    Args:
        default: its default, or a function that makes it, such as `dict`.
        help: what --help says.
        check: called with name and value, unless the value is None; raises InputError.
        parse: turns what is typed on the command line into the field's value.
        typed: `flag`, `type` and `metavar` on the command line, if they are not the field's own.
    """
    start: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return field(**start, metadata={"help": help, "check": check, "parse": parse, **typed})


# Checks -------------------------------------------------------------------------------------------


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}={value}: give a number above 0")


def _momentum(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise InputError(f"{name}={value}: give a momentum between 0 and 1, such as 0.999")


def _seed(name: str, value: int) -> None:
    if not 0 <= value < 2**32:
        raise InputError(f"{name}={value}: give a whole number from 0 to {2**32 - 1}")


def check_optimizer(name: str) -> None:
    """Raises InputError unless the name is one of `OPTIMIZERS`."""
    if name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}")


def check_learning_rate_schedule(name: str) -> None:
    """Raises InputError unless the name is one of `LEARNING_RATE_SCHEDULES`."""
    if name not in LEARNING_RATE_SCHEDULES:
        raise InputError(f"unknown learning_rate_schedule {name!r}: choose one of {', '.join(LEARNING_RATE_SCHEDULES)}")


def check_jit(value: str) -> None:
    """Raises InputError unless the value is one of `JIT`."""
    if value not in JIT:
        raise InputError(f"jit={value!r}: give {', '.join(JIT)}")


# Parsers ------------------------------------------------------------------------------------------


def _network_options(pairs: Sequence[str] | None) -> dict[str, Any]:
    """Integers, true and false are recognized; the network checks names and values."""
    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, _, value = pair.partition("=")
        if not (name and value):
            raise InputError(f"--network-option {pair!r}: give NAME=VALUE, such as blocks=2")
        words = {"true": True, "false": False}
        options[name] = words.get(value.lower(), int(value) if value.isdecimal() else value)
    return options


def _layers(text: str) -> str | tuple[str, ...]:
    several = "," in text or text.startswith("relu")  # else the name of a preset, or of one layer
    return tuple(name.strip() for name in text.split(",")) if several else text


def _weights(text: str) -> float | tuple[float, ...] | str:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        return text  # a name, or a mistake that the check reports
    return numbers[0] if len(numbers) == 1 else numbers


def _condition(text: str | None) -> str | tuple[str, ...] | None:
    if text is None or text in (LABEL, ALL):
        return text
    names = tuple(split(text))
    if "" in names:
        raise InputError(f"--condition {text!r}: give label, all, or names of attributes, such as glasses,hat")
    return names


# Options ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on."""

    data: str = option(help=f"{SOURCES}.", type=str | None)
    batch_size: int = option(64, "Images per training step, on all devices together.")
    image_size: int | None = option(None, "Side in pixels; by default 64, or the data set's own size.")
    crop: int | None = option(None, "Side in pixels of the centred square to cut out first.", _positive)
    flip: bool = option(False, "Mirror half of the training images.", flag="--flip/--no-flip")
    random_crop: int = option(0, "Shift training images by up to this many pixels, mirroring at the edges.")
    condition: str | tuple[str, ...] | None = option(
        None,
        "What images can be asked for by: label (their class), attributes such as glasses,hat, or all.",
        type=str | None,
        parse=_condition,
    )
    strict: bool = option(False, "Refuse a folder if any of its images would be skipped.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model and its objective, as `keras_vae.VAE` takes them."""

    latent_dim: int = option(100, "Number of latents.")
    network: str = option(
        "ppca", "Encoder and decoder family: ppca (begins as probabilistic PCA), dfc (the paper's) or resnet."
    )
    network_options: Mapping[str, Any] = option(
        dict,
        "Option of the network, such as blocks=2; can be repeated.",
        flag="--network-option",
        type=list[str] | None,
        metavar="NAME=VALUE",
        parse=_network_options,
    )
    perceptual: str | None = option(
        AUTO,
        "Feature network: vgg19, vgg16 (downloaded), hed-vgg16 (offline), none, or auto: what is on this machine.",
        parse=lambda text: None if text == "none" else text,
    )
    perceptual_layers: str | tuple[str, ...] = option(
        DEFAULT_LAYERS,
        "vae-123, vae-1234, vae-345, vae-12345, or layer names such as relu1_2,relu3_1.",
        type=str,
        parse=_layers,
    )
    texture_layers: str | tuple[str, ...] | None = option(
        None,
        "Layers whose features are compared wherever they are in the image, too, such as relu2_1,relu3_1; or none.",
        type=str | None,
        parse=lambda text: None if text in (None, "none") else _layers(text),
    )
    perceptual_weight: float | tuple[float, ...] | str = option(
        DEFAULT_PERCEPTUAL_WEIGHT,
        "Weight of the perceptual term: a number, one per layer and texture (1,0.5,2), calibrated or balanced.",
        type=str,
        parse=_weights,
    )
    pixel_weight: float = option(1.0, "Weight of the pixel likelihood; 0 in the paper.", check_weight)
    likelihood: str = option(
        "gaussian-calibrated", "Of pixels, such as gaussian-calibrated, gaussian, bernoulli or discretized-logistic."
    )
    beta: float = option(1.0, "Weight of the KL in the loss; with --kl-target, the initial weight.", check_weight)
    free_bits: float = option(0.0, "Nats that each latent may carry at no cost.", check_weight)
    prior: str = option(
        "learned",
        "learned (fitted to the training images' codes) or standard (normal).",
        lambda _, name: check_prior(name),
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How training proceeds: the optimizer, averaged weights, and the weight of the KL."""

    optimizer: str = option(
        "adam", "adam, or muon: fewer steps to the same images.", lambda _, name: check_optimizer(name)
    )
    learning_rate: float = option(DEFAULT_LEARNING_RATE, "The optimizer's learning rate.", _positive)
    learning_rate_schedule: str = option(
        "constant",
        "constant, or cosine: falling to a hundredth by the end of the run.",
        lambda _, name: check_learning_rate_schedule(name),
    )
    learning_rate_decay: float = option(1.0, "Factor on the learning rate after each epoch.", _positive)
    ema: float | None = option(
        None, "Momentum of averaged weights, such as 0.999, for evaluation, pictures and the saved model.", _momentum
    )
    kl_schedule: str = option("constant", "How beta rises: constant, linear, cosine or cyclical.")
    kl_steps: int = option(1000, "Training steps over which beta rises.", _positive)
    kl_target: float | None = option(None, "KL in nats to reach by adjusting beta, instead of a schedule.", _positive)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run folder, how long the run lasts, and what it is computed on."""

    out: str = option(help="Run folder to create, or to resume.", metavar="PATH")
    # Whichever limit is reached first ends the run. Minutes count from its first training step.
    epochs: int | None = option(
        None, f"Maximum epochs in total, resumed or not; {DEFAULT_EPOCHS} without any limit.", _positive
    )
    steps: int | None = option(None, "Maximum training steps in total.", _positive)
    minutes: float | None = option(
        None, "Maximum minutes of training in total; fitting the prior comes on top.", _positive
    )
    resume: bool = option(
        False, "Resume the run in --out, if there is one, with its settings; limits are still those of the whole run."
    )
    checkpoint_minutes: float = option(5.0, "Minutes between checkpoints; the ends of epochs bring others.", _positive)
    checkpoints_kept: int = option(3, "Number of checkpoints to keep.", check_count)
    precision: str = option("auto", f"Number format: {', '.join(PRECISIONS)}.", lambda _, name: check_precision(name))
    jit: str = option(
        "auto", "Whether XLA compiles the training step: auto (on GPUs), on or off.", lambda _, name: check_jit(name)
    )
    strategy: str = option(
        "auto", "Devices: auto, none (one device), mirrored (all local GPUs) or multi-worker (from TF_CONFIG)."
    )
    deterministic: bool = option(False, "Give the same bits every time, even if that is slower.")
    seed: int = option(0, "Seed of weights, noise and shuffling.", _seed)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(RunConfig, OptimizerConfig, ModelConfig, DataConfig):
    """Everything a run depends on, flat; `config.json` records it."""


def continued(run: Path, changes: Mapping[str, Any]) -> TrainingConfig:
    """The configuration of a resumed run: its own, with changes.

    Args:
        run: the run folder.
        changes: settings by name. A limit (epochs, steps or minutes) replaces all limits the run had.

    Raises:
        InputError: the folder is not a run, or a change would make it a different one.
    """
    record = read_config(run)
    settings = {each.name: record[each.name] for each in fields(TrainingConfig) if each.name in record}
    settings |= {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    defaults = {each.name: each.default for each in fields(TrainingConfig)}  # of options that are newer than the run
    for name, value in changes.items():
        own = settings.get(name, defaults[name])
        if name not in CHANGEABLE and (absolute(value) if name == "data" else value) != own:
            raise InputError(
                f"{run} was begun with {name}={own!r}, not {value!r}: leave it out to resume, or start another run "
                f"(what may change is {', '.join(CHANGEABLE)})"
            )
    limits = dict.fromkeys(LIMITS) if set(changes) & set(LIMITS) else {}
    settings |= {**limits, **{name: value for name, value in changes.items() if name in CHANGEABLE}}
    return TrainingConfig(**{**settings, "out": str(run), "resume": True})


def absolute(source: str) -> str:
    """The source of images, with an absolute path if it is one."""
    from keras_vae.data import loading  # imports TensorFlow

    folder = loading.folder_of(source)
    return source if folder is None else str(folder.absolute())
