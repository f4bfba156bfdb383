"""The formats of exported decoders, and what one is when it is open. A new one is a line in `FORMATS`."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from keras_vae.export.errors import ExportError

if TYPE_CHECKING:  # numpy is slow to import, and the command line's --help wants the names alone
    import numpy as np

    from keras_vae.support.conditions import Condition

Runner: TypeAlias = Callable[..., "np.ndarray"]  # of rows: latents or noise, and of conditional models conditions
# A function, or where it is, "module:function": what a format takes is imported when it is used, not before.
Function: TypeAlias = Callable[..., Any] | str


@dataclass(frozen=True)
class Format:
    """How decoders are written and opened.

    Attributes:
        name: as `keras.Model.export` has it.
        place: where an export folder keeps it; a file where that has an ending, which no other format has, else a
            folder named by a version, as TF Serving looks for.
        writer: `write(decoder, path, metadata, prior=None)`. `decoder` is a Keras model that computes in float32, from
            z, and of a conditional model conditions, to images, float32 or uint8; `path` is free; `metadata` is text by
            name, to be kept in the artifact and given back. With a `prior`, a Keras layer from noise, and conditions,
            to z, the artifact is the generator, of both (`keras_vae.export.generator.compose`).
        opener: `open_decoder(path)`, which gives an `Opened`, or raises `ExportError` for what is damaged or neither
            decoder nor generator.
        library: raises `MissingRuntimeError` where what the format needs is not installed; None where it needs nothing
            but what this package does.
        precisions: what it can compute in; for others than float32 `writer` takes `precision`, and for "int8" also
            `calibration`, a tuple of what decoders take: latents (count, latent_dim), and conditions.
        holds_all: whether one artifact is decoder and generator, and `writer` takes `encoder` too, a Keras model from
            images to mean and log-variance, or None, and `scorer`, a function of images, or None.
        companion: the ending of a second file that is written beside the first one; empty for none.
        marker: the file by which a folder is told to be of this format.
    """

    name: str
    place: str
    writer: Function
    opener: Function
    library: Function | None = None
    precisions: tuple[str, ...] = ("float32",)
    holds_all: bool = False
    companion: str = ""
    marker: str = ""

    @property
    def ending(self) -> str:
        return Path(self.place).suffix

    def place_of(self, part: str) -> str:
        """Where an export folder keeps a part, one of `PARTS`: all in one place where one artifact is both."""
        return self.place if self.holds_all else str(Path(self.place).with_stem(part))

    def write(self, *arguments: Any, **options: Any) -> None:
        """Calls the writer."""
        _resolved(self.writer)(*arguments, **options)

    def open(self, path: Path) -> Opened:
        """Calls the opener."""
        return _resolved(self.opener)(path)

    def check_library(self) -> None:
        """Raises `MissingRuntimeError` where the format's own package is not installed."""
        if self.library is not None:
            _resolved(self.library)()


def _resolved(function: Function) -> Callable[..., Any]:
    return pkgutil.resolve_name(function) if isinstance(function, str) else function


PARTS = ("decoder", "generator")
LATENTS, NOISE = "z", "noise"  # what the one takes, and what the other
CONDITION = "condition"  # and what both take besides, of conditional models
TAKEN = tuple((first, *others) for first in (LATENTS, NOISE) for others in ((), (CONDITION,)))
PRECISIONS = ("float32", "float16", "int8")
OUTPUTS = ("float32", "uint8")  # what images are: values in [0, 1], or levels 0..255
FORMATS = {
    each.name: each
    for each in (
        Format(
            "tf_saved_model",
            "1",
            "keras_vae.export.writers.saved_model:write",
            "keras_vae.export.writers.saved_model:open_decoder",
            holds_all=True,
            marker="saved_model.pb",
        ),
        Format(
            "onnx",
            "decoder.onnx",
            "keras_vae.export.writers.onnx:write",
            "keras_vae.export.runtime:open_decoder",
            precisions=PRECISIONS,
        ),
        Format(
            "litert",
            "decoder.tflite",
            "keras_vae.export.writers.litert:write",
            "keras_vae.export.writers.litert:open_decoder",
            "keras_vae.export.writers.litert:library",
        ),
        Format(
            "openvino",
            "decoder.xml",
            "keras_vae.export.writers.openvino:write",
            "keras_vae.export.writers.openvino:open_decoder",
            "keras_vae.export.writers.openvino:library",
            companion=".bin",
        ),
    )
}


@dataclass(frozen=True)
class Opened:
    """An exported decoder or generator, ready to run.

    Attributes:
        format: its name in `FORMATS`.
        latent_dim: number of latents.
        image_shape: (height, width, channels).
        decode: from latents, float32 (batch, latent_dim), to images (batch, height, width, channels) of the type
            `output`, for any batch; None of a generator alone. With a condition it takes rows of it too, float32
            (batch, names).
        generate: the same from standard normal noise; None of a decoder alone.
        encode: from float32 images to `mean` and `log_var`, float32 (batch, latent_dim), where it has an encoder.
        score: from float32 images to `score`, `rank`, `error_map` and `reconstruction`, where it has a scorer.
        metadata: what the exporter wrote into it; empty where something else wrote it.
        condition: what images can be asked for by; None of a model without conditions.
    """

    format: str
    latent_dim: int
    image_shape: tuple[int, ...]
    decode: Runner | None = None
    generate: Runner | None = None
    encode: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    score: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    condition: Condition | None = None

    @classmethod
    def of(
        cls,
        format: str,
        given: str,
        run: Runner,
        latent_dim: int,
        image_shape: tuple[int, ...],
        metadata: dict[str, str],
        condition: Condition | None = None,
    ) -> Opened:
        """What is one of both: a generator where it takes noise, else a decoder.

        Args:
            given: the first input's name.
            run: the decoder or generator; the rest as the attributes.
        """
        parts = {"generate" if given == NOISE else "decode": run}
        return cls(
            format,
            latent_dim,
            image_shape,
            parts.get("decode"),
            parts.get("generate"),
            metadata=metadata,
            condition=condition,
        )

    @property
    def precision(self) -> str:
        return self.metadata.get("precision", "float32")

    @property
    def output(self) -> str:
        """What its images are, one of `OUTPUTS`."""
        return self.metadata.get("output", "float32")


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of inputs, which some formats sort by the alphabet, as in `TAKEN`: the condition last."""
    return tuple(sorted(names, key=lambda name: name == CONDITION))


def check_output(output: str) -> None:
    """Raises ExportError for what images cannot be."""
    if output not in OUTPUTS:
        raise ExportError(f"unknown output {output!r}: choose float32, for values in [0, 1], or uint8, for 0..255")


def format_of(path: Path) -> str | None:
    """The name of the format that a path is of, by its ending or by what is in the folder; None for something else."""
    if path.is_dir():
        return next((each.name for each in FORMATS.values() if each.marker and (path / each.marker).is_file()), None)
    return next((each.name for each in FORMATS.values() if each.ending and each.ending == path.suffix), None)


def kinds() -> str:
    """What exported decoders are, in words: folders by the file in them, files by their ending."""
    folders = [f"a folder with {each.marker}" for each in FORMATS.values() if each.marker]
    *endings, last = [each.ending for each in FORMATS.values() if each.ending]
    return f"{', '.join(folders)}, or an {', '.join(endings)} or {last} file"


def open_artifact(path: Path) -> Opened:
    """Opens an exported decoder, to run on the CPU in the precision it was exported in.

    Imports no more than its own format takes.

    Raises:
        ExportError: it is missing, damaged, changed since it was exported, or no decoder; or what it runs on is not
            installed.
    """
    format = format_of(path)
    if format is None:
        raise ExportError(f"{path} is not an exported decoder: give {kinds()}")
    return FORMATS[format].open(path)
