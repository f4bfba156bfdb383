"""`keras-vae export` and `keras-vae verify`: every format, and what they say of damaged artifacts."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from browser import few_draws
from conftest import flow
from PIL import Image

from keras_vae import VAE, cli, export
from keras_vae.export.formats import open_artifact
from keras_vae.export.runtime import Encoder, Scorer
from keras_vae.export.verify import LEAST_PSNR

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an export of every format and precision, and images from 0 to 255 too."""
    out = tmp_path_factory.mktemp("runs") / "small"
    options = ("--image-size", 16, "--latent-dim", 4, "--batch-size", 16, "--perceptual", "none", "--steps", 2)
    options = (*options, "--width", 4, "--prior", "standard")
    assert cli.run([str(each) for each in ("train", "--data", image_folder, "--out", out, *options)]) == 0
    vae = keras.saving.load_model(out / "model.keras")
    rng = np.random.default_rng(3)
    for weight in vae.decoder.weights:  # one of few steps makes images of one grey
        if any(part in weight.path for part in ("moving", "gamma", "beta")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    vae.set_prior(flow(4))  # fitting one takes longer
    vae.save(out / "model.keras")
    with few_draws():  # the first test verifies them all
        for arguments in (
            ("export", out, "--format", "all"),
            ("export", out, "--precision", "float16"),
            ("export", out, "--precision", "int8"),
            ("export", out, "--output", "uint8", "--format", "onnx"),
        ):
            assert cli.run([str(argument) for argument in arguments]) == 0
    return out


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copied"))


def test_all_formats_lie_side_by_side_and_verify(run: Path, command: Command) -> None:
    found = sorted(path.name for path in (run / "export").iterdir())
    endings = ("bin", "float16.onnx", "int8.onnx", "onnx", "tflite", "uint8.onnx", "xml")
    assert found == ["1", *(f"{part}.{ending}" for part in ("decoder", "generator") for ending in endings), "triton"]
    result = command("verify", run, "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert [pair["second"].split(" /")[0] for pair in report["pairs"]] == [
        "tf_saved_model",
        "onnx",
        "onnx uint8",
        "onnx float16",
        "onnx int8",
        "litert",
        "openvino",
        "onnx",  # Triton's
        "tf_saved_model",
        "onnx generator",
        "onnx generator uint8",
        "onnx generator float16",
        "onnx generator int8",
        "litert generator",
        "openvino generator",
        "onnx generator",
    ]
    assert all(pair["first"] == "keras" for pair in report["pairs"])
    assert all(artifact["checksum"] and artifact["problem"] is None for artifact in report["artifacts"])
    outputs = {Path(artifact["path"]).name: artifact["output"] for artifact in report["artifacts"]}
    assert {name for name, output in outputs.items() if output == "uint8"} == {
        "decoder.uint8.onnx",
        "generator.uint8.onnx",
    }
    by_name = {pair["second"]: pair for pair in report["pairs"]}
    assert by_name["onnx int8"]["psnr"] > LEAST_PSNR["int8"]
    table = command("verify", run, run / "export" / "decoder.onnx")
    assert table.status == 0
    assert "FAIL" not in table.out


@pytest.mark.slow
def test_export_reports_what_it_wrote(run: Path, command: Command, tmp_path: Path) -> None:
    result = command("export", run, "--out", tmp_path, "--precision", "int8", "--json")
    assert result.status == 0, result.err
    artifacts = json.loads(result.out)["artifacts"]
    assert [artifact["part"] for artifact in artifacts] == ["decoder", "generator"]
    for artifact in artifacts:
        path = Path(artifact["path"])
        assert (path.name, artifact["bytes"]) == (f"{artifact['part']}.int8.onnx", path.stat().st_size)
        assert artifact["precision"] == "int8"
        assert LEAST_PSNR["int8"] < artifact["psnr"] < 80
    shown = command("export", run, "--out", tmp_path, "--format", "onnx,tf_saved_model", "--encoder")
    assert shown.status == 0, shown.err
    assert "equal to Keras within" in shown.out
    assert open_artifact(tmp_path / "1").encode is not None


def test_encoder_and_scorer_lie_beside(copied: Path, command: Command, tmp_path: Path) -> None:
    for path in (copied / "export").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with few_draws():
        outcome = command("export", copied, "--encoder", "--scorer", "--format", "onnx", "--json")
        assert outcome.status == 0, outcome.err
        beside = [str(copied / "export" / name) for name in ("encoder.onnx", "scorer.onnx")]
        assert sorted(json.loads(outcome.out)["beside"]) == beside
        assert command("verify", copied).status == 0  # decoders alone: these two were verified as they were written
    assert Encoder(beside[0]).latent_dim == 4
    assert Scorer(beside[1]).image_shape == (16, 16, 3)
    alone = tmp_path / "alone.keras"
    shutil.copy(copied / "model.keras", alone)
    refused = command("export", alone, "--scorer", "--out", tmp_path / "out")
    assert (refused.status, "leave --scorer out" in refused.err) == (2, True)
    refused = command("export", copied, "--scorer", "--format", "litert")
    assert (refused.status, "--scorer is for SavedModel and ONNX" in refused.err) == (2, True)


@few_draws()
def test_damage_is_found_in_one_and_the_others_are_compared(copied: Path, command: Command) -> None:
    for other in (copied / "export").glob("*.*"):
        if "float16" in other.name or other.suffix in (".tflite", ".xml", ".bin"):  # some others are enough
            other.unlink()
    path = copied / "export" / "decoder.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (copied / "export" / "1" / "variables" / "variables.index").unlink()
    result = command("verify", copied, "--json")
    assert result.status == 1
    report = json.loads(result.out)
    problems = {Path(each["path"]).name: each["problem"] for each in report["artifacts"]}
    assert "checksum differs" in problems.pop("decoder.onnx")
    assert "lacks its file" in problems.pop("1")
    assert set(problems.values()) == {None}
    assert all(pair["passed"] for pair in report["pairs"])
    assert len(report["pairs"]) == len(problems)
    shown = command("verify", copied, path)
    assert shown.status == 1
    assert "FAIL" in shown.out


def test_exports_of_earlier_weights_are_called_so(copied: Path, command: Command) -> None:
    for path in (copied / "export").iterdir():
        if path.name != "decoder.onnx":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    vae = keras.saving.load_model(copied / "model.keras")
    kernel = vae.decoder.trainable_weights[0]
    kernel.assign(kernel + 0.01)
    vae.save(copied / "model.keras")
    result = command("verify", copied, "--json")
    assert result.status == 1
    (artifact,) = json.loads(result.out)["artifacts"]
    assert artifact["problem"] == (
        "it was exported from other weights, before the model was trained further: export it again"
    )


@few_draws()
def test_images_from_0_to_255_are_reported(run: Path, command: Command, tmp_path: Path) -> None:
    result = command("export", run, "--out", tmp_path, "--format", "onnx", "--output", "uint8", "--json")
    assert result.status == 0, result.err
    artifacts = json.loads(result.out)["artifacts"]
    assert [(Path(each["path"]).name, each["output"], each["precision"]) for each in artifacts] == [
        (f"{part}.uint8.onnx", "uint8", "float32") for part in ("decoder", "generator")
    ]
    shown = command("verify", run / "export" / "decoder.onnx", run / "export" / "decoder.uint8.onnx")
    assert shown.status == 0
    assert "onnx uint8" in shown.out


@pytest.mark.parametrize(
    "arguments",
    [("sample", "--count", 4), ("interpolate", "--count", 3), ("traverse", "--latents", 2)],
    ids=lambda each: each[0],
)
def test_pictures_of_images_from_0_to_255_are_the_same(
    run: Path, command: Command, tmp_path: Path, arguments: tuple[Any, ...]
) -> None:
    name, *options = arguments
    for file in ("generator.uint8.onnx", "generator.onnx"):
        done = command(name, run / "export" / file, *options, "--out", tmp_path / f"{file}.png")
        assert done.status == 0, done.err
    found, expected = (
        np.asarray(Image.open(tmp_path / f"{file}.png"), float) for file in ("generator.uint8.onnx", "generator.onnx")
    )
    assert np.abs(found - expected).max() <= 1


@pytest.mark.slow
def test_what_a_run_has_lost_is_found(copied: Path, command: Command) -> None:
    shutil.rmtree(copied / "export" / "1" / "assets.extra")
    config = copied / "export" / "triton" / "decoder" / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: 4", "dims: 9"))
    result = command("verify", copied, "--json")
    assert result.status == 1
    problems = {Path(each["path"]).name: each["problem"] for each in json.loads(result.out)["artifacts"]}
    assert "lost its metadata" in problems["1"]
    assert "input.dims is [9]" in problems["decoder"]
    # Named alone, a SavedModel without them is one by something else, and may compute the same.
    assert command("verify", copied, copied / "export" / "1").status == 0


@pytest.mark.slow
def test_versions_of_a_saved_model_lie_side_by_side(run: Path, command: Command, tmp_path: Path) -> None:
    for version in (1, 12):
        options = ("--format", "tf_saved_model", "--version", version, "--out", tmp_path / "served")
        assert command("export", run, *options).status == 0
    assert sorted(path.name for path in (tmp_path / "served").iterdir()) == ["1", "12"]


@few_draws()
def test_the_next_export_removes_what_a_killed_one_left(run: Path, tmp_path: Path) -> None:
    for name, locked in ((".aside-killed", False), (".aside-working", True), (".aside-users", None)):
        (tmp_path / name / "new").mkdir(parents=True)
        if locked is not None:
            (tmp_path / name / "lock").touch()
    with (tmp_path / ".aside-working" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.run(["export", str(run), "--format", "tf_saved_model", "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".aside-users", ".aside-working", "1"]


def test_an_export_of_another_run_is_found(copied: Path, command: Command) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "run_id": "another"}))
    result = command("verify", copied, copied / "export" / "decoder.onnx", "--json")
    assert result.status == 1
    assert "exported from the run" in json.loads(result.out)["artifacts"][0]["problem"]


def test_what_cannot_run_here_is_skipped_unless_named(
    copied: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (copied / "export").iterdir():
        if path.suffix not in (".xml", ".bin") and path.name != "decoder.onnx":  # some others are enough
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = command("verify", copied, "--json")
    assert result.status == 0, result.err
    skipped = [each for each in json.loads(result.out)["artifacts"] if each["skipped"]]
    assert {Path(each["path"]).name for each in skipped} == {"decoder.xml", "generator.xml"}
    assert command("verify", copied, copied / "export" / "decoder.xml").status == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "onnx,coreml"), "unknown export format 'coreml'"),
        (("--format", ""), "unknown export format"),
        (("--format", "all,foo"), "unknown export format 'foo'"),
        (("--out", ""), "a path is empty"),
        (("--out", "/proc/x"), "cannot write /proc/x"),
        (("--precision", "int4"), "float32, float16, int8"),
        (("--output", "float16"), "unknown output 'float16': choose float32"),
        (("--precision", "int8", "--format", "litert"), "int8 is for format 'onnx'"),
        (("--encoder", "--format", "litert"), "--encoder is for SavedModel and ONNX"),
        (("--data", "faces"), "add --precision int8"),
        (("--precision", "int8", "--data", "nowhere"), "unknown data source 'nowhere'"),
    ],
)
def test_wrong_options_get_one_line(
    run: Path, command: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    start = time.perf_counter()
    out = () if "--out" in arguments else ("--out", tmp_path / "out")
    result = command("export", run, *out, *arguments)
    assert time.perf_counter() - start < 10
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["sample", "--count", "3"], ["interpolate", "--count", "2"], ["traverse"]])
def test_an_onnx_file_takes_no_tensorflow(run: Path, tmp_path: Path, command: list[str]) -> None:
    name, *options = command
    arguments = [name, str(run / "export" / "generator.onnx"), *options, "--out", "picture.png"]
    script = f"""
import sys
for name in ("tensorflow", "keras", "onnx", "tf2onnx"):
    sys.modules[name] = None  # importing it fails
from keras_vae import cli
assert cli.run({arguments!r}) == 0
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
    assert Image.open(tmp_path / "picture.png").size[0] > 100


@pytest.mark.parametrize("name", ["generator.int8.onnx", "generator.tflite", "generator.xml", "1"])
def test_sample_takes_every_artifact(run: Path, command: Command, tmp_path: Path, name: str) -> None:
    for path, out in ((run / "export" / name, "found.png"), (run / "export" / "generator.onnx", "expected.png")):
        assert command("sample", path, "--count", 4, "--out", tmp_path / out).status == 0
    found, expected = (np.asarray(Image.open(tmp_path / out), float) for out in ("found.png", "expected.png"))
    assert np.abs(found - expected).max() <= (60 if "int8" in name else 1)


def test_untrusted_models_run_no_code_of_theirs(command: Command, tmp_path: Path) -> None:
    """Keras's safe mode: a Lambda layer in a .keras file is Python code, which anyone may have put there."""
    image, z = keras.Input((16, 16, 1)), keras.Input((2,))
    flat = keras.layers.Dense(4)(keras.layers.Flatten()(image))
    encoder = keras.Model(image, flat)
    pixels = keras.layers.Reshape((16, 16, 1))(keras.layers.Dense(256, activation="sigmoid")(z))
    marker = tmp_path / "it ran"
    bad = keras.layers.Lambda(eval(f"lambda x: (open({str(marker)!r}, 'w').close(), x)[1]"))
    vae = VAE(encoder=encoder, decoder=keras.Model(z, bad(pixels)), perceptual=None)
    vae.save(tmp_path / "theirs.keras")
    marker.unlink(missing_ok=True)
    for arguments in (("sample", tmp_path / "theirs.keras"), ("export", tmp_path / "theirs.keras", "--out", tmp_path)):
        result = command(*arguments)
        assert result.status == 2
        (line,) = result.err.splitlines()
        assert "cannot read" in line
        assert "lambda" in line.lower()
    assert not marker.exists()
    keras.saving.load_model(tmp_path / "theirs.keras", safe_mode=False)  # what would have happened
    assert marker.exists()


def test_a_manifest_that_is_damaged_is_one_line(copied: Path) -> None:
    manifest = copied / "export" / "1" / "assets.extra" / "keras_vae.json"
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(export.ExportError, match=r"the manifest of .* is damaged"):
        open_artifact(copied / "export" / "1")
    with zipfile.ZipFile(copied / "export" / "decoder.tflite") as archive:
        assert archive.namelist() == ["keras_vae.json"]
