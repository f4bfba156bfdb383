"""How unusual images are for a model, and where in them it shows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_vae import networks
from keras_vae.data import image_batches
from keras_vae.features.judges import Judge
from keras_vae.model.bounds import Estimator
from keras_vae.model.priors import Prior
from keras_vae.support.errors import InputError
from keras_vae.support.keras_defaults import keras_defaults

DRAWS = 16  # of the bound, for each image
USUAL = 5_000  # images that others are ranked among, at most: enough for a rank of 0.9998
BLUR = 1 / 40  # of an image's side: the deviation of the Gaussian that smooths an error map
COMBINED = ("reconstruction_error", "code_distance")  # what the image lacks, and where its code lies
TINY = 1e-12  # below any score, so that an image without error has a logarithm


@dataclass(frozen=True)
class Scores:
    """Scores of some images, float64 (images,) each. Of all but the bound, larger is more unusual.

    Attributes:
        bound: importance-weighted bound on log p(x), nats, under the standard normal (`keras_vae.model.bounds`).
        reconstruction_error: mean squared error of the reconstruction, of values in [0, 1].
        code_distance: of the code from the centre of the codes that the prior was fitted to, or of the standard normal
            (`distance` of `keras_vae.priors`).
        feature_distance: of the reconstruction, in a feature network (`keras_vae.features.judges`); NaN without one.
    """

    bound: np.ndarray
    reconstruction_error: np.ndarray
    code_distance: np.ndarray
    feature_distance: np.ndarray

    def __len__(self) -> int:
        return len(self.bound)

    @classmethod
    def joined(cls, parts: Iterable[Scores]) -> Scores:
        """The scores of all parts' images."""
        columns = zip(*([getattr(part, each.name) for each in fields(cls)] for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    def combined(self, usual: Scores) -> np.ndarray:
        """The score to take: reconstruction error and code distance together, float64 (images,).

            softplus(e) + softplus(d),   softplus(x) = log(1 + exp(x))

        e and d are their logarithms, less the mean of usual images' and in their deviations. An image can be unusual in
        what the model cannot draw, or in what it can: neither score makes up for the other.

        Args:
            usual: scores of images that the model was not trained on, of the kind that it was.
        """
        return np.sum([np.logaddexp(0.0, usual.deviations(name, self)) for name in COMBINED], axis=0)

    def deviations(self, name: str, other: Scores) -> np.ndarray:
        """Another's logarithms of a score, less the mean of these and in their deviations."""
        mean, deviation = self.moments(name)
        return (np.log(np.maximum(getattr(other, name), TINY)) - mean) / deviation

    def moments(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of the logarithms of a score."""
        logs = np.log(np.maximum(getattr(self, name), TINY))
        return float(logs.mean()), max(float(logs.std()), TINY)

    def unusualness(self, usual: Scores) -> dict[str, np.ndarray]:
        """The scores that are known and `combined`, by name, float64 (images,): of all, larger is more unusual.

        Args:
            usual: as for `combined`.
        """
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        named |= {"bound": -self.bound, "combined": self.combined(usual)}
        return {name: values for name, values in named.items() if not np.isnan(values).any()}

    def ranks(self, usual: Scores, among: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """By score, and for `combined`, each image's rank among usual ones: float64 (images,), in [0, 1).

        The share of the usual images, and itself, that are less unusual: one less the conformal p-value (Vovk,
        Gammerman and Shafer 2005). Of other usual images no more than 1 in 100 has a rank of 0.99 or more, whatever the
        scores' distribution; for `combined` nearly so, as it is measured in deviations of the usual images alone: from
        about a hundred of them on the difference does not show. Among n images the highest rank is n / (n + 1).

        Args:
            usual: as for `combined`.
            among: bool (images,), which images are usual ones themselves, and rank among the others; by default none.

        Returns:
            of the scores that both have.
        """
        theirs = usual.unusualness(usual)
        others = len(usual) - (np.zeros(len(self), bool) if among is None else among)
        return {
            name: np.searchsorted(np.sort(theirs[name]), values, "left") / (others + 1)
            for name, values in self.unusualness(usual).items()
            if name in theirs
        }


class Look:
    """What can be said of images without draws, as a function that can be traced and exported.

    Args:
        encoder: Keras model from images to {"mean", ...}.
        decoder: Keras model from latents to images.
        prior: of `keras_vae.priors`.

    Attributes:
        weights: the variables that it reads.
        image_shape: (height, width, channels).
    """

    def __init__(self, encoder: keras.Model, decoder: keras.Model, prior: Prior) -> None:
        self.encoder, self.decoder = encoder, decoder
        self.weights = [*encoder.weights, *decoder.weights]
        self.image_shape: tuple[int, int, int] = tuple(decoder.output_shape[1:])
        self._distance = prior.distance()
        self._rows, self._columns = _smoothing(self.image_shape[0]), _smoothing(self.image_shape[1]).T

    def __call__(self, images: Any) -> dict[str, Any]:
        """Of float32 images (batch, height, width, channels) in [0, 1].

        Returns:
            `reconstruction`, of that shape, `error_map`, float32 (batch, height, width): the squared error, averaged
            over channels and smoothed, and `reconstruction_error` and `code_distance`, float32 (batch,).
        """
        code = self.encoder(images, training=False)["mean"]
        reconstruction = self.decoder(code, training=False)
        error = ops.mean(ops.square(images - reconstruction), axis=-1)
        return {
            "reconstruction": reconstruction,
            "error_map": ops.matmul(ops.matmul(self._rows, error), self._columns),
            "reconstruction_error": ops.mean(error, axis=(1, 2)),
            "code_distance": self._distance(code),
        }


class Judgement:
    """The combined score and its rank, as a function that can be traced and exported.

    Args:
        look: at images.
        usual: scores by it of images that the model was not trained on, which ranks are among.
        model: the fingerprint of the model that it is of.

    Attributes:
        weights, image_shape: as `Look`.
    """

    def __init__(self, look: Look, usual: Scores, model: str) -> None:
        self.look, self.weights, self.image_shape, self.model = look, look.weights, look.image_shape, model
        self._moments = {name: usual.moments(name) for name in COMBINED}
        self._usual = usual.combined(usual).astype(np.float32)

    def __call__(self, images: Any) -> dict[str, Any]:
        """Of images as `Look` takes them: `score` and `rank`, float32 (batch,), `error_map` and `reconstruction`."""
        found = self.look(images)
        score: Any = 0.0
        for name, (mean, deviation) in self._moments.items():
            score += ops.softplus((ops.log(ops.maximum(found[name], TINY)) - mean) / deviation)
        return {
            "score": score,
            "rank": self.rank(score),
            **{name: found[name] for name in ("error_map", "reconstruction")},
        }

    def rank(self, score: Any) -> Any:
        """Ranks of scores, float32 (batch,) both."""
        return ops.sum(ops.cast(self._usual < score[:, None], "float32"), axis=1) / (len(self._usual) + 1)


def _smoothing(side: int) -> np.ndarray:
    """The matrix that smooths along a side: float32 (side, side), each row a Gaussian about its place."""
    places = np.arange(side)
    weights = np.exp(-0.5 * np.square((places[:, np.newaxis] - places) / (BLUR * side)))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


class Scorer:
    """Scores one batch of images after another.

    Args:
        vae: a `keras_vae.VAE`.
        judge: the feature network; None to leave out feature distances.
        draws: of the bound, for each image; 0 to leave it out: then it is NaN.
        seed: of the draws.
        look: instead of the model's own networks, such as copies in float32.

    Raises:
        InputError: a number of draws below 0.
    """

    @keras_defaults()
    def __init__(
        self, vae: keras.Model, judge: Judge | None = None, draws: int = DRAWS, seed: int = 0, look: Look | None = None
    ) -> None:
        if draws < 0:
            raise InputError(f"draws={draws}: give a whole number from 0 on")
        if judge is not None and not judge.compares:
            raise InputError(f"features={judge.name!r} compares no images: choose another network, or leave it out")
        self.vae, self.judge = vae, judge
        self._bound = Estimator(vae, draws, seed) if draws else None
        if look is None:
            encoder, decoder = (networks.without_condition(each) for each in (vae.encoder, vae.decoder))
            look = Look(encoder, decoder, vae.prior)
        self._look = tf.function(look, jit_compile=vae.needs_xla, reduce_retracing=True, autograph=False)

    @keras_defaults()
    def __call__(self, images: np.ndarray) -> Scores:
        """Scores of float32 images (batch, height, width, channels) in [0, 1].

        Raises:
            InputError: images that are none, or scores that are not finite.
        """
        image_batches.check(images, self.vae.image_shape)
        found = {name: np.asarray(value) for name, value in self._look(images).items()}
        if not all(np.isfinite(found[name]).all() for name in COMBINED):
            raise InputError("the model's scores are not finite: its training diverged; train again")
        unknown = np.full(len(images), math.nan)
        return Scores(
            bound=unknown if self._bound is None else self._bound(images, self.vae.encode(images))[0],
            reconstruction_error=found["reconstruction_error"].astype(np.float64),
            code_distance=found["code_distance"].astype(np.float64),
            feature_distance=(
                unknown
                if self.judge is None
                else self.judge.compare(images, found["reconstruction"])[2].astype(np.float64)
            ),
        )

    def error_maps(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reconstructions and error maps, as `Look` has them."""
        found = self._look(images)
        return np.asarray(found["reconstruction"]), np.asarray(found["error_map"])
