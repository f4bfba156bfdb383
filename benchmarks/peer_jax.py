"""The same networks and losses in JAX, as its users write them.

What `benchmarks.steps` runs beside ours: the paper's encoder and decoder, VGG16's features and Adam, one step compiled
by `jax.jit`, which is given the old state's memory. Layouts are those of Keras, so our weights serve as they are.
Weights, normalization and sums are float32; convolutions are of the precision asked for.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.operations import LAYERS, VGG16

LEAKY_SLOPE = 0.2
MEANS = (103.939, 116.779, 123.68)  # ImageNet's, blue, green, red
MOMENTUM, EPSILON = 0.9, 1e-3  # of batch normalization
LEARNING_RATE, DECAYS, ADAM_EPSILON = 5e-4, (0.9, 0.999), 1e-7
Weights = dict[str, Any]  # by role and path: "decoder/conv1/kernel"


def convolved(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "VALID") -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel.astype(x.dtype), (stride, stride), padding, dimension_numbers=layout)


def normalized(x: jax.Array, weights: Weights, name: str, statistics: Weights) -> jax.Array:
    """Batch normalization and LeakyReLU; the batch's statistics are noted, for the moving ones."""
    exact = x.astype(jnp.float32)
    mean = exact.mean((0, 1, 2))
    variance = jnp.maximum(jnp.square(exact).mean((0, 1, 2)) - jnp.square(mean), 0.0)
    statistics[f"{name}/mean"], statistics[f"{name}/variance"] = mean, variance
    scale = lax.rsqrt(variance + EPSILON) * weights[f"{name}/gamma"]
    return jax.nn.leaky_relu((exact - mean) * scale + weights[f"{name}/beta"], LEAKY_SLOPE).astype(x.dtype)


def encoded(weights: Weights, images: jax.Array, dtype: Any, statistics: Weights) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance of the posterior, float32 (batch, latents)."""
    x = images.astype(dtype)
    for index in range(1, 5):
        x = convolved(x, weights[f"encoder/conv{index}/kernel"], 2, "SAME")
        x = normalized(x, weights, f"encoder/conv{index}_norm", statistics)
    x = x.reshape(len(x), -1).astype(jnp.float32)
    mean, log_var = (
        x @ weights[f"encoder/{name}/kernel"] + weights[f"encoder/{name}/bias"] for name in ("mean", "raw_log_var")
    )
    inside = jnp.clip(log_var, -10.0, 2.0)  # as ours, `keras_vae.networks.SafeLogVariance`
    excess = log_var - inside
    return mean, inside + jnp.sign(excess) * jnp.log1p(jnp.abs(excess))


def doubled(x: jax.Array) -> jax.Array:
    """Nearest x2 upsampling, and the border repeated."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    x = x.reshape(batch, 2 * height, 2 * width, channels)
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")


def decoded(weights: Weights, z: jax.Array, dtype: Any, statistics: Weights) -> jax.Array:
    """Images, float32."""
    kernel, bias = (weights[f"decoder/project/{name}"].astype(dtype) for name in ("kernel", "bias"))
    channels = weights["decoder/conv1/kernel"].shape[2]
    small = round((kernel.shape[1] // channels) ** 0.5)
    x = (z.astype(dtype) @ kernel + bias).reshape(-1, small, small, channels)
    for index in range(1, 4):
        x = convolved(doubled(x), weights[f"decoder/conv{index}/kernel"])
        x = normalized(x, weights, f"decoder/conv{index}/norm", statistics)
    x = convolved(doubled(x), weights["decoder/conv4/kernel"]) + weights["decoder/conv4/bias"].astype(dtype)
    return jax.nn.sigmoid(x.astype(jnp.float32))


def features(vgg: Weights, images: jax.Array, blocks: tuple[int, ...], dtype: Any) -> list[jax.Array]:
    """The first activations of VGG16's blocks."""
    x = (255.0 * images[..., ::-1] - jnp.array(MEANS)).astype(dtype)
    found = []
    for block, filters in enumerate(VGG16[: max(blocks) + 1]):
        for index in range(len(filters)):
            name = f"block{block + 1}_conv{index + 1}"
            x = jax.nn.relu(convolved(x, vgg[f"{name}/0"], padding="SAME") + vgg[f"{name}/1"].astype(dtype))
            if index == 0 and block in blocks:
                found.append(x)
                if block == max(blocks):
                    return found
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return found


def terms(
    weights: Weights, vgg: Weights, images: jax.Array, key: jax.Array | None, objective: str, dtype: Any
) -> tuple[Weights, Weights]:
    """The loss's terms, means over the batch, with latents drawn by the key or at the mean; and batch statistics."""
    statistics: Weights = {}
    mean, log_var = encoded(weights, images, dtype, statistics)
    noise = 0.0 if key is None else jax.random.normal(key, mean.shape)
    found = decoded(weights, mean + jnp.exp(0.5 * log_var) * noise, dtype, statistics)
    kl = 0.5 * (jnp.exp(log_var) + jnp.square(mean) - 1.0 - log_var).sum(1)
    of = {"kl": kl.mean(), "squared_error": jnp.square(images - found).sum((1, 2, 3)).mean()}
    if objective != "plain":
        blocks = LAYERS[objective]
        targets, compared = (features(vgg, each, blocks, dtype) for each in (images, found))
        pairs = [
            (one.astype(jnp.float32), other.astype(jnp.float32)) for one, other in zip(targets, compared, strict=True)
        ]
        of["perceptual"] = sum(0.5 * jnp.square(one - other).mean() for one, other in pairs)
    return of, statistics


@partial(jax.jit, static_argnames=("objective", "dtype"), donate_argnames="state")
def step(state: dict[str, Any], vgg: Weights, images: jax.Array, objective: str, dtype: Any) -> tuple[Any, jax.Array]:
    """The state after a step of Adam, and the loss before it."""
    key, draw = jax.random.split(state["key"])

    def loss(weights: Weights) -> tuple[jax.Array, Weights]:
        of, statistics = terms(weights, vgg, images, draw, objective, dtype)
        reconstruction = of["squared_error"] / 0.1 if objective == "plain" else 0.5 * of["perceptual"]
        return reconstruction + of["kl"], statistics

    (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(state["weights"])
    count = state["count"] + 1
    first, second = DECAYS
    of = jax.tree.map
    mean = of(lambda old, new: first * old + (1 - first) * new, state["mean"], gradients)
    square = of(lambda old, new: second * old + (1 - second) * jnp.square(new), state["square"], gradients)
    rate = LEARNING_RATE * jnp.sqrt(1 - second**count) / (1 - first**count)
    weights = of(lambda w, m, s: w - rate * m / (jnp.sqrt(s) + ADAM_EPSILON), state["weights"], mean, square)
    moving = of(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, state["moving"], statistics)
    return {"weights": weights, "mean": mean, "square": square, "moving": moving, "count": count, "key": key}, value


class Step:
    """A training step: call it with images, float32 (batch, size, size, 3) in [0, 1], and it returns the loss.

    Args:
        objective: "plain", squared error over twice 0.05 and the KL; "vae-123" or "vae-345", features and the KL.
        precision: "float32" or "bfloat16".
        weights: ours, by role and path.
        vgg: arrays "block1_conv1/0" and so on, of the features' network.
    """

    def __init__(
        self, objective: str, precision: str, weights: dict[str, np.ndarray], vgg: dict[str, np.ndarray]
    ) -> None:
        if precision == "float16":
            raise ValueError("without a scaled loss, float16 does not train")
        self.settings = {"objective": objective, "dtype": jnp.dtype(precision)}
        self.vgg = jax.tree.map(jnp.asarray, vgg)
        moving: Weights = {}
        for name, value in weights.items():
            if name.endswith("/gamma"):
                layer = name.removesuffix("gamma")
                moving |= {f"{layer}mean": jnp.zeros(value.shape), f"{layer}variance": jnp.ones(value.shape)}
        # Copies: the state's memory is given away in each step.
        self.state: dict[str, Any] = {
            "weights": jax.tree.map(jnp.array, weights),
            "mean": jax.tree.map(jnp.zeros_like, weights),
            "square": jax.tree.map(jnp.zeros_like, weights),
            "moving": moving,
            "count": jnp.zeros((), jnp.int32),
            "key": jax.random.key(0),
        }

    def terms(self, images: np.ndarray) -> dict[str, float]:
        """The loss's terms with latents at the posterior's mean, nothing drawn, to compare with ours."""
        compute = jax.jit(terms, static_argnames=("objective", "dtype"))
        of, _ = compute(self.state["weights"], self.vgg, images, None, **self.settings)
        return {name: float(value) for name, value in of.items()}

    def __call__(self, images: jax.Array) -> jax.Array:
        self.state, loss = step(self.state, self.vgg, images, **self.settings)
        return loss
