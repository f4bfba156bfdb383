"""Pages of results: one HTML file with its pictures in it; first of all what `keras-vae evaluate` found."""

from __future__ import annotations

import base64
import importlib.resources
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from keras_vae._version import __version__
from keras_vae.evaluation import charts
from keras_vae.support import pictures

# Names of figures, and what to know about them.
NAMES = {
    "images": ("images", "held out from training"),
    "loss": ("loss", "as trained"),
    "elbo": ("ELBO", "nats per image; higher is better"),
    "reconstruction": ("-log p(x | z)", "nats per image"),
    "kl": ("KL", "nats per image"),
    "kl_floored": ("KL as charged", "under free bits, nats per image"),
    "perceptual": ("perceptual term", "as trained"),
    "bits_per_dim": ("bits/dim", "bound on the bits a value; lower is better"),
    "density_bits_per_dim": (
        "bits/dim of the density",
        "the density at 8-bit values: no bound, comparable only between models of this likelihood",
    ),
    "active_units": ("active latents", "whose posterior mean varies by more than 0.01"),
    "importance_samples": ("draws an image", "of the importance-weighted bound"),
    "importance_weighted_bound": ("importance-weighted bound", "on log p(x), nats per image; tighter than the ELBO"),
    "standard_error": ("its standard error", "from how images differ, nats"),
    "sampling_error": ("its sampling error", "from the draws being finitely many, nats"),
    "mean_squared_error": ("mean squared error", "of values in [0, 1]"),
    "psnr": ("PSNR", "dB"),
    "ssim": ("SSIM", "1 is the same"),
    "ms_ssim": ("MS-SSIM", "1 is the same"),
    "ms_ssim_scales": ("scales of the MS-SSIM", "five where images are large enough"),
    "sharpness": ("sharpness", "variance of the Laplacian; 1 is the originals'"),
    "feature_distance": ("feature distance", "squared, of unit features; lower is nearer"),
    "frechet_distance": ("Fréchet distance", "lower is nearer; of this feature network, not the FID"),
    "kernel_distance": ("kernel distance", "lower is nearer; of this feature network, not the KID"),
    "kernel_distance_subset": ("images of its subsets", ""),
    "kernel_distance_deviation": ("its deviation", "between subsets"),
    "fid": ("FID", "lower is nearer"),
    "kid": ("KID", "lower is nearer"),
    "kid_subset": ("images of its subsets", ""),
    "kid_deviation": ("its deviation", "between subsets"),
    "precision": (
        "precision",
        "share of them that could be held-out images; 1 is best, real ones score as training images do",
    ),
    "recall": ("recall", "share of held-out images that they cover; 1 is best, real ones score as training images do"),
    "elbo_learned_prior": ("ELBO under the learned prior", "nats per image"),
    "prior": ("prior", "where latents came from"),
    "nearest_code": (
        "distance to the nearest training code",
        "of samples, median; far below that of held-out images, they are copies",
    ),
    "nearest_code_of_held_out": ("the same of held-out images", "median, in deviations of the codes"),
    "count": ("images", ""),
    "mean_kl": ("mean KL", "nats"),
    "index_information": ("information about which image it is", "nats; at most the logarithm below"),
    "log_images": ("logarithm of the number of images", "nats"),
    "kl_from_prior": ("KL of the aggregate posterior from the prior", "nats; too large where the former two are near"),
    "gaussian_kl_from_prior": ("that of a Gaussian with its moments", "nats; at most that of the aggregate posterior"),
}
SETTINGS = (
    "data", "network", "network_options", "latent_dim", "image_size", "likelihood", "perceptual", "perceptual_layers",
    "texture_layers", "perceptual_weight", "pixel_weight", "beta", "kl_schedule", "kl_target", "free_bits",
    "batch_size", "learning_rate", "ema", "precision", "seed", "run_id",
)  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """What a report shows.

    Attributes:
        originals, reconstructions, samples: float (count, height, width, channels) in [0, 1].
        traversals: float (latents, values, height, width, channels).
        traversal_labels: one text per row.
        kl_per_latent: nats, float (latent_dim,).
    """

    originals: np.ndarray
    reconstructions: np.ndarray
    samples: np.ndarray
    traversals: np.ndarray
    traversal_labels: list[str]
    kl_per_latent: np.ndarray


def page(name: str, config: Mapping[str, Any], figures: Mapping[str, Any], shown: Pictures) -> str:
    """The report as HTML.

    Args:
        name: of the model.
        config: its run's configuration; empty where there is none.
        figures: as `evaluating.evaluate` returns them.
        shown: pictures.
    """
    return render(
        "report.html.j2",
        name=name,
        features=figures.get("features"),
        settings=_settings(config),
        options={key: value for key, value in figures["options"].items() if value is not None},
        tables=tables(figures),
        notes=figures["notes"],
        pictures={
            "Held-out images above their reconstructions": embedded(
                pictures.side_by_side(shown.originals, shown.reconstructions)
            ),
            f"Samples ({figures['samples']['prior']} prior)": embedded(pictures.grid(shown.samples)),
            "The strongest latents of the first image, each from -3 to 3": embedded(
                pictures.labelled_rows(shown.traversals, shown.traversal_labels)
            ),
            "KL of each latent, nats, in falling order": embedded(
                charts.falling(shown.kl_per_latent, "latent", "nats")
            ),
        },
    )


def render(template: str, **values: Any) -> str:
    """A page of this folder's templates, with values in it; whatever text they hold is escaped."""
    folder = importlib.resources.files("keras_vae.evaluation")
    loader = jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(version=__version__, **values)


def tables(figures: Mapping[str, Any]) -> dict[str, list[tuple[str, str, str]]]:
    """The figures by group, each with its name, its value in words, and what to know about it.

    Args:
        figures: as `evaluating.evaluate` returns them.
    """
    groups = {
        "Likelihood": {key: value for key, value in figures.items() if not isinstance(value, dict | list | str)},
        "Reconstructions": figures["reconstructions"],
        "Samples": figures["samples"],
        "Training images": figures.get("training_images", {}),
        "Latents": figures["posterior"],
    }
    return {title: [_row(*each) for each in group.items()] for title, group in groups.items() if group}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    unused = {key for key in config if key.startswith(("perceptual", "texture")) and config.get("perceptual") is None}
    return {key: config[key] for key in SETTINGS if key not in unused and config.get(key) not in (None, {}, "")}


def _row(key: str, value: Any) -> tuple[str, str, str]:
    name, meaning = NAMES.get(key, (key.replace("_", " "), ""))
    return name, shown(value), meaning


def shown(value: Any) -> str:
    """A figure with as many digits as are useful."""
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "none"
    return f"{value:.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def embedded(picture: Image.Image) -> str:
    """A picture as the address of an <img>."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
