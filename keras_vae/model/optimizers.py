"""The optimizers of training runs, by name: Adam, and Muon for networks of convolutions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_vae.support.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")
IMAGE_CHANNELS = 3  # kernels that read or write no more channels than an image has are Adam's


@keras.saving.register_keras_serializable("keras_vae")
class Muon(keras.optimizers.Muon):
    """Keras's Muon, for the kernels of convolutions too, and with its iteration in a precision of your choice.

    Each kernel's momentum is replaced by the nearest matrix whose singular values are equal (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/), scaled so that one learning rate suits both kinds of weights (Liu et
    al. 2025, arXiv 2502.16982): rare directions of the codes are learned as fast as common ones. A convolution's kernel
    counts as a matrix of (height * width * channels, filters). Biases, normalizations, and kernels from or to an image
    are Adam's, as the authors advise.

    Args:
        learning_rate: of both.
        dtype: of the Newton-Schulz iteration: "bfloat16" is the authors' choice and fast where matrix products are;
            "float32".
        weight_decay, adam_weight_decay: as in Keras, but none by default.
        **kwargs: as `keras.optimizers.Muon`.

    Raises:
        InputError: another dtype.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        dtype: str = "float32",
        weight_decay: float | None = None,
        adam_weight_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, adam_weight_decay=adam_weight_decay, **kwargs)
        if dtype not in DTYPES:
            raise InputError(f"dtype={dtype!r}: Muon's iteration takes {', '.join(DTYPES)}")
        self.dtype = dtype

    def _should_use_adamw(self, variable: Any) -> bool:
        if len(variable.shape) not in (2, 4) or min(variable.shape[-2:]) <= IMAGE_CHANNELS:
            return True
        path = getattr(variable, "path", variable.name)
        if self.exclude_embeddings and "embedding" in path.lower():
            return True
        return any(re.search(each, path) for each in self.exclude_layers)

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        matrix = tf.reshape(tf.cast(x, tf.float32), (-1, x.shape[-1]))
        matrix /= tf.norm(matrix) + 1e-7
        is_tall = matrix.shape[0] > matrix.shape[1]
        matrix = tf.cast(tf.transpose(matrix) if is_tall else matrix, self.dtype)
        for _ in range(steps):
            square = tf.matmul(matrix, matrix, transpose_b=True)
            matrix = self.muon_a * matrix + tf.matmul(self.muon_b * square + self.muon_c * square @ square, matrix)
        return tf.reshape(tf.cast(tf.transpose(matrix) if is_tall else matrix, tf.float32), x.shape)

    def lr_adjust(self, x: Any) -> Any:
        if self.rms_rate is None:
            return x
        return x * self.rms_rate * math.sqrt(max(math.prod(x.shape[:-1]), x.shape[-1]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype}


OPTIMIZERS: dict[str, Callable[..., keras.optimizers.Optimizer]] = {"adam": keras.optimizers.Adam, "muon": Muon}
