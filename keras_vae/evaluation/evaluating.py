"""What `keras-vae evaluate` does: all figures of a model, its reconstructions, samples and latents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae import data
from keras_vae.data.loading import check_outside
from keras_vae.evaluation import distances, fidelity, learned_prior, posterior, report
from keras_vae.export import latents
from keras_vae.features import judges
from keras_vae.features.judges import Judge
from keras_vae.latents import walks
from keras_vae.latents.fitting import encode_training
from keras_vae.model.bounds import importance_weighted_bound
from keras_vae.model.encoding import Encoded, Reservoir, encode
from keras_vae.model.priors import StandardNormal
from keras_vae.model.vae import VAE
from keras_vae.runs.opening import BATCH, Model, open_model
from keras_vae.runs.run_images import data_of
from keras_vae.support import progress
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_output_folder, write_aside, write_json
from keras_vae.support.names import check_prior
from keras_vae.support.true_float32 import true_float32

FOLDER = "evaluation"
FIGURES = "evaluation.json"
REPORT = "report.html"
KEPT = 10_000  # features of each set for figures of pairs: a random sample if there are more images
SHOWN = 24
SAMPLES_SHOWN = 64
TRAVERSED = 10
TRAVERSE_VALUES = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
NO_FEATURES = "none"


@dataclass(frozen=True)
class Options:
    """How a model is evaluated.

    Attributes:
        source: images, as `keras_vae.data.load` takes them; by default what the run was trained on.
        out: folder for `evaluation.json` and `report.html`; by default a run's own `evaluation`, for other models none.
        importance_samples: draws per image for the importance-weighted bound; None to leave it out.
        limit: the most held-out images to use; None for all.
        batch_size: images at a time; by default the run's own, or 64.
        features: feature network, one of `judges.names`, or "none".
        feature_weights: file with its weights, instead of a download.
        prior: what samples are drawn from: "learned", the model's own prior, or "standard", the standard normal.
        samples: how many to draw; None for as many as there are held-out images.
        seed: of everything that is drawn.
    """

    source: str | None = None
    out: Path | None = None
    importance_samples: int | None = None
    limit: int | None = None
    batch_size: int | None = None
    features: str = judges.DEFAULT
    feature_weights: str | None = None
    prior: str = "learned"
    samples: int | None = None
    seed: int = 0


@true_float32(device=None)
def evaluate(path: Path, options: Options) -> dict[str, Any]:
    """Measures a model on held-out images.

    Returns:
        `images`; the model's metrics as `VAE.evaluate` finds them; with importance samples
        `importance_weighted_bound` (nats per image), its `standard_error` and `sampling_error`, as in
        `keras_vae.model.bounds.Bound`; `bits_per_dim`, or for likelihoods that are densities
        `density_bits_per_dim`; `reconstructions`, `samples` and `training_images`, figures of these against the
        held-out images; `posterior`, as `posterior.aggregate_posterior`; `notes`, what could not be measured and why;
        `elbo_learned_prior`, the ELBO under a learned prior (nats), if there is one;
        `options` that it was measured with; `model`, the SHA-256 of its weights; and if they were written, the paths
        `figures` and `report`.

    Raises:
        InputError: no model, only a decoder, unusable data, numbers below 1, or a folder that cannot be written to.
    """
    for name in ("importance_samples", "limit", "batch_size", "samples"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: give a whole number from 1 on")
    check_prior(options.prior)
    if options.features == NO_FEATURES and options.feature_weights is not None:
        raise InputError("--feature-weights has no network to be of: leave out --features none")
    model = open_model(path)
    vae = model.whole("evaluating")
    out = options.out or (path / FOLDER if model.kind == "run" else None)
    if out is not None:
        check_output_folder(out)
        source = options.source or model.config.get("data")
        if source is not None:
            check_outside(out, source)
    # The feature network before the data: if it is not available, the user learns at once.
    network = None if options.features == NO_FEATURES else judges.load(options.features, options.feature_weights)
    images = data_of(model, vae, options.source, batch_size=1)
    evaluation = _Evaluation(model, vae, images, network, options)
    figures = evaluation.figures()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / FIGURES, _finite(figures))
        page = report.page(path.resolve().name, model.config, figures, evaluation.pictures())
        with write_aside(out / REPORT) as aside:
            aside.write_text(page, encoding="utf-8")
        figures |= {"figures": str(out / FIGURES), "report": str(out / REPORT)}
    return figures


class _Evaluation:
    """One evaluation, whose parts share the same images."""

    def __init__(
        self,
        model: Model,
        vae: VAE,
        images: data.ImageData,
        network: Judge | None,
        options: Options,
    ) -> None:
        self.model, self.vae, self.data, self.network = model, vae, images, network
        self.prior = vae.prior if options.prior == "learned" else StandardNormal(vae.latent_dim)
        self.source = options.source
        self.seed = options.seed
        # What the figures depend on besides the model.
        self.options = {
            "data": images.name,
            "limit": options.limit,
            "features": options.features,
            "prior": self.prior.kind,
            "seed": options.seed,
        }
        self.batch_size = options.batch_size or model.config.get("batch_size", BATCH)
        self.count = min(images.test_size, options.limit or images.test_size)
        self.sample_count = options.samples or min(self.count, KEPT)
        self.importance_samples = options.importance_samples
        self.notes: list[str] = []
        if vae.condition is not None:
            self._note("the model is conditional: these are its figures for images of which nothing is known")
        self._shown: tuple[np.ndarray, np.ndarray] | None = None
        self._samples_shown: np.ndarray | None = None
        self._encoded: Encoded | None = None

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = {"images": self.count, **self._likelihood()}
        if self.network is not None:
            found["features"] = self.network.description
        held_out, reconstructions = self._reconstructions()
        found["reconstructions"] = reconstructions
        found["samples"] = self._samples(held_out)
        if held_out is not None:
            found["training_images"] = self._training_images(held_out)
        found["posterior"] = self._posterior()
        if self.prior.kind != StandardNormal.kind:
            assert self._encoded is not None
            found["elbo_learned_prior"] = found["elbo"] + learned_prior.gain(self.prior, self._encoded, self.seed)
            training = encode_training(self.model, self.vae, self.source)
            found["samples"] |= {
                "nearest_code": learned_prior.nearest_codes(self._latents, training),
                "nearest_code_of_held_out": learned_prior.nearest_codes(self._encoded.mean, training),
            }
        return {**found, "notes": self.notes, "options": self.options, "model": self.vae.fingerprint()}

    def _test(self) -> tf.data.Dataset:
        test = self.data.test.unbatch().take(self.count).batch(self.batch_size)
        # Without it, Keras warns when the data ends.
        return test.apply(tf.data.experimental.assert_cardinality(math.ceil(self.count / self.batch_size)))

    def _likelihood(self) -> dict[str, Any]:
        vae = self.vae
        if not vae.compiled:
            vae.compile()
        has_features = vae.perceptual is not None
        if has_features:
            try:
                vae.load_perceptual()
            except InputError as error:  # the rest needs no feature network
                self._note(f"without the perceptual term and the loss: {error}")
                vae.perceptual = None
        with progress.bar(self.count, "the ELBO", "images") as bar:
            figures = dict(
                vae.evaluate(self._test(), verbose=0, return_dict=True, callbacks=[_Bar(bar, self.batch_size)])
            )
        if vae.perceptual is None and has_features:
            del figures["loss"], figures["perceptual"]
        if not vae.likelihood.discrete:
            # The density at the values k/255 as the probability of a bin of that width, as if it were constant there.
            nats = -figures["elbo"] / math.prod(vae.image_shape)
            figures["density_bits_per_dim"] = (nats + math.log(255.0)) / math.log(2.0)
        if self.importance_samples is not None:
            bound = importance_weighted_bound(vae, self._test(), self.importance_samples, self.seed, total=self.count)
            figures |= {
                "importance_samples": self.importance_samples,
                "importance_weighted_bound": bound.mean,
                "standard_error": bound.standard_error,
                "sampling_error": bound.sampling_error,
            }
        return figures

    def _reconstructions(self) -> tuple[_Set | None, dict[str, Any]]:
        """Features of the held-out images, and how their reconstructions compare with them."""
        sums: dict[str, float] = {}
        counted = 0
        scales = None
        held_out, made = (self._set(), self._set()) if self.network is not None else (None, None)
        shown: list[tuple[np.ndarray, np.ndarray]] = []
        for images in self._bar(self._test().as_numpy_iterator(), self.count, "reconstructing"):
            reconstructions = self._reconstruct(images)
            found = {
                "mean_squared_error": fidelity.mean_squared_error(images, reconstructions),
                "own_sharpness": fidelity.laplacian_variance(images),
                "sharpness": fidelity.laplacian_variance(reconstructions),
            }
            if min(images.shape[1:3]) >= fidelity.SSIM_WINDOW:
                found["ssim"] = fidelity.ssim(images, reconstructions)
                found["ms_ssim"], scales = fidelity.ms_ssim(images, reconstructions)
            if self.network is not None and held_out is not None and made is not None:
                real, fake, distance = self.network.compare(images, reconstructions)
                held_out.update(real)
                made.update(fake)
                found["feature_distance"] = distance
            for name, values in found.items():
                sums[name] = sums.get(name, 0.0) + float(np.sum(values, dtype=np.float64))
            counted += len(images)
            if sum(len(each) for each, _ in shown) < SHOWN:
                shown.append((images, reconstructions))
        if counted < self.count:  # some turned out to be unreadable
            self._note(f"{self.count - counted} of {self.count} images could not be read")
        self._shown = tuple(np.concatenate(side)[:SHOWN] for side in zip(*shown, strict=True))  # type: ignore[assignment]
        means = {name: value / counted for name, value in sums.items()}
        error, own = means["mean_squared_error"], means.pop("own_sharpness")
        figures: dict[str, Any] = {
            **means,
            "psnr": fidelity.decibels(error),
            "sharpness": means["sharpness"] / own if own else math.nan,
        }
        if scales is not None:
            figures["ms_ssim_scales"] = scales
        else:
            self._note(f"no structural similarity: it needs images of {fidelity.SSIM_WINDOW} pixels a side")
        if "feature_distance" in figures and math.isnan(figures["feature_distance"]):
            del figures["feature_distance"]
        if held_out is not None and made is not None:
            figures |= self._compared(made, held_out, "reconstructions")
        return held_out, figures

    def _samples(self, held_out: _Set | None) -> dict[str, Any]:
        figures: dict[str, Any] = {"prior": self.prior.kind, "count": self.sample_count}
        made = self._set() if self.network is not None else None
        z = keras.ops.convert_to_numpy(self.prior(latents.draw(self.sample_count, self.vae.latent_dim, self.seed)))
        self._latents = z
        starts = range(0, len(z), BATCH)
        sharpness = 0.0
        shown: list[np.ndarray] = []
        batches = (self.model.decode(z[start : start + BATCH]) for start in starts)
        for images in self._bar(batches, len(z), "samples"):
            if made is not None and self.network is not None:
                made.update(self.network.pooled(images))
            sharpness += float(fidelity.laplacian_variance(images).sum(dtype=np.float64))
            if BATCH * len(shown) < SAMPLES_SHOWN:
                shown.append(images)
        self._samples_shown = np.concatenate(shown)[:SAMPLES_SHOWN]
        if made is not None and held_out is not None:
            figures |= self._compared(made, held_out, "samples")
        return figures

    def _training_images(self, held_out: _Set) -> dict[str, Any]:
        """The figures of other real images: no model can be expected to do better."""
        assert self.network is not None
        count = min(self.count, self.data.train_size)
        train, seen = self._set(), 0
        for images in self._bar(self.data.first(count).as_numpy_iterator(), count, "training images"):
            train.update(self.network.pooled(images))
            seen += len(images)
        return {"count": seen, **self._compared(train, held_out, "training images")}

    def _compared(self, made: _Set, real: _Set, name: str) -> dict[str, Any]:
        assert self.network is not None
        frechet, kernel = ("fid", "kid") if self.network.original else ("frechet_distance", "kernel_distance")
        figures: dict[str, Any] = {}
        least = distances.least_for_frechet(self.network.channels)
        if min(made.moments.count, real.moments.count) >= least:
            figures[frechet] = distances.frechet_distance(made.moments, real.moments)
        else:
            self._note(
                f"no Frechet distance of {name}: features of {self.network.channels} channels need {least} images of "
                f"each set, and there are {made.moments.count} and {real.moments.count}"
            )
        ours, theirs = made.kept(), real.kept()
        if min(len(ours), len(theirs)) > distances.NEIGHBOURS:
            found = distances.kernel_distance(theirs, ours, seed=self.seed)
            figures |= {kernel: found.mean, f"{kernel}_subset": found.subset}
            if found.subset < max(len(ours), len(theirs)):  # else all subsets are the same
                figures[f"{kernel}_deviation"] = found.deviation
            shares = distances.precision_recall(theirs, ours)
            figures |= {"precision": shares.precision, "recall": shares.recall}
        else:
            self._note(
                f"no kernel distance, precision and recall of {name}: they need {distances.NEIGHBOURS + 1} images of "
                f"each set, and there are {len(ours)} and {len(theirs)}"
            )
        return figures

    def _posterior(self) -> dict[str, Any]:
        self._encoded = encode(
            self.vae, self._test().as_numpy_iterator(), limit=posterior.IMAGES, seed=self.seed, total=self.count
        )
        figures: dict[str, Any] = {"active_units": posterior.active_units(self._encoded)}
        if len(self._encoded) < 2:
            self._note("nothing of the aggregate posterior: it needs 2 images")
            return figures
        return figures | posterior.aggregate_posterior(self._encoded, self.seed)

    def pictures(self) -> report.Pictures:
        assert self._encoded is not None
        assert self._shown is not None
        assert self._samples_shown is not None
        kl = self._encoded.kl_per_latent()
        strongest = [int(each) for each in np.argsort(-kl)[:TRAVERSED]]
        walk = walks.walk_from(self.model, self._encoded.mean[:1])
        labels = [f"latent {each}, {kl[each]:.2f} nats" for each in strongest]
        if walk.along_prior:
            strongest = list(range(len(strongest)))
            labels = [f"direction {each}" for each in strongest]
        rows = [walk.along(0, each, TRAVERSE_VALUES) for each in strongest]
        return report.Pictures(*self._shown, self._samples_shown, np.stack(rows), labels, kl)

    def _reconstruct(self, images: np.ndarray) -> np.ndarray:
        return self.vae.predict(images, batch_size=BATCH, verbose=0)

    def _set(self) -> _Set:
        assert self.network is not None
        return _Set(self.network.channels, self.seed)

    def _bar(self, batches: Iterable[np.ndarray], total: int, description: str) -> Iterator[np.ndarray]:
        with progress.bar(total, description, "images") as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch))

    def _note(self, text: str) -> None:
        self.notes.append(text)


class _Set:
    """Features of a set of images: the moments of all of them, and a sample of them for figures of pairs."""

    def __init__(self, channels: int, seed: int) -> None:
        self.moments = distances.Moments(channels)
        self._kept = Reservoir(KEPT, seed)

    def update(self, features: np.ndarray) -> None:
        self.moments.update(features)
        self._kept.update(features)

    def kept(self) -> np.ndarray:
        return self._kept.columns()[0] if len(self._kept) else np.empty((0, len(self.moments.mean)))


class _Bar(keras.callbacks.Callback):
    def __init__(self, bar: Any, batch_size: int) -> None:
        super().__init__()
        self.bar, self.batch_size = bar, batch_size

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.bar.update(self.batch_size)


def _finite(value: Any) -> Any:
    """A value for JSON, which has neither NaN nor infinity."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
