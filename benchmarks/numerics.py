"""Whether every precision trains alike: the same steps on real images in float32, bfloat16 and float16.

    python -m benchmarks.numerics                                       # 1,000 steps each, of avatars, on a GPU
    python -m benchmarks.numerics --data FOLDER
    python -m benchmarks.numerics --device cpu --steps 20 --size 32 --objectives plain --precisions float32 bfloat16

Same seed, same images in the same order; each precision in a process of its own. Kept are the loss's means over every
hundredth of the steps, the loss scale there, and how many steps float16 left out. The final loss is the mean over the
last tenth.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gpu, runners
from benchmarks.train_step import LATENTS, OBJECTIVES, PRECISIONS

USUAL = ("plain", "vae-123")
SEGMENTS = 100
SECONDS = 1800.0
ALLOWED = 0.03  # relative difference of the final loss from float32's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data", default="avatars", help="what keras-vae train --data takes")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=USUAL)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=gpu.RESULTS)
    parser.add_argument("--work", help=argparse.SUPPRESS)  # the case: one precision's process
    options = parser.parse_args()
    if options.work:
        case = json.loads(options.work)
        runners.serve(lambda: train(case))
        return
    if options.steps < 10:
        parser.error("--steps: give at least 10")
    results = gpu.Results(
        gpu.path_of("numerics", options.device, options.out), gpu.machine(options.device), options.fresh
    )
    failed = []
    for objective in options.objectives:
        for precision in options.precisions:
            failed.append(not measure(objective, precision, options, results))
    raise SystemExit(1 if all(failed) else 0)


def measure(objective: str, precision: str, options: argparse.Namespace, results: gpu.Results) -> bool:
    """Trains in one precision, unless that is known, and returns whether it could."""
    key = {"objective": objective, "size": options.size, "batch": options.batch, "steps": options.steps}
    key |= {"data": gpu.source_name(options.data), "precision": precision}
    name = ", ".join(map(str, key.values()))
    if results.find(key) is not None:
        print(f"{name}: measured before", file=sys.stderr)
        return True
    case = {**key, "data": options.data, "device": options.device}
    worker = runners.start("benchmarks.numerics", json.dumps(case), TF_FORCE_GPU_ALLOW_GROWTH="true")
    try:
        found = runners.ask(worker, {"train": True}, SECONDS)
    except runners.RunnerError as error:
        results.fail(key, error)
        print(f"{name}: failed: {error}", file=sys.stderr)
        return False
    finally:
        runners.stop(worker)
    del found["peak_mib"]
    results.add(key, **found)
    print(f"{name}: final loss {found['final_loss']:.4g}", file=sys.stderr)
    return True


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
        scales: list[float] = []

        class Scales(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                scale = getattr(vae.optimizer, "dynamic_scale", None)
                scales.append(1.0 if scale is None else float(scale))

        losses = vae.fit(
            images.train.repeat(),
            steps_per_epoch=each,
            epochs=case["steps"] // each,
            callbacks=[Scales()],
            verbose=0,
        ).history["loss"]
        weights = [bool(keras.ops.all(keras.ops.isfinite(weight))) for weight in vae.trainable_weights]
        last = losses[-max(1, len(losses) // 10) :]
        return {
            "steps_a_mean": each,
            "losses": [float(loss) if math.isfinite(loss) else None for loss in losses],
            "final_loss": statistics.fmean(last),
            "finite": all(map(math.isfinite, losses)) and all(weights),
            "loss_scales": scales,
            "steps_left_out": len(losses) * each - int(vae.optimizer.iterations),
            "xla": bool(vae.jit_compile),
            "images": images.train_size,
        }

    return answer


if __name__ == "__main__":
    main()
