"""What `keras-vae export` and `keras-vae verify` do."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from keras_vae import networks
from keras_vae._version import __version__
from keras_vae.export import triton
from keras_vae.export.artifact import check_target, float32_copy, keras_runner
from keras_vae.export.errors import ExportError, MissingRuntimeError
from keras_vae.export.formats import FORMATS, OUTPUTS, PARTS
from keras_vae.export.generator import compose
from keras_vae.export.verify import TOLERANCE, Report, joined
from keras_vae.export.verify import verify as compare
from keras_vae.latents.directions import AttributeVectors
from keras_vae.model.scoring import USUAL
from keras_vae.runs.folder import VECTORS_FILE
from keras_vae.runs.opening import BATCH, Model, check_exists, open_model
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
    folder = out or _export_folder(model)
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
    return ".".join((found.stem, *_unusual(precision, output))) + found.suffix


def _unusual(*types: str) -> list[str]:
    return [each for each in types if each != "float32"]


def size(path: Path) -> int:
    """Size of an artifact's files, in bytes."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    companions = {each.ending: each.companion for each in FORMATS.values() if each.companion}
    second = path.with_suffix(companions.get(path.suffix, path.suffix))
    return path.stat().st_size + (second.stat().st_size if second != path and second.is_file() else 0)


def verify(path: Path, artifacts: list[Path]) -> dict[str, Any]:
    """Compares exported decoders with a model, and with what was exported.

    Args:
        path: any MODEL.
        artifacts: other MODELs; by default those that `export` wrote to the run.

    Returns:
        What `keras_vae.export.verify.Report.to_json` returns, and `artifacts`: for each its `path`, `format`,
        `precision`, `output`, `bytes`, whether its `checksum` is right (None without one), and the `problem` with it,
        or None. If the runtime of one of the run's own is not installed, `skipped` says so. `passed` is for all
        together.

    Raises:
        InputError: there is no model, nothing to compare it with, or the decoders differ in size.
    """
    model = open_model(path)
    folder = _export_folder(model)
    own = not artifacts
    if own and folder is not None:
        artifacts = _present(folder)
    if not artifacts:
        raise InputError(f"nothing to compare {path} with: name exported decoders, or export it first")
    weights = "" if model.vae is None else model.vae.fingerprint()
    opened: list[Model] = []
    checks: list[dict[str, Any]] = []
    for artifact in artifacts:
        check: dict[str, Any] = {
            "path": str(artifact),
            "format": None,
            "precision": None,
            "output": None,
            "bytes": None,
            "checksum": None,
            "problem": None,
            "skipped": None,
        }
        checks.append(check)
        check_exists(artifact, whole=False)
        check["bytes"] = size(artifact)
        try:
            other = open_model(_decoder_of(artifact))
        except MissingRuntimeError as error:
            if not own:
                raise
            check["skipped"] = str(error)
            continue
        except ExportError as error:
            check |= {"checksum": False, "problem": str(error)}
            continue
        opened.append(other)
        check |= {
            "format": other.kind,
            "precision": _precision(other),
            "output": _output(other),
            "checksum": True if other.metadata else None,
            "problem": _wrong_metadata(model, weights, other, own),
        }
    models = _labelled([model, *opened])
    _check_sizes(models)
    precisions = {name: _precision(other) for name, other in models.items()}
    reports = []
    for runner_of in (_decoder_of_model, _generator_of_model):
        runners = {name: runner_of(other) for name, other in models.items()}
        found = {name: run for name, run in runners.items() if run is not None}
        if len(found) > 1 and next(iter(found)) == next(iter(models)):
            reports.append(compare(found, model.latent_dim, precisions=precisions, condition=model.condition))
    if not reports and opened:
        raise InputError(
            f"{path} has no part in common with them: compare decoders with decoders, generators with generators"
        )
    report = joined(reports) if reports else Report((), TOLERANCE, 0)
    passed = report.passed and all(check["problem"] is None for check in checks)
    return {**report.to_json(), "artifacts": checks, "passed": passed}


def _present(folder: Path) -> list[Path]:
    """The artifacts in an export folder."""
    versions = sorted((path for path in folder.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))
    names = [
        place(name, precision, output, part=part)
        for name, each in FORMATS.items()
        if each.ending
        for part in PARTS
        for precision in each.precisions
        for output in OUTPUTS
    ]
    repository = sorted(path for path in (folder / TRITON).glob("*") if not path.name.startswith("."))
    return [*versions, *(folder / name for name in names if (folder / name).exists()), *repository]


def _is_tritons(path: Path) -> bool:
    return (path / "1" / triton.MODEL).is_file()


def _decoder_of(path: Path) -> Path:
    """The ONNX file of a Triton model folder; any other path as it is.

    Raises:
        ExportError: Triton's configuration does not fit the file.
    """
    if not _is_tritons(path):
        return path
    triton.check(path)
    return path / "1" / triton.MODEL


def _precision(model: Model) -> str:
    return model.metadata.get("precision", "float32")


def _output(model: Model) -> str:
    return model.metadata.get("output", "float32")


def _wrong_metadata(model: Model, weights: str, other: Model, own: bool) -> str | None:
    """What is wrong with an artifact's metadata, given the model's fingerprint, if it has one; None if nothing is."""
    if own and not other.metadata:
        return "it has lost its metadata and checksums: export it again"
    wanted, found = (each.get("run_id", "") for each in (model.config, other.metadata))
    if wanted and found and wanted != found:
        return f"it was exported from the run {found}, and this one is {wanted}: export it again"
    if own and weights and other.metadata.get("model", weights) != weights:
        return "it was exported from other weights, before the model was trained further: export it again"
    return None


def _check_sizes(models: dict[str, Model]) -> None:
    """Raises InputError if a decoder's latents, conditions or images differ in size from the first one's."""
    first = next(iter(models.values()))
    for other in models.values():
        if other.latent_dim != first.latent_dim:
            raise InputError(
                f"{other.path} decodes {other.latent_dim} latents and {first.path} {first.latent_dim}: "
                "give decoders of the same model"
            )
        if other.condition != first.condition:
            raise InputError(f"{other.path} and {first.path} have other conditions: give decoders of the same model")
    z = np.zeros((1, first.latent_dim), np.float32)
    images = {name: (other.decode if other.decoder else other.generate)(z) for name, other in models.items()}
    sizes = {name: "x".join(map(str, made.shape[1:])) for name, made in images.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise InputError(f"the images differ in size ({shown}): give decoders of the same model")


def _labelled(models: list[Model]) -> dict[str, Model]:
    """Models by label: their kind and precision, with the path if that is not unique."""
    kinds = ["keras" if model.vae is not None else model.kind for model in models]
    kinds = [f"{kind} generator" if model.decoder is None else kind for kind, model in zip(kinds, models, strict=True)]
    names = [
        " ".join((kind, *_unusual(_precision(model), _output(model))))
        for kind, model in zip(kinds, models, strict=True)
    ]
    labels = [
        name if names.count(name) == 1 else f"{name} {model.path}" for name, model in zip(names, models, strict=True)
    ]
    labelled = dict(zip(labels, models, strict=True))
    if len(labelled) < len(models):
        raise InputError("the same model was given twice: name another to compare it with")
    return labelled


def _export_folder(model: Model) -> Path | None:
    return model.path / EXPORT_FOLDER if model.kind == "run" else None


def _decoder_of_model(model: Model) -> Any:
    """What exported decoders must equal: the Keras decoder in float32, in whatever precision it was trained."""
    return model.decoder if model.vae is None else keras_runner(float32_copy(model.vae.decoder))


def _generator_of_model(model: Model) -> Any:
    """The same for generators."""
    if model.vae is None:
        return model.generator
    return keras_runner(compose(float32_copy(model.vae.decoder), model.vae.prior))


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
