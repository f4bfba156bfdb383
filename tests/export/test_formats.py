"""Every format and precision of exported decoders: equal to Keras, sealed, and refused when damaged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import openvino
import pytest
import tensorflow as tf
from browser import few_draws
from google.protobuf import text_format

from keras_vae import VAE, export
from keras_vae.export import seal
from keras_vae.export.artifact import export_decoder
from keras_vae.export.formats import format_of, open_artifact
from keras_vae.export.runtime import Decoder
from keras_vae.export.verify import LEAST_PSNR, draws
from keras_vae.support.files import replace

MakeVAE = Callable[..., VAE]
ARTIFACTS = ["1", "decoder.onnx", "decoder.float16.onnx", "decoder.int8.onnx", "decoder.tflite", "decoder.xml"]


@pytest.fixture(scope="module")
def vae(deployed_vae: VAE) -> VAE:
    """Of the default width: of smaller networks most of a file is no weights."""
    return deployed_vae


@pytest.fixture(scope="module")
def reports(
    vae: VAE, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, export.Report]]:
    """Each format and precision, in one folder, and what each export reported, by file name."""
    folder, found = tmp_path_factory.mktemp("formats"), {}
    for name, format, precision in [
        ("1", "tf_saved_model", "float32"),
        ("decoder.onnx", "onnx", "float32"),
        ("decoder.float16.onnx", "onnx", "float16"),
        ("decoder.int8.onnx", "onnx", "int8"),
        ("decoder.tflite", "litert", "float32"),
        ("decoder.xml", "openvino", "float32"),
    ]:
        options: dict[str, Any] = {"precision": precision, "calibration": images, "encoder": name == "1"}
        with few_draws():
            found[name] = vae.export(folder / name, format, run_id="abc", **options)
    return folder, found


@pytest.fixture(scope="module")
def exported(reports: tuple[Path, Any]) -> Path:
    return reports[0]


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "copied"))


@pytest.mark.parametrize("name", ARTIFACTS)
def test_every_artifact_decodes_as_keras_does_and_says_what_it_is(exported: Path, vae: VAE, name: str) -> None:
    opened = open_artifact(exported / name)
    assert (opened.latent_dim, opened.image_shape) == (8, (32, 32, 3))
    assert (opened.metadata["run_id"], opened.metadata["format_version"]) == ("abc", "1")
    assert opened.precision == (name.split(".")[1] if name.count(".") == 2 else "float32")
    assert opened.format == format_of(exported / name)
    for batch in (0, 1, 3, 64):
        z = np.random.default_rng(batch).standard_normal((batch, 8)).astype(np.float32)
        found = opened.decode(z)
        assert (found.shape, found.dtype) == ((batch, 32, 32, 3), np.float32)
        if batch:
            expected = keras.ops.convert_to_numpy(vae.decode(z))
            assert np.abs(found - expected).max() < {"float32": 1e-5, "float16": 0.01, "int8": 0.2}[opened.precision]


def test_lower_precision_is_smaller_and_measured(vae: VAE, reports: tuple[Path, Any]) -> None:
    sizes, psnr = {}, {}
    with few_draws():
        references = [(z, keras.ops.convert_to_numpy(vae.decoder(z))) for z in draws(8)]
    for precision, name in zip(("float32", "float16", "int8"), ARTIFACTS[1:4], strict=True):
        path = reports[0] / name
        (pair,) = reports[1][name].pairs
        sizes[precision], psnr[precision] = path.stat().st_size, pair.psnr
        types = {each.data_type for each in onnx.load(path).graph.initializer}
        wanted = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}
        assert wanted[precision] in types
        # What the report says is what it is.
        found, errors = Decoder(path), []
        for z, expected in references:
            errors.append(np.square(found.decode(z) - expected).sum() / len(expected))
        assert pair.psnr == pytest.approx(-10 * np.log10(np.mean(errors) / expected[0].size), abs=0.5)
        assert found.precision == precision
    assert sizes["float16"] < 0.55 * sizes["float32"]
    assert sizes["int8"] < 0.35 * sizes["float32"]
    assert psnr["float32"] > 100 > psnr["float16"] > LEAST_PSNR["float16"] > psnr["int8"] > LEAST_PSNR["int8"]


@pytest.mark.slow
def test_int8_that_loses_too_much_is_not_kept(vae: VAE, images: np.ndarray, tmp_path: Path) -> None:
    target = tmp_path / "decoder.onnx"
    vae.export(target, "onnx", precision="int8", calibration=images)
    before = target.read_bytes()
    with pytest.raises(export.VerificationError, match="at least 30 dB"):  # calibrated on what it never sees
        export_decoder(vae.decoder, target, "onnx", precision="int8", calibration=np.full((1, 8), 100.0, np.float32))
    assert target.read_bytes() == before


@pytest.mark.slow
def test_the_same_weights_give_the_same_bytes(vae: VAE, images: np.ndarray, exported: Path, tmp_path: Path) -> None:
    for precision in ("float16", "int8"):
        name = f"decoder.{precision}.onnx"
        vae.export(tmp_path / name, "onnx", precision=precision, calibration=images, run_id="abc")
        assert (tmp_path / name).read_bytes() == (exported / name).read_bytes(), name


def test_wrong_options_are_refused_before_any_work(vae: VAE, images: np.ndarray, tmp_path: Path) -> None:
    for arguments, message in [
        ({"format": "onnx", "precision": "int4"}, "float32, float16, int8"),
        ({"format": "litert", "precision": "int8", "filepath": "d.tflite"}, "for format 'onnx'"),
        ({"format": "onnx", "precision": "int8"}, "give calibration="),
        ({"format": "onnx", "encoder": True}, "only a SavedModel"),
        ({"format": "openvino", "filepath": "mine.xml"}, "mine.bin is there"),
    ]:
        (tmp_path / "mine.bin").write_text("mine")
        settings = {"filepath": "d.onnx", **arguments}
        with pytest.raises(ValueError, match=message):
            vae.export(tmp_path / str(settings.pop("filepath")), **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.bin"]


def test_a_missing_runtime_is_named(vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, format, name in (
        ("ai_edge_litert.interpreter", "litert", "d.tflite"),
        ("openvino", "openvino", "d.xml"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(export.ExportError, match=rf"pip install 'keras-vae\[{format}\]'"):
            vae.export(tmp_path / name, format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tensorflows_own_tool_shows_and_runs_a_saved_model(deployed: Any, tmp_path: Path) -> None:
    """As the README has it."""
    tool = Path(sys.executable).with_name("saved_model_cli")
    model = ("--dir", deployed.saved_model)
    shown = subprocess.run([tool, "show", *model, "--all"], check=True, capture_output=True, text=True).stdout
    for name in ("serving_default", "png", "sample"):
        assert f"signature_def['{name}']" in shown
    np.save(tmp_path / "z.npy", deployed.z)
    given = ("--tag_set", "serve", "--signature_def", "serving_default", "--inputs", f"z={tmp_path / 'z.npy'}")
    subprocess.run([tool, "run", *model, *given, "--outdir", tmp_path], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "image.npy"), deployed.images, atol=1e-5)
    given = ("--tag_set", "serve", "--signature_def", "sample", "--input_exprs", "count=4;seed=0")
    subprocess.run([tool, "run", *model, *given, "--outdir", tmp_path / "out"], check=True, capture_output=True)
    assert np.load(tmp_path / "out" / "image.npy").shape == (4, 32, 32, 3)


def test_encode_signature(exported: Path, vae: VAE, images: np.ndarray) -> None:
    signature = tf.saved_model.load(str(exported / "1")).signatures["encode"]
    posterior = vae.encode(images[:3])
    found = signature(image=tf.constant(images[:3]))
    np.testing.assert_allclose(found["mean"], posterior.mean, atol=1e-4)
    np.testing.assert_allclose(found["log_var"], posterior.log_var, atol=1e-4)
    assert signature(image=tf.zeros((0, 32, 32, 3)))["mean"].shape == (0, 8)


def test_every_signature_takes_an_empty_batch(exported: Path) -> None:
    signatures = tf.saved_model.load(str(exported / "1")).signatures
    assert signatures["png"](z=tf.zeros((0, 8)))["png_bytes"].shape == (0,)
    none = signatures["sample"](count=tf.constant(0, tf.int64), seed=tf.constant(1, tf.int64))
    assert none["image"].shape == (0, 32, 32, 3)


def test_warmup_requests_are_records_that_the_signatures_take(exported: Path) -> None:
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    signatures = tf.saved_model.load(str(exported / "1")).signatures
    file = exported / "1" / "assets.extra" / "tf_serving_warmup_requests"
    seen = []
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        outputs = signatures[request.model_spec.signature_name](
            **{name: tf.constant(value) for name, value in inputs.items()}
        )
        seen.append((request.model_spec.signature_name, next(iter(outputs.values())).shape[0]))
        # Written again by the real classes it is the same message.
        again = prediction_log_pb2.PredictionLog()
        text_format.Parse(text_format.MessageToString(log), again)
        assert again == log
    assert set(seen) == {
        *(("serving_default", batch) for batch in (1, 8, 64)),
        *(("png", batch) for batch in (1, 8, 64)),
        *(("generate", batch) for batch in (1, 8, 64)),
        *(("generate_png", batch) for batch in (1, 8, 64)),
        ("encode", 1),
    }


@pytest.mark.parametrize("name", ["decoder.onnx", "decoder.int8.onnx", "decoder.tflite", "decoder.xml"])
def test_one_wrong_byte_is_found(copied: Path, name: str) -> None:
    path = copied / name
    places = [path] if path.suffix != ".xml" else [path, path.with_suffix(".bin")]
    for damaged in places:
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        whole = damaged.read_bytes()
        damaged.write_bytes(content)
        with pytest.raises(export.ExportError, match=r"export it again|export again") as refused:
            open_artifact(path)
        assert "\n" not in str(refused.value)
        damaged.write_bytes(whole)
    open_artifact(path)


@pytest.mark.parametrize("name", ARTIFACTS)
def test_what_is_cut_short_is_refused(copied: Path, name: str) -> None:
    path = copied / name
    file = path / "saved_model.pb" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(export.ExportError) as refused:
        open_artifact(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


def test_missing_files_are_named(copied: Path) -> None:
    (copied / "1" / "variables" / "variables.index").unlink()
    with pytest.raises(export.ExportError, match=r"lacks its file variables/variables\.index"):
        open_artifact(copied / "1")
    (copied / "decoder.bin").unlink()
    with pytest.raises(export.ExportError, match=r"lacks its file \.bin"):
        open_artifact(copied / "decoder.xml")
    shutil.rmtree(copied / "1" / "assets.extra")  # no manifest: TensorFlow's own error in one line
    with pytest.raises(export.ExportError, match="cannot read the SavedModel") as refused:
        open_artifact(copied / "1")
    assert "\n" not in str(refused.value)


def test_a_later_format_and_a_later_onnx_are_refused(copied: Path, tmp_path: Path) -> None:
    model = onnx.load(copied / "decoder.onnx")
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key != "sha256"}
    onnx.helper.set_model_props(model, {**entries, "format_version": "2"})
    (tmp_path / "later.onnx").write_bytes(seal.seal_onnx(model.SerializeToString()))
    with pytest.raises(export.ExportError, match=r"format version 2.*update keras-vae"):
        Decoder(tmp_path / "later.onnx")
    for field in ("ir_version", "opset"):
        model = onnx.load(copied / "decoder.onnx")
        if field == "ir_version":
            model.ir_version = 99
        else:
            model.opset_import[0].version = 99
        onnx.save(model, tmp_path / f"{field}.onnx")
        with pytest.raises(export.ExportError, match="later version of ONNX"):
            Decoder(tmp_path / f"{field}.onnx")


def test_an_onnx_file_of_the_right_names_and_other_shapes_is_no_decoder(tmp_path: Path) -> None:
    z = keras.Input((3,), name="z")
    other = keras.Model({"z": z}, {"image": keras.layers.Dense(3)(z)})
    other({"z": np.zeros((1, 3))})
    other.export(str(tmp_path / "other.onnx"), format="onnx", verbose=False)
    model = onnx.load(tmp_path / "other.onnx")
    old = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["image" if name == old else name for name in node.output]
    model.graph.output[0].name = "image"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(export.ExportError, match=r"not a decoder: z is \[batch, \[3\]\], image \[batch, \[3\]\]"):
        Decoder(tmp_path / "other.onnx")


def test_files_of_others_are_no_decoders(tmp_path: Path) -> None:
    x = keras.Input((3,), name="x")
    other = keras.Model({"x": x}, {"y": keras.layers.Dense(2)(x)})
    other.export(str(tmp_path / "other.tflite"), format="litert", verbose=False)
    operations = openvino.opset13
    x = operations.parameter([-1, 3], np.float32, name="x")
    openvino.save_model(openvino.Model([operations.relu(x)], [x]), tmp_path / "other.xml")
    for path in (tmp_path / "other.tflite", tmp_path / "other.xml"):
        with pytest.raises(export.ExportError, match="is not a decoder"):
            open_artifact(path)
    with pytest.raises(export.ExportError, match="not an exported decoder"):
        open_artifact(tmp_path)


# Killed at every stage: while the artifact is written, while it is compared, and while it takes its place.
KILLED = """
import dataclasses, os, sys, time
import keras, numpy as np
from keras_vae.export import artifact
from keras_vae.export.formats import FORMATS
stage, path, format = sys.argv[1:]
layers = keras.layers
keras.utils.set_random_seed(2)
decoder = keras.Sequential(
    [keras.Input((4,)), layers.Dense(3 * 16), layers.Reshape((4, 4, 3)), layers.Activation("sigmoid")]
)
def hang(*args, **kwargs):
    print("here", flush=True)
    time.sleep(60)
if stage == "write":
    write = FORMATS[format].write
    hanging = lambda *args, **kwargs: (write(*args, **kwargs), hang())
    FORMATS[format] = dataclasses.replace(FORMATS[format], writer=hanging)
elif stage == "verify":
    artifact.verify = hang
elif stage == "replace":
    replace = artifact.replace
    artifact.replace = lambda *args: (replace(*args), hang())
artifact.export_decoder(decoder, path, format)
"""


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("1", "replace"),
        ("decoder.onnx", "verify"),
        pytest.param("decoder.onnx", "write", marks=pytest.mark.slow),
        pytest.param("decoder.onnx", "replace", marks=pytest.mark.slow),
        pytest.param("1", "write", marks=pytest.mark.slow),
        pytest.param("1", "verify", marks=pytest.mark.slow),
    ],
)
def test_an_export_that_is_killed_leaves_a_whole_artifact(tmp_path: Path, stage: str, name: str) -> None:
    layers = keras.layers
    keras.utils.set_random_seed(1)
    decoder = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3 * 16), layers.Reshape((4, 4, 3)), layers.Activation("sigmoid")]
    )
    format = "onnx" if name.endswith(".onnx") else "tf_saved_model"
    export_decoder(decoder, tmp_path / name, format)
    z = np.ones((2, 4), np.float32)
    before = open_artifact(tmp_path / name).decode(z)
    arguments = [sys.executable, "-c", KILLED, stage, str(tmp_path / name), format]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"here"
        process.send_signal(signal.SIGKILL)
    after = open_artifact(tmp_path / name).decode(z)
    assert np.array_equal(before, after) == (stage != "replace")  # the new one, when it was in place


def test_an_open_folder_is_never_missing_while_it_is_replaced(make_vae: MakeVAE, tmp_path: Path) -> None:
    """What TF Serving, or anyone who looks again and again, would see."""
    for name in ("old", "new/1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "saved_model.pb").write_text(name)
    target = tmp_path / "1"
    (tmp_path / "old").rename(target)
    script = f"""
import os, time
print("ready", flush=True)
missing = 0
end = time.monotonic() + 1.0
while time.monotonic() < end:
    missing += not os.path.exists({str(target / "saved_model.pb")!r})
print(missing)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "ready\n"
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            replace(tmp_path / "new" / "1", target)
        assert watcher.stdout.read() == "0\n"


def test_report_of_an_export_is_json(reports: tuple[Path, Any]) -> None:
    report = reports[1]["decoder.tflite"]
    assert json.loads(json.dumps(report.to_json()))["pairs"][0]["demanded"] == "at most 0.0001"
