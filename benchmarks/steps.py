"""The processes that take training steps: ours, the same networks in PyTorch (`peer`) and in JAX (`peer_jax`).

`benchmarks.train_step` and `benchmarks.bench_gpu` start them. Ours is what `fit` runs, its metrics included, on batches
that a tf.data pipeline hands over. Batches are float32 images in the host's memory, random ones: nothing a step does
depends on what they show. A peer's environment needs its framework and numpy, no more.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import operations, runners

LATENTS = 100
LEAST_STEPS = 2
WARM_STEPS = 3
COMPARED = 16  # images, of which the terms of the loss are compared
LARGE_BATCH = 256 * 128**2  # pixels, of which fewer batches are kept in memory

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def _images(case: dict[str, Any], count: int = 4) -> np.ndarray:
    """Some batches of smooth random images: float32 (count, batch, size, size, 3)."""
    size = case["size"]
    if case["batch"] * size**2 > LARGE_BATCH:
        count = min(count, 2)
    coarse = np.random.default_rng(0).random((count, case["batch"], size // 8, size // 8, 3), np.float32)
    return np.repeat(np.repeat(coarse, 8, axis=2), 8, axis=3)


def _compared(case: dict[str, Any]) -> np.ndarray:
    """The images of which all runners compute the terms of the loss, the same for every batch size."""
    return _images({**case, "batch": COMPARED}, 1)[0]


def _times(step: Callable[[], Any], wait: Callable[[Any], Any], request: dict[str, Any]) -> list[float]:
    """Seconds a step, for the requested time, and of a few at least.

    A device computes while Python is a few steps ahead, in `fit` too: `together` is how many steps are begun before the
    last one's loss is waited for.
    """
    together = request.get("together", 1)
    found: list[float] = []
    while len(found) < LEAST_STEPS or together * sum(found) < request["seconds"]:
        start = time.perf_counter()
        for _ in range(together):
            loss = step()
        wait(loss)
        found.append((time.perf_counter() - start) / together)
    return found


def _at_the_high_resolution(block: Any, images: Any, kernel: Any, bias: Any = None) -> Any:
    """What stands in for `UpsampledConv2D._convolved`: the block as the paper writes it."""
    from keras import ops

    _, height, width, _ = block.compute_output_shape(images.shape)
    pixels = ops.repeat(ops.repeat(images, 2, axis=1), 2, axis=2)[:, :height, :width]
    if block.padding == "edge":
        pixels = ops.concatenate([pixels[:, :1], pixels, pixels[:, -1:]], axis=1)
        pixels = ops.concatenate([pixels[:, :, :1], pixels, pixels[:, :, -1:]], axis=2)
    padding = "valid" if block.padding == "edge" else "same"
    pixels = ops.conv(pixels, ops.cast(kernel, block.compute_dtype), 1, padding, "channels_last")
    return pixels if bias is None else pixels + ops.cast(bias, block.compute_dtype)


def _without(change: str) -> None:
    """Has ours compute one thing, or all, the straightforward way."""
    import keras
    from keras import ops

    from keras_vae import PerceptualLoss
    from keras_vae.networks import layers

    def distances(self: Any, targets: list[Any], decoded: Any) -> Any:
        pairs = zip(targets, self.features(decoded), strict=True)
        squares = [ops.square(ops.cast(one, "float32") - ops.cast(other, "float32")) for one, other in pairs]
        return ops.stack([0.5 * ops.mean(each, axis=(1, 2, 3)) for each in squares], axis=1)

    ways: dict[str, tuple[Any, str, Any]] = {
        "the low resolution": (layers.UpsampledConv2D, "_convolved", _at_the_high_resolution),
        "fused normalization": (layers.BatchNormalization, "call", keras.layers.BatchNormalization.call),
        "matrix products": (layers, "as_matrix", lambda *_: False),
        "one pass over features": (PerceptualLoss, "distances", distances),
    }
    for name, (owner, attribute, way) in ways.items():
        if change in (name, "all of these"):
            setattr(owner, attribute, way)


def ours(kind: str, case: dict[str, Any]) -> Answer:
    import keras
    import tensorflow as tf

    from keras_vae import OBJECTIVES, VAE
    from keras_vae.networks.layers import UpsampledConv2D

    _without(kind.removeprefix("ours without "))
    keras.utils.set_random_seed(0)
    objective = {**OBJECTIVES[case["objective"]], "latent_dim": LATENTS, "network_options": {"width": case["width"]}}
    if case["objective"] != "plain":
        objective["perceptual"] = "hed-vgg16"
    policy = case["precision"] if case["precision"] == "float32" else f"mixed_{case['precision']}"
    vae = VAE((case["size"], case["size"], 3), **objective, seed=0, dtype=policy)
    compiled: dict[str, bool] = {"ours without XLA": False, "ours with XLA": True}
    vae.compile(keras.optimizers.Adam(5e-4), jit_compile=compiled.get(kind, "auto"))
    gpus = tf.config.list_logical_devices("GPU")
    if case["device"] == "cuda" and not gpus:
        raise SystemExit("TensorFlow sees no GPU: keras-vae doctor says why")
    batches = _images(case)
    step: list[Any] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "terms" in request:
            return _our_terms(vae, _compared(case), Path(case["folder"]), request.get("given", False))
        if "convolutions" in request:
            return operations.convolutions(vae, case)
        if "gflop" in request:
            ours = operations.gflop(vae, case["size"], request["gflop"])
            with mock.patch.object(UpsampledConv2D, "_convolved", _at_the_high_resolution):
                return {"gflop": {"ours": ours, "as written": operations.gflop(vae, case["size"], request["gflop"])}}
        if "memory" in request:
            peak = tf.config.experimental.get_memory_info(gpus[0].name.removeprefix("/device:"))["peak"] if gpus else 0
            return {"device_mib": peak / 2**20}
        if "epochs" in request:
            return {"points": [_epoch(vae, case, count) for count in request["epochs"]]}
        if not step:
            with tf.device("/CPU:0"):  # else the images lie on the GPU, and count as the step's memory
                data = tf.data.Dataset.from_tensors(batches[0])
                data = data.concatenate(tf.data.Dataset.from_tensor_slices(batches[1:]))
            iterator = iter(data.cache().repeat().prefetch(2))
            vae.make_train_function()
            step.append(lambda: vae.train_function(iterator)["loss"])
            if gpus:
                tf.config.experimental.reset_memory_stats(gpus[0].name.removeprefix("/device:"))
            for _ in range(WARM_STEPS):
                float(step[0]())
        return {"steps": _times(step[0], float, request)}

    return answer


def _our_terms(vae: Any, images: np.ndarray, folder: Path, given: bool) -> dict[str, Any]:
    """The loss's terms with latents at the posterior's mean; weights are read from the folder, or left there."""
    weights = {
        f"{role}/{weight.path}": weight
        for role, network in (("encoder", vae.encoder), ("decoder", vae.decoder))
        for weight in network.trainable_weights
    }
    vae.load_perceptual()
    if given:
        for name, value in np.load(folder / "weights.npz").items():
            weights[name].assign(value)
    else:
        np.savez(folder / "weights.npz", **{name: weight.numpy() for name, weight in weights.items()})
    if vae.perceptual is not None and not given:
        layers = vae.perceptual._features.layers
        vgg = {f"{layer.name}/{place}": each for layer in layers for place, each in enumerate(layer.get_weights())}
        np.savez(folder / "vgg.npz", **vgg)
    posterior = vae.encode(images, training=True)
    decoded = np.array(vae.decode(posterior.mean, training=True))
    terms = {
        "kl": float(np.mean(posterior.kl())),
        "squared_error": float(np.square(images - decoded).sum((1, 2, 3)).mean()),
    }
    if vae.perceptual is not None:
        terms["perceptual"] = float(np.mean(vae.perceptual(images, decoded)))
    return terms


def _epoch(vae: Any, case: dict[str, Any], count: int) -> dict[str, Any]:
    """An epoch of `fit` from a folder of so many JPEG files, the second: seconds, and images/s."""
    from PIL import Image

    from keras_vae import data

    with tempfile.TemporaryDirectory() as folder:
        pixels = (255 * _images(case, 1)[0]).astype(np.uint8)
        for index in range(count + count // 9):  # a tenth is held out
            # No two files the same: those are read once.
            Image.fromarray(np.roll(pixels[index % len(pixels)], index // len(pixels), 0)).save(
                Path(folder) / f"{index:06d}.jpg"
            )
        images = data.load(folder, case["size"], case["batch"], 0)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            vae.fit(images.train, epochs=1, verbose=0)
            seconds.append(time.perf_counter() - start)
    return {"images": images.train_size, "seconds": seconds[-1], "images_per_second": images.train_size / seconds[-1]}


def pytorch(kind: str, case: dict[str, Any]) -> Answer:
    import torch
    from torch._dynamo.utils import counters

    from benchmarks.peer import Step

    torch.set_num_threads(os.cpu_count() or 1)
    device = case["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU")
    steps: list[Step] = []
    layout: Any = {"memory_format": torch.channels_last}
    batches = [torch.from_numpy(np.moveaxis(each, -1, 1)).to(**layout) for each in _images(case)]
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # as TensorFlow by default, and PyTorch for convolutions
        batches = [each.pin_memory() for each in batches]  # as DataLoader(pin_memory=True) hands them over
    taken: list[int] = []

    def run() -> Any:
        images = batches[len(taken) % len(batches)].to(device, non_blocking=True, **layout)
        taken.append(1)
        return steps[0](images)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "memory" in request:
            skipped = counters["inductor"]["cudagraph_skips"]  # else it says so in a warning alone
            note = f"PyTorch left {skipped} of its graphs out of CUDA graphs" if "graphs" in kind and skipped else ""
            mib = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0
            return {"device_mib": mib, "note": note}
        if "terms" in request:
            weights, vgg = _given(case)
            settings = (case["objective"], case["precision"], case["size"], case["width"])
            steps.append(Step(*settings, kind.startswith("compiled"), vgg, device, "graphs" in kind))
            steps[0].load(weights)
            return steps[0].terms(torch.from_numpy(np.moveaxis(_compared(case), -1, 1)).to(device, **layout))
        if not taken:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for _ in range(WARM_STEPS):
                run().item()
        return {"steps": _times(run, lambda loss: loss.item(), request)}

    return answer


def in_jax(kind: str, case: dict[str, Any]) -> Answer:
    import jax

    from benchmarks.peer_jax import Step

    if case["device"] == "cuda" and jax.default_backend() != "gpu":
        raise SystemExit(f"JAX sees no GPU, but {jax.default_backend()}")
    batches = list(_images(case))
    steps: list[Step] = []
    taken: list[int] = []

    def run() -> Any:
        taken.append(1)
        return steps[0](jax.device_put(batches[len(taken) % len(batches)]))

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "memory" in request:
            return {"device_mib": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**20}
        if "terms" in request:
            steps.append(Step(case["objective"], case["precision"], *_given(case)))
            return steps[0].terms(_compared(case))
        if not taken:
            for _ in range(WARM_STEPS):
                float(run())
        return {"steps": _times(run, float, request)}

    return answer


def _given(case: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The weights that ours left in the case's folder: of the networks, and of VGG where the objective has features."""
    folder = Path(case["folder"])
    vgg = {} if case["objective"] == "plain" else dict(np.load(folder / "vgg.npz"))
    return dict(np.load(folder / "weights.npz")), vgg


def make(kind: str, case: dict[str, Any]) -> Answer:
    """What answers for a kind: "ours...", "jax", or PyTorch's "eager", "compiled" and "compiled, graphs"."""
    if kind.startswith("ours"):
        return ours(kind, case)
    return in_jax(kind, case) if kind == "jax" else pytorch(kind, case)


if __name__ == "__main__":
    runners.serve(lambda: make(sys.argv[2], json.loads(sys.argv[3])))
