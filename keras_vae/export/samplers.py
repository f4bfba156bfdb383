"""Where latents come from besides the prior: densities fitted to encoded images, drawn from with numpy alone.

A sampler travels beside a decoder, as an .npz file of its own (`load`). It is fitted by
`keras_vae.evaluation.samplers`, or made of arrays by anyone.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from keras_vae.export import latents
from keras_vae.export.errors import ExportError

FORMAT_VERSION = 1
ENDING = ".npz"


class Sampler(Protocol):
    """Draws latents."""

    kind: ClassVar[str]

    @property
    def latent_dim(self) -> int:
        """How many latents it draws."""

    @property
    def metadata(self) -> dict[str, str]:
        """What is known about it."""

    def draw(self, count: int, seed: int | None = None) -> np.ndarray:
        """Latents, float32 (count, latent_dim): the same for the same seed.

        Raises:
            ExportError: a count below 1, or a seed below 0.
        """

    def arrays(self) -> dict[str, np.ndarray]:
        """What its file holds."""


@dataclass(frozen=True)
class Prior:
    """The standard normal that a VAE is trained towards."""

    kind: ClassVar[str] = "prior"
    latent_dim: int
    metadata: dict[str, str] = field(default_factory=dict)

    def draw(self, count: int, seed: int | None = None) -> np.ndarray:
        """Latents, as `Sampler.draw`."""
        return latents.draw(count, self.latent_dim, seed)

    def arrays(self) -> dict[str, np.ndarray]:
        """What its file holds, as `Sampler.arrays`."""
        return {}


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of Gaussians with full covariances (Ghosh et al. 2020, arXiv 1903.12436, section 4).

    Args:
        weights: float (components,), that add up to 1.
        means: float (components, latent_dim).
        factors: float (components, latent_dim, latent_dim), of each covariance its lower Cholesky factor.
        metadata: what is known about it.

    Raises:
        ExportError: arrays of shapes that do not fit together, or no numbers.
    """

    kind: ClassVar[str] = "gmm"
    weights: np.ndarray
    means: np.ndarray
    factors: np.ndarray
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        components, latent_dim = self.means.shape if self.means.ndim == 2 else (0, 0)
        fits = self.weights.shape == (components,) and self.factors.shape == (components, latent_dim, latent_dim)
        if not (components and latent_dim and fits):
            raise ExportError("a mixture needs weights (k,), means (k, latents) and factors (k, latents, latents)")
        _check_finite(self.arrays())
        if (self.weights < 0).any() or abs(float(self.weights.sum()) - 1.0) > 1e-3:
            raise ExportError("a mixture's weights are from 0 on, and add up to 1")

    @property
    def latent_dim(self) -> int:
        return int(self.means.shape[1])

    def draw(self, count: int, seed: int | None = None) -> np.ndarray:
        """Latents, as `Sampler.draw`."""
        rng = _rng(count, seed)
        weights = self.weights.astype(np.float64)
        chosen = rng.choice(len(weights), size=count, p=weights / weights.sum())
        noise = rng.standard_normal((count, self.latent_dim))
        drawn = np.empty((count, self.latent_dim))
        for component in np.unique(chosen):
            rows = chosen == component
            drawn[rows] = self.means[component] + noise[rows] @ self.factors[component].T
        return drawn.astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """What its file holds, as `Sampler.arrays`."""
        return {"weights": self.weights, "means": self.means, "factors": self.factors}


@dataclass(frozen=True)
class SecondStage:
    """The decoder of a second VAE, whose images are the first one's latents (Dai and Wipf 2019, arXiv 1903.05789).

    A draw u of its own prior goes through dense layers, each a ReLU but the last, which sees u once more. What comes
    out is the mean of a Gaussian with one standard deviation for all; latents are drawn from it.

    Args:
        kernels, biases: of the dense layers, (inputs, outputs) and (outputs,).
        deviation: of that Gaussian, in standardized latents.
        shift, scale: float (latent_dim,), from standardized latents to latents.
        metadata: what is known about it.

    Raises:
        ExportError: arrays of shapes that do not fit together, or no numbers.
    """

    kind: ClassVar[str] = "second-stage"
    kernels: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    deviation: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = [kernel.shape for kernel in self.kernels]
        if len(sizes) < 2 or len(self.biases) != len(sizes) or any(len(size) != 2 for size in sizes):
            raise ExportError("a second stage needs at least two dense layers, each of a kernel and a bias")
        width = sizes[0][0]
        given = [width, *(size[1] for size in sizes[:-2]), sizes[-2][1] + width]
        fits = all(size[0] == inputs for size, inputs in zip(sizes, given, strict=True))
        fits = fits and all(bias.shape == (size[1],) for bias, size in zip(self.biases, sizes, strict=True))
        if not fits or self.shift.shape != (sizes[-1][1],) or self.scale.shape != self.shift.shape:
            raise ExportError("the layers of a second stage do not fit together")
        _check_finite(self.arrays())

    @property
    def latent_dim(self) -> int:
        return int(self.shift.shape[0])

    def draw(self, count: int, seed: int | None = None) -> np.ndarray:
        """Latents, as `Sampler.draw`."""
        rng = _rng(count, seed)
        first = rng.standard_normal((count, self.kernels[0].shape[0]), np.float32)
        hidden = first
        for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
            hidden = np.maximum(hidden @ kernel + bias, 0.0)
        mean = np.concatenate([hidden, first], axis=1) @ self.kernels[-1] + self.biases[-1]
        drawn = mean + self.deviation * rng.standard_normal(mean.shape, np.float32)
        return (self.shift + self.scale * drawn).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """What its file holds, as `Sampler.arrays`."""
        layers = {f"kernel_{number}": kernel for number, kernel in enumerate(self.kernels)}
        layers |= {f"bias_{number}": bias for number, bias in enumerate(self.biases)}
        return {**layers, "deviation": self.deviation, "shift": self.shift, "scale": self.scale}


KINDS = (Prior.kind, GaussianMixture.kind, SecondStage.kind)


def save(sampler: Sampler, path: str | os.PathLike[str]) -> None:
    """Writes a sampler's file.

    Args:
        sampler: to write.
        path: ending in .npz.
    """
    entries = {"format_version": FORMAT_VERSION, "kind": sampler.kind, "metadata": sampler.metadata}
    with Path(path).open("wb") as file:
        np.savez(file, sampler=np.array(json.dumps(entries)), **sampler.arrays())  # type: ignore[arg-type]


def load(path: str | os.PathLike[str], latent_dim: int | None = None, model: str = "") -> Sampler:
    """A sampler from its file.

    Args:
        path: of the .npz file.
        latent_dim: how many latents the decoder takes, where that is to be checked.
        model: the entry of that name in the decoder's metadata, where that is to be checked: a sampler belongs to the
            weights it was fitted for.

    Raises:
        ExportError: the file is missing, damaged, no sampler, or one for another decoder.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(
            f"no sampler at {path}: fit one with `keras-vae sample RUN --sampler gmm`, and export the run"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        entries = json.loads(str(arrays.pop("sampler")))
        version, kind, metadata = entries["format_version"], entries["kind"], dict(entries["metadata"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ExportError(f"{path} is damaged, or no sampler: fit it again") from error
    if version != FORMAT_VERSION:
        raise ExportError(f"{path} is of version {version!r}, and this package reads {FORMAT_VERSION}: update it")
    try:
        sampler = _sampler(kind, arrays, metadata)
    except (KeyError, ExportError) as error:
        raise ExportError(f"{path} is no sampler of kind {kind!r}: fit it again ({error})") from error
    if latent_dim is not None and sampler.latent_dim != latent_dim:
        raise ExportError(
            f"{path} draws {sampler.latent_dim} latents, and the decoder takes {latent_dim}: give the sampler that was "
            "fitted for it"
        )
    fitted_for = metadata.get("model", "")
    if model and fitted_for and model != fitted_for:
        raise ExportError(
            f"{path} was fitted for other weights than this model's: fit it again, and export it with the model"
        )
    return sampler


def _sampler(kind: str, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> Any:
    if kind == GaussianMixture.kind:
        return GaussianMixture(arrays["weights"], arrays["means"], arrays["factors"], metadata)
    if kind == SecondStage.kind:
        layers = sum(name.startswith("kernel_") for name in arrays)
        return SecondStage(
            tuple(arrays[f"kernel_{number}"] for number in range(layers)),
            tuple(arrays[f"bias_{number}"] for number in range(layers)),
            arrays["deviation"],
            arrays["shift"],
            arrays["scale"],
            metadata,
        )
    raise ExportError(f"known are {', '.join(KINDS[1:])}")


def _rng(count: int, seed: int | None) -> np.random.Generator:
    latents.draw(count, 1, seed)  # says what is wrong with either
    return np.random.default_rng(seed)


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise ExportError(f"{name} holds no finite numbers")
