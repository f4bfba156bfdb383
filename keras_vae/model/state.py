"""Model state: what a step changes, what is averaged, and what is saved besides the weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vae.model import priors, schedules
from keras_vae.model.averaging import AveragedWeights, restored, swapped
from keras_vae.networks.ppca import LinearMap
from keras_vae.support import keras_internals
from keras_vae.support.conditions import Condition
from keras_vae.support.errors import InputError, check_weight

PRIOR_SIZES = ("width", "blocks", "channels", "components")


class Untracked:
    """Holds something that Keras must not count among the model's own layers."""

    def __init__(self, item: Any) -> None:
        self.item = item


class StatefulModel(keras.Model):
    """A model with two networks, a likelihood, seeded noise, a KL weight, averages, and a prior."""

    encoder: keras.Model
    decoder: keras.Model
    likelihood: keras.layers.Layer
    latent_dim: int
    condition: Condition | None
    initial_beta: float
    beta_variable: Any
    last_kl_variable: Any
    train_function: Any
    kl_schedule: schedules.KLWeight | None = None
    _followed: Any = None  # the schedule's settings that the training step was traced with
    _fits = False
    train_noise: keras.random.SeedGenerator
    test_noise: keras.random.SeedGenerator
    averaging: AveragedWeights
    _prior: Untracked

    def _moved_without_gradient(self) -> list[Any]:
        """What the forward pass of a training step may assign: statistics, counters, the noise's state."""
        found = self._untrained()
        for network in (self.encoder, self.decoder):
            for layer in keras_internals.all_layers(network):
                if isinstance(layer, keras.layers.SpectralNormalization):  # it assigns the kernel that it divided
                    found += layer.trainable_variables
        return [*found, self.train_noise.state, self.beta_variable]

    def _statistics(self) -> list[Any]:
        """What is averaged with the weights: moving means and variances, of features and of errors."""
        return [variable for variable in self._untrained() if keras.backend.is_float_dtype(variable.dtype)]

    def _untrained(self) -> list[Any]:
        parts = (self.encoder, self.decoder, self.likelihood, getattr(self, "feature_term", None))
        layers = [part for part in parts if isinstance(part, keras.layers.Layer)]
        found = [variable for layer in layers for variable in layer.non_trainable_variables]
        inner = [each for network in (self.encoder, self.decoder) for each in keras_internals.all_layers(network)]
        given = {id(weight) for layer in inner if isinstance(layer, LinearMap) for weight in layer.weights}
        return [variable for variable in found if id(variable) not in given]

    @property
    def condition_dim(self) -> int:
        """Numbers in a condition; 0 of a model without conditions."""
        return 0 if self.condition is None else len(self.condition)

    @property
    def prior(self) -> priors.Prior:
        """Where latents come from: a map from standard normal noise to them, and its density.

        A `keras_vae.priors.StandardNormal`, until `fit_prior` replaces it. It is saved with the model, and belongs to
        the weights that it was fitted to: after more training, fit it again.
        """
        return self._prior.item

    def set_prior(self, prior: priors.Prior) -> None:
        """Sets an existing prior: another model's with the same weights, or the standard normal.

        A method, because Keras tracks assigned attributes and adds nothing to a built model.

        Raises:
            InputError: it is not a prior of `keras_vae.priors`, or has another number of latents.
        """
        if not isinstance(prior, priors.StandardNormal | priors.FlowMatchingPrior):
            raise InputError(f"prior={prior!r}: give a prior of keras_vae.priors")
        if prior.latent_dim != self.latent_dim:
            raise InputError(f"the prior has {prior.latent_dim} latents, and the model {self.latent_dim}")
        if isinstance(prior, priors.FlowMatchingPrior) and prior.condition_dim != self.condition_dim:
            raise InputError(
                f"the prior takes conditions of {prior.condition_dim} numbers, and the model of {self.condition_dim}"
            )
        self._prior.item = prior

    def save_own_variables(self, store: Any) -> None:
        # Keras saves no seed generator; without its state a loaded model would draw its first noise again.
        for generator in (self.train_noise, self.test_noise):
            store[generator.name] = np.array(generator.state)
        store["beta"] = np.array(self.beta_variable)
        self.averaging.save(store)
        if isinstance(self.prior, priors.FlowMatchingPrior):  # Keras saves its weights as an attribute's
            sizes = self.prior.get_config()
            store["prior"] = np.array([sizes.get(name, 0) for name in PRIOR_SIZES])

    def load_own_variables(self, store: Any) -> None:
        for generator in (self.train_noise, self.test_noise):
            generator.state.assign(store[generator.name])
        self.beta_variable.assign(store["beta"])
        self.averaging.load(store)
        self.set_prior(priors.StandardNormal(self.latent_dim))
        if "prior" in store.keys():  # noqa: SIM118 - Keras loads its weights next
            sizes = dict(zip(PRIOR_SIZES, np.array(store["prior"]).tolist(), strict=False))
            self.set_prior(priors.FlowMatchingPrior(self.latent_dim, condition_dim=self.condition_dim, **sizes))

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        optimizer = getattr(self, "optimizer", None)  # Keras gives a model none before `compile`
        state = [*self.variables, *([] if optimizer is None else optimizer.variables), *self.averaging.variables]
        state += [self.beta_variable, self.train_noise.state, self.test_noise.state]
        prior = self.prior
        try:
            with restored(state, only_on_failure=True):
                yield
        except BaseException:
            self.set_prior(prior)
            raise

    @property
    def beta(self) -> float:
        """Current factor of the KL in the loss."""
        return float(ops.convert_to_numpy(self.beta_variable))

    @beta.setter
    def beta(self, value: float) -> None:
        self.beta_variable.assign(check_weight("beta", value))

    @property
    def kl_variables(self) -> list[Any]:
        """What the end of a step assigns besides weights, averages and the optimizer."""
        return [self.last_kl_variable, self.beta_variable]

    def _follow(self, schedule: schedules.KLWeight | None) -> None:
        """Makes a schedule of the KL's weight a part of the training step, which is traced anew if it was another."""
        settings = None if schedule is None else schedule.settings()
        if settings != self._followed:
            schedules.check_traceable(schedule)
            self.train_function = None
        self.kl_schedule, self._followed = schedule, settings

    @contextmanager
    def _following(self, schedule: schedules.KLWeight | None) -> Iterator[None]:
        self._follow(schedule)
        self._fits = True
        try:
            yield
        finally:
            self._fits = False

    def schedule_beta(self) -> None:
        """Sets the weight of the KL for the step that begins."""
        if self.kl_schedule is not None:
            beta = self.kl_schedule.before_step(self.beta_variable, self.optimizer.iterations, self.initial_beta)
            self.beta_variable.assign(beta)

    def note_kl(self, kl: Any) -> None:
        """Records the mean KL of a batch, and lets the schedule steer by it."""
        self.last_kl_variable.assign(kl)
        if self.kl_schedule is not None:
            self.beta_variable.assign(self.kl_schedule.after_step(self.beta_variable, kl))

    @property
    def last_kl(self) -> float:
        """Mean KL of the last training batch, in nats per image."""
        return float(ops.convert_to_numpy(self.last_kl_variable))

    def _scalar(self, name: str, value: float) -> Any:
        """A float32 variable that no gradient moves."""
        initializer = keras.initializers.Constant(value)
        return self.add_weight((), initializer, "float32", trainable=False, autocast=False, name=name)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """A block in which weights are their exponential moving averages, if the optimizer keeps them (`use_ema=True`).

        Afterwards they are what they were, to the last bit.
        """
        return swapped(self.averages())

    def averages(self) -> list[tuple[Any, Any]]:
        """Variables with their exponential moving averages, if the optimizer keeps them; none before the first step.

        Besides the weights, which Keras averages, these are the statistics that go with them: batch normalization's
        and the calibrated variances.
        """
        return self.averaging.pairs()

    def save(self, filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.save`, into a .keras file.

        Raises:
            InputError: a path with another ending: Keras's older formats cannot hold the model.
        """
        if Path(filepath).suffix != ".keras":
            raise InputError(f"{filepath}: name a file that ends in .keras")
        super().save(filepath, *args, **kwargs)

    def load_weights(self, filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As `keras.Model.load_weights`, whole or not at all.

        Raises:
            InputError: a file that is missing, damaged, or of another model; the model is as it was.
        """
        try:
            with self._unchanged_on_failure():
                super().load_weights(filepath, *args, **kwargs)
                self.averaging.start_missing()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"cannot load the weights {filepath}, and the model is as it was: {reason}") from error
