"""Latents of many images: one pass through the encoder, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae.data import image_batches
from keras_vae.model import conditioning
from keras_vae.model.distributions import kl_per_latent
from keras_vae.support import progress
from keras_vae.support.errors import InputError
from keras_vae.support.names import position

LIMIT = 20_000  # images kept, however many there are


class Reservoir:
    """Keeps a random sample of rows, each with equal probability (Vitter 1985, algorithm R); a seed always the same.

    Args:
        limit: the most rows to keep.
        seed: of the choice.
    """

    def __init__(self, limit: int, seed: int = 0) -> None:
        self.limit = limit
        self.seen = 0
        self._rng = np.random.default_rng(seed)
        self._rows: list[Any] = []

    def update(self, *columns: np.ndarray) -> None:
        """Takes in rows, each made of one entry of every column. Views are copied."""
        for row in zip(*columns, strict=True):
            kept = tuple(np.array(each) for each in row)
            if self.seen < self.limit:
                self._rows.append(kept)
            elif (place := int(self._rng.integers(self.seen + 1))) < self.limit:
                self._rows[place] = kept
            self.seen += 1

    def columns(self) -> tuple[np.ndarray, ...]:
        """What was kept, one array per column."""
        return tuple(np.stack(column) for column in zip(*self._rows, strict=True))

    def __len__(self) -> int:
        return len(self._rows)


@dataclass(frozen=True)
class Encoded:
    """Posteriors of some images.

    Attributes:
        mean, log_var: float32 (images, latent_dim).
        attributes: uint8 (images, attributes), 0 or 1; of no columns if they were not asked for.
        attribute_names: of the attributes.
        seen: how many images there were; those kept are a random sample of them.
        conditions: what they are of, float32 (images, names); None if the batches do not say it, or the model has none.
        unknown: mean and log_var as above, of the same images when nothing is known of them; None as `conditions`.
    """

    mean: np.ndarray
    log_var: np.ndarray
    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    seen: int
    conditions: np.ndarray | None = None
    unknown: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.mean)

    def first(self, count: int) -> Encoded:
        """The first images, all if there are fewer, without their conditions."""
        columns = {name: getattr(self, name)[:count] for name in ("mean", "log_var", "attributes")}
        return replace(self, **columns, conditions=None, unknown=None)

    @property
    def latent_dim(self) -> int:
        return self.mean.shape[1]

    def kl_per_latent(self) -> np.ndarray:
        """Mean Kullback-Leibler divergence of each latent from the standard normal, nats: float64 (latent_dim,)."""
        found = kl_per_latent(self.mean.astype(np.float64), self.log_var.astype(np.float64))
        return np.asarray(found).mean(axis=0)

    def draws(self, seed: int = 0) -> np.ndarray:
        """One draw from each posterior: float32 (images, latent_dim)."""
        noise = np.random.default_rng(seed).standard_normal(self.mean.shape, np.float32)
        return self.mean + np.exp(0.5 * self.log_var) * noise

    def column(self, name: str) -> np.ndarray:
        """An attribute of each image, uint8 (images,).

        Raises:
            InputError: there is no such attribute.
        """
        return self.attributes[:, position(name, self.attribute_names)]


def encode(
    vae: keras.Model,
    batches: Iterable[Any],
    attribute_names: tuple[str, ...] = (),
    limit: int = LIMIT,
    seed: int = 0,
    total: int | None = None,
    description: str = "encoding",
) -> Encoded:
    """Encodes images.

    Args:
        vae: a `keras_vae.VAE`.
        batches: of images, or of dicts with `image` and `attributes`, such as `keras_vae.data.load` gives.
        attribute_names: of the attributes; without names no attributes are kept.
        limit: the most posteriors to keep; of more images, a random sample.
        seed: of that sample.
        total: number of images, for the progress bar.
        description: text of the bar.

    Raises:
        InputError: no images, or images of another shape than the model's.
    """
    kept = Reservoir(limit, seed)

    @tf.function(jit_compile=vae.needs_xla, reduce_retracing=True, autograph=False)
    def posterior(images: Any, condition: Any) -> tuple[Any, Any]:
        found = vae.encode(images, condition=condition)
        return found.mean, found.log_var

    with vae.averaged_weights(), progress.bar(total, description, "images") as bar:
        for batch in batches:
            images = image_batches.unpack(batch)
            image_batches.check(images, vae.image_shape)
            labels = batch["attributes"] if attribute_names else np.empty((len(images), 0), np.uint8)
            shown, known = vae.images_of(images), conditioning.labels_of(batch)
            columns = [*posterior(shown, None), labels]
            if vae.condition is not None and known is not None:
                condition = conditioning.rows(vae.condition, known, len(images))
                columns = [*posterior(shown, condition), labels, condition, *columns[:2]]
            kept.update(*map(np.asarray, columns))
            bar.update(len(images))
    if not len(kept):
        raise InputError("no images to encode")
    mean, log_var, attributes, *known = kept.columns()
    if not known:
        return Encoded(mean, log_var, attributes, attribute_names, kept.seen)
    return Encoded(mean, log_var, attributes, attribute_names, kept.seen, known[0], (known[1], known[2]))
