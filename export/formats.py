"""The formats of exported decoders, and what one is when it is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # numpy is slow to import, and the command line's --help wants the names alone
    import numpy as np

Runner: TypeAlias = "Callable[[np.ndarray], np.ndarray]"


@dataclass(frozen=True)
class Format:
    """How decoders are written.

    Attributes:
        name: as `keras.Model.export` has it.
        place: where an export folder keeps it; a file where that has an ending, else a folder.
    """

    name: str
    place: str

    @property
    def ending(self) -> str:
        return Path(self.place).suffix


FORMATS = {
    each.name: each
    for each in (
        Format("tf_saved_model", "1"),  # TF Serving looks for folders named by version
        Format("onnx", "decoder.onnx"),
        Format("litert", "decoder.tflite"),
        Format("openvino", "decoder.xml"),
    )
}
PRECISIONS = ("float32", "float16", "int8")


@dataclass(frozen=True)
class Opened:
    """An exported decoder, ready to run.

    Attributes:
        format: its name in `FORMATS`.
        decode: from float32 (batch, latent_dim) to float32 (batch, height, width, channels), for any batch.
        latent_dim: number of latents.
        image_shape: (height, width, channels).
        metadata: what the exporter wrote into it; empty where something else wrote it.
        encode: from float32 images to float32 (batch, 2, latent_dim), means and log-variances, where it has an encoder.
    """

    format: str
    decode: Runner
    latent_dim: int
    image_shape: tuple[int, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    encode: Runner | None = None

    @property
    def precision(self) -> str:
        return self.metadata.get("precision", "float32")


def format_of(path: Path) -> str | None:
    """The name of the format that a path is of, by its ending or by what is in the folder; None for something else."""
    if path.is_dir():
        return "tf_saved_model" if (path / "saved_model.pb").is_file() else None
    return next((each.name for each in FORMATS.values() if each.ending and each.ending == path.suffix), None)
