"""Opens what the command line calls MODEL: a run, a .keras file, or an exported decoder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vae.export import latents
from keras_vae.export.conditional import beside
from keras_vae.export.formats import FORMATS, format_of, kinds, open_artifact
from keras_vae.runs.folder import CHECKPOINT_FOLDER, CONFIG_FILE, MODEL_FILE, checkpoints, is_run, read_config
from keras_vae.runs.keras_file import load_vae
from keras_vae.runs.pretrained import names
from keras_vae.support.conditions import Condition
from keras_vae.support.errors import InputError
from keras_vae.support.pixels import to_float

if TYPE_CHECKING:
    from keras_vae.model.vae import VAE

BATCH = 64
KINDS = f"a run folder (with {CONFIG_FILE}), a .keras file, {kinds()}"


@dataclass(frozen=True)
class Model:
    """A model that was opened.

    Attributes:
        path: where it was found.
        kind: "run", "keras", or the format of an exported decoder, a key of `keras_vae.export.formats.FORMATS`.
        latent_dim: number of latents.
        decoder: from latents, float32 (batch, latent_dim), to images, any batch: float32, or uint8 as an exported
            decoder may have it, for comparisons; None for a generator alone. `decode` and `generate` give float32. Of a
            conditional model it takes rows of conditions too, float32 (batch, names).
        generator: the same from standard normal noise; None for a decoder alone.
        vae: the whole model, of a run or a .keras file; None for an exported decoder.
        config: the configuration of the run that it is, or lies in; empty where there is none.
        metadata: what the exporter wrote into an exported decoder.
        condition: what images can be asked for by; None of a model without conditions.
        encoder, scorer: of a SavedModel that has them, as `keras_vae.export.formats.Opened`; else None.
    """

    path: Path
    kind: str
    latent_dim: int
    decoder: Callable[[np.ndarray], np.ndarray] | None = None
    generator: Callable[[np.ndarray], np.ndarray] | None = None
    vae: VAE | None = None
    config: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    condition: Condition | None = None
    encoder: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    scorer: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None

    @property
    def folder(self) -> Path:
        """Where things fitted to the model are kept: the run, or the folder of the file."""
        return self.path if self.kind == "run" else self.path.parent

    def decode(self, z: np.ndarray, condition: Any = None) -> np.ndarray:
        """Images of latents, float32 in [0, 1].

        Args:
            z: float32 (batch, latent_dim).
            condition: what the images are to be of, as `Condition.rows` takes it; None for images of any kind.

        Raises:
            InputError: this is a generator alone, or a condition that the model does not know.
        """
        if self.decoder is None:
            raise InputError(f"{self.path} is a generator alone, from noise to images: {self._instead('decoder')}")
        return to_float(self.decoder(z, *beside(self.condition, condition, len(z))))

    def generate(self, noise: np.ndarray, condition: Any = None) -> np.ndarray:
        """Images of standard normal noise, through the prior, float32 in [0, 1].

        Args:
            noise: float32 (batch, latent_dim).
            condition: as `decode`.

        Raises:
            InputError: this is a decoder alone, or a condition that the model does not know.
        """
        if self.generator is None:
            raise InputError(f"{self.path} is a decoder alone, and knows no prior: {self._instead('generator')}")
        return to_float(self.generator(noise, *beside(self.condition, condition, len(noise))))

    def _instead(self, part: str) -> str:
        format = FORMATS[self.kind]
        place = self.path.with_name(Path(format.place_of(part)).name)
        if format.ending and place.is_file() and place != self.path:
            return f"give {place}"
        return "give its run or .keras file, or export that again"

    def sample(
        self,
        count: int,
        seed: int | None = None,
        temperature: float = 1.0,
        standard: bool = False,
        condition: Any = None,
    ) -> np.ndarray:
        """Images of `count` draws; the same seed gives the same noise for every kind of model.

        Args:
            count: how many.
            seed: of the draw.
            temperature: the noise's standard deviation.
            standard: whether the noise itself is decoded, a standard normal's draws, and the learned prior left out.
            condition: as `decode`.
        """
        noise = temperature * latents.draw(count, self.latent_dim, seed)
        asked = beside(self.condition, condition, count)
        return in_batches(self.decode if standard else self.generate, noise, *asked)

    def whole(self, purpose: str) -> VAE:
        """The VAE, encoder and all.

        Raises:
            InputError: this is an exported decoder or generator.
        """
        if self.vae is None:
            kind = "generator" if self.decoder is None else "decoder"
            raise InputError(f"{self.path} is a {kind} alone: {purpose} needs the encoder too, of a run or .keras file")
        return self.vae


def in_batches(run: Callable[..., np.ndarray], *rows: np.ndarray) -> np.ndarray:
    """What a model makes of any number of rows, of one or more inputs, 64 at a time."""
    starts = range(0, len(rows[0]), BATCH)
    return np.concatenate([run(*(each[start : start + BATCH] for each in rows)) for start in starts])


def check_exists(path: Path, whole: bool) -> None:
    """Refuses a path where there is nothing, before any slow import.

    Args:
        path: of a MODEL.
        whole: whether it must have an encoder too.

    Raises:
        InputError: there is nothing.
    """
    if not path.exists():
        kinds = "a run folder or a .keras file" if whole else KINDS
        pretrained = f", or the name of a pretrained model: {', '.join(names())}" if names() else ""
        raise InputError(f"no model at {path}: give {kinds}{pretrained}")


def open_model(path: str | os.PathLike[str]) -> Model:
    """Opens a model of any kind.

    Raises:
        InputError: there is nothing at the path, or it is not a model.
    """
    path = Path(path)
    check_exists(path, whole=False)
    if format_of(path) is not None:
        found = open_artifact(path)
        return Model(
            path,
            found.format,
            found.latent_dim,
            found.decode,
            found.generate,
            metadata=found.metadata,
            condition=found.condition,
            encoder=found.encode,
            scorer=found.score,
        )
    if path.is_dir() and is_run(path):
        file = path / MODEL_FILE
        if not file.is_file():
            kept = checkpoints(path)
            instead = f"resume it with `keras-vae train --resume --out {path}`" + (
                f", or use {kept[-1]}" if kept else ""
            )
            raise InputError(f"{path} is a run without {MODEL_FILE}, whose training did not finish: {instead}")
        return _open_keras(file, "run", path, read_config(path))
    if path.is_file() and path.suffix == ".keras":
        run = path.parent.parent if path.parent.name == CHECKPOINT_FOLDER else path.parent
        return _open_keras(path, "keras", path, read_config(run) if is_run(run) else {})
    raise InputError(f"{path} is not a model: give {KINDS}")


def _open_keras(file: Path, kind: str, path: Path, config: dict[str, Any]) -> Model:
    import keras

    vae = load_vae(file)
    for variable, average in vae.averages():  # a checkpoint has both; the averages are what is evaluated and exported
        variable.assign(average)

    def decode(z: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        return keras.ops.convert_to_numpy(vae.decode(z, condition=condition))

    def generate(noise: np.ndarray, condition: np.ndarray | None = None) -> np.ndarray:
        return decode(vae.prior(noise, condition), condition)

    return Model(path, kind, vae.latent_dim, decode, generate, vae, config, condition=vae.condition)
