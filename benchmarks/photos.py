"""What each setting of the preset `photo` is worth: the preset without it, on photos of people none has seen.

    python -m benchmarks.photos

runs `keras-vae train` for the same minutes with each of `CASES` in turn, on a folder of photos less its last thousand
by name, and compares those with their reconstructions, and with samples. Writes benchmarks/results/photos.json,
photos.md (the table) and photos.png: originals, then for each case what it makes of them, and its samples. Cases of an
earlier call with the same settings are kept beside new ones (`--only`).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import runners
from benchmarks.objectives import FACES, HELD_OUT, RESULTS, SHOWN, stacked
from keras_vae.data import image_files
from keras_vae.evaluation import fidelity
from keras_vae.evaluation.distances import Moments, frechet_distance
from keras_vae.features import judges
from keras_vae.runs.keras_file import load_vae
from keras_vae.support import pictures
from keras_vae.support.files import write_json
from keras_vae.support.true_float32 import true_float32

PACKAGES = ("keras-vae", "keras", "tensorflow")
BATCH = 100
# Options of `keras-vae train` beside the data, the minutes and the run folder.
CASES = {
    "dfc, 100 latents": "--network dfc",
    "default": "",
    "photo": "--preset photo",
    "photo, no textures": "--preset photo --texture-layers none",
    "photo, network dfc": "--preset photo --network dfc",
    "photo, Adam": "--preset photo --optimizer adam",
    "photo, constant rate": "--preset photo --learning-rate-schedule constant",
    "photo, batches of 64": "--preset photo --batch-size 64",
    "photo, no mirrored images": "--preset photo --no-flip",
    "photo, 128 latents": "--preset photo --latent-dim 128",
    "photo, 256 latents": "--preset photo --latent-dim 256",
}
COLUMNS = {
    "sharpness": ("sharpness", "{:.2f}"),
    "mean_squared_error": ("squared error", "{:.4f}"),
    "feature_distance": ("feature distance", "{:.3f}"),
    "cosine_distance": ("cosine distance", "{:.3f}"),
    "frechet_distance": ("Fréchet, reconstructions", "{:.0f}"),
    "frechet_of_samples": ("Fréchet, samples", "{:.0f}"),
    "kl_nats": ("KL, nats", "{:.0f}"),
    "steps": ("steps", "{:,}"),
    "images_per_second": ("images/s", "{:.0f}"),
    "seconds_in_all": ("command, s", "{:.0f}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, default=FACES, help="folder of .jpg images")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=4.0, help="of training for each case")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for photos.json, .md and .png")
    arguments = parser.parse_args()
    paths = sorted(arguments.faces.glob("*.jpg"))
    if len(paths) <= HELD_OUT:
        raise SystemExit(f"{arguments.faces} holds {len(paths)} .jpg images: give a folder of more than {HELD_OUT}")
    originals = read(paths[-HELD_OUT:], arguments.image_size)
    settings = {"minutes": arguments.minutes, "image_size": arguments.image_size, "photos": len(paths) - HELD_OUT}
    file = arguments.out / "photos.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    figures = found["figures"] if found.get("settings") == settings else {}
    rows = arguments.out / "photos"
    rows.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        training = Path(folder) / "photos"
        training.mkdir()
        for path in paths[:-HELD_OUT]:
            (training / path.name).symlink_to(path.resolve())
        for name in arguments.only:
            run = Path(folder) / name.replace(" ", "_")
            figures[name], made, samples = case(CASES[name], training, run, originals, arguments)
            print(name, json.dumps(figures[name]), flush=True)
            row = np.concatenate([made[:SHOWN], samples[:SHOWN]])
            pictures.save(pictures.grid(row, columns=SHOWN), rows / runners.picture(name))
            record: dict[str, Any] = {
                "settings": settings,
                "held_out": HELD_OUT,
                "judge": judges.DEFAULT,
                "device": runners.machine(),
                "versions": runners.versions(PACKAGES),
                "figures": {each: figures[each] for each in CASES if each in figures},
            }
            write_json(file, record)
            (arguments.out / "photos.md").write_text(table(record))
            known = [rows / runners.picture(each) for each in record["figures"]]
            picture = stacked([pictures.grid(originals[:SHOWN], columns=SHOWN), *map(Image.open, known)])
            pictures.save(picture, arguments.out / "photos.png")
    print(table(record))


def read(paths: list[Path], size: int) -> np.ndarray:
    """Photos as `keras-vae train` sees them: float32 (count, size, size, 3) in [0, 1]."""
    return np.stack([image_files.decode(path, size) for path in paths]) / np.float32(255)


def case(
    options: str, photos: Path, run: Path, originals: np.ndarray, arguments: argparse.Namespace
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Trains one case; returns its figures, reconstructions of the held-out photos, and samples."""
    command = [sys.executable, "-m", "keras_vae.cli", "train", "--data", str(photos), "--out", str(run), "--json"]
    command += ["--minutes", str(arguments.minutes), "--image-size", str(arguments.image_size), *shlex.split(options)]
    start = time.perf_counter()
    trained = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    seconds = time.perf_counter() - start
    figures, made, samples = compared(run / "model.keras", originals)
    kept = {name: trained[name] for name in ("steps", "images_per_second", "precision")}
    return {**figures, **kept, "seconds_in_all": seconds}, made, samples


@true_float32(device=None)
def compared(model: Path, originals: np.ndarray) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Figures of a model's reconstructions and samples against photos, in true float32."""
    vae, judge = load_vae(model), judges.load()
    posterior = vae.encode(originals)
    starts = range(0, len(originals), BATCH)
    z = np.asarray(posterior.mean)
    made = np.concatenate([np.asarray(vae.decode(z[start : start + BATCH])) for start in starts])
    samples = np.concatenate([np.asarray(vae.sample(BATCH, seed=start)) for start in starts])
    pairs = [judge.compare(originals[start : start + BATCH], made[start : start + BATCH]) for start in starts]
    real, fake, distance = (np.concatenate(column) for column in zip(*pairs, strict=True))
    drawn = np.concatenate([judge.pooled(samples[start : start + BATCH]) for start in starts])
    cosine = (real * fake).sum(axis=1) / np.linalg.norm(real, axis=1) / np.linalg.norm(fake, axis=1)
    moments = Moments.of(real)
    return (
        {
            "sharpness": fidelity.sharpness_ratio(originals, made),
            "mean_squared_error": float(fidelity.mean_squared_error(originals, made).mean()),
            "feature_distance": float(distance.mean()),
            "cosine_distance": float(1.0 - cosine.mean()),
            "frechet_distance": frechet_distance(Moments.of(fake), moments),
            "frechet_of_samples": frechet_distance(Moments.of(drawn), moments),
            "sharpness_of_samples": float(
                fidelity.laplacian_variance(samples).mean() / fidelity.laplacian_variance(originals).mean()
            ),
            "kl_nats": float(np.asarray(posterior.kl()).mean()),
        },
        made,
        samples,
    )


def table(record: dict[str, Any]) -> str:
    """The figures as Markdown."""
    settings = record["settings"]
    lines = [
        f"{record['device']}; {settings['minutes']:g} minutes of training, {settings['image_size']}x"
        f"{settings['image_size']}, {settings['photos']:,} photos; figures on {record['held_out']:,} others, by "
        f"{record['judge']}.",
        "",
        *runners.rows(record["figures"], COLUMNS),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
