"""Variational autoencoders in Keras that make sharp images and ship.

`import keras_vae` is quick and prints nothing: TensorFlow is loaded by the first name that needs it.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from keras_vae._version import __version__
from keras_vae.model.presets import OBJECTIVES, PRESETS
from keras_vae.support.backend import load_tensorflow
from keras_vae.support.errors import InputError
from keras_vae.support.lazy import attributes

if TYPE_CHECKING:
    from keras_vae import data, networks
    from keras_vae.features import perceptual
    from keras_vae.features.perceptual import PerceptualLoss
    from keras_vae.model import distributions, optimizers, priors, schedules
    from keras_vae.model.distributions import DiagonalGaussian
    from keras_vae.model.vae import VAE
    from keras_vae.runs.pretrained import from_pretrained
    from keras_vae.support import errors, pictures, precision
    from keras_vae.support.conditions import Condition

_WITH_TENSORFLOW = {
    "VAE": "keras_vae.model.vae",
    "PerceptualLoss": "keras_vae.features.perceptual",
    "DiagonalGaussian": "keras_vae.model.distributions",
    "from_pretrained": "keras_vae.runs.pretrained",
    "data": "keras_vae.data",
    "distributions": "keras_vae.model.distributions",
    "networks": "keras_vae.networks",
    "optimizers": "keras_vae.model.optimizers",
    "perceptual": "keras_vae.features.perceptual",
    "priors": "keras_vae.model.priors",
    "schedules": "keras_vae.model.schedules",
}
_WITHOUT_TENSORFLOW = {
    "Condition": "keras_vae.support.conditions",
    "errors": "keras_vae.support.errors",
    "pictures": "keras_vae.support.pictures",
    "precision": "keras_vae.support.precision",
}
_IN_FILES = {  # classes that .keras files name
    "ActiveUnits": "keras_vae.model.metrics",
    "BatchNormalization": "keras_vae.networks.layers",
    "Bernoulli": "keras_vae.model.distributions",
    "Corrected": "keras_vae.networks.ppca",
    "DiscretizedLogistic": "keras_vae.model.distributions",
    "FlowMatchingPrior": "keras_vae.model.priors",
    "Gaussian": "keras_vae.model.distributions",
    "GaussianCalibrated": "keras_vae.model.distributions",
    "HalvingConv2D": "keras_vae.networks.layers",
    "LinearMap": "keras_vae.networks.ppca",
    "Muon": "keras_vae.model.optimizers",
    "PerceptualLoss": "keras_vae.features.perceptual",
    "ReplicationPadding2D": "keras_vae.networks.parts",
    "RunningVariance": "keras_vae.model.distributions",
    "SafeLogVariance": "keras_vae.networks.parts",
    "StandardNormal": "keras_vae.model.priors",
    "UpsampledConv2D": "keras_vae.networks.layers",
    "VAE": "keras_vae.model.vae",
}

__all__ = [
    "OBJECTIVES",
    "PRESETS",
    "VAE",
    "Condition",
    "DiagonalGaussian",
    "InputError",
    "PerceptualLoss",
    "__version__",
    "data",
    "distributions",
    "errors",
    "from_pretrained",
    "networks",
    "optimizers",
    "perceptual",
    "pictures",
    "precision",
    "priors",
    "schedules",
]


_attribute = attributes(__name__, _WITH_TENSORFLOW | _WITHOUT_TENSORFLOW)


def __getattr__(name: str) -> Any:
    if name in _WITH_TENSORFLOW:
        load_tensorflow()
    return _attribute(name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _StandIn:
    """Stands in Keras's registry for a class that files name, and imports it when it is used."""

    def __init__(self, name: str) -> None:
        self.name = name

    def from_config(self, config: dict[str, Any]) -> Any:
        load_tensorflow()
        return getattr(importlib.import_module(_IN_FILES[self.name]), self.name).from_config(config)


def _register_with_keras(keras: Any) -> None:
    """Lets `keras.saving.load_model` find our classes, which Keras looks up in its registry alone."""
    for name in _IN_FILES:
        keras.saving.get_custom_objects().setdefault(f"keras_vae>{name}", _StandIn(name))


if importlib.util.find_spec("keras"):  # else a decoder is run, which takes numpy and onnxruntime alone
    import wrapt

    wrapt.register_post_import_hook(_register_with_keras, "keras")  # Keras itself is slow to import
