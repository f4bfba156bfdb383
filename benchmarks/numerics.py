"""The processes that train the same steps on real images in float32, bfloat16 and float16: do they train alike?

Same seed, same images in the same order. Kept are the loss's means over every hundredth of the steps, the loss scale
there, and how many steps float16 left out. `benchmarks.bench_gpu` starts them.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import runners
from benchmarks.steps import LATENTS

SEGMENTS = 100
ALLOWED = 0.03  # relative difference of the final loss from float32's


def train(case: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """One precision's process."""
    import keras
    import tensorflow as tf

    from keras_vae import OBJECTIVES, VAE, data

    if case["device"] == "cuda" and not tf.config.list_physical_devices("GPU"):
        raise SystemExit("TensorFlow sees no GPU: keras-vae doctor says why")
    images = data.load(case["data"], case["size"], case["batch"], seed=0)
    keras.utils.set_random_seed(0)
    objective = dict(OBJECTIVES[case["objective"]])
    if case["objective"] != "plain":
        objective["perceptual"] = "hed-vgg16"
    policy = case["precision"] if case["precision"] == "float32" else f"mixed_{case['precision']}"
    vae = VAE((case["size"], case["size"], 3), latent_dim=LATENTS, seed=0, dtype=policy, **objective)
    vae.compile(keras.optimizers.Adam(5e-4))

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        each = max(1, case["steps"] // SEGMENTS)
        losses: list[float] = []
        scales: list[float] = []

        class Segments(keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if (batch + 1) % each == 0:
                    losses.append(float(vae.get_metrics_result()["loss"]))
                    vae.reset_metrics()
                    scale = getattr(vae.optimizer, "dynamic_scale", None)
                    scales.append(1.0 if scale is None else float(scale))

        # One epoch: a hundred, of five steps each, took 85 s on an H100.
        vae.fit(images.train.repeat(), steps_per_epoch=case["steps"], callbacks=[Segments()], verbose=0)
        weights = [bool(keras.ops.all(keras.ops.isfinite(weight))) for weight in vae.trainable_weights]
        last = losses[-max(1, len(losses) // 10) :]
        return {
            "steps_a_mean": each,
            "losses": [loss if math.isfinite(loss) else None for loss in losses],
            "final_loss": statistics.fmean(last),
            "finite": all(map(math.isfinite, losses)) and all(weights),
            "loss_scales": scales,
            "steps_left_out": case["steps"] - int(vae.optimizer.iterations),
            "xla": bool(vae.jit_compile),
            "images": images.train_size,
        }

    return answer


def draw(request: dict[str, Any]) -> dict[str, Any]:
    """Draws the avatars, if they are not yet, so that no two processes do."""
    from keras_vae import data

    data.load("avatars", 64, 64, seed=0)
    return {}


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    runners.serve(lambda: draw if given is None else train(given))
