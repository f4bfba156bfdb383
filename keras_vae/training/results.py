"""What a finished run shows: final figures, pictures, skipped images, and what to watch out for."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from PIL import Image

from keras_vae.data.image_batches import unpack
from keras_vae.evaluation.fidelity import psnr, sharpness_ratio
from keras_vae.model.conditioning import labels_of
from keras_vae.runs.folder import read_config, read_metrics
from keras_vae.support import pictures
from keras_vae.support.files import write_aside
from keras_vae.support.true_float32 import true_float32

if TYPE_CHECKING:
    from keras_vae import data
    from keras_vae.model.vae import VAE
    from keras_vae.training.clock import Progress
    from keras_vae.training.config import TrainingConfig

SKIPPED_FILE = "skipped.csv"
RECONSTRUCTIONS_FILE = "reconstructions.png"
SAMPLES_FILE = "samples.png"
MEASURED = 1024  # held-out images on which the final figures are measured
RECONSTRUCTED = 24  # of them in the picture of reconstructions
SAMPLED = 64  # images in the picture of samples
A_CONDITION = 12  # in each of its rows, of a conditional model


class Examples(NamedTuple):
    """Held-out images, float32 (count, height, width, channels), and their conditions, or None."""

    images: np.ndarray
    condition: np.ndarray | None

    def part(self, start: int, end: int) -> Examples:
        """Those from one to another."""
        return Examples(self.images[start:end], None if self.condition is None else self.condition[start:end])


def examples_of(images: data.ImageData) -> Examples:
    """The first 1,024 held-out images, or all if there are fewer."""
    batches, conditions = [], []
    for batch in images.test.as_numpy_iterator():
        batches.append(unpack(batch))
        conditions.append(labels_of(batch))
        if sum(map(len, batches)) >= MEASURED:
            break
    known = None if images.condition is None else np.concatenate(conditions)
    return Examples(np.concatenate(batches), known).part(0, MEASURED)


def samples_picture(vae: VAE, count: int, seed: int, columns: int | None = None) -> Image.Image:
    """Samples; of a conditional model a row for each class or attribute, of the same noise."""
    if vae.condition is None:
        return pictures.grid(keras.ops.convert_to_numpy(vae.sample(count, seed)), columns)

    def draw(condition: np.ndarray) -> np.ndarray:
        return keras.ops.convert_to_numpy(vae.sample(len(condition), seed, condition=condition))

    return pictures.by_condition(draw, vae.condition, A_CONDITION)


@true_float32(device=None)
def figures(
    vae: VAE, images: data.ImageData, examples: Examples, progress: Progress, config: TrainingConfig
) -> dict[str, Any]:
    """Measures reconstructions and draws the final pictures.

    Args:
        vae: the trained model.
        images: the data of the run.
        examples: held-out images.
        progress: the run's clock.
        config: its configuration.

    Returns:
        The figures that `train` returns, less `skipped`.

    Raises:
        OSError: a picture cannot be written.
    """
    out = Path(config.out)
    # Not `predict`, in which all the workers would have to take part.
    originals, size = examples.images, config.batch_size
    parts = (examples.part(start, start + size) for start in range(0, len(originals), size))
    reconstructions = np.concatenate(
        [keras.ops.convert_to_numpy(vae(each.images, training=False, condition=each.condition)) for each in parts]
    )
    written = [out / "samples" / RECONSTRUCTIONS_FILE, out / "samples" / SAMPLES_FILE]
    pictures.save(pictures.side_by_side(originals[:RECONSTRUCTED], reconstructions[:RECONSTRUCTED]), written[0])
    pictures.save(samples_picture(vae, SAMPLED, config.seed), written[1])
    return {
        "run": str(out),
        "pictures": [str(path) for path in written],
        "run_id": read_config(out)["run_id"],
        "steps": progress.steps,
        "epochs": progress.epochs_begun,
        "minutes": round(progress.seconds / 60, 2),
        "images_per_second": round(progress.images_per_second, 1),
        "precision": vae.dtype_policy.name,
        "train_images": images.train_size,
        "test_images": images.test_size,
        **progress.logs,
        "psnr": psnr(originals, reconstructions),
        "sharpness": sharpness_ratio(originals, reconstructions),
    }


def report_skips(images: data.ImageData, out: Path) -> None:
    """Prints how many images were skipped, if any, and writes `skipped.csv` with their names and reasons."""
    if len(images.skips):
        with write_aside(out / SKIPPED_FILE) as aside:
            images.skips.write(aside)
        print(f"{images.skips.summary()} ({out / SKIPPED_FILE})", file=sys.stderr)


def warn(config: TrainingConfig, progress: Progress) -> None:
    """Warns of overfitting, a KL off its target, and averages of too few steps, on standard error."""
    for warning in (_overfitting(config), _off_target(config, progress), _little_averaged(config, progress)):
        if warning is not None:
            print(warning, file=sys.stderr)


def _overfitting(config: TrainingConfig) -> str | None:
    """A warning where most of what training gains is of no use for other images.

    That is where the ELBO of held-out images has risen by less than half as much as that of training images, from the
    second quarter of the epochs to the last, and the two are further apart than the held-out KL.
    """
    epochs = [line for line in read_metrics(Path(config.out)) if "val_elbo" in line]
    quarter = len(epochs) // 4
    if not quarter:
        return None
    train, held_out = (np.array([each[name] for each in epochs]) for name in ("elbo", "val_elbo"))
    gained, theirs = (each[-quarter:].mean() - each[quarter : 2 * quarter].mean() for each in (train, held_out))
    if theirs >= gained / 2 or train[-1] - held_out[-1] < epochs[-1]["val_kl"]:
        return None
    best = int(held_out.argmax())
    sooner, flip = "", "" if config.flip else ", --flip"
    if best < len(epochs) - quarter:
        sooner = f", fewer minutes: epoch {epochs[best]['epoch']} of {epochs[-1]['epoch']} was best"
    return (
        f"overfitting: the ELBO is {train[-1]:,.0f} nats on training images and {held_out[-1]:,.0f} on held-out ones, "
        f"which gained less than half as much lately. What helps is more images{flip}{sooner}"
    )


def _off_target(config: TrainingConfig, progress: Progress) -> str | None:
    reached = progress.logs.get("val_kl", math.nan)
    if config.kl_target is None or not abs(reached / config.kl_target - 1) > 0.1:
        return None
    return f"the held-out KL is {reached:.0f} nats, not {config.kl_target:g}: train longer, or start at another beta"


def _little_averaged(config: TrainingConfig, progress: Progress) -> str | None:
    # Keras's averages begin with the first step's weights.
    if config.ema is None or not config.ema**progress.steps > 0.05:
        return None
    return (
        f"ema {config.ema:g} is too high for {progress.steps} steps: {config.ema**progress.steps:.0%} of the averages "
        "are the first step's weights; train longer, or average less"
    )
