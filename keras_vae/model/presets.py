"""Objectives and training recipes by name.

`benchmarks.objectives` compares objectives on the same images, for the same time and at the same KL.
"""

from __future__ import annotations

from typing import Any

DEFAULT_LAYERS = "vae-123"
DEFAULT_PERCEPTUAL_WEIGHT = "balanced"
DEFAULT_LEARNING_RATE = 5e-4  # Hou et al., section 4.1

# Pixels and features, each a Gaussian with its own optimal variance, each layer counting more than the image.
DEFAULT_OBJECTIVE: dict[str, Any] = {
    "perceptual_layers": DEFAULT_LAYERS,
    "perceptual_weight": DEFAULT_PERCEPTUAL_WEIGHT,
    "pixel_weight": 1.0,
    "likelihood": "gaussian-calibrated",
}

# Arguments of `VAE`, and fields of `TrainingConfig`.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "default": DEFAULT_OBJECTIVE,
    # Squared error over twice a variance of 0.05.
    "plain": {"perceptual": None, "likelihood": "gaussian"},
    # The ELBO with the one variance that fits: sigma-VAE, Rybkin et al. 2021.
    "gaussian-calibrated": {"perceptual": None, "likelihood": "gaussian-calibrated"},
    # Hou et al. 2017, section 4.2: features alone.
    "vae-123": {
        "perceptual_layers": "vae-123",
        "perceptual_weight": 0.5,
        "pixel_weight": 0.0,
        "likelihood": "gaussian",
    },
    "vae-345": {
        "perceptual_layers": "vae-345",
        "perceptual_weight": 0.5,
        "pixel_weight": 0.0,
        "likelihood": "gaussian",
    },
    "vae-123-calibrated": {
        "perceptual_layers": "vae-123",
        "perceptual_weight": "calibrated",
        "pixel_weight": 0.0,
        "likelihood": "gaussian",
    },
    # The default, and what features there are, wherever they are: sharper, pixels less right.
    "textures": {**DEFAULT_OBJECTIVE, "texture_layers": ("relu2_1", "relu3_1")},
}

# Fields of `TrainingConfig`.
PRESETS: dict[str, dict[str, Any]] = {
    **OBJECTIVES,
    # What made the sharpest and, by features, closest reconstructions of photographs of people whom training had not
    # seen: docs/photos.md has what each setting is worth.
    "photo": {
        **OBJECTIVES["textures"],
        "network": "ppca",
        "latent_dim": 384,
        "flip": True,
        "batch_size": 32,
        "optimizer": "muon",
        "learning_rate": 1e-3,
        "learning_rate_schedule": "cosine",
    },
    # Hou et al. 2017, section 4.1: CelebA cropped and scaled to 64x64, latent 100, batches of 64, five epochs of Adam
    # beginning at 0.0005 and halved after each, KL weight 1, perceptual weight 0.5, VGG19's layers 1, 2 and 3.
    # Our choices where it is silent: the crop is the 150 pixels about the centre; Adam's other numbers are Keras's
    # (0.9, 0.999); initial weights are Keras's (Glorot); the slope of LeakyReLU and the momentum of batch
    # normalization are in `keras_vae.networks`. The KL weighs what the formulas say.
    "dfc-paper": {
        **OBJECTIVES["vae-123"],
        "network": "dfc",
        "latent_dim": 100,
        "perceptual": "vgg19",
        "beta": 1.0,
        "image_size": 64,
        "crop": 150,
        "batch_size": 64,
        "epochs": 5,
        "learning_rate": 5e-4,
        "learning_rate_decay": 0.5,
    },
}
