"""Six objectives on faces: the same network, the same minutes, the same KL, judged on people none has seen.

    python -m benchmarks.objectives

trains each in turn for 15 minutes, and writes benchmarks/results/objectives.json, objectives.png (rows: originals, then
what each objective makes of them) and objectives.md (the table). Needs the extra `bench`, and a folder of faces whose
last thousand images by name are held out. With `--only`, figures of an earlier call with the same settings are kept
beside the new ones.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm.auto import tqdm

from keras_vae import OBJECTIVES, VAE, __version__
from keras_vae.model import schedules
from keras_vae.model.feature_terms import BALANCE
from keras_vae.support import pictures, precision
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
FACES = Path(__file__).resolve().parents[2] / "shared" / "faces" / "images"
HELD_OUT = 1000
SHOWN = 12
COLUMNS = {
    "sharpness": ("sharpness", "{:.2f}"),
    "feature_distance": ("feature distance", "{:.3f}"),
    "frechet_distance": ("Fréchet distance", "{:.0f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "psnr_db": ("PSNR, dB", "{:.1f}"),
    "kl_nats": ("KL, nats", "{:.0f}"),
    "steps": ("steps", "{:,}"),
}


class TimedCosine(keras.callbacks.Callback):
    """Ends training after some minutes, the learning rate falling to a hundredth along half a cosine by then.

    A schedule by time rather than by steps: each objective gets to the end of its own, however fast its steps are.
    The clock starts with the second step; the first compiles.
    """

    def __init__(self, minutes: float, learning_rate: float) -> None:
        super().__init__()
        self.seconds = 60.0 * minutes
        self.learning_rate = learning_rate
        self.steps = 0
        self.start = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        if self.steps == 1:
            self.start = self.spoke = time.perf_counter()
        now = time.perf_counter()
        share = min((now - self.start) / self.seconds, 1.0)
        self.model.optimizer.learning_rate = self.learning_rate * max(0.01, 0.5 + 0.5 * math.cos(math.pi * share))
        if now - self.spoke > 60:
            self.spoke = now
            shown = ", ".join(f"{name} {float(value):.4g}" for name, value in (logs or {}).items())
            print(f"  {(now - self.start) / 60:.0f} min, step {self.steps}: {shown}", flush=True)
        if share == 1.0:
            self.model.stop_training = True


def read(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The faces in order of their names, uint8 (count, size, size, 3): to train on, and the last thousand."""
    paths = sorted(folder.glob("*.jpg"))
    if len(paths) <= HELD_OUT:
        raise SystemExit(f"{folder} holds {len(paths)} .jpg images: give --faces a folder of more than {HELD_OUT}")
    images = np.empty((len(paths), size, size, 3), np.uint8)
    for index, path in enumerate(tqdm(paths, desc="reading faces", unit=" images", disable=None)):
        with Image.open(path) as image:
            images[index] = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BOX))
    return images[:-HELD_OUT], images[-HELD_OUT:]


def objective_settings(name: str) -> dict[str, Any]:
    """What a figure depends on besides the settings of all."""
    settings = OBJECTIVES[name]
    return {**settings, "balance": BALANCE} if settings.get("perceptual_weight") == "balanced" else settings


def train(name: str, faces: np.ndarray, arguments: argparse.Namespace, policy: str) -> tuple[VAE, int]:
    """Trains one objective for its minutes; returns the model and the number of steps."""
    keras.utils.set_random_seed(arguments.seed)
    settings = {"perceptual": arguments.perceptual, **OBJECTIVES[name]}
    vae = VAE(faces.shape[1:], arguments.latent_dim, seed=arguments.seed, dtype=policy, **settings)
    vae.compile(keras.optimizers.Adam(arguments.learning_rate))
    pipeline = tf.data.Dataset.from_tensor_slices(faces).shuffle(len(faces), seed=arguments.seed).repeat()
    options = tf.data.Options()
    options.autotune.enabled = False
    pipeline = pipeline.batch(arguments.batch_size).prefetch(4).with_options(options)
    clock = TimedCosine(arguments.minutes, arguments.learning_rate)
    steering = schedules.TargetKL(arguments.kl)
    vae.fit(pipeline, steps_per_epoch=10**9, epochs=1, verbose=0, callbacks=[clock, steering])
    return vae, clock.steps


def measure(vae: VAE, originals: np.ndarray, judge: Any) -> tuple[dict[str, float], np.ndarray]:
    """Figures on the held-out images, and the reconstructions from the posterior's mode."""
    reconstructions = vae.predict(originals, batch_size=50, verbose=0)
    logs = vae.evaluate(originals, batch_size=50, verbose=0, return_dict=True)
    figures = judge.compare(originals, reconstructions)
    names = ("elbo", "reconstruction", "active_units")
    return {**figures, "kl_nats": logs["kl"], "beta": vae.beta, **{name: logs[name] for name in names}}, reconstructions


def table(record: dict[str, Any]) -> str:
    """The figures as Markdown."""
    heads = [head for head, _ in COLUMNS.values()]
    lines = ["| objective | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, figures in record["figures"].items():
        cells = [form.format(figures[column]) for column, (_, form) in COLUMNS.items()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=Path, default=FACES, help="folder of .jpg images")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=15.0, help="of training for each objective")
    parser.add_argument("--kl", type=float, default=150.0, help="nats that each is steered to")
    parser.add_argument("--latent-dim", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--perceptual", default="hed-vgg16", help="feature network of those that have one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES), metavar="OBJECTIVE")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for objectives.json, .png and .md")
    arguments = parser.parse_args()
    try:
        from benchmarks.judge import NETWORK, Judge
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error.name} is missing: pip install -e '.[bench]'") from error
    policy, reason = precision.choose(arguments.precision)
    print(f"{policy}: {reason}")
    faces, held_out = read(arguments.faces, arguments.image_size)
    originals = held_out / np.float32(255)
    judge = Judge()

    names = ("image_size", "minutes", "kl", "latent_dim", "batch_size", "learning_rate", "perceptual", "seed")
    settings = {**{name: getattr(arguments, name) for name in names}, "precision": policy, "faces": len(faces)}
    path = arguments.out / "objectives.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    known = found["figures"] if found.get("settings") == settings else {}
    figures = {name: each for name, each in known.items() if each["settings"] == objective_settings(name)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows_folder = arguments.out / "objectives"
    rows_folder.mkdir(exist_ok=True)
    for name in arguments.only:
        print(f"{name}, {arguments.minutes:g} minutes", flush=True)
        vae, steps = train(name, faces, arguments, policy)
        measured, reconstructions = measure(vae, originals, judge)
        figures[name] = {**measured, "steps": steps, "settings": objective_settings(name)}
        print("  " + ", ".join(f"{key} {value:.4g}" for key, value in measured.items()), flush=True)
        pictures.save(pictures.grid(reconstructions[:SHOWN], columns=SHOWN), rows_folder / f"{name}.png")
        record: dict[str, Any] = {
            "settings": settings,
            "held_out": HELD_OUT,
            "judge": NETWORK,
            "device": f"{os.cpu_count()} CPU cores ({platform.processor() or platform.machine()})",
            "versions": {
                "keras_vae": __version__,
                **{name: version(name) for name in ("tensorflow", "keras", "torch")},
            },
            "figures": {name: figures[name] for name in OBJECTIVES if name in figures},
        }
        write_json(path, record)
        (arguments.out / "objectives.md").write_text(table(record))
        rows = [pictures.grid(originals[:SHOWN], columns=SHOWN)]
        rows += [Image.open(rows_folder / f"{known}.png") for known in record["figures"]]
        pictures.save(stacked(rows), arguments.out / "objectives.png")
    print(table(record))


def stacked(rows: list[Image.Image]) -> Image.Image:
    """Pictures of one width below each other."""
    picture = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    return picture


if __name__ == "__main__":
    main()
