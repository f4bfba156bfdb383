"""What `keras-vae verify` does: compares what was exported with the model, and with what it was exported as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_vae import networks
from keras_vae.cli.deployment import ENCODER_FILE, SCORER_FILE, TRITON, export_folder, place, size, unusual
from keras_vae.export import on_images, triton
from keras_vae.export.artifact import float32_copy, keras_runner
from keras_vae.export.errors import ExportError, MissingRuntimeError
from keras_vae.export.formats import FORMATS, OUTPUTS, PARTS
from keras_vae.export.generator import compose
from keras_vae.export.verify import TOLERANCE, Report, joined
from keras_vae.export.verify import verify as compare
from keras_vae.model.scoring import Look
from keras_vae.model.vae import VAE
from keras_vae.runs.opening import Model, check_exists, open_model
from keras_vae.support.errors import InputError


def verify(path: Path, artifacts: list[Path]) -> dict[str, Any]:
    """Compares exported decoders with a model, and with what was exported.

    Encoders and scorers, in a SavedModel or beside the run's decoders, are compared too; of a scorer its
    reconstructions and error maps, as scores depend on the images that it was exported with.

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
    folder = export_folder(model)
    own = not artifacts
    if own and folder is not None:
        artifacts = _present(folder)
    if not artifacts:
        raise InputError(f"nothing to compare {path} with: name exported decoders, or export it first")
    weights = "" if model.vae is None else model.vae.fingerprint()
    opened: list[Model] = []
    checks: list[dict[str, Any]] = []
    for artifact in artifacts:
        check_exists(artifact, whole=False)
        check = _unchecked(artifact)
        checks.append(check)
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
            "problem": _wrong_metadata(model, weights, other.metadata, own)
            or _wrong_of_images(model, encoder=other.encoder, scorer=other.scorer),
        }
    if own and folder is not None:
        for file, part in ((folder / ENCODER_FILE, "encoder"), (folder / SCORER_FILE, "scorer")):
            if file.exists():
                checks.append(_check_file_of_images(model, weights, file, part))
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


def _wrong_metadata(model: Model, weights: str, metadata: Mapping[str, str], own: bool) -> str | None:
    """What is wrong with an artifact's metadata, given the model's fingerprint, if it has one; None if nothing is."""
    if own and not metadata:
        return "it has lost its metadata and checksums: export it again"
    wanted, found = (each.get("run_id", "") for each in (model.config, metadata))
    if wanted and found and wanted != found:
        return f"it was exported from the run {found}, and this one is {wanted}: export it again"
    if own and weights and metadata.get("model", weights) != weights:
        return "it was exported from other weights, before the model was trained further: export it again"
    return None


def _wrong_of_images(model: Model, **runs: on_images.Run | None) -> str | None:
    """How an exported `encoder` or `scorer` differs from Keras's; None if none does, or none is there to compare."""
    for part, run in runs.items():
        if run is not None and model.vae is not None:
            found = on_images.difference(run, _REFERENCES[part](model.vae), model.vae.image_shape)
            if not found <= on_images.TOLERANCE:
                return f"its {part} differs from Keras by {found:.2g}: export it again"
    return None


def _keras_encoder(vae: VAE) -> on_images.Reference:
    return on_images.of_encoder(networks.without_condition(float32_copy(vae.encoder)))


def _keras_look(vae: VAE) -> on_images.Reference:
    """What a scorer shows. Not its scores: they depend on the images that it was exported with."""
    encoder, decoder = (networks.without_condition(float32_copy(each)) for each in (vae.encoder, vae.decoder))
    look = Look(encoder, decoder, vae.prior)

    def shown(images: np.ndarray, _: on_images.Arrays) -> on_images.Arrays:
        found = look(images)
        return {name: found[name] for name in ("reconstruction", "error_map")}

    return shown


_REFERENCES = {"encoder": _keras_encoder, "scorer": _keras_look}


def _check_file_of_images(model: Model, weights: str, file: Path, part: str) -> dict[str, Any]:
    """What `verify` finds of an ONNX file that takes images, an "encoder" or a "scorer"."""
    from keras_vae.export import encoder, scorer  # with tf2onnx, which is slow to import: others do without

    check = _unchecked(file)
    try:
        run, metadata = {"encoder": encoder, "scorer": scorer}[part].opened(file)
        problem = _wrong_metadata(model, weights, metadata, own=True) or _wrong_of_images(model, **{part: run})
    except ExportError as error:
        return check | {"checksum": False, "problem": str(error)}
    return check | {
        "format": f"onnx {part}",
        "precision": "float32",
        "output": "float32",
        "checksum": True,
        "problem": problem,
    }


def _unchecked(artifact: Path) -> dict[str, Any]:
    nothing = dict.fromkeys(("format", "precision", "output", "checksum", "problem", "skipped"))
    return {"path": str(artifact), "bytes": size(artifact), **nothing}


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
        " ".join((kind, *unusual(_precision(model), _output(model)))) for kind, model in zip(kinds, models, strict=True)
    ]
    labels = [
        name if names.count(name) == 1 else f"{name} {model.path}" for name, model in zip(names, models, strict=True)
    ]
    labelled = dict(zip(labels, models, strict=True))
    if len(labelled) < len(models):
        raise InputError("the same model was given twice: name another to compare it with")
    return labelled


def _decoder_of_model(model: Model) -> Any:
    """What exported decoders must equal: the Keras decoder in float32, in whatever precision it was trained."""
    return model.decoder if model.vae is None else keras_runner(float32_copy(model.vae.decoder))


def _generator_of_model(model: Model) -> Any:
    """The same for generators."""
    if model.vae is None:
        return model.generator
    return keras_runner(compose(float32_copy(model.vae.decoder), model.vae.prior))
