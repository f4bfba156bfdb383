"""What the commands do that use the latent space: interpolate, edit, traverse. Exported decoders need no TensorFlow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_vae.export import latents as draws
from keras_vae.latents import directions
from keras_vae.latents.directions import AttributeVectors
from keras_vae.runs.folder import VECTORS_FILE
from keras_vae.runs.opening import BATCH, Model, in_batches, open_model
from keras_vae.runs.run_images import data_of, read_images
from keras_vae.support import pictures
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_output_file

STEPS_AT_MOST = 100
ROWS_AT_MOST = 200


@dataclass(frozen=True)
class Walk:
    """Where walks through the latent space start, and what they go along.

    Where the model knows its prior, they go through noise, which it maps to latents: there, every path leads from
    images to images. The difference between an image's own latents and those of its noise is added on the way.

    Attributes:
        model: what decodes.
        points: float32 (count, latent_dim): noise, or latents where the prior is unknown.
        missed: float32 (count, latent_dim), what is to be added to the latents of the points.
        along_prior: whether points are noise.
    """

    model: Model
    points: np.ndarray
    missed: np.ndarray
    along_prior: bool

    def images(self, points: np.ndarray, missed: np.ndarray) -> np.ndarray:
        """Images of points on the way, float32 (count, height, width, channels)."""
        if not self.along_prior:
            return in_batches(self.model.decode, points)
        if self.model.vae is None:
            return in_batches(self.model.generate, points)
        return in_batches(self.model.decode, np.asarray(self.model.vae.prior(points)) + missed)

    def between(self, one: int, other: int, steps: int, method: str) -> np.ndarray:
        """Images on the way from one start to another, both included."""
        way = np.linspace(0.0, 1.0, steps, dtype=np.float32)[:, None]
        points = directions.interpolate(self.points[one], self.points[other], steps, method)
        return self.images(points, (1 - way) * self.missed[one] + way * self.missed[other])

    def along(self, start: int, latent: int, values: Sequence[float]) -> np.ndarray:
        """Images of a start with one coordinate going through values."""
        points = directions.traverse(self.points[start], latent, values)
        return self.images(points, np.repeat(self.missed[start][None], len(points), axis=0))


def walk_from(model: Model, z: np.ndarray) -> Walk:
    """Walks that start at latents, float32 (count, latent_dim)."""
    if model.vae is None or model.vae.prior.kind == "standard":
        return Walk(model, z, np.zeros_like(z), along_prior=False)
    points = np.asarray(model.vae.prior.inverse(z))
    return Walk(model, points, z - np.asarray(model.vae.prior(points)), along_prior=True)


@dataclass(frozen=True)
class Start:
    """What a command starts from, one of these; by default held-out images, or draws for a decoder alone.

    Attributes:
        images: files, cropped and resized as for training.
        codes: an .npy file of latents, float (count, latent_dim).
        source: where held-out images are from; what the run trained on.
        count: held-out images, or draws.
        seed: of draws.
    """

    images: Sequence[Path] = ()
    codes: Path | None = None
    source: str | None = None
    count: int = 8
    seed: int = 0


def interpolate(path: Path, start: Start, steps: int, method: str, out: Path) -> dict[str, Any]:
    """Writes paths through the latent space, a row each: from the first to the second, from there to the third, ...

    Rows from images begin and end with the images themselves. Held-out images and draws are taken in pairs.

    Returns:
        `picture`, `rows`, `steps`, `method`.

    Raises:
        InputError: no model, unusable images or codes, or a picture that cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    _check_steps(steps, 2)
    given = start.images or start.codes
    if given and start.images and len(start.images) < 2:
        raise InputError("an interpolation is between two images: give --image twice")
    if not given:
        start = Start(source=start.source, count=2 * _counted("--count", start.count), seed=start.seed)
    model = open_model(path)
    walk, images = _walk(model, start)
    count = len(walk.points)
    if count < 2:
        raise InputError(f"an interpolation is between two codes, and there is {count}: give more")
    ends = [(each, each + 1) for each in (range(count - 1) if given else range(0, count - 1, 2))]
    found = []
    for one, other in ends:
        decoded = walk.between(one, other, steps, method)
        found.append(decoded if images is None else np.concatenate([images[one][None], decoded, images[other][None]]))
    ends_shown = ["image"] if images is not None else []
    heads = [*ends_shown, *(f"{way:.2g}" for way in np.linspace(0, 1, steps)), *ends_shown]
    pictures.save(pictures.labelled_rows(np.stack(found), [str(row + 1) for row in range(len(found))], heads), out)
    return {"picture": str(out), "rows": len(found), "steps": steps, "method": method}


def edit(
    path: Path,
    names: Sequence[str],
    strengths: Sequence[float],
    start: Start,
    out: Path,
    vectors: Path | None = None,
    direction: str = "mean",
    together: bool = False,
) -> dict[str, Any]:
    """Writes images with attributes added and taken away, a row for each image and attribute.

    Args:
        path: any MODEL.
        names: attributes; one that begins with - is taken away where others are added.
        strengths: multiples of the attributes' vectors, a column each.
        start: what is edited.
        out: the picture.
        vectors: their file; by default a run's own, found if it has none yet, or those beside an exported decoder.
        direction: "mean" or "linear", as `AttributeVectors`.
        together: add all attributes' vectors up, instead of a row for each.

    Returns:
        `picture`, `attributes`, `strengths`, `direction`, `rows`.

    Raises:
        InputError: as `interpolate`, or an attribute there is no vector of.
    """
    check_output_file(out, pictures.ENDINGS)
    if not names:
        raise InputError("no attribute to edit: give --attribute NAME")
    _check_numbers("--strength", strengths)
    if len(set(names)) < len(names):
        raise InputError("an attribute is given twice: give each once")
    if vectors is not None and not vectors.is_file():
        raise InputError(f"no attribute vectors at {vectors}: find them with `keras-vae attributes RUN`")
    model = open_model(path)
    known = vectors_for(model, vectors, start.source, [name.removeprefix("-") for name in names])
    changes = {name: _signed(known, name, direction) for name in names}
    if together:
        changes = {", ".join(names): np.sum(list(changes.values()), axis=0)}
    z, images = _starts(model, start)
    if len(z) * len(changes) > ROWS_AT_MOST:
        raise InputError(f"{len(z)} images with {len(changes)} edits: give at most {ROWS_AT_MOST} rows")
    factors = np.asarray(strengths, np.float32)[:, None]
    rows, labels = [], []
    for index, code in enumerate(z):
        for name, change in changes.items():
            decoded = in_batches(model.decode, code + factors * change)
            rows.append(decoded if images is None else np.concatenate([images[index][None], decoded]))
            labels.append(name)
    heads = [*(["image"] if images is not None else []), *(_signed_text(each) for each in strengths)]
    pictures.save(pictures.labelled_rows(np.stack(rows), labels, heads), out)
    return {
        "picture": str(out),
        "attributes": list(names),
        "strengths": list(strengths),
        "direction": direction,
        "rows": len(rows),
    }


def traverse(path: Path, start: Start, latents: int, values: Sequence[float], out: Path) -> dict[str, Any]:
    """Writes one image with each of its strongest latents going through values, a row each.

    Where the prior is learned these are the noise's: directions in which codes vary, the widest first. Else the
    strongest are those of the largest mean KL over held-out images; a decoder alone knows none, and takes the first.

    Returns:
        `picture`, `latents`, and for a whole model with a standard normal prior their `kl`, nats by latent.

    Raises:
        InputError: as `interpolate`.
    """
    check_output_file(out, pictures.ENDINGS)
    _counted("--latents", latents)
    _check_numbers("--values", values)
    model = open_model(path)
    latents = min(latents, model.latent_dim, ROWS_AT_MOST)
    walk, images = _walk(model, Start(start.images, start.codes, start.source, 1, start.seed))
    figures: dict[str, Any] = {"picture": str(out)}
    if walk.along_prior:
        strongest, labels = list(range(latents)), [f"direction {each}" for each in range(latents)]
    elif model.vae is None:
        strongest, labels = list(range(latents)), [f"latent {each}" for each in range(latents)]
    else:
        kl = _kl(model, start.source)
        strongest = [int(each) for each in np.argsort(-kl)[:latents]]
        labels = [f"latent {each}, {kl[each]:.2f} nats" for each in strongest]
        figures["kl"] = {str(each): round(float(kl[each]), 3) for each in strongest}
    rows = [walk.along(0, each, values) for each in strongest]
    if images is not None:
        rows = [np.concatenate([images[0][None], row]) for row in rows]
    heads = [*(["image"] if images is not None else []), *(_signed_text(each) for each in values)]
    pictures.save(pictures.labelled_rows(np.stack(rows), labels, heads), out)
    return {**figures, "latents": strongest}


def vectors_for(model: Model, file: Path | None, source: str | None, wanted: Sequence[str] = ()) -> AttributeVectors:
    """Attribute vectors for a model, wherever they are; if they must be found first, only if all wanted can be.

    Raises:
        InputError: there are none, or they are another model's.
    """
    own = model.metadata.get("model", "") if model.vae is None else model.vae.fingerprint()
    if file is not None:
        return AttributeVectors.load(file, model.latent_dim, own)
    if model.vae is None:
        beside = model.path.absolute().parent / VECTORS_FILE
        if not beside.is_file():
            raise InputError(f"{model.path} has no {VECTORS_FILE} beside it: give --vectors, those of its run")
        return AttributeVectors.load(beside, model.latent_dim, own)
    from keras_vae.latents.fitting import vectors_of  # TensorFlow is loaded by now

    return vectors_of(model, model.vae, source, wanted)


def parse_numbers(given: str, option: str, steps: int = 5) -> tuple[float, ...]:
    """Numbers of the command line: "-2..2" in that many steps, "-2,0,1", or one.

    Raises:
        InputError: it is none of these.
    """
    try:
        if ".." in given:
            low, high = (float(part) for part in given.split(".."))
            if not (math.isfinite(low) and math.isfinite(high)):
                raise ValueError(given)
            return tuple(float(each) for each in np.linspace(low, high, steps))
        return tuple(float(part) for part in given.split(","))
    except ValueError as error:
        raise InputError(f"{option} {given!r}: give a range such as -2..2, or numbers with commas") from error


def _walk(model: Model, start: Start) -> tuple[Walk, np.ndarray | None]:
    """Walks from what is given, and the images behind it, if any."""
    if model.vae is None and model.generator is not None and start.codes is None and not start.images:
        noise = draws.draw(_counted("--count", start.count), model.latent_dim, start.seed)
        return Walk(model, noise, np.zeros_like(noise), along_prior=True), None
    z, images = _starts(model, start)
    return walk_from(model, z), images


def _starts(model: Model, start: Start) -> tuple[np.ndarray, np.ndarray | None]:
    """Latents to start from, float32 (count, latent_dim), and their images, if any."""
    if start.images and start.codes is not None:
        raise InputError("--image and --codes are given: give one of them")
    if start.codes is not None:
        return read_codes(start.codes, model.latent_dim), None
    if start.images:
        return _encoded(model, read_images(model, start.images))
    count = _counted("--count", start.count)
    if model.vae is None:
        return draws.draw(count, model.latent_dim, start.seed), None
    held_out = data_of(model, model.vae, start.source, batch_size=1, only_held_out=True).test.take(count)
    images = np.concatenate(list(held_out.as_numpy_iterator()))
    if len(images) < count:
        raise InputError(
            f"{count} held-out images are asked for, and there {'is' if len(images) == 1 else 'are'} {len(images)}: "
            "give a smaller --count, or image files with --image"
        )
    return _encoded(model, images)


def _encoded(model: Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    vae = model.whole("encoding images")
    return in_batches(lambda part: np.asarray(vae.encode(part).mode()), images), images


def read_codes(path: Path, latent_dim: int) -> np.ndarray:
    """Latents from an .npy file: float32 (count, latent_dim).

    Raises:
        InputError, ExportError: the file is missing, damaged, or holds something else.
    """
    try:
        codes = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"no codes at {path}: give an .npy file of latents, (count, {latent_dim})") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not an array that NumPy can read: save latents with numpy.save") from error
    if not isinstance(codes, np.ndarray):
        raise InputError(f"{path} holds several arrays: give an .npy file of latents, (count, {latent_dim})")
    return draws.check(codes, latent_dim)


def _kl(model: Model, source: str | None) -> np.ndarray:
    from keras_vae.model.encoding import encode

    vae = model.whole("ordering latents")
    images = data_of(model, vae, source, batch_size=1, only_held_out=True)
    batches = images.test.unbatch().batch(BATCH).as_numpy_iterator()
    return encode(vae, batches, total=images.test_size).kl_per_latent()


def _signed(vectors: AttributeVectors, name: str, direction: str) -> np.ndarray:
    if name.startswith("-") and name not in vectors.names:
        return -vectors.direction(name[1:], direction)
    return vectors.direction(name, direction)


def _signed_text(number: float) -> str:
    return f"{number:+g}" if number else "0"


def _counted(option: str, value: int) -> int:
    if not 1 <= value <= ROWS_AT_MOST:
        raise InputError(f"{option} {value}: give 1 to {ROWS_AT_MOST}")
    return value


def _check_numbers(option: str, values: Sequence[float]) -> None:
    if not 1 <= len(values) <= STEPS_AT_MOST:
        raise InputError(f"{option} has {len(values)} numbers: give 1 to {STEPS_AT_MOST}")
    if not all(math.isfinite(each) for each in values):
        raise InputError(f"{option} has numbers that are not finite: give others")


def _check_steps(steps: int, least: int) -> None:
    if not least <= steps <= STEPS_AT_MOST:
        raise InputError(f"--steps {steps}: give {least} to {STEPS_AT_MOST}")
