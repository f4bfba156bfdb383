"""Variational autoencoders in Keras that make sharp images and ship.

`import keras_vae` is quick and prints nothing: TensorFlow is loaded by the first name that needs it.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from keras_vae._backend import load_tensorflow
from keras_vae._version import __version__
from keras_vae.errors import InputError
from keras_vae.objectives import OBJECTIVES, PRESETS

if TYPE_CHECKING:
    from keras_vae import data, distributions, networks, perceptual, pictures, precision, schedules
    from keras_vae.distributions import DiagonalGaussian
    from keras_vae.perceptual import PerceptualLoss
    from keras_vae.pretrained import from_pretrained
    from keras_vae.vae import VAE

_HOMES = {
    "VAE": "keras_vae.vae",
    "PerceptualLoss": "keras_vae.perceptual",
    "DiagonalGaussian": "keras_vae.distributions",
    "from_pretrained": "keras_vae.pretrained",
}
_MODULES = ("data", "distributions", "networks", "perceptual", "schedules")
_LIGHT_MODULES = ("pictures", "precision")  # these take no TensorFlow

__all__ = [
    "OBJECTIVES",
    "PRESETS",
    "VAE",
    "DiagonalGaussian",
    "InputError",
    "PerceptualLoss",
    "__version__",
    "data",
    "distributions",
    "from_pretrained",
    "networks",
    "perceptual",
    "pictures",
    "precision",
    "schedules",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES or name in _MODULES:
        load_tensorflow()
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in (*_MODULES, *_LIGHT_MODULES):
        return importlib.import_module(f"keras_vae.{name}")
    raise AttributeError(f"module 'keras_vae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def _register_with_keras(keras: Any) -> None:
    """Makes `keras.saving.load_model` know our classes as soon as Keras itself is there.

    Keras looks classes up in its registry alone, which `import keras_vae` would otherwise have to load
    Keras, and with it TensorFlow, to write to.
    """
    if keras.backend.backend() == "tensorflow":  # else the user's other work goes on undisturbed
        importlib.import_module("keras_vae.vae")


if importlib.util.find_spec("keras"):  # else a decoder is run, which takes numpy and onnxruntime alone
    import wrapt

    wrapt.register_post_import_hook(_register_with_keras, "keras")
