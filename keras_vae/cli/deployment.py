"""What `keras-vae export` and `keras-vae verify` do."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from keras_vae import networks
from keras_vae._version import __version__
from keras_vae.export import triton
from keras_vae.export.artifact import check_target
from keras_vae.export.formats import FORMATS, PARTS
from keras_vae.latents.directions import AttributeVectors
from keras_vae.model.scoring import USUAL
from keras_vae.runs.folder import VECTORS_FILE
from keras_vae.runs.opening import BATCH, Model, open_model
from keras_vae.runs.run_images import data_of
from keras_vae.support.errors import InputError
from keras_vae.support.files import write_aside

EXPORT_FOLDER = "export"
TRITON = "triton"
ENCODER_FILE, SCORER_FILE = "encoder.onnx", "scorer.onnx"
CALIBRATION_IMAGES = 512


def export(
    path: Path,
    out: Path | None,
    formats: tuple[str, ...],
    precision: str = "float32",
    output: str = "float32",
    source: str | None = None,
    encoder: bool = False,
    version: int = 1,
    scorer: bool = False,
) -> dict[str, Any]:
    """Exports the decoder of a run or .keras file, and its generator, which is prior and decoder in one.

    Args:
        path: the model.
        out: the folder for the artifacts; by default the run's export folder.
        formats: keys of `keras_vae.export.formats.FORMATS`, and "triton", a model repository with both ONNX files.
        precision: precision of the ONNX files.
        output: what the images are, "float32" or "uint8".
        source: images to calibrate int8 on; by default what the run trained on.
        encoder: whether to export the encoder too: in the SavedModel, and as an ONNX file beside the decoder.
        version: version of the SavedModel, which names its folder; TF Serving serves the highest.
        scorer: whether to export the scorer too, whose ranks are among held-out images of what the run trained on.

    Returns:
        `artifacts`: for each its `format`, `part` ("decoder", "generator", or both), `precision`, `output`, `path`,
        `bytes`, and how far its images are from Keras's, `max_difference` and `psnr` (dB). `beside`: paths of the
        encoder, the scorer and the attribute vectors, if they were written too.

    Raises:
        InputError, ExportError, VerificationError: as `VAE.export`.
    """
    holders = {name for name, each in FORMATS.items() if each.holds_all}
    for option, wanted in (("--encoder", encoder), ("--scorer", scorer)):
        if wanted and not {"onnx", *holders} & set(formats):
            raise InputError(
                f"{option} is for SavedModel and ONNX: add --format tf_saved_model or onnx, or leave it out"
            )
    model = open_model(path)
    if model.vae is None:
        raise InputError(f"{path} is exported already: copy it, or give a run or .keras file")
    folder = out or export_folder(model)
    if folder is None:
        raise InputError(f"{path} is not a run, which has a folder for exports: give --out")
    written = dict.fromkeys(name if name != TRITON else "onnx" for name in formats)
    targets = {
        (name, part): folder / place(name, precision, output, version, part)
        for name in written
        for part in PARTS[: 1 if name in holders else 2]
    }
    for (name, _), target in targets.items():
        check_target(target, name, precision, output)
    calibration = _calibration(model, source) if precision == "int8" else None
    judgement = model.vae.scorer(_usual(model)) if scorer else None
    artifacts = []
    for (name, part), target in targets.items():
        report = model.vae.export(
            target,
            format=name,
            part=part,
            precision=precision,
            output=output,
            calibration=calibration,
            encoder=encoder and name in holders,
            scorer=judgement if name in holders else None,
            run_id=model.config.get("run_id", ""),
        )
        artifacts.append(
            {
                "format": name,
                "part": "decoder and generator" if name in holders else part,
                "precision": precision,
                "output": output,
                "path": str(target),
                "bytes": size(target),
                "max_difference": max(pair.max_difference for pair in report.pairs),
                "psnr": min(pair.psnr for pair in report.pairs),
            }
        )
    beside = _copy_vectors(model, folder)
    metadata = {"keras_vae_version": __version__, "run_id": model.config.get("run_id", "")}
    if encoder and "onnx" in formats:
        from keras_vae.export.encoder import export_encoder

        with model.vae.averaged_weights():
            metadata["model"] = model.vae.fingerprint()
            export_encoder(networks.without_condition(model.vae.encoder), folder / ENCODER_FILE, metadata)
        beside.append(folder / ENCODER_FILE)
    if judgement is not None and "onnx" in formats:
        from keras_vae.export.scorer import export_scorer

        metadata["model"] = judgement.model
        export_scorer(judgement, judgement.image_shape, folder / SCORER_FILE, metadata)
        beside.append(folder / SCORER_FILE)
    if TRITON in formats:
        for like in [each for each in artifacts if each["format"] == "onnx"]:
            repository = triton.write(like["path"], folder / TRITON, like["part"])
            artifacts.append({**like, "format": TRITON, "path": str(repository), "bytes": size(repository)})
    return {"artifacts": artifacts, "beside": [str(file) for file in beside]}


def _copy_vectors(model: Model, folder: Path) -> list[Path]:
    """Copies attribute vectors, if they belong to these weights, to the artifacts' folder."""
    source, target = model.path / VECTORS_FILE, folder / VECTORS_FILE
    if model.kind != "run" or not source.is_file():
        return []
    try:
        found = AttributeVectors.load(source, model.latent_dim)
    except InputError as error:
        print(f"{error}; they are not copied", file=sys.stderr)
        return []
    if found.metadata.get("model") != model.whole("exporting").fingerprint():
        print(f"{source} belongs to earlier weights and is not copied: find the vectors again", file=sys.stderr)
        return []
    with write_aside(target) as aside:
        shutil.copyfile(source, aside)
    return [target]


def place(
    format: str, precision: str = "float32", output: str = "float32", version: int = 1, part: str = "decoder"
) -> str:
    """Where `export` puts a format, relative to its folder."""
    if not FORMATS[format].ending:
        return str(version)
    found = Path(FORMATS[format].place_of(part))
    return ".".join((found.stem, *unusual(precision, output))) + found.suffix


def unusual(*types: str) -> list[str]:
    return [each for each in types if each != "float32"]


def size(path: Path) -> int:
    """Size of an artifact's files, in bytes."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    companions = {each.ending: each.companion for each in FORMATS.values() if each.companion}
    second = path.with_suffix(companions.get(path.suffix, path.suffix))
    return path.stat().st_size + (second.stat().st_size if second != path and second.is_file() else 0)


def export_folder(model: Model) -> Path | None:
    return model.path / EXPORT_FOLDER if model.kind == "run" else None


def _usual(model: Model) -> Any:
    """Held-out images of what a model was trained on, in batches.

    Raises:
        InputError: the model does not say what they were, or they cannot be read.
    """
    if model.config.get("data") is None:
        raise InputError(
            f"{model.path} does not say what it was trained on, and a scorer ranks among its held-out images: leave "
            "--scorer out, or call vae.export_scorer"
        )
    images = data_of(model, model.whole("scoring"), None, batch_size=1, only_held_out=True)
    return images.test.unbatch().take(USUAL).batch(BATCH)


def _calibration(model: Model, source: str | None) -> Any:
    """Some of the images that a model was trained on, in batches, with what a conditional one is told of them.

    Raises:
        InputError: the model does not say what they were, or they cannot be read.
    """
    images = data_of(model, model.whole("calibrating"), source, batch_size=1, conditions=source is None)
    return images.train.unbatch().take(CALIBRATION_IMAGES).batch(BATCH).cache()  # the same for all that is exported
