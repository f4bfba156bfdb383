"""Unusual images: one class of Fashion-MNIST is normal, the other nine are not, for each class in turn.

    python -m benchmarks.anomalies --pythae PYTHON

trains a model on a class's training images by `keras-vae train`, for the same minutes with each class, and finds how
well scores tell its test images from all others: the area under the ROC curve. Beside it, on the same pixels, are
scikit-learn's isolation forest and the reconstruction error of PCA, and with `--pythae`, the interpreter of an
environment with pythae and torch, pythae's VAE with its own convolutions, trained for as long. Writes
benchmarks/results/anomalies.json and anomalies.md; classes of an earlier call with the same settings are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from benchmarks import runners
from benchmarks.objectives import RESULTS
from keras_vae.data.tfds import builders
from keras_vae.runs.keras_file import load_vae
from keras_vae.support.files import write_json
from keras_vae.training import TrainingConfig, train

NAME = "fashion_mnist"
DRAWS = 4
SETTINGS: dict[str, Any] = {
    "network": "dfc",
    "latent_dim": 32,
    "perceptual": None,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "cosine",
}
PACKAGES = ("keras-vae", "keras", "tensorflow", "scikit-learn")
PEER = Path(__file__).parent / "peer_pythae.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="of training for each class and model")
    parser.add_argument("--classes", nargs="+", type=int, choices=range(10), default=list(range(10)), metavar="CLASS")
    parser.add_argument("--pythae", metavar="PYTHON", help="interpreter of an environment with pythae and torch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for anomalies.json and .md")
    arguments = parser.parse_args()
    builder = builders.find(NAME)
    builder.download_and_prepare()
    names = builder.info.features["label"].names
    (train_images, train_labels), (images, labels) = (
        tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, as_supervised=True)) for split in ("train", "test")
    )
    settings = {**SETTINGS, "minutes": arguments.minutes, "draws": DRAWS}
    file = arguments.out / "anomalies.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    figures = found["figures"] if found.get("settings") == settings else {}
    for each in arguments.classes:
        normal = train_images[train_labels == each]
        aurocs = figures.get(names[each], {}) | ours(normal, images, labels != each, arguments.minutes)
        aurocs |= classical(normal, images, labels != each)
        if arguments.pythae:
            aurocs |= pythae(arguments.pythae, normal, images, labels != each, arguments.minutes)
        figures[names[each]] = aurocs
        print(names[each], json.dumps(aurocs), flush=True)
        record = {
            "settings": settings,
            "device": runners.machine(),
            "versions": runners.versions(PACKAGES),
            "figures": {name: figures[name] for name in names if name in figures},
        }
        write_json(file, record)
        (arguments.out / "anomalies.md").write_text(table(record))
    print(table(record))


def ours(normal: np.ndarray, images: np.ndarray, unusual: np.ndarray, minutes: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "normal.npy", normal)
        run = Path(folder) / "run"
        train(TrainingConfig(data=str(Path(folder) / "normal.npy"), out=str(run), minutes=minutes, **SETTINGS))
        vae = load_vae(run / "model.keras")
    begun = time.perf_counter()
    usual = vae.score(normal[-(len(normal) // 10) :], draws=DRAWS)  # the last tenth is held out
    found = vae.score(images, draws=DRAWS).unusualness(usual)
    seconds = time.perf_counter() - begun
    return {**{name: roc_auc_score(unusual, values) for name, values in found.items()}, "seconds_of_scoring": seconds}


def classical(normal: np.ndarray, images: np.ndarray, unusual: np.ndarray) -> dict[str, float]:
    known, pixels = (each.reshape(len(each), -1) / 255.0 for each in (normal, images))
    forest = IsolationForest(random_state=0).fit(known)
    axes = PCA(SETTINGS["latent_dim"], random_state=0).fit(known)
    error = np.square(pixels - axes.inverse_transform(axes.transform(pixels))).mean(axis=1)
    return {
        "isolation_forest": roc_auc_score(unusual, -forest.score_samples(pixels)),
        "pca": roc_auc_score(unusual, error),
    }


def pythae(
    python: str, normal: np.ndarray, images: np.ndarray, unusual: np.ndarray, minutes: float
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.npz", Path(folder) / "made.npz"
        np.savez(given, normal=normal, images=images)
        command = [python, str(PEER), str(given), str(made), str(60.0 * minutes), str(SETTINGS["latent_dim"])]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        with np.load(made) as scores:
            return {f"pythae_{name}": roc_auc_score(unusual, scores[name]) for name in scores.files}


COLUMNS = {
    "combined": "**combined**",
    "code_distance": "code distance",
    "reconstruction_error": "reconstruction error",
    "bound": "bound",
    "isolation_forest": "isolation forest",
    "pca": "PCA",
    "pythae_reconstruction_error": "pythae, error",
    "pythae_loss": "pythae, loss",
}


def table(record: dict[str, Any]) -> str:
    figures = record["figures"]
    shown = [name for name in COLUMNS if all(name in each for each in figures.values())]
    rows = {**figures, "mean": {name: np.mean([each[name] for each in figures.values()]) for name in shown}}
    lines = [
        f"{record['device']}; {record['settings']['minutes']:g} min of training each. Area under the ROC curve, one "
        "class of Fashion-MNIST normal, the nine others unusual, 10,000 test images:",
        "",
        f"| normal class | {' | '.join(COLUMNS[name] for name in shown)} |",
        "|---" * (1 + len(shown)) + "|",
        *(f"| {name} | {' | '.join(f'{each[column]:.3f}' for column in shown)} |" for name, each in rows.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
