"""Conditional models of Fashion-MNIST: are samples of the class that was asked for, and as good as real images?

    python -m benchmarks.conditions

trains models by `keras-vae train`, with `--condition label` and without, for the same minutes each. A classifier that
is trained on real images says of how many samples the class is the one that was asked for; another one, trained on
samples alone, is tried on real test images; and each class's samples are compared with its test images by their Fréchet
distance. The unconditional model's samples are of the class that the first classifier sees in them. Writes
benchmarks/results/conditions.json, conditions.md and conditions.png, samples of each case.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow_datasets as tfds

from benchmarks import runners
from benchmarks.objectives import RESULTS, stacked
from keras_vae.data.tfds import builders
from keras_vae.evaluation.distances import Moments, frechet_distance
from keras_vae.features import judges
from keras_vae.runs.keras_file import load_vae
from keras_vae.support import pictures
from keras_vae.support.files import write_json
from keras_vae.support.true_float32 import true_float32

NAME = "fashion_mnist"
PACKAGES = ("keras-vae", "keras", "tensorflow")
BATCH = 500
COMPARED = 1_000  # images of each class, real ones and samples
LEARNED_FROM = 3_000  # samples of each class for the classifier that sees nothing else
EPOCHS = 4
SHOWN = 12
# Options of `keras-vae train` beside the data, the minutes and the run folder.
CASES = {
    "conditional": "--network dfc --condition label",
    "unconditional": "--network dfc",
}
COLUMNS = {
    "asked_for": ("samples of the class asked for", "{:.1%}"),
    "learned_from": ("real images right, learned from samples", "{:.1%}"),
    "frechet_of_classes": ("Fréchet distance of each class, mean", "{:.1f}"),
    "steps": ("steps", "{:,}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training for each case")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="CASE")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for conditions.json, .md and .png")
    arguments = parser.parse_args()
    builder = builders.find(NAME)
    builder.download_and_prepare()
    names = builder.info.features["label"].names
    (train_images, train_labels), test = (
        tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, as_supervised=True)) for split in ("train", "test")
    )
    teacher = classifier(train_images, train_labels)
    real = float((classes(teacher, test[0]) == test[1]).mean())
    print(f"a classifier trained on real images: {real:.1%} of test images right", flush=True)
    judge = judges.load()
    truth = {each: features(judge, test[0][test[1] == each][:COMPARED]) for each in range(10)}
    settings = {"minutes": arguments.minutes, "compared": COMPARED, "learned_from": LEARNED_FROM, "classifier": real}
    file = arguments.out / "conditions.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    figures = found["figures"] if found.get("settings", {}).get("minutes") == arguments.minutes else {}
    rows = arguments.out / "conditions"
    rows.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            run = Path(folder) / name.replace(" ", "_")
            trained = train(CASES[name], run, arguments.minutes)
            figures[name], picture = judged(run / "model.keras", teacher, test, judge, truth)
            figures[name]["steps"] = trained["steps"]
            print(name, json.dumps(figures[name]), flush=True)
            pictures.save(picture, rows / runners.picture(name))
            record = {
                "settings": settings,
                "judge": judges.DEFAULT,
                "classes": names,
                "device": runners.machine(),
                "versions": runners.versions(PACKAGES),
                "figures": {each: figures[each] for each in CASES if each in figures},
            }
            write_json(file, record)
            (arguments.out / "conditions.md").write_text(table(record))
            known: list[Any] = [pictures.Image.open(rows / runners.picture(each)) for each in record["figures"]]
            pictures.save(stacked(known), arguments.out / "conditions.png")
    print(table(record))


def train(options: str, run: Path, minutes: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "keras_vae.cli", "train", "--data", f"tfds:{NAME}", "--out", str(run), "--json"]
    command += ["--minutes", str(minutes), *shlex.split(options)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def classifier(images: np.ndarray, labels: np.ndarray) -> keras.Model:
    """Three convolutions, trained on images, uint8 or floats in [0, 1], and labels."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Conv2D(32, 3, 2, "same", activation="relu"),
            layers.Conv2D(64, 3, 2, "same", activation="relu"),
            layers.Conv2D(128, 3, 2, "same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(_floats(images), labels, 64, EPOCHS, verbose=0)
    return model


def classes(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """The most probable class of each image."""
    return model.predict(_floats(images), BATCH, verbose=0).argmax(axis=1)


@true_float32(device=None)
def judged(
    model: Path,
    teacher: keras.Model,
    test: tuple[np.ndarray, np.ndarray],
    judge: judges.Judge,
    truth: dict[int, np.ndarray],
) -> tuple[dict[str, Any], pictures.Image.Image]:
    """Figures of a model's samples, and a picture of some: twelve of each class.

    Args:
        model: the .keras file.
        teacher: the classifier trained on real images.
        test: images and labels.
        judge: the feature network.
        truth: its features of test images, by class.
    """
    vae, (images, labels) = load_vae(model), test
    count = LEARNED_FROM
    found: dict[str, Any] = {}
    if vae.condition is not None:
        wanted = np.repeat(np.arange(10), count)
        samples = drawn(vae, len(wanted), wanted)
        found["asked_for"] = float((classes(teacher, samples) == wanted).mean())
        found["learned_from"] = float((classes(classifier(samples, wanted), images) == labels).mean())
    else:
        samples = drawn(vae, 10 * count, None)
        wanted = classes(teacher, samples)
    made = {each: features(judge, samples[wanted == each][:COMPARED]) for each in np.unique(wanted)}
    # Of as many images on both sides: an unconditional model may draw few of a class.
    each = {
        str(number): frechet_distance(Moments.of(made[number]), Moments.of(truth[number]))
        for number in made
        if len(made[number]) == COMPARED
    }
    found["frechet_of_each_class"] = each
    found["frechet_of_classes"] = float(np.mean(list(each.values())))
    shown = np.concatenate([samples[wanted == number][:SHOWN] for number in range(10)])
    return found, pictures.grid(shown, SHOWN)


@true_float32(device=None)
def features(judge: judges.Judge, images: np.ndarray) -> np.ndarray:
    """The judge's features of images, float32 (count, channels)."""
    floats = _floats(images)
    return np.concatenate([judge.pooled(floats[start : start + BATCH]) for start in range(0, len(floats), BATCH)])


def drawn(vae: keras.Model, count: int, wanted: np.ndarray | None) -> np.ndarray:
    parts = (slice(start, start + BATCH) for start in range(0, count, BATCH))
    made = (
        vae.sample(BATCH, seed=part.start, condition=None if wanted is None else wanted[part].tolist())
        for part in parts
    )
    return np.concatenate([keras.ops.convert_to_numpy(each) for each in made])


def table(record: dict[str, Any]) -> str:
    """The figures as Markdown."""
    settings = record["settings"]
    lines = [
        f"{record['device']}; {settings['minutes']:g} minutes of training on Fashion-MNIST; Fréchet distances by "
        f"{record['judge']}, {COMPARED:,} samples of each class to as many test images. The classifier that judges is "
        f"right on {settings['classifier']:.1%} of the test images.",
        "",
        *runners.rows(record["figures"], COLUMNS),
    ]
    lines += ["", f"| class | {' | '.join(record['figures'])} |", "|---" * (1 + len(record["figures"])) + "|"]
    for number, name in enumerate(record["classes"]):
        of_each = [figures["frechet_of_each_class"].get(str(number)) for figures in record["figures"].values()]
        lines.append(f"| {name} | {' | '.join('' if each is None else f'{each:.1f}' for each in of_each)} |")
    return "\n".join(lines) + "\n"


def _floats(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / (255.0 if images.dtype == np.uint8 else 1.0)


if __name__ == "__main__":
    main()
