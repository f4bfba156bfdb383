"""What `keras-vae compare` does: runs side by side, in settings, figures and pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from keras_vae.evaluation.evaluating import FIGURES, FOLDER
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.runs.folder import is_run, read_metrics
from keras_vae.runs.opening import BATCH, Model, open_model
from keras_vae.runs.run_images import data_of
from keras_vae.support import pictures
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_output_file
from keras_vae.support.pixels import to_uint8
from keras_vae.support.true_float32 import true_float32

COUNT_AT_MOST = 100
# These describe the run itself, and not how it trains.
NO_SETTINGS = ("out", "run_id", "resume", "checkpoint_minutes", "checkpoints_kept", "versions", "skipped")
# Figures of `evaluate`, in this order; those that a run does not have are left out.
FIGURES_SHOWN = {
    "": (
        "elbo",
        "kl",
        "reconstruction",
        "bits_per_dim",
        "density_bits_per_dim",
        "importance_weighted_bound",
        "active_units",
    ),
    "reconstructions": ("psnr", "ssim", "ms_ssim", "sharpness", "feature_distance", "frechet_distance", "fid"),
    "samples": ("frechet_distance", "fid", "kernel_distance", "kid", "precision", "recall"),
    "posterior": ("kl_from_prior", "gaussian_kl_from_prior"),
}


@true_float32(device=None)
def compare(runs: Sequence[Path], source: str | None, out: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """Compares runs.

    Writes a picture: held-out images, a row with each run's reconstructions of them, and below a row with each run's
    samples for the same seed. Every run gets the images in its own size.

    Args:
        runs: two or more run folders.
        source: images; by default what the first run was trained on.
        out: path of the picture.
        count: images in a row.
        seed: of the samples.

    Returns:
        `settings` that differ, and `figures`, each by name and run; `picture`.

    Raises:
        InputError: fewer than two runs, a path that is not a run, unusable data, or a picture that cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    if not 1 <= count <= COUNT_AT_MOST:
        raise InputError(f"--count {count}: give 1 to {COUNT_AT_MOST}")
    if len(runs) < 2:
        raise InputError("there is one run: give two or more to compare")
    if len({run.resolve() for run in runs}) < len(runs):
        raise InputError("a run is given twice: give others to compare it with")
    for run in runs:
        if not is_run(run):
            raise InputError(f"{run} is not a run: give folders that `keras-vae train` wrote")
    models = [open_model(run) for run in runs]
    names = _names(runs)
    figures: dict[str, dict[str, Any]] = {}
    rows: list[np.ndarray] = []
    samples: list[np.ndarray] = []
    originals: np.ndarray | None = None
    evaluated: list[Any] = []
    source = source or models[0].config.get("data")
    for name, model in zip(names, models, strict=True):
        vae = model.whole("comparing")
        held_out = data_of(model, vae, source, batch_size=1, only_held_out=True).test.take(count)
        images = np.concatenate(list(held_out.as_numpy_iterator()))
        made = vae.predict(images, batch_size=BATCH, verbose=0)
        for figure, value in _figures(model).items():
            figures.setdefault(figure, {})[name] = value
        figures.setdefault(f"PSNR of these {len(images)}, dB", {})[name] = psnr(images, made)
        figures.setdefault(f"sharpness of these {len(images)}", {})[name] = sharpness_ratio(images, made)
        evaluated.append(_measured_with(model))
        originals = images if originals is None or images.shape[1] > originals.shape[1] else originals
        rows.append(made)
        samples.append(model.sample(len(images), seed))
    assert originals is not None
    if any(options != evaluated[0] for options in evaluated if options and evaluated[0]):
        print(
            "the runs were evaluated on other images, or in other ways: their figures do not compare", file=sys.stderr
        )
    shape = originals.shape[1:3]
    shown = [originals, *rows, *samples]
    picture = pictures.labelled_rows(
        np.stack([_enlarged(each, shape) for each in shown]),
        ["images", *names, *(f"{name}, samples" for name in names)],
    )
    pictures.save(picture, out)
    return {"settings": _differences(names, models), "figures": figures, "picture": str(out)}


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths if two names are equal."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _differences(names: Sequence[str], models: Sequence[Model]) -> dict[str, dict[str, Any]]:
    keys = dict.fromkeys(key for model in models for key in model.config if key not in NO_SETTINGS)
    found = {key: [model.config.get(key) for model in models] for key in keys}
    return {
        key: dict(zip(names, values, strict=True))
        for key, values in found.items()
        if any(value != values[0] for value in values)
    }


def _figures(model: Model) -> dict[str, Any]:
    """What `evaluate` found, or else the last figures of training."""
    file = model.path / FOLDER / FIGURES
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        print(
            f"{model.path} has not been evaluated: its figures are training's last (keras-vae evaluate {model.path})",
            file=sys.stderr,
        )
        last: dict[str, Any] = {}
        for line in read_metrics(model.path):
            last = line if "val_elbo" in line else last
        return {name.removeprefix("val_"): value for name, value in last.items() if name.startswith("val_")}
    if found.get("model") != model.whole("comparing").fingerprint():
        print(
            f"{model.path} has been trained since it was evaluated: run keras-vae evaluate {model.path}",
            file=sys.stderr,
        )
    shown = {"images": found.get("images")}
    for group, keys in FIGURES_SHOWN.items():
        values = found.get(group, {}) if group else found
        label = f"{group}: " if group else ""
        shown |= {f"{label}{key}": values[key] for key in keys if values.get(key) is not None}
    return shown


def _measured_with(model: Model) -> Any:
    """The options that a run was evaluated with; None if it was not."""
    try:
        return json.loads((model.path / FOLDER / FIGURES).read_text()).get("options")
    except (OSError, ValueError):
        return None


def _enlarged(images: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Images enlarged to a shape, in colour."""
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    if images.shape[1:3] == shape:
        return images
    pixels = (Image.fromarray(each) for each in to_uint8(images))
    resized = [each.resize(shape[::-1], Image.Resampling.BICUBIC) for each in pixels]
    return np.stack([np.asarray(each, np.float32) / 255.0 for each in resized])
