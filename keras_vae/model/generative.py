"""What a trained VAE is used for: samples, through its prior, and exports."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae import networks
from keras_vae._version import __version__
from keras_vae.data import image_batches, pipelines
from keras_vae.export import latents
from keras_vae.export.artifact import check_target, export_decoder, float32_copy
from keras_vae.export.formats import FORMATS, PARTS
from keras_vae.export.generator import compose
from keras_vae.features import judges
from keras_vae.model import calibrating, conditioning, flow_matching, scoring
from keras_vae.model.adapting import AdaptiveModel
from keras_vae.model.distributions import DiagonalGaussian
from keras_vae.model.encoding import encode
from keras_vae.model.entry_points import KERAS_BATCH
from keras_vae.model.scoring import Scores
from keras_vae.support.errors import InputError, check_count, check_weight
from keras_vae.support.keras_defaults import keras_defaults
from keras_vae.support.true_float32 import true_float32

LEAST_PICTURED = 64  # latents, from which on part of the prior works on the image that they are decoded to


class GenerativeModel(AdaptiveModel):
    """A model with an encoder, a decoder, and a prior to draw latents from."""

    _in_xla: dict[str, Any]

    def encode(self, images: Any, condition: Any = None, *, training: bool = False) -> DiagonalGaussian:
        """The posterior q(z | x) of a batch of images."""
        raise NotImplementedError

    def decode(self, z: Any, condition: Any = None, *, training: bool = False) -> Any:
        """Images of a batch of latents."""
        raise NotImplementedError

    # The networks ----------------------------------------------------------------------------

    @keras_defaults()
    def _run(self, network: keras.Model, inputs: Any, training: bool) -> Any:
        """Calls a network; float16 on a CPU goes through XLA, outside of `fit` too."""
        if not (tf.executing_eagerly() and self.needs_xla):
            return network(inputs, training=training)
        role = "encoder" if network is self.encoder else "decoder"
        if role not in self._in_xla:
            self._in_xla[role] = tf.function(network, jit_compile=True)
        return self._in_xla[role](inputs, training=training)

    # The prior -------------------------------------------------------------------------------

    def fit_prior(
        self, images: Any, steps: int | None = None, seed: int = 0, limit: int | None = None, labels: Any = None
    ) -> None:
        """Fits the prior to the codes of images that the model was trained on: samples are then drawn where these lie.

        Args:
            images: as for `fit`: an array, or a dataset or other iterable of batches.
            steps: of fitting, 3,500 by default, each of 256 codes; from 64 latents on, the second half fits the prior's
                convolutions, on 64 codes. Fewer if a code would be seen over 100 times.
            seed: of the draws.
            limit: images whose codes are kept, 100,000 by default; of more, a random sample.
            labels: of an array of images, for a conditional model; a dataset brings its own.

        Raises:
            InputError: as `encode`, or no images.
        """
        steps = check_count("steps", flow_matching.STEPS if steps is None else steps)
        limit = check_count("limit", flow_matching.MOST_CODES if limit is None else limit)
        labels = conditioning.labels_of((images, labels))
        images = image_batches.unpack(images) if isinstance(images, dict) else images
        labels = conditioning.checked_labels(self.condition, images, labels, needed=True)
        if images is None or isinstance(images, tf.data.Dataset):
            images = self._checked_images("fit_prior", images, option="")
        elif hasattr(images, "shape"):
            images = pipelines.of_array(images if labels is None else (images, np.asarray(labels)), KERAS_BATCH)
        encoded = encode(self, images, limit=limit, seed=seed, description="encoding for the prior")
        if self.condition is not None and encoded.conditions is None:
            raise conditioning.missing(self.condition)
        decode = None if self.latent_dim < LEAST_PICTURED else self.decode
        known = (encoded.conditions, encoded.unknown, self.condition)
        conv_dtype = "bfloat16" if self.compute_dtype == "bfloat16" else "float32"
        with self.averaged_weights():
            self.set_prior(flow_matching.fit(encoded.mean, encoded.log_var, seed, steps, *known, decode, conv_dtype))

    # Unusual images --------------------------------------------------------------------------

    def score(self, images: Any, features: str | None = None, draws: int = scoring.DRAWS, seed: int = 0) -> Scores:
        """How unusual images are; ranks are among others, such as held-out ones.

        Args:
            images: as for `fit`: an array, or a dataset or other iterable of batches.
            features: feature network for distances of the reconstructions, such as "efficientnet-lite0".
            draws: of the bound, for each image; 0 to leave it out.
            seed: of the draws.

        Raises:
            InputError: as `encode`, no images, or an unknown feature network.

        Example:
            >>> usual = vae.score(held_out)
            >>> ranks = vae.score(images).ranks(usual)["combined"]  # above 0.99: beyond 99 % of the held-out images
        """
        with self.averaged_weights():
            judge = None if features is None else judges.load(features)
            return self._scored(scoring.Scorer(self, judge, draws, seed), images)

    def _scored(self, scorer: scoring.Scorer, images: Any) -> Scores:
        images = image_batches.unpack(images) if isinstance(images, dict) else images
        if images is None or isinstance(images, tf.data.Dataset):
            images = self._checked_images("score", images, option="")
        elif hasattr(images, "shape"):
            image_batches.check(images, self.image_shape)
            images = pipelines.of_array(images, KERAS_BATCH)
        parts = [scorer(np.asarray(self.images_of(batch))) for batch in images]
        if not parts:
            raise InputError("no images to score")
        return Scores.joined(parts)

    def scorer(self, usual: Any) -> scoring.Judgement:
        """Images to how unusual they are, as a function in float32 of the weights as they are: what is exported.

        Args:
            usual: images that the model was not trained on, of the kind that it was, as for `fit`: ranks are among
                them.

        Raises:
            InputError: as `score`.
        """
        with self.averaged_weights():
            encoder, decoder = (
                networks.without_condition(float32_copy(each, always=True)) for each in (self.encoder, self.decoder)
            )
            look = scoring.Look(encoder, decoder, self.prior)
            with true_float32():
                found = self._scored(scoring.Scorer(self, draws=0, look=look), usual)
            return scoring.Judgement(look, found, self.fingerprint())

    def export_scorer(self, filepath: str | os.PathLike[str], usual: Any, run_id: str = "") -> float:
        """Writes an ONNX file from images to `score`, `rank`, `error_map` and `reconstruction`.

        `keras_vae.export.runtime.Scorer` runs it, with numpy and onnxruntime alone. It is compared with Keras before it
        is put in place.

        Args:
            filepath: a file ending in .onnx.
            usual: as for `scorer`.
            run_id: the training run's id, for the metadata.

        Returns:
            The largest difference from Keras that was found, relative to values above 1.

        Raises:
            InputError: as `score`.
            keras_vae.export.errors.ExportError: a path that cannot be written.
            keras_vae.export.errors.VerificationError: the file differs from Keras by more than 1e-4.
        """
        from keras_vae.export.scorer import export_scorer  # onnx and tf2onnx, which are slow to import
        from keras_vae.export.writers.onnx import check_file

        check_file(Path(filepath))
        scorer = self.scorer(usual)
        metadata = {"keras_vae_version": __version__, "run_id": run_id, "model": scorer.model}
        return export_scorer(scorer, self.image_shape, Path(filepath), metadata)

    def error_maps(self, images: Any) -> Any:
        """Where reconstructions differ from images: float32 (batch, height, width).

        The squared error, averaged over channels and smoothed by a Gaussian of a fortieth of the image's side.

        Args:
            images: as for `encode`.
        """
        images = np.asarray(self.images_of(images))
        image_batches.check(images, self.image_shape)
        with self.averaged_weights():
            return scoring.Scorer(self, draws=0).error_maps(images)[1]

    # Images from noise -----------------------------------------------------------------------

    def sample(self, count: int, seed: int | None = None, temperature: float = 1.0, condition: Any = None) -> Any:
        """Images of `count` draws from the prior.

        The same seed gives the same noise here, in `keras_vae.export.runtime` and on the command line. Decoding
        follows the model's precision; exported decoders compute in float32.

        Args:
            count: how many.
            seed: of the draw.
            temperature: the noise's standard deviation; below 1 images are more alike, and closer to the mean.
            condition: what the images are to be of, as `keras_vae.Condition.rows` takes it, such as a class's name, or
                {"glasses": True}; None for images of any kind.

        Returns:
            float32 (count, height, width, channels) in [0, 1].

        Raises:
            InputError: a count below 1, a temperature that is not a number from 0 on, or a condition that the model
                does not know.
        """
        noise = latents.draw(check_count("count", count), self.latent_dim, seed)
        rows = conditioning.rows(self.condition, condition, count)
        z = self.prior(check_weight("temperature", temperature) * noise, rows)
        return self.decode(z, condition=rows)

    def transfer(self, images: Any, to: Any, condition: Any = None) -> Any:
        """Images as of something else: what is left of their codes when the condition is known, drawn of another one.

            noise = prior^-1(z | condition),   z' = prior(noise | to)

        The standard normal prior keeps the codes themselves.

        Args:
            images: as for `encode`.
            to: what they are to be of, as `keras_vae.Condition.rows` takes it.
            condition: what they are of; None if that is not known.

        Returns:
            float32 (batch, height, width, channels) in [0, 1].

        Raises:
            InputError: as `encode`.
        """
        z = self.encode(images, condition=condition).mode()
        known, wanted = (conditioning.rows(self.condition, each, len(z)) for each in (condition, to))
        return self.decode(self.prior(self.prior.inverse(z, known), wanted), condition=wanted)

    def generator(self) -> keras.Model:
        """Prior and decoder as one Keras model: noise float32 (batch, latent_dim), and conditions, to images."""
        return compose(self.decoder, self.prior)

    # Export ----------------------------------------------------------------------------------

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        *,
        precision: str = "float32",
        output: str = "float32",
        calibration: Any = None,
        part: str = "decoder",
        encoder: bool = False,
        scorer: scoring.Judgement | None = None,
        run_id: str = "",
        **kwargs: Any,
    ) -> Any:
        """Writes the decoder for deployment: z float32 (batch, latent_dim) to image, float32 in [0, 1] or uint8.

        With `part="generator"` it is the generator: standard normal noise, float32 (batch, latent_dim), to image, by
        the prior and the decoder. A SavedModel is both. Of a conditional model they take `condition` too, float32
        (batch, names), as `Condition.rows` gives it: zeros for images of any kind.

        It computes in float32 with a free batch whatever the training policy was, is compared with the Keras
        decoder before it takes its place, and replaces an earlier artifact only when it is equal.

        Args:
            filepath: a folder for "tf_saved_model" (TF Serving wants a version number: NAME/1), else a file: .onnx,
                .tflite for "litert", .xml for "openvino".
            format: "tf_saved_model", "onnx", "litert" or "openvino", as `keras.Model.export` names them.
            verbose: print where the decoder went and how far it is from the Keras one.
            precision: of "onnx" alone, "float16" or "int8": smaller files, whose images differ.
            output: what the images are, "float32" or "uint8": 0..255, rounded as in PNG files, a quarter of the bytes.
            calibration: for int8, images to find ranges of values with, some hundreds of the training images: an array
                (count, height, width, channels), or a dataset of batches, which may bring their labels.
            part: "decoder" or "generator".
            encoder: whether a SavedModel gets the signature `encode` too, from images to mean and log_var.
            scorer: what `vae.scorer` returned, for a signature `score` of a SavedModel.
            run_id: the training run's id, for the metadata.

        Returns:
            `keras_vae.export.verify.Report`, the differences that were measured.

        Raises:
            InputError: weights that are not finite, or unknown arguments.
            keras_vae.export.errors.ExportError: unknown format, or a path that cannot be written.
            keras_vae.export.errors.VerificationError: the artifact differs from the Keras decoder by more than 1e-4,
                or one of lower precision by more than it may.
        """
        path = Path(filepath)
        check_target(path, format, precision, output)
        if any(not np.isfinite(np.array(weight)).all() for weight in self.decoder.weights):
            raise InputError("the decoder's weights are not finite: its training diverged; train again")
        if kwargs:
            raise InputError(
                f"export takes no {', '.join(kwargs)}: it takes filepath, format, verbose, precision, output, "
                "calibration, part, encoder, scorer and run_id"
            )
        if part not in PARTS:
            raise InputError(f"part={part!r}: give {' or '.join(map(repr, PARTS))}")
        if precision == "int8" and calibration is None:
            raise InputError("int8 is calibrated on images: give calibration=, some hundreds the model was trained on")
        with self.averaged_weights():
            if scorer is not None and getattr(scorer, "model", None) != self.fingerprint():
                raise InputError("scorer= is not of these weights: give what vae.scorer(usual) returns now")
            condition = {} if self.condition is None else self.condition.metadata()
            report = export_decoder(
                self.decoder,
                path,
                format,
                {"keras_vae_version": __version__, "run_id": run_id, "model": self.fingerprint(), **condition},
                precision=precision,
                output=output,
                calibration=None if calibration is None else calibrating.rows(self, calibration),
                prior=self.prior if part == "generator" or FORMATS[format].holds_all else None,
                encoder=networks.without_condition(self.encoder) if encoder else None,
                scorer=scorer,
            )
        if verbose:
            print(f"{part} written to {filepath}: {report.summary()}")
        return report

    def fingerprint(self) -> str:
        """SHA-256 of both networks' weights; identifies the model that something was fitted to."""
        found = hashlib.sha256()
        for weight in (*self.encoder.weights, *self.decoder.weights):
            found.update(np.ascontiguousarray(weight).tobytes())
        return found.hexdigest()
