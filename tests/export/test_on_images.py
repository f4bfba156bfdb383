"""`keras-vae verify` of what takes images: the encoder and the scorer, as ONNX files and in a SavedModel."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import few_draws

from keras_vae import VAE
from keras_vae.export import on_images
from keras_vae.export.artifact import export_decoder
from keras_vae.export.encoder import export_encoder
from keras_vae.export.runtime import Decoder, Encoder, Scorer
from keras_vae.runs.opening import open_model
from keras_vae.training import TrainingConfig, train

Command = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def few() -> Iterator[None]:
    """Decoders are compared elsewhere."""
    with few_draws():
        yield


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its encoder and scorer exported, in both formats that have them."""
    from keras_vae.cli import app

    run = tmp_path_factory.mktemp("of_images") / "run"
    small: dict[str, Any] = {"image_size": 16, "latent_dim": 4, "batch_size": 16, "network_options": {"width": 4}}
    train(TrainingConfig(data=str(image_folder), out=str(run), perceptual=None, prior="standard", steps=2, **small))
    assert app.run(["export", str(run), "--encoder", "--scorer"]) == 0
    return run


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def verified(command: Command, run: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    outcome = command("verify", run, "--json")
    return outcome.status, {Path(each["path"]).name: each for each in json.loads(outcome.out)["artifacts"]}


def spoiled(run: Path) -> VAE:
    """The run's model with another bias in its encoder."""
    vae = open_model(run).whole("testing")
    bias = next(weight for weight in vae.encoder.weights if weight.path.endswith("mean/bias"))
    bias.assign(bias + 0.01)
    return vae


def test_both_are_compared_and_pass(run: Path, command: Command) -> None:
    status, found = verified(command, run)
    assert status == 0
    assert {*found} == {"1", "decoder.onnx", "generator.onnx", "encoder.onnx", "scorer.onnx"}
    for part in ("encoder", "scorer"):
        check = found[f"{part}.onnx"]
        assert (check["format"], check["problem"], check["checksum"]) == (f"onnx {part}", None, True)
        assert check["bytes"] == (run / "export" / f"{part}.onnx").stat().st_size


def test_another_encoder_is_found(copied: Path, command: Command) -> None:
    path = copied / "export" / "encoder.onnx"
    metadata = {name: text for name, text in Encoder(path).metadata.items() if name in ("run_id", "model")}
    export_encoder(spoiled(copied).encoder, path, metadata)
    status, found = verified(command, copied)
    assert status == 1
    assert found["encoder.onnx"]["problem"] == "its encoder differs from Keras by 0.01: export it again"
    assert found["scorer.onnx"]["problem"] is None


def test_another_scorer_is_found(copied: Path, command: Command) -> None:
    """Named as the run's, of other weights."""
    path = copied / "export" / "scorer.onnx"
    model, images = Scorer(path).metadata["model"], np.random.default_rng(0).uniform(size=(20, 16, 16, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VAE, "fingerprint", lambda self: model)
        spoiled(copied).export_scorer(path, images.astype(np.float32))
    status, found = verified(command, copied)
    assert status == 1
    assert found["scorer.onnx"]["problem"].startswith("its scorer differs from Keras by 0.")


@pytest.mark.parametrize("part", ["encoder", pytest.param("scorer", marks=pytest.mark.slow)])
def test_another_one_in_a_saved_model_is_found(copied: Path, command: Command, part: str) -> None:
    path, vae, other = copied / "export" / "1", open_model(copied).whole("testing"), spoiled(copied)
    decoder = Decoder(copied / "export" / "decoder.onnx")
    metadata = {name: text for name, text in decoder.metadata.items() if name in ("run_id", "model")}
    images = np.random.default_rng(0).uniform(size=(20, 16, 16, 3)).astype(np.float32)
    given: dict[str, Any] = {"encoder": other.encoder} if part == "encoder" else {"scorer": other.scorer(images)}
    export_decoder(vae.decoder, path, "tf_saved_model", metadata, prior=vae.prior, **given)
    status, found = verified(command, copied)
    assert status == 1
    assert found["1"]["problem"].startswith(f"its {part} differs from Keras by 0.0")


def test_a_damaged_file_is_found(copied: Path, command: Command) -> None:
    for name in ("encoder.onnx", "scorer.onnx"):
        path = copied / "export" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    status, found = verified(command, copied)
    assert status == 1
    for name in ("encoder.onnx", "scorer.onnx"):
        assert found[name]["checksum"] is False
        assert name in found[name]["problem"]


def test_differences_are_relative_to_values_above_one() -> None:
    def reference(images: np.ndarray, made: on_images.Arrays) -> dict[str, Any]:
        return {"of_ten": np.full(len(images), 10.0), "of_none": np.zeros(len(images))}

    def run(images: np.ndarray) -> dict[str, Any]:
        assert (images.shape[1:], images.dtype) == ((2, 3, 1), np.float32)
        return {"of_ten": np.full(len(images), 10.5), "of_none": np.full(len(images), -0.02), "more": None}

    assert on_images.difference(run, reference, (2, 3, 1)) == pytest.approx(0.05)
