"""Walks through the latent space: interpolation, attribute vectors, traversals. It needs only NumPy.

Everything here makes latents; any decoder, Keras's or an exported one, turns them into images.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from keras_vae.support.errors import InputError, check_count
from keras_vae.support.files import write_aside
from keras_vae.support.names import position

FORMAT_VERSION = 1
METHODS = ("linear", "spherical")
DIRECTIONS = ("mean", "linear")
PARALLEL = 1e-6  # radians: directions closer than this have no arc between them


def interpolate(one: np.ndarray, other: np.ndarray, steps: int = 10, method: str = "spherical") -> np.ndarray:
    """Latents on the path from one to the other, both included.

    Args:
        one, other: float (latent_dim,).
        steps: how many latents, at least 2.
        method: "linear", or "spherical": along the arc between their directions, with lengths interpolated as well, so
            that the path between draws from a Gaussian stays as far from its centre as they are (White 2016, arXiv
            1609.04468).

    Returns:
        float32 (steps, latent_dim).

    Raises:
        InputError: latents of different sizes, fewer than 2 steps, or an unknown method.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        raise InputError(f"latents have shapes {one.shape} and {other.shape}: give two of (latent_dim,)")
    if check_count("steps", steps) < 2:
        raise InputError(f"steps={steps}: give at least 2, the two ends")
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: choose {' or '.join(METHODS)}")
    way = np.linspace(0.0, 1.0, steps)[:, None]
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    if method == "spherical" and min(lengths) > 0:
        units = one / lengths[0], other / lengths[1]
        angle = np.arccos(np.clip(units[0] @ units[1], -1.0, 1.0))
        if PARALLEL < angle < np.pi - PARALLEL:
            arc = (np.sin((1 - way) * angle) * units[0] + np.sin(way * angle) * units[1]) / np.sin(angle)
            return (((1 - way) * lengths[0] + way * lengths[1]) * arc).astype(np.float32)
    return ((1 - way) * one + way * other).astype(np.float32)


def traverse(start: np.ndarray, latent: int, values: Sequence[float]) -> np.ndarray:
    """The same latents except one, which takes the given values in turn: float32 (len(values), latent_dim).

    Args:
        start: float (latent_dim,).
        latent: its index, counted from 0.
        values: of that latent.

    Raises:
        InputError: there is no such latent.
    """
    start = np.asarray(start, np.float32)
    if start.ndim != 1 or not 0 <= latent < len(start):
        raise InputError(f"latent {latent}: these latents have shape {start.shape}")
    found = np.repeat(start[None], len(values), axis=0)
    found[:, latent] = values
    return found


@dataclass(frozen=True)
class AttributeVectors:
    """Directions in the latent space along which attributes change (Hou et al., arXiv 1610.00291, section 4.4).

    Attributes:
        names: of the attributes.
        mean: float32 (attributes, latent_dim), the mean latents of images with the attribute minus those without.
        linear: float32 (attributes, latent_dim), the normal of a linear classifier's plane, as long as the distance of
            the two means along it: a strength of 1 goes equally far with both kinds.
        metadata: what is known about them, such as the model they were found for.
        one_class: attributes without a vector, because all or none of the images had them.

    Raises:
        InputError: arrays whose shapes do not fit together, or values that are not finite.

    Example:
        >>> vectors = AttributeVectors.load("runs/faces/vectors.npz")
        >>> smiling = decoder.decode(z + 1.5 * vectors.direction("Smiling"))
    """

    names: tuple[str, ...]
    mean: np.ndarray
    linear: np.ndarray
    metadata: dict[str, str] = field(default_factory=dict)
    one_class: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shapes = {self.mean.shape, self.linear.shape}
        if len(shapes) > 1 or self.mean.ndim != 2 or len(self.names) != len(self.mean):
            raise InputError(f"{len(self.names)} attributes with vectors of {self.mean.shape} and {self.linear.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.linear).all()):
            raise InputError("attribute vectors hold no finite numbers")

    @property
    def latent_dim(self) -> int:
        return int(self.mean.shape[1])

    def direction(self, name: str, kind: str = "mean") -> np.ndarray:
        """The vector of an attribute: float32 (latent_dim,).

        Args:
            name: of the attribute.
            kind: "mean" or "linear".

        Raises:
            InputError: there is no such attribute, or kind.
        """
        if kind not in DIRECTIONS:
            raise InputError(f"unknown direction {kind!r}: choose {' or '.join(DIRECTIONS)}")
        if name in self.one_class:
            images = self.metadata.get("images", "its")
            raise InputError(f"attribute {name!r} has images of one class only, among {images}: there is no way to it")
        return (self.mean if kind == "mean" else self.linear)[position(name, self.names)]

    def correlation(self, kind: str = "mean") -> np.ndarray:
        """Pearson's correlation of the attributes' vectors (the paper's figure 8): float64 (attributes, attributes)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.atleast_2d(np.corrcoef(self.mean if kind == "mean" else self.linear))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz file, in one piece or not at all.

        Raises:
            InputError: the path has another ending.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise InputError(f"{path}: name a file that ends in .npz")
        entries = {"format_version": FORMAT_VERSION, "names": self.names, "one_class": self.one_class}
        entries["metadata"] = self.metadata
        with write_aside(path) as aside:
            np.savez(aside, vectors=np.array(json.dumps(entries)), mean=self.mean, linear=self.linear)

    @classmethod
    def load(cls, path: str | os.PathLike[str], latent_dim: int | None = None, model: str = "") -> AttributeVectors:
        """Reads vectors from a file that `save` wrote.

        Args:
            path: the file.
            latent_dim: number of latents that the vectors must have; by default any.
            model: `VAE.fingerprint()` of the model that they must have been found for (`model` in an exported decoder's
                metadata); by default any.

        Raises:
            InputError: the file is missing, damaged, or for another model.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no attribute vectors at {path}: find them with `keras-vae attributes RUN`")
        try:
            with np.load(path, allow_pickle=False) as file:
                entries = json.loads(str(file["vectors"]))
                if entries["format_version"] != FORMAT_VERSION:
                    raise InputError(f"{path} is of version {entries['format_version']!r}: update this package")
                names, one_class = tuple(entries["names"]), tuple(entries["one_class"])
                found = cls(names, file["mean"], file["linear"], dict(entries["metadata"]), one_class)
        except InputError:
            raise
        except (OSError, KeyError, TypeError, EOFError, AttributeError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is damaged, or holds no attribute vectors: find them again") from error
        if latent_dim is not None and found.latent_dim != latent_dim:
            raise InputError(
                f"{path} has vectors of {found.latent_dim} latents, and the model {latent_dim}: give its own vectors"
            )
        found_for = found.metadata.get("model", "")
        if model and found_for and model != found_for:
            raise InputError(f"{path} was found for other weights than this model's: find the vectors again")
        return found
