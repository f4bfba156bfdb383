"""Refuses a configuration that cannot work, before anything is done."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from keras_vae import networks
from keras_vae.data import loading
from keras_vae.features.perceptual import PerceptualLoss
from keras_vae.model.distributions import check_likelihood
from keras_vae.model.feature_terms import check_perceptual_weight
from keras_vae.model.schedules import KL_SCHEDULES, check_target
from keras_vae.support.errors import InputError
from keras_vae.training import strategies
from keras_vae.training.config import TrainingConfig


def check(config: TrainingConfig, perceptual: PerceptualLoss | None) -> None:
    """Checks each option, and what they mean together.

    Raises:
        InputError: one of them cannot be used.
    """
    for each in fields(config):
        value = getattr(config, each.name)
        if value is not None:
            each.metadata["check"](each.name, value)
    strategies.check(config.strategy)
    check_perceptual_weight(config.perceptual_weight, perceptual.counts if perceptual else None)
    if not config.pixel_weight and perceptual is None:
        raise InputError("pixel_weight=0 and no perceptual network: nothing says what an image should look like")
    if config.deterministic and config.jit == "on":
        raise InputError("--jit on and --deterministic exclude each other: leave one of them out")
    if config.learning_rate_schedule == "cosine":
        if config.learning_rate_decay != 1.0:
            raise InputError(
                "learning_rate_decay and a cosine both set the learning rate: give one of them "
                "(--learning-rate-schedule constant turns a preset's cosine off)"
            )
        if config.minutes is not None and config.deterministic:
            raise InputError(
                "a cosine until the minutes are up follows the clock, which nothing repeats: with --deterministic give "
                "--steps or --epochs"
            )
        if config.minutes is not None and strategies.is_multi_worker(config.strategy):
            raise InputError(
                "workers' clocks differ, and so would their learning rates: a cosine needs --steps or --epochs"
            )
    _check_kl(config)
    size = config.image_size or loading.DEFAULT_SIZE
    networks.check(
        config.network, (size, size, 3), config.latent_dim, config.network_options, config.condition is not None
    )
    check_likelihood(config.likelihood)
    loading.check_outside(Path(config.out), config.data)
    loading.check(config.data, config.image_size, config.batch_size)


def _check_kl(config: TrainingConfig) -> None:
    schedule, target = config.kl_schedule, config.kl_target
    if schedule != "constant" and schedule not in KL_SCHEDULES:
        raise InputError(f"unknown kl_schedule {schedule!r}: choose one of constant, {', '.join(KL_SCHEDULES)}")
    if target is None:
        return
    if schedule != "constant":
        raise InputError(f"kl_target and kl_schedule {schedule!r} both set beta: give one of them")
    if not config.beta:
        raise InputError("kl_target multiplies beta, which is 0: give a positive beta to begin with, such as 1")
    check_target(target, config.free_bits, config.latent_dim)
