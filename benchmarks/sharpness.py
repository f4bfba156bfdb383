"""How much sharper: the same network trained with squared error and with the perceptual loss, for the same steps.

    python -m benchmarks.sharpness

trains both in turn for each seed, and writes benchmarks/results/sharpness.json and sharpness.png: held-out images, what
squared error makes of them, what vae-123 with hed-vgg16 makes of them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_vae import OBJECTIVES, VAE, __version__, data
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.support import pictures, precision
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
COMPARED: dict[str, dict[str, Any]] = {
    "squared error": OBJECTIVES["plain"],
    "vae-123, hed-vgg16": {"perceptual": "hed-vgg16", **OBJECTIVES["vae-123"]},
}


def measure(
    settings: dict[str, Any], images: data.ImageData, arguments: argparse.Namespace, seed: int, policy: str
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Trains one model; returns its figures on all held-out images, and the first of these with reconstructions."""
    keras.utils.set_random_seed(seed)
    vae = VAE(images.image_shape, 100, seed=seed, dtype=policy, **settings)
    vae.compile(keras.optimizers.Adam(arguments.learning_rate))
    vae.fit(images.train.repeat(), steps_per_epoch=arguments.steps, verbose=2)
    held_out = np.concatenate(list(images.test.as_numpy_iterator()))
    reconstructions = vae.predict(held_out, batch_size=64, verbose=0)
    logs = vae.evaluate(held_out, batch_size=64, verbose=0, return_dict=True)
    figures = {
        "sharpness": sharpness_ratio(held_out, reconstructions),
        "psnr_db": psnr(held_out, reconstructions),
        "kl_nats": logs["kl"],
        "elbo_nats": logs["elbo"],
    }
    return figures, held_out[:12], reconstructions[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="avatars", help="as keras_vae.data.load takes it")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for sharpness.json and sharpness.png")
    arguments = parser.parse_args()
    policy, reason = precision.choose(arguments.precision)
    print(f"{policy}: {reason}")

    figures: dict[str, list[dict[str, float]]] = {name: [] for name in COMPARED}
    rows: list[np.ndarray] = []
    for seed in range(arguments.seeds):
        images = data.load(arguments.data, arguments.image_size, arguments.batch_size, seed)
        for name, settings in COMPARED.items():
            result, originals, reconstructions = measure(settings, images, arguments, seed, policy)
            figures[name].append(result)
            print(
                f"seed {seed}, {name}: " + ", ".join(f"{key} {value:.3g}" for key, value in result.items()), flush=True
            )
            if seed == 0:
                rows = [*(rows or [originals]), reconstructions]
    plain, perceptual = figures.values()
    ratios = [two["sharpness"] / one["sharpness"] for one, two in zip(plain, perceptual, strict=True)]
    record = {
        "data": arguments.data,
        "image_size": arguments.image_size,
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "precision": policy,
        "versions": {"keras_vae": __version__, "keras": keras.__version__, "python": platform.python_version()},
        "median": {
            name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for name, runs in figures.items()
        },
        "runs": figures,
        "sharpness_ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "sharpness.json", record)
    pictures.save(pictures.side_by_side(*rows), arguments.out / "sharpness.png")
    print(json.dumps(record["median"], indent=2))
    print("sharpness, perceptual over squared error:", record["sharpness_ratio"])


if __name__ == "__main__":
    main()
