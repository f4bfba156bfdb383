"""Networks that begin with the images' statistics, which `fit` gives them before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from keras_vae import networks
from keras_vae.data import image_batches
from keras_vae.model import conditioning
from keras_vae.model.entry_points import CheckedModel
from keras_vae.networks.ppca import ADAPTED_TO
from keras_vae.support.errors import InputError, check_count


class AdaptiveModel(CheckedModel):
    """A model whose family of networks may have to be adapted."""

    network: str
    own_networks: bool
    _adapted = False

    @property
    def _family(self) -> networks.Family | None:
        """What the networks are made by; None for the user's own."""
        return None if self.own_networks else networks.FAMILIES[self.network]

    @property
    def needs_adapting(self) -> bool:
        """Whether the network begins with the images' statistics, and has not been given any."""
        if not self._adapted:  # looked at once: it reads all of a large matrix
            family = self._family
            self._adapted = family is None or family.is_adapted is None or family.is_adapted(self.decoder)
        return not self._adapted

    def adapt(self, images: Any, limit: int = ADAPTED_TO, seed: int = 0, labels: Any = None) -> None:
        """Gives the network the images' statistics, which the network "ppca" begins with: before it is trained.

        As Keras's preprocessing layers have it. `fit` calls it for a model that has not been adapted yet, with the
        images that it trains on.

        Args:
            images: as for `fit`: an array, or a dataset or other iterable of batches.
            limit: how many are used: a random sample of an array, the first of a dataset.
            seed: of that sample.
            labels: of an array of images, for a conditional model.

        Raises:
            InputError: a network that has nothing to adapt or has been trained, no images, or images that `fit` would
                refuse.
        """
        family = self._family
        if family is None or family.adapt is None:
            name = "a network of your own" if self.own_networks else f"the network {self.network!r}"
            raise InputError(f"{name} has nothing to adapt: leave the call out")
        if self.compiled and int(ops.convert_to_numpy(self.optimizer.iterations)):
            raise InputError("the model has been trained on what it was adapted to: adapt a new one")
        limit = int(check_count("limit", limit))
        labels = conditioning.labels_of((images, labels))
        images = image_batches.unpack(images) if isinstance(images, dict) else images
        images = self._checked_images("adapt", images, limit, option="")
        labels = conditioning.checked_labels(self.condition, images, labels, needed=True)
        if hasattr(images, "shape"):
            images, rows = np.asarray(images), np.sort(np.random.default_rng(seed).permutation(len(images))[:limit])
            parts = (rows[start : start + 256] for start in range(0, len(rows), 256))
            batches: Any = ((images[part], None if labels is None else labels[part]) for part in parts)
        elif isinstance(images, Iterable):
            batches = images
        else:
            raise InputError(f"adapt takes an array, a dataset or another iterable of batches, not {images!r}")

        def checked() -> Iterator[Any]:
            left = limit
            for batch in batches:
                found = self.images_of(batch)[:left]
                image_batches.check(found, self.image_shape)
                if self.condition is None:
                    yield found
                else:
                    known = conditioning.needed(batch, self.condition)[:left]
                    yield found, conditioning.rows(self.condition, known, len(found))
                left -= len(found)
                if not left:
                    return
            if left == limit:
                raise InputError("no images to adapt to")

        try:
            family.adapt(self.encoder, self.decoder, checked(), seed)
        except tf.errors.InvalidArgumentError as error:
            refused = self._worded(error)
            if refused is None:
                raise
            raise refused from None

    def _before_training(self, images: Any, held_out: float = 0.0, labels: Any = None) -> None:
        if not self.needs_adapting:
            return
        if held_out:  # the last images of an array, which Keras will validate on
            labels = conditioning.labels_of((images, labels))
            values = image_batches.unpack(images) if isinstance(images, dict) else images
            if hasattr(values, "shape"):
                kept = max(1, math.floor(len(values) * (1.0 - held_out)))
                images, labels = values[:kept], None if labels is None else labels[:kept]
        if not (hasattr(images, "shape") or isinstance(images, dict | tf.data.Dataset)):
            raise InputError(
                f"the network {self.network!r} begins with the images' statistics, which a generator gives only once: "
                "call vae.adapt(images) with an array or a dataset before fit"
            )
        self.adapt(images, labels=labels)
