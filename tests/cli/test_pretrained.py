"""The models that come with the package: whole, equal in each form, and usable by name with nothing else at hand."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import keras_vae
from keras_vae import data
from keras_vae.cli import explorer
from keras_vae.data import avatar_drawing
from keras_vae.evaluation.fidelity import psnr
from keras_vae.export.runtime import Decoder, Generator
from keras_vae.runs import pretrained

Command = Callable[..., Any]
NAMES = ("avatars", "fashion_mnist")
SHIPPED = Path(__file__).resolve().parents[2] / "saved_models"


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be drawn or downloaded, as where the package alone is installed."""

    def refuse(*arguments: object, **options: object) -> None:
        raise keras_vae.InputError("no images are at hand")

    monkeypatch.setattr(data, "load", refuse)


def test_python_says_nothing_until_something_is_wrong(tmp_path: Path) -> None:
    """TensorFlow greets with a dozen lines, one of them an error of CUDA's; what it warns of later is printed."""
    code = """
import os, keras_vae
vae = keras_vae.from_pretrained("avatars")
vae.sample(2, seed=0)
vae.export("avatars.onnx", format="onnx")
print("until here", flush=True)
import sys, tensorflow as tf
print("until here", file=sys.stderr, flush=True)
try:
    tf.io.read_file("/none/such")
except tf.errors.NotFoundError:
    pass
"""
    unset = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=unset, capture_output=True, text=True, check=True
    )
    assert result.stdout == "until here\n"
    before, _, after = result.stderr.partition("until here\n")
    assert before == ""
    assert "/none/such" in after


def test_a_report_of_an_export_is_one_line_at_a_prompt(tmp_path: Path) -> None:
    report = keras_vae.from_pretrained("fashion_mnist").export(tmp_path / "decoder.onnx", format="onnx")
    assert repr(report) == report.summary()
    assert "\n" not in repr(report)


def test_names() -> None:
    assert pretrained.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_files_are_those_that_were_made(name: str) -> None:
    listed = {}
    for line in (SHIPPED / name / "SHA256SUMS").read_text().splitlines():
        digest, _, file = line.partition("  ")
        listed[file] = digest
    found = {str(file.relative_to(SHIPPED / name)) for file in (SHIPPED / name).rglob("*") if file.is_file()}
    assert found == {*listed, "SHA256SUMS"}
    for file, digest in listed.items():
        assert hashlib.sha256((SHIPPED / name / file).read_bytes()).hexdigest() == digest, file
    assert {"model.keras", "decoder.onnx", "encoder.onnx", "generator.onnx", "README.md", "1/saved_model.pb"} <= set(
        listed
    )


def test_together_they_are_under_80_mib() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < 90 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_keras_and_exported_decoders_agree(name: str, command: Command) -> None:
    folder = SHIPPED / name
    outcome = command("verify", folder / "1", folder / "decoder.onnx", folder / "generator.onnx", "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["passed"]
    vae = keras_vae.from_pretrained(name)
    z = np.random.default_rng(0).standard_normal((4, vae.latent_dim)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(vae.decode(z))
    # Trained in bfloat16, in which Keras decodes.
    np.testing.assert_allclose(Decoder(folder / "decoder.onnx").decode(z), expected, atol=0.06)
    assert Decoder(folder / "decoder.onnx").metadata["model"] == vae.fingerprint()
    generator = Generator(folder / "generator.onnx")
    assert vae.prior.kind == "learned"
    np.testing.assert_allclose(generator.generate(z), keras.ops.convert_to_numpy(vae.generator()(z)), atol=0.06)
    assert generator.metadata["model"] == vae.fingerprint()


def test_avatars_come_back_from_their_latents() -> None:
    drawn = avatar_drawing.draw_many(99, "test", range(24), 64)
    images = np.stack([each.image for each in drawn]).astype(np.float32) / 255
    vae = keras_vae.from_pretrained("avatars")
    made = vae.predict(images, verbose=0)
    assert psnr(images, made) > 20.0
    assert psnr(images, np.roll(made, 1, axis=0)) < 15.0  # or any avatar would do


@pytest.mark.slow
def test_clothes_come_back_from_their_latents() -> None:
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs Debian's dataset-fashion-mnist")
    images = np.concatenate(list(data.load("tfds:fashion_mnist", 32, 64).test.take(2).as_numpy_iterator()))
    vae = keras_vae.from_pretrained("fashion_mnist")
    assert psnr(images, vae.predict(images, verbose=0)) > 18.0


@pytest.mark.usefixtures("no_images")
def test_by_name_from_anywhere(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        picture = f"{name}.png"
        outcome = command("sample", name, "--count", 4, "--seed", 1, "--out", picture)
        assert outcome.status == 0, outcome.err
        assert np.asarray(Image.open(picture)).std() > 20
    outcome = command("edit", "avatars", "--attribute", "hat", "--image", "avatars.png", "--out", "edited.png")
    assert outcome.status == 0, outcome.err
    assert Image.open("edited.png").width > 64
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"{name}.png" for name in NAMES),
        "edited.png",
    }
    # A folder of that name is what is meant, where there is one.
    (tmp_path / "avatars").mkdir()
    outcome = command("sample", "avatars", "--out", "a.png")
    assert outcome.status == 2
    assert "avatars is not a model" in outcome.err


@pytest.mark.usefixtures("no_images")
def test_the_explorer_needs_no_images(command: Command, tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    for file in explorer.RUNTIME:
        (runtime / file).write_text("the page's own tests run it")
    outcome = command("explore", "--out", tmp_path / "page", "--runtime", runtime)
    assert outcome.status == 0, outcome.err
    about = json.loads((tmp_path / "page" / explorer.ABOUT).read_text())
    assert about["name"] == "avatars"
    assert len(about["latents"]) == explorer.LATENTS
    assert "hat" in {each["name"] for each in about["attributes"]}
    assert len(about["latents"][0]["direction"]) == 100


def test_an_unknown_name(command: Command, tmp_path: Path) -> None:
    with pytest.raises(keras_vae.InputError, match="no pretrained model 'faces': there are avatars, fashion_mnist"):
        keras_vae.from_pretrained("faces")
    outcome = command("sample", "faces", "--out", tmp_path / "a.png")
    assert outcome.status == 2
    assert "avatars, fashion_mnist" in outcome.err


def test_tfds_is_not_asked_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds, "builder", lambda *a, **k: pytest.fail("a set was asked for"))
    assert keras_vae.from_pretrained("fashion_mnist").image_shape == (32, 32, 1)
