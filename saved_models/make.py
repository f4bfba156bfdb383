"""Trains the models that come with the package from scratch, and writes their folders.

    python saved_models/make.py [NAME ...] [--work FOLDER]

Each gets `model.keras`, the SavedModel `1`, `decoder.onnx`, `generator.onnx`, `encoder.onnx`, `vectors.npz`,
`config.json`, `evaluation.json`, `explorer.json` (data for the explorer's page), pictures, a model card (README.md) and
SHA256SUMS. A folder is moved into place once it is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras

from keras_vae.cli import explorer
from keras_vae.runs.opening import open_model
from keras_vae.support.names import PRIORS

HERE = Path(__file__).parent
COMMAND = "from keras_vae.cli import main; main()"
MODELS: dict[str, dict[str, Any]] = {
    "avatars": {
        "title": "avatars: cartoon faces, 64x64",
        "train": [
            *("--data", "avatars", "--image-size", "64", "--perceptual", "hed-vgg16", "--network", "ppca"),
            *("--width", "16", "--batch-size", "32", "--learning-rate", "1e-3", "--learning-rate-schedule", "cosine"),
            *("--epochs", "12"),
        ],
        "data": "16,000 avatars for training and 2,000 held out, drawn by python-avatars (MIT); artwork: Avataaars by "
        "Pablo Stanley, free for personal and commercial use.",
        "limits": "Samples are softer than reconstructions; rare hat and hair shapes are only approximated.",
    },
    "fashion_mnist": {
        "title": "Fashion-MNIST: clothing in greyscale, 32x32",
        "train": [
            *("--data", "tfds:fashion_mnist", "--image-size", "32", "--latent-dim", "32", "--network", "dfc"),
            *("--perceptual", "hed-vgg16", "--batch-size", "64", "--learning-rate", "1e-3"),
            *("--learning-rate-decay", "0.8", "--ema", "0.999", "--epochs", "8"),
        ],
        "data": "Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), MIT licence, 60,000 images for training and "
        "10,000 held out, resized from 28x28.",
        "limits": "Prints and lettering on clothes are lost.",
    },
}

MEASURED = 1000  # held-out images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; all")
    parser.add_argument("--work", type=Path, help="folder for the runs; a temporary one")
    options = parser.parse_args()
    for name in options.names or MODELS:
        if name not in MODELS:
            raise SystemExit(f"no model {name!r}: choose of {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.names or MODELS:
            make(name, (options.work or Path(temporary)) / name)


def make(name: str, run: Path) -> None:
    settings = MODELS[name]
    if not (run / "model.keras").is_file():
        keras_vae("train", "--out", run, *settings["train"])
    new = HERE / f".{name}.new"
    shutil.rmtree(new, ignore_errors=True)
    evaluations = {}
    for prior in PRIORS:
        keras_vae("evaluate", run, "--prior", prior, "--limit", MEASURED, "--out", run / f"evaluation-{prior}")
        evaluations[prior] = json.loads((run / f"evaluation-{prior}" / "evaluation.json").read_text())
    keras_vae("sample", run, "--out", run / "samples.png")
    keras_vae("reconstruct", run, "--out", run / "reconstructions.png")
    keras_vae("attributes", run)
    keras_vae("export", run, "--format", "onnx", "--encoder", "--out", new)
    keras_vae("export", run, "--format", "tf_saved_model", "--out", new)  # including the encoder would double its size
    keras_vae("verify", run, new / "1", new / "decoder.onnx", new / "generator.onnx")
    vae = keras.saving.load_model(run / "model.keras")
    bare = type(vae).from_config(vae.get_config())
    with vae.averaged_weights():
        bare.set_weights(vae.get_weights())
    bare.set_prior(vae.prior)
    bare.save(new / "model.keras")  # without the optimizer, which is more than half of the run's file
    for picture in ("samples.png", "reconstructions.png"):
        shutil.copyfile(run / picture, new / picture)
    config = json.loads((run / "config.json").read_text())
    (new / "config.json").write_text(json.dumps({**config, "out": f"runs/{name}"}, indent=2) + "\n")
    attributes = json.loads((run / "attributes" / "attributes.json").read_text())
    (new / "evaluation.json").write_text(json.dumps(evaluations, indent=1) + "\n")
    (new / explorer.ABOUT).write_text(json.dumps(explorer.about_of(open_model(run))))
    (new / "README.md").write_text(card(name, run, evaluations, attributes))
    for file in new.rglob("*"):  # no file may reveal where it was made
        if file.is_file() and str(run).encode() in file.read_bytes():
            raise SystemExit(f"{file} names {run}")
    sums = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(new)}"
        for file in sorted(new.rglob("*"))
        if file.is_file()
    ]
    (new / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    shutil.rmtree(HERE / name, ignore_errors=True)
    new.rename(HERE / name)


def card(name: str, run: Path, evaluations: dict[str, Any], attributes: dict[str, Any]) -> str:
    settings = MODELS[name]
    config = json.loads((run / "config.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    figures = evaluations["learned"]
    drawn, standard = figures["samples"], evaluations["standard"]["samples"]
    shape = ", ".join(map(str, keras.saving.load_model(run / "model.keras").image_shape))
    made = figures["reconstructions"]
    command = f"keras-vae train {' '.join(settings['train'])}"
    similar = (
        f"PSNR {made['psnr']:.1f} dB, SSIM {made['ssim']:.3f}, sharpness {made['sharpness']:.2f} of the originals'"
    )
    distances = [each["frechet_distance"] for each in (drawn, standard, figures["training_images"])]
    rows = {
        "input, output": f"`noise`, standard normal (generator), or `z` (decoder), float32 [batch, "
        f"{config['latent_dim']}], to `image` float32 [batch, {shape}] in [0, 1]",
        "trained with": f"`python saved_models/make.py {name}` at commit {commit()}: `{command}`",
        "training": f"{last['step']:,} steps, {config['policy']}, seed {config['seed']}",
        "run": config["run_id"],
        f"on {figures['images']:,} held-out images": f"ELBO {figures['elbo']:,.0f} nats, KL {figures['kl']:.1f} nats",
        "reconstructions": f"{similar}, Fréchet distance {made['frechet_distance']:.1f}",
        "samples": f"Fréchet distance {distances[0]:.1f} (draws from a standard normal {distances[1]:.1f}, training "
        f"images {distances[2]:.1f}), precision {drawn['precision']:.2f}, recall {drawn['recall']:.2f}",
        "ELBO under the learned prior": f"{figures['elbo_learned_prior']:,.0f} nats",
        "distance to the nearest training code": f"samples {drawn['nearest_code']:.2f}, "
        f"held-out images {drawn['nearest_code_of_held_out']:.2f}",
        "attributes predicted from latents": f"balanced accuracy {attributes['balanced_accuracy']:.3f}, mean over "
        f"{len(attributes['predictions'])}",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""# {settings["title"]}

Files: `model.keras` (`keras_vae.from_pretrained("{name}")`), `1/` SavedModel, `generator.onnx` (noise to images),
`decoder.onnx` (latents to images), `encoder.onnx`, `vectors.npz` (attribute directions), `explorer.json` (for
`keras-vae explore {name}`), `SHA256SUMS`.

| | |
|---|---|
{table}

Distances are in the features of {figures["features"]}; they are not the FID.

![64 samples](samples.png)

*`keras-vae sample {name}`*

![Held-out images above their reconstructions](reconstructions.png)

*Held-out images above their reconstructions.*

Limits: {settings["limits"]}

Data: {settings["data"]} Licence of the weights: MIT, like the project.
"""


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def keras_vae(*arguments: object) -> None:
    print("keras-vae", *arguments, flush=True)
    subprocess.run([sys.executable, "-c", COMMAND, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
