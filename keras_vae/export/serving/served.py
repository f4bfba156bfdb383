"""What clients of TensorFlow Serving have in common, whatever the protocol: numpy alone."""

from __future__ import annotations

import abc
import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from keras_vae.export import latents
from keras_vae.export.conditional import beside
from keras_vae.export.errors import ExportError
from keras_vae.export.formats import CONDITION, LATENTS, NOISE, TAKEN, in_order
from keras_vae.export.png import to_png
from keras_vae.export.scored import Scored, checked, rows
from keras_vae.export.serving.signatures import Signature
from keras_vae.support.conditions import Condition

MODEL = "decoder"
BATCH_SIZE = 64  # max_batch_size in batching.config: a server that batches refuses requests of more rows
MESSAGE_BYTES = 64 << 20  # requests are split so that no message is larger
LONGEST_TEXT = 500
TYPES = {"DT_FLOAT": "float32", "DT_UINT8": "uint8"}  # of tensors, and of their arrays
PNG_HINT = "PNG files have 1 or 3 channels"
GENERATE_HINT = "export it again, with its prior, or decode latents of your own"
Inputs: TypeAlias = Mapping[str, np.ndarray]  # of a signature, by name


class ServerError(ExportError):
    """A server that cannot be reached, does not serve the model, or refuses a request."""


class ServedDecoder(abc.ABC):
    """A decoder on a server, and the generator that is exported with it, whatever the protocol.

    Attributes:
        latent_dim: number of latents.
        image_shape: (height, width, channels).
        output: what images are: "float32", values in [0, 1], or "uint8", levels 0..255.
        signatures: names of what the model can be asked for.
        version: the version that answered when this was made.
        condition_dim: numbers in a condition; 0 of a model without conditions.
    """

    bytes_a_value: ClassVar[Mapping[str, int]]  # of images of each type, in a message

    def __init__(
        self,
        server: str,
        model: str,
        version: int | None,
        timeout: float,
        batch_size: int,
        condition: Condition | None = None,
    ) -> None:
        if version is not None and (not isinstance(version, int) or not 0 <= version < 2**63):
            raise ExportError(f"version={version!r}: give a whole number, the name of the model's folder")
        if not 0 < timeout < math.inf:
            raise ExportError(f"timeout={timeout!r}: give seconds, more than 0")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ExportError(f"batch_size={batch_size!r}: give a whole number from 1 on")
        self._server, self._model, self._version = server, model, version
        self._timeout, self._batch_size = timeout, batch_size
        definitions, self.version = self._metadata()
        try:
            self._signatures = {name: Signature.from_json(each) for name, each in definitions.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ServerError(
                f"{server} describes {model!r} in a form that is not TF Serving's: check the port"
            ) from error
        self.signatures = tuple(sorted(name for name in self._signatures if not name.startswith("__")))
        self.latent_dim, self.image_shape, self.output, self.condition_dim = self._described()
        self._condition = condition
        if condition is not None and len(condition) != self.condition_dim:
            raise ExportError(f"condition names {len(condition)}, and {model!r} at {server} takes {self.condition_dim}")

    @abc.abstractmethod
    def _metadata(self) -> tuple[Mapping[str, Any], int]:
        """The SignatureDefs as JSON, by name, and the version they are of."""

    @abc.abstractmethod
    def _predict(self, signature: str, inputs: Inputs) -> dict[str, np.ndarray]:
        """Runs a signature: arrays of numbers, and of bytes objects for strings."""

    def decode(self, z: Any, condition: Any = None) -> np.ndarray:
        """Images of latents, (batch, height, width, channels), of the type `output`. Many go in several requests.

        Args:
            z: numbers, (batch, latent_dim).
            condition: what the images are to be of, numbers (batch, condition_dim), or, if this was made with a
                `keras_vae.Condition`, as its `rows` takes it; None for images of any kind.

        Raises:
            ExportError: latents or conditions of another size, that are not numbers, or not finite: nothing was sent.
            ServerError: no answer, or an error.
        """
        return self._images("serving_default", self._latents(z, condition))

    def png(self, z: Any, condition: Any = None) -> list[bytes]:
        """A PNG file of each image.

        Args:
            z, condition: as `decode`.

        Raises:
            ExportError: as `decode`.
            ServerError: as `decode`, and for models of other than 1 or 3 channels.
        """
        return self._files("png", self._latents(z, condition), PNG_HINT)

    def generate(self, noise: Any, condition: Any = None) -> np.ndarray:
        """Images of noise, by the prior and the decoder: as `decode`, and as many requests.

        Args:
            noise: standard normal numbers, (batch, latent_dim), as `keras_vae.export.latents.draw` gives.
            condition: as `decode`.

        Raises:
            ExportError: noise or conditions of another size, not numeric, or not finite: nothing was sent.
            ServerError: as `decode`, and for a model that was exported without a prior.
        """
        given = self._noise(noise, condition)
        self._signature("generate", given, {"image"}, GENERATE_HINT)
        return self._images("generate", given)

    def generate_png(self, noise: Any, condition: Any = None) -> list[bytes]:
        """A PNG file of each image that `generate` makes.

        Args:
            noise, condition: as `generate`.

        Raises:
            ExportError: as `generate`.
            ServerError: as `generate`, and for models of other than 1 or 3 channels.
        """
        given = self._noise(noise, condition)
        hint = PNG_HINT if "generate" in self._signatures else GENERATE_HINT
        return self._files("generate_png", given, hint)

    def sample(self, count: int, seed: int, condition: Any = None) -> np.ndarray:
        """Images of draws from the prior, made by the server: (count, height, width, channels), of the type `output`.

        The same seed gives the same images, other ones than `generate` makes of `keras_vae.export.latents.draw`, and
        the first ones alike whatever the count. One request: a server that batches refuses it, for there is nothing
        to batch. The condition is one for all: numbers (1, condition_dim), or as for `decode`.

        Raises:
            ExportError: a count below 1 or more than one message holds, a seed that is not an int64, or as `decode`.
            ServerError: as `decode`, and from a server that batches.
        """
        most = self._images_a_message(self.output)
        instead = "generate(keras_vae.export.latents.draw(count, latent_dim, seed)) draws here"
        if not isinstance(count, int) or count < 1:
            raise ExportError(f"count={count!r}: give a whole number from 1 on")
        if count > most:
            raise ExportError(f"count={count}: one answer holds {most} images at most; {instead}")
        if not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise ExportError(f"seed={seed!r}: give a whole number of 64 bits")
        inputs = {"count": np.array(count, np.int64), "seed": np.array(seed, np.int64)}
        inputs |= {name: row for name, (row,) in self._asked(condition, 1).items()}
        self._signature("sample", inputs, {"image", "z"}, "export it again")
        try:
            return self._run("sample", inputs, count)["image"]
        except ServerError as error:
            if "at least one dimension" not in str(error):
                raise
            raise ServerError(f"{self._server} batches requests, and cannot batch 'sample': {instead}") from error

    def encode(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log-variance of the latents of images: float32 (batch, latent_dim) each.

        Args:
            images: numbers in [0, 1], (batch, height, width, channels).

        Raises:
            ExportError: images of another shape, that are not numbers, or not finite: nothing was sent.
            ServerError: as `decode`, and for a model that was exported without its encoder.
        """
        signature = self._signature("encode", ["image"], {"mean", "log_var"}, "export it with its encoder")
        images = latents.check_batch(images, signature.inputs["image"].shape[1:], "images", "encoder")
        answers = self._answers("encode", {"image": images}, "float32")
        none = np.zeros((0, self.latent_dim), np.float32)
        mean, log_var = (np.concatenate([none, *(each[name] for each in answers)]) for name in ("mean", "log_var"))
        return mean, log_var

    def score(self, images: Any) -> Scored:
        """How unusual images are, and where it shows.

        Args:
            images: (batch, height, width, channels), floats in [0, 1] or uint8.

        Raises:
            ExportError: images of another shape, that are not numbers, or outside of [0, 1]: nothing was sent.
            ServerError: as `decode`, and for a model that was exported without its scorer.
        """
        signature = self._signature("score", ["image"], set(Scored._fields), "export it with its scorer")
        shape = signature.inputs["image"].shape[1:]
        images = checked(images, shape)
        # An answer has a map beside the picture, and two numbers: no more than twice an image in all.
        answers = self._answers("score", {"image": images}, "float32", 2)
        columns = {
            name: np.concatenate([np.zeros((0, *row), np.float32), *(each[name] for each in answers)])
            for name, row in rows(shape).items()
        }
        return Scored(**columns)

    def _latents(self, z: Any, condition: Any) -> Inputs:
        z = latents.check(z, self.latent_dim)
        return {LATENTS: z, **self._asked(condition, len(z))}

    def _noise(self, noise: Any, condition: Any) -> Inputs:
        noise = latents.check_batch(noise, (self.latent_dim,), "noise values", "generator")
        return {NOISE: noise, **self._asked(condition, len(noise))}

    def _asked(self, condition: Any, count: int) -> Inputs:
        """Conditions of images by their name; nothing for a model without."""
        if self._condition is not None or not self.condition_dim:
            return dict(zip((CONDITION,), beside(self._condition, condition, count), strict=False))
        none = np.zeros((count, self.condition_dim), np.float32)
        rows = none if condition is None else latents.check_batch(condition, none.shape[1:], "conditions", "model")
        if len(rows) != count:
            raise ExportError(f"{len(rows)} conditions of {count} images: give one for each")
        return {CONDITION: rows}

    def _images(self, signature: str, inputs: Inputs) -> np.ndarray:
        answers = [each["image"] for each in self._answers(signature, inputs, self.output)]
        return np.concatenate([np.zeros((0, *self.image_shape), self.output), *answers])

    def _files(self, signature: str, inputs: Inputs, hint: str) -> list[bytes]:
        (output,) = self._signature(signature, inputs, None, hint).outputs
        return [file for each in self._answers(signature, inputs, self.output) for file in each[output]]

    def _answers(self, signature: str, inputs: Inputs, images: str, each: int = 1) -> list[dict[str, np.ndarray]]:
        """Answers to one request after the other, whose images, `each` of a row, are of this type."""
        count = len(next(iter(inputs.values())))
        step = max(1, min(self._batch_size, self._images_a_message(images) // each))
        answers = []
        for start in range(0, count, step):
            part = {name: rows[start : start + step] for name, rows in inputs.items()}
            answers.append(self._run(signature, part, min(step, count - start)))
        return answers

    def _images_a_message(self, images: str) -> int:
        return MESSAGE_BYTES // (self.bytes_a_value[images] * math.prod(self.image_shape))

    def _run(self, name: str, inputs: Inputs, rows: int) -> dict[str, np.ndarray]:
        outputs = self._predict(name, inputs)
        for output, tensor in self._signatures[name].outputs.items():
            wanted = (rows, *tensor.shape[1:])
            if output not in outputs or outputs[output].shape != wanted:
                found = outputs[output].shape if output in outputs else "nothing"
                raise ServerError(
                    f"{self._server} answered with {found} for {output!r}, where {wanted} was asked for: "
                    "another model may have taken its place; connect again"
                )
        return outputs

    def _signature(self, name: str, inputs: Iterable[str], outputs: set[str] | None, hint: str) -> Signature:
        """A signature of these inputs and outputs; None: of one output, whatever its name."""
        signature = self._signatures.get(name)
        if signature is not None and set(signature.inputs) == set(inputs):
            found = set(signature.outputs)
            if found == outputs or (outputs is None and len(found) == 1):
                return signature
        known = ", ".join(self.signatures)
        raise ServerError(f"{self._model!r} at {self._server} has no signature {name!r} (it has {known}): {hint}")

    def _described(self) -> tuple[int, tuple[int, int, int], str, int]:
        default = self._signatures.get("serving_default", Signature({}, {}))
        image, given = default.outputs.get("image"), [default.inputs[name] for name in in_order(default.inputs)]
        fits = (
            in_order(default.inputs) in TAKEN
            and LATENTS in default.inputs
            and all(each.dtype == "DT_FLOAT" and len(each.shape) == 2 and each.shape[1] > 0 for each in given)
            and len(default.outputs) == 1
            and image is not None
            and image.dtype in TYPES
            and len(image.shape) == 4
            and min(image.shape[1:]) > 0
        )
        if not fits or image is None:
            found = ", ".join((*default.inputs, *default.outputs)) or "nothing"
            raise ServerError(
                f"{self._model!r} at {self._server} is not a decoder: its serving_default has {found} where a decoder "
                "has z, float32 (batch, latent_dim), and image, float32 or uint8 (batch, height, width, channels)"
            )
        height, width, channels = image.shape[1:]
        return (
            given[0].shape[1],
            (height, width, channels),
            TYPES[image.dtype],
            sum(each.shape[1] for each in given[1:]),
        )

    def _not_served(self, states: Mapping[int, tuple[str, str]] | None) -> ServerError:
        """Why there is no such model.

        Args:
            states: of each version its state and the text of its error; None where the server knows no such model.
        """
        if states is None:
            return ServerError(f"{self._server} has no model {self._model!r}: take a name from its models.config")
        name = f"{self._model!r} at {self._server}"
        if self._version is not None and self._version not in states:
            known = ", ".join(str(version) for version in sorted(states))
            return ServerError(
                f"{name} has no version {self._version} (it has {known}): put it into the model's folder"
            )
        version = max(states) if self._version is None else self._version
        state, text = states[version]
        if state in ("START", "LOADING", "AVAILABLE"):  # the last since it was asked for
            return ServerError(f"{name} is still loading version {version}: ask again in a while")
        reason = f"{state}: {text}" if text else state
        return ServerError(f"{name} does not serve version {version} ({reason}): look at the server's log")


def one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]}..."


def tile(images: np.ndarray) -> np.ndarray:
    """Images side by side, row by row, in as many rows as columns or one less; white where none is left.

    Args:
        images: (count, height, width, channels), float32 in [0, 1] or uint8.

    Returns:
        One image of their type, (rows * height, columns * width, channels).
    """
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    white = 255 if images.dtype == np.uint8 else 1
    cells = np.full((rows * columns, height, width, channels), white, images.dtype)
    cells[:count] = images
    in_rows = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return in_rows.reshape(rows * height, columns * width, channels)


def run(
    parser: argparse.ArgumentParser,
    connect: Callable[[argparse.Namespace], ServedDecoder],
    arguments: Sequence[str] | None,
) -> int:
    """Writes a picture of samples, of noise drawn here; returns the exit status.

    Args:
        parser: has the option for the server's address.
        connect: makes the client from the options.
        arguments: of the command line; by default this process's.
    """
    parser.add_argument("--model", default=MODEL, help="its name on the server (%(default)s)")
    parser.add_argument("--version", type=int, help="of the model (the latest)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds a request may take (%(default)s)")
    parser.add_argument("--count", type=int, default=16, help="images (%(default)s)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same images, here and in `keras-vae sample`")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="the picture (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.out.suffix.lower() != ".png" or not options.out.absolute().parent.is_dir():
            raise ExportError(f"--out {options.out}: give a file that ends in .png, in a folder that exists")
        decoder = connect(options)
        images = decoder.generate(latents.draw(options.count, decoder.latent_dim, options.seed))
        options.out.write_bytes(to_png(tile(images)))
    except (ExportError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"{options.count} images of {decoder.image_shape}, version {decoder.version}: {options.out}")
    return 0
