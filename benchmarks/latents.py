"""What latents of faces know.

    python -m benchmarks.latents --faces FOLDER --steps 3500 --kl-target 150

trains `plain`, `vae-123` and `vae-345` on a folder of faces with attributes for as many steps each, and measures on its
held-out tenth how well linear classifiers tell ten attributes from the latents. Writes benchmarks/results/latents.json
and latents.md. Runs that are in --runs already are not trained again. Samples, and what they are drawn from, are
benchmarks.priors' subject.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import runners
from keras_vae.latents import attributes
from keras_vae.latents.fitting import encode_training
from keras_vae.model import encoding
from keras_vae.model.encoding import Encoded
from keras_vae.runs.opening import BATCH, open_model
from keras_vae.runs.run_images import data_of
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
FACES = Path(__file__).resolve().parents[2] / "shared" / "faces" / "images"
OBJECTIVES = ("plain", "vae-123", "vae-345")
ATTRIBUTES = 10
COMMAND = "from keras_vae.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, default=FACES)
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--minutes", type=float, help="of training, the same for each")
    limit.add_argument("--steps", type=int, help="of training, the same for each")
    parser.add_argument("--kl-target", type=float, help="nats to steer each KL to; beta 1 without")
    parser.add_argument("--perceptual", default="hed-vgg16")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, choices=OBJECTIVES)
    parser.add_argument("--runs", type=Path, default=Path("runs/latents"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steered = "" if options.kl_target is None else f", KL {options.kl_target:g}"
    path = options.out / "latents.json"
    found: dict[str, Any] = json.loads(path.read_text())["models"] if path.exists() else {}
    for objective in options.objectives:
        name = objective + steered
        run = options.runs / name.replace(", KL ", "-")
        if not (run / "model.keras").is_file():
            train(run, objective, options)
        found[name] = measure(run)
        result = {
            "device": runners.device_name("cpu"),
            "cores": os.cpu_count(),
            "versions": runners.versions(("keras-vae", "keras", "tensorflow", "scikit-learn")),
            "perceptual": options.perceptual,
            "models": found,
        }
        write_json(path, result, indent=1)
        (options.out / "latents.md").write_text(tables(found))
    print(tables(found))


def train(run: Path, objective: str, options: argparse.Namespace) -> None:
    perceptual = "none" if objective == "plain" else options.perceptual
    arguments = ["--data", str(options.faces), "--out", str(run), "--network", "dfc"]
    arguments += ["--steps", str(options.steps)] if options.steps else ["--minutes", str(options.minutes)]
    arguments += ["--preset", objective, "--perceptual", perceptual, "--checkpoint-minutes", "60"]
    if options.kl_target is not None:
        arguments += ["--kl-target", str(options.kl_target)]
    subprocess.run([sys.executable, "-c", COMMAND, "train", *arguments], check=True)


def measure(run: Path) -> dict[str, Any]:
    model = open_model(run)
    vae = model.whole("measuring")
    seen = encode_training(model, vae, None, with_attributes=True)
    images = data_of(model, vae, None, batch_size=1, attributes=True)
    unseen = encoding.encode(vae, images.test.unbatch().batch(BATCH).as_numpy_iterator(), images.attribute_names)
    chosen = filled(seen)
    predictions = attributes.predict(of_attributes(seen, chosen), of_attributes(unseen, chosen))
    figures: dict[str, Any] = {"predictions": [asdict(each) for each in predictions]}
    for name in ("balanced_accuracy", "accuracy", "majority", "auc"):
        figures[name] = float(np.mean([getattr(each, name) for each in predictions]))
    figures["steps"] = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    figures["kl"] = float(unseen.kl_per_latent().sum())
    return figures


def filled(encoded: Encoded) -> tuple[str, ...]:
    """The ten attributes of which the rarer class is the largest."""
    share = encoded.attributes.mean(axis=0)
    order = np.argsort(np.abs(share - 0.5))[:ATTRIBUTES]
    return tuple(encoded.attribute_names[each] for each in sorted(order))


def of_attributes(encoded: Encoded, names: tuple[str, ...]) -> Encoded:
    columns = [encoded.attribute_names.index(name) for name in names]
    return Encoded(encoded.mean, encoded.log_var, encoded.attributes[:, columns], names, encoded.seen)


def tables(found: dict[str, Any]) -> str:
    lines = [
        "| model | balanced accuracy | AUC | accuracy (majority) | KL, nats | steps |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {each['balanced_accuracy']:.3f} | {each['auc']:.3f} | {each['accuracy']:.3f} "
        f"({each['majority']:.3f}) | {each['kl']:.0f} | {each['steps']:,} |"
        for name, each in found.items()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
