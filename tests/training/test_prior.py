"""How long `keras-vae train` fits the prior: by what was trained, not by a clock."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from keras_vae.training import prior


@pytest.mark.parametrize(
    ("steps", "batch_size", "side", "perceptual", "expected"),
    [
        (2, 64, 64, "hed-vgg16", 1000),  # fewer where there are few images: `flow_matching.EPOCHS`
        (1428, 64, 28, "hed-vgg16", 4373),  # Fashion-MNIST for two minutes, where 490 left samples in pieces
        (616, 64, 64, "hed-vgg16", 5000),
        (675, 32, 64, "hed-vgg16", 5000),  # 15 minutes of `photo` on two slow cores: 1,800 left faces in pieces
        (300, 32, 64, "hed-vgg16", 2400),
        (3484, 32, 64, "hed-vgg16", 9290),
        (3484, 32, 64, None, 3716),  # each step of training took a fifth of the time
        (9482, 32, 64, "hed-vgg16", 20_000),
    ],
)
def test_the_prior_is_fitted_for_a_fifth_of_the_time_and_after_short_runs_for_longer(
    steps: int, batch_size: int, side: int, perceptual: str | None, expected: int
) -> None:
    asked: list[Any] = []
    images: Any = SimpleNamespace(train_size=60_000, image_shape=(side, side, 3), first=lambda count: count)
    config: Any = SimpleNamespace(batch_size=batch_size, flip=False, perceptual=perceptual, seed=3)
    vae: Any = SimpleNamespace(fit_prior=lambda *arguments: asked.append(arguments))
    prior.fit(vae, images, config, steps)
    codes = min(60_000, max(2_000, steps * batch_size // 2))
    assert asked == [(codes, expected, 3)]
