"""Feature networks that judge images, by name, and where their weights come from."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_vae.features import efficientnet, perceptual, weight_files
from keras_vae.features.perceptual import PerceptualLoss
from keras_vae.support import hosts
from keras_vae.support.errors import InputError

EFFICIENTNET = "efficientnet-lite0"
INCEPTION = "inception"
DEFAULT = EFFICIENTNET
# Shallow to deep: the last blocks before each halving of the resolution, and the last of all.
BLOCKS = (0, 2, 4, 10, 15)
INCEPTION_HOST = "https://download.tensorflow.org"
INCEPTION_URL = f"{INCEPTION_HOST}/models/image/imagenet/{weight_files.INCEPTION_FILE}"
INCEPTION_GRAPH = "classify_image_graph_def.pb"
INCEPTION_CHANNELS = 2048


@dataclass(frozen=True)
class Judge:
    """A frozen network, and which of its layers are used.

    Attributes:
        name: such as "efficientnet-lite0".
        description: which layers, in words.
        channels: of the pooled features.
        original: whether its Fréchet distance is the FID of Heusel et al. 2017, and its kernel distance the KID.
        run: from float32 images (batch, height, width, 1 or 3) in [0, 1] to the pooled features (batch, channels) and
            a list of layers (batch, height, width, channels); the list is empty if images are not to be compared in
            its layers.
    """

    name: str
    description: str
    channels: int
    run: Callable[[Any], tuple[Any, list[Any]]]
    original: bool = False

    @property
    def compares(self) -> bool:
        """Whether images can be compared in its layers."""
        return not self.original

    def pooled(self, images: np.ndarray) -> np.ndarray:
        """Features of each image, averaged over places: float32 (batch, channels)."""
        return np.asarray(self.run(ops.convert_to_tensor(images, "float32"))[0])

    def compare(self, images: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pooled features of both, and the distance of each pair.

        The distance is the squared difference of features scaled to length 1 at each place, summed over channels,
        averaged over places and layers: LPIPS (Zhang et al. 2018, arXiv 1801.03924) without its learned weights. It is
        NaN if the network has no layers to compare in.

        Returns:
            float32 (batch, channels), (batch, channels) and (batch,).
        """
        pair = [self.run(ops.convert_to_tensor(each, "float32")) for each in (images, others)]
        distances = [
            ops.mean(ops.sum(ops.square(_units(one) - _units(other)), axis=-1), axis=(1, 2))
            for one, other in zip(pair[0][1], pair[1][1], strict=True)
        ]
        distance = (
            np.mean([np.asarray(each) for each in distances], axis=0) if distances else np.full(len(images), np.nan)
        )
        return np.asarray(pair[0][0]), np.asarray(pair[1][0]), distance


def names() -> tuple[str, ...]:
    """Names of all feature networks: those that only judge, and those of the perceptual loss."""
    return (*JUDGES, *perceptual.NETWORKS)


def load(name: str = DEFAULT, weights_path: str | None = None) -> Judge:
    """A feature network with its weights.

    Args:
        name: "efficientnet-lite0", whose weights come in a package; "inception", the network of the original FID, which
            is downloaded once; "vgg16", "vgg19" or "hed-vgg16", as for `keras_vae.PerceptualLoss`.
        weights_path: file with the weights, for "inception" its archive or graph, to use instead of a download.

    Raises:
        InputError: unknown name, or weights that cannot be found or downloaded; without a network it takes at most ten
            seconds to find out.
    """
    if name in JUDGES:
        return JUDGES[name](None if weights_path is None else Path(weights_path))
    if name in perceptual.NETWORKS:
        known = perceptual.NETWORKS[name]
        # LPIPS's layers; the last one is averaged for the distances between sets.
        layers = known.presets.get("vae-12345", tuple(known.layers))
        found = of_layers(PerceptualLoss(name, layers, weights_path), name)
        return Judge(found.name, f"{name}, {layers[-1]} averaged over places", found.channels, found.run)
    raise InputError(f"unknown feature network {name!r}: choose one of {', '.join(names())}")


def of_layers(features: PerceptualLoss, name: str) -> Judge:
    """A custom feature network: the layers of a `keras_vae.PerceptualLoss`, the last of which is pooled.

    Raises:
        InputError: weights that cannot be found or downloaded.
    """
    features.load()

    def run(images: Any) -> tuple[Any, list[Any]]:
        layers = features.features(images)
        return ops.mean(ops.cast(layers[-1], "float32"), axis=(1, 2)), layers

    (channels,) = ops.shape(features.features(keras.KerasTensor((1, 224, 224, 3), "float32"))[-1])[-1:]
    return Judge(name, f"{name}, its last layer averaged over places", channels, tf.function(run))


def _efficientnet(weights_path: Path | None) -> Judge:
    model = efficientnet.build(BLOCKS, weights_path)

    @tf.function(input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)])
    def features(images: Any) -> tuple[Any, list[Any]]:
        layers = model((255.0 * images - 127.0) / 128.0, training=False)
        return ops.mean(layers[-1], axis=(1, 2)), layers

    def run(images: Any) -> tuple[Any, list[Any]]:
        return features(_resized(_in_colour(images), efficientnet.SIZE))

    return Judge(
        EFFICIENTNET, "EfficientNet-Lite0 (ImageNet), last block averaged over places", model.outputs[-1].shape[-1], run
    )


def _inception(path: Path | None) -> Judge:
    """The network of the original FID: TensorFlow's graph of 5 December 2015, its layer pool_3."""
    graph = tf.compat.v1.GraphDef()
    path = path or _downloaded()
    try:
        if path.suffix in (".tgz", ".gz"):
            with tarfile.open(path) as archive:
                content = archive.extractfile(INCEPTION_GRAPH)
                assert content is not None
                graph.ParseFromString(content.read())
        else:
            graph.ParseFromString(path.read_bytes())
    except Exception as error:  # tarfile, zlib and protobuf have no common exception for damaged files
        raise InputError(
            f"cannot read {path} as {weight_files.INCEPTION_FILE} or {INCEPTION_GRAPH}: {error}"
        ) from error

    def pool(images: Any) -> Any:
        (found,) = tf.graph_util.import_graph_def(graph, {"ExpandDims": images}, ["pool_3:0"], name="")
        return tf.reshape(found, (-1, INCEPTION_CHANNELS))

    try:
        wrapped = tf.compat.v1.wrap_function(pool, [tf.TensorSpec((None, None, None, 3), tf.float32)])
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is not the Inception graph of 2015: {str(error).splitlines()[0]}") from error

    def run(images: Any) -> tuple[Any, list[Any]]:
        # The graph resizes images itself; the original got 8-bit values.
        return wrapped(tf.round(255.0 * tf.clip_by_value(_in_colour(images), 0.0, 1.0))), []

    return Judge(
        INCEPTION, "Inception of 5 December 2015, pool_3: the original FID's", INCEPTION_CHANNELS, run, original=True
    )


# Networks that only judge, by name.
JUDGES: dict[str, Callable[[Path | None], Judge]] = {EFFICIENTNET: _efficientnet, INCEPTION: _inception}


def _downloaded() -> Path:
    target = weight_files.inception()
    if target.is_file():
        return target
    failure = hosts.silent([INCEPTION_HOST]).get(INCEPTION_HOST)
    if failure is None:
        try:
            return Path(keras.utils.get_file(weight_files.INCEPTION_FILE, INCEPTION_URL, cache_subdir="models"))
        except Exception as error:  # Keras raises bare Exception for a failed download
            failure = str(error).splitlines()[0]
    raise InputError(
        f"cannot download the Inception network of the original FID ({failure}): fetch {INCEPTION_URL} elsewhere into "
        f"{target}, or give --features {EFFICIENTNET}, which needs no download"
    )


def _in_colour(images: Any) -> Any:
    return ops.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _resized(images: Any, size: int) -> Any:
    if tuple(images.shape[1:3]) == (size, size):
        return images
    return ops.clip(tf.image.resize(images, (size, size), "bicubic", antialias=True), 0.0, 1.0)


def _units(features: Any) -> Any:
    """Features scaled to length 1 at each place."""
    return ops.normalize(ops.cast(features, "float32"), axis=-1, epsilon=1e-10)
