"""The model of a run and its optimizer: new, or from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from keras_vae import data
from keras_vae.features.perceptual import PerceptualLoss
from keras_vae.model.optimizers import OPTIMIZERS
from keras_vae.model.vae import VAE
from keras_vae.runs.keras_file import load_vae
from keras_vae.training.config import JIT, TrainingConfig
from keras_vae.training.learning_rate import at_first


def new(config: TrainingConfig, images: data.ImageData, perceptual: PerceptualLoss | None, policy: str) -> VAE:
    """A compiled model for images of the data's shape.

    Args:
        config: the run's.
        images: its data.
        perceptual: the feature loss, its network loaded; None for none.
        policy: a Keras dtype policy.
    """
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
        condition=images.condition,
        seed=config.seed,
        dtype=policy,
    )
    learning_rate = at_first(config, images.train_size // config.batch_size)
    vae.compile(_optimizer(config, learning_rate, policy), jit_compile=JIT[config.jit])
    return vae


def from_checkpoint(config: TrainingConfig, checkpoint: Path) -> VAE:
    """The model of a checkpoint, with its optimizer's state and the configuration's learning rate.

    Raises:
        InputError: the checkpoint is damaged, or the weights of its feature network cannot be found.
    """
    vae = load_vae(checkpoint)
    vae.load_perceptual()
    if config.learning_rate_decay == 1.0:
        vae.optimizer.learning_rate = config.learning_rate
    return vae


def _optimizer(config: TrainingConfig, learning_rate: Any, policy: str) -> keras.optimizers.Optimizer:
    settings: dict[str, Any] = {} if config.ema is None else {"use_ema": True, "ema_momentum": config.ema}
    if config.optimizer == "muon" and policy == "mixed_bfloat16":
        settings["dtype"] = "bfloat16"
    return OPTIMIZERS[config.optimizer](learning_rate, **settings)
