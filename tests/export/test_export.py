"""Exported decoders: what they look like, that they equal Keras, and that a bad one replaces nothing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
from browser import few_draws
from PIL import Image

from keras_vae import VAE, __version__, export
from keras_vae.export import artifact, latents
from keras_vae.export.formats import FORMATS
from keras_vae.export.runtime import Decoder, Generator, to_png
from keras_vae.export.verify import draws, extremes, verify
from keras_vae.support.quiet import quiet_stderr

MakeVAE = Callable[..., VAE]


@pytest.fixture(scope="module")
def trained() -> VAE:
    """As one trained under mixed precision: batch statistics and policy are not those of a fresh model."""
    keras.utils.set_random_seed(0)
    vae = VAE((32, 32, 3), 8, perceptual=None, seed=0, dtype="mixed_bfloat16")
    rng = np.random.default_rng(0)
    for weight in vae.decoder.weights:
        if any(part in weight.path for part in ("moving", "gamma", "beta")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return vae


@pytest.fixture(scope="module")
def exported(trained: VAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    with few_draws():
        trained.export(folder / "1")
        trained.export(folder / "decoder.onnx", format="onnx", run_id="abc")
        trained.export(folder / "generator.onnx", format="onnx", part="generator", run_id="abc")
    return folder


def test_saved_model_signature(exported: Path) -> None:
    signature = tf.saved_model.load(str(exported / "1")).signatures["serving_default"]
    (z,) = signature.structured_input_signature[1].values()
    assert (z.name, z.shape.as_list(), z.dtype) == ("z", [None, 8], tf.float32)
    ((name, image),) = signature.structured_outputs.items()
    assert (name, image.shape.as_list(), image.dtype) == ("image", [None, 32, 32, 3], tf.float32)


def test_saved_model_gives_png_files_and_samples(exported: Path) -> None:
    signatures = tf.saved_model.load(str(exported / "1")).signatures
    z = tf.constant(np.random.default_rng(0).standard_normal((3, 8), np.float32))
    images = signatures["serving_default"](z=z)["image"].numpy()
    for file, image in zip(signatures["png"](z=z)["png_bytes"].numpy(), images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), np.round(image * 255))

    def sample(count: int, seed: int) -> dict[str, np.ndarray]:
        found = signatures["sample"](count=tf.constant(count, tf.int64), seed=tf.constant(seed, tf.int64))
        return {name: value.numpy() for name, value in found.items()}

    first, again, other, more = sample(4, 1), sample(4, 1), sample(4, 2), sample(9, 1)
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["z"], more["z"][:4])
    assert abs(first["z"] - other["z"]).min() > 0
    np.testing.assert_allclose(
        signatures["serving_default"](z=tf.constant(first["z"]))["image"], first["image"], atol=1e-6
    )
    many = sample(500, 3)["z"]
    assert abs(many.mean()) < 0.05
    assert abs(many.std() - 1) < 0.05


def test_the_runtime_refuses_what_is_no_latent(exported: Path) -> None:
    decoder = Decoder(exported / "decoder.onnx")
    good = np.zeros((2, 8))
    assert decoder.decode(good.tolist()).shape == (2, 32, 32, 3)
    assert decoder.decode(good[:0]).shape == (0, 32, 32, 3)
    assert np.isfinite(decoder.decode(good + 50)).all()
    for wrong, message in [
        (good[:, :7], "takes (batch, 8)"),
        (good[0], "takes (batch, 8)"),
        (good + np.nan, "NaN or infinity"),
        (good + 1e300, "more than float32"),
        (good.astype(str), "real numbers"),
        (good.astype(complex), "real numbers"),
        ([[0.0] * 8, [0.0] * 7], "not an array"),
        (None, "real numbers"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            decoder.decode(wrong)
    with pytest.raises(ValueError, match="count=0"):
        Generator(exported / "generator.onnx").sample(0)


def test_the_runtime_says_what_it_runs_on(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    decoder = Decoder(exported / "decoder.onnx", providers=["CPUExecutionProvider"])
    assert decoder.provider == "CPUExecutionProvider"
    # A driver that is there and CUDA's libraries that are not: quietly the CPU.
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name, *rest, **more: load(None if "cuda" in str(name) else name))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    found = Decoder(exported / "decoder.onnx")
    monkeypatch.undo()
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or not has_cuda():
        assert found.provider == "CPUExecutionProvider"
    z = np.zeros((2, 8))
    np.testing.assert_allclose(found.decode(z), decoder.decode(z), atol=1e-4)
    assert capfd.readouterr() == ("", "")


def has_cuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def test_the_runtime_serves_many_threads(exported: Path) -> None:
    decoder = Decoder(exported / "decoder.onnx")
    batches = [np.random.default_rng(seed).standard_normal((4, 8)) for seed in range(40)]
    expected = [decoder.decode(z) for z in batches]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(decoder.decode, batches), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 7, 3), (4, 9, 1)])
def test_the_runtime_writes_png_files(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).uniform(-0.2, 1.2, shape)
    read = np.asarray(Image.open(io.BytesIO(to_png(image))))
    np.testing.assert_array_equal(read.reshape(shape), np.round(255 * np.clip(image, 0, 1)))
    with pytest.raises(ValueError, match="height, width"):
        to_png(image[0])


def test_saved_model_holds_each_weight_once(exported: Path, trained: VAE) -> None:
    size = (exported / "1" / "variables" / "variables.data-00000-of-00001").stat().st_size
    # Of 3x3 kernels, those at the low resolution: 2x2 for each of four pixels.
    kernels = sum(np.prod(weight.shape) for weight in trained.decoder.weights if weight.shape[:2] == (3, 3))
    assert size < 1.1 * 4 * (trained.decoder.count_params() + (16 / 9 - 1) * kernels)


def test_onnx_signature_and_metadata(exported: Path, trained: VAE) -> None:
    model = onnx.load(exported / "decoder.onnx")
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"z": ["batch", 8], "image": ["batch", 32, 32, 3]}
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "latent_dim": "8",
        "image_shape": "[32, 32, 3]",
        "keras_vae_version": __version__,
        "run_id": "abc",
        "precision": "float32",
        "output": "float32",
        "model": trained.fingerprint(),
        "format_version": "1",
        "sha256": hashlib.sha256((exported / "decoder.onnx").read_bytes()[:-76]).hexdigest(),
    }
    assert model.opset_import[0].version >= 18


def test_artifacts_compute_in_float32_whatever_the_policy(exported: Path, trained: VAE) -> None:
    types = {tensor.data_type for tensor in onnx.load(exported / "decoder.onnx").graph.initializer}
    assert onnx.TensorProto.BFLOAT16 not in types
    assert onnx.TensorProto.FLOAT16 not in types
    assert b"conv1" in (exported / "1" / "saved_model.pb").read_bytes()
    loaded = tf.saved_model.load(str(exported / "1"))
    operations = loaded.signatures["serving_default"].graph.as_graph_def().library.function
    assert not any(
        attribute.type == tf.bfloat16.as_datatype_enum
        for function in operations
        for node in function.node_def
        for attribute in node.attr.values()
    )
    assert trained.decoder.get_layer("conv1").compute_dtype == "bfloat16"  # the model itself is left as it was


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_all_three_agree_for_any_batch(exported: Path, trained: VAE, batch: int) -> None:
    z = np.random.default_rng(batch).standard_normal((batch, 8), np.float32)
    reference = artifact.float32_copy(trained.decoder)(z).numpy()
    saved_model = tf.saved_model.load(str(exported / "1")).signatures["serving_default"](z=tf.constant(z))["image"]
    np.testing.assert_allclose(saved_model, reference, atol=1e-5)
    np.testing.assert_allclose(Decoder(exported / "decoder.onnx").decode(z), reference, atol=1e-5)
    assert np.abs(reference - trained.decode(z).numpy()).max() < 0.1  # bfloat16 rounds, and no more than that


def test_same_seed_same_image_in_keras_and_onnx(exported: Path, trained: VAE) -> None:
    generator = Generator(exported / "generator.onnx")
    np.testing.assert_allclose(generator.sample(3, seed=5), trained.sample(3, seed=5), atol=0.05)
    for model in (generator, Decoder(exported / "decoder.onnx")):
        assert (model.latent_dim, model.image_shape) == (8, (32, 32, 3))
        assert model.metadata["run_id"] == "abc"


def test_any_keras_decoder_will_do(tmp_path: Path) -> None:
    layers = keras.layers
    sequential = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4 * 4 * 8, dtype="mixed_bfloat16"),
            layers.Reshape((4, 4, 8)),
            layers.Conv2DTranspose(1, 4, 2, "same", activation="sigmoid", dtype="mixed_bfloat16"),
        ]
    )
    for format, name in (("tf_saved_model", "1"), ("onnx", "decoder.onnx")):
        assert export.export_decoder(sequential, tmp_path / name, format).passed


def test_latents_are_those_that_were_promised() -> None:
    batches = [*draws(6), *extremes(6)]
    z = np.concatenate(batches)
    assert {0, 1, 7, 64} <= {len(batch) for batch in batches}
    assert len(z) >= 1001
    for value in (0, 5, -5, 50, -50):
        assert (z == value).all(1).any()
    assert z.dtype == np.float32


def test_verification_sees_a_difference_nan_and_a_wrong_shape() -> None:
    def good(z: np.ndarray) -> np.ndarray:
        return np.tile(z[:, :1, None, None], (1, 2, 2, 1))

    assert verify({"a": good, "b": good}, 3).passed
    for least, error, largest, far, passed in [
        (5, 2e-4, 2e-4, 2e-4, False),
        (50, 2e-4, 0, 2e-4, True),
        (50, 2e-3, 0, 2e-3, False),
    ]:

        def off(z: np.ndarray, least: float = least, error: float = error) -> np.ndarray:
            return good(z) + (np.abs(z).max(initial=0) >= least) * error

        report = verify({"a": good, "b": off, "c": good}, 3)
        assert [pair.passed for pair in report.pairs] == [passed, True]
        pair = report.pairs[0]
        assert pair.max_difference == pytest.approx(largest, rel=0.01)
        assert pair.far_difference == pytest.approx(far, rel=0.05)
        assert pair.psnr == np.inf  # none of the draws from the prior differs
        assert report.to_json()["pairs"][0]["psnr"] is None
    assert not verify({"a": good, "b": lambda z: good(z) * np.nan}, 3).passed
    assert not verify({"a": good, "b": lambda z: good(z) * (np.nan if np.abs(z).max(initial=0) == 50 else 1)}, 3).passed
    assert not verify({"a": good, "b": lambda z: good(z)[:1]}, 3).passed
    assert not verify({"a": good, "b": lambda z: good(z) if len(z) else good(np.zeros((1, 3)))}, 3).passed


def test_a_decoder_that_fails_is_a_finding() -> None:
    def good(z: np.ndarray) -> np.ndarray:
        return np.tile(z[:, :1, None, None], (1, 2, 2, 1))

    def fails(z: np.ndarray) -> np.ndarray:
        if not len(z):
            raise RuntimeError("no\nempty batches")
        return good(z)

    first, second = verify({"a": good, "b": fails, "c": good}, 3).pairs
    assert (first.passed, first.error) == (False, "a batch of 0 failed: no empty batches")
    assert (second.passed, second.error) == (True, None)


def test_lower_precision_passes_by_its_psnr() -> None:
    def good(z: np.ndarray) -> np.ndarray:
        return np.tile(z[:, :1, None, None], (1, 2, 2, 1))

    for off, precision, passed in ((0.01, "int8", True), (0.05, "int8", False), (0.01, "float16", False)):
        (pair,) = verify({"a": good, "b": lambda z, off=off: good(z) + off}, 3, precisions={"b": precision}).pairs
        assert pair.psnr == pytest.approx(-20 * np.log10(off), abs=0.01)
        assert pair.passed is passed
        assert "dB" in pair.demanded


def damaged(writer: Callable[..., None]) -> Callable[..., None]:
    """Writes a decoder with one bias changed a little, as a wrong conversion would."""

    def write(decoder: keras.Model, path: Path, metadata: dict[str, str], prior: keras.layers.Layer | None) -> None:
        wrong = keras.models.clone_model(decoder)
        wrong.set_weights(decoder.get_weights())
        bias = next(weight for weight in reversed(wrong.weights) if weight.path.endswith("bias"))
        bias.assign(bias + 0.01)
        writer(wrong, path, metadata, prior=prior)

    return write


@pytest.mark.parametrize(
    ("format", "name"), [pytest.param("tf_saved_model", "1", marks=pytest.mark.slow), ("onnx", "decoder.onnx")]
)
@few_draws()
def test_a_failed_artifact_replaces_nothing(
    trained: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, name: str
) -> None:
    target = tmp_path / name
    trained.export(target, format=format)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    broken = dataclasses.replace(FORMATS[format], writer=damaged(FORMATS[format].write))
    monkeypatch.setitem(FORMATS, format, broken)
    with pytest.raises(export.VerificationError, match="differs from Keras"):
        trained.export(target, format=format)
    with pytest.raises(export.VerificationError):
        trained.export(tmp_path / f"new-{name}", format=format)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


@few_draws()
def test_exporting_again_replaces_the_old_artifact(make_vae: MakeVAE, tmp_path: Path) -> None:
    first, second = (make_vae(network_options={"width": 4}) for _ in range(2))
    second.decoder.get_layer("conv4").bias.assign([1.0, 2.0, 3.0])
    for format, name in (("tf_saved_model", "1"), ("onnx", "decoder.onnx")):
        first.export(tmp_path / name, format=format)
        second.export(tmp_path / name, format=format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "decoder.onnx"]
    z = latents.draw(2, 8, 0)
    np.testing.assert_allclose(Decoder(tmp_path / "decoder.onnx").decode(z), second.decode(z), atol=1e-5)


def test_unusable_targets_are_refused_and_left_alone(make_vae: MakeVAE, tmp_path: Path) -> None:
    vae = make_vae()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    for path, format, message in [
        (mine, "tf_saved_model", "is not a SavedModel"),
        (mine / "letter.txt", "tf_saved_model", "is not a SavedModel"),
        (mine, "onnx", "ending .onnx"),
        (tmp_path / "decoder.bin", "onnx", "ending .onnx"),
        (tmp_path / "decoder.onnx", "tf_saved_model", "give format='onnx'"),
        (tmp_path / "x", "coreml", "tf_saved_model, onnx, litert, openvino"),
        (tmp_path / "decoder.onnx", "litert", "ending .tflite"),
        (tmp_path / "decoder.tflite", "tf_saved_model", "give format='litert'"),
        (mine / "letter.txt" / "1", "tf_saved_model", "not a folder"),
    ]:
        with pytest.raises(export.ExportError, match=message):
            vae.export(path, format=format)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


def test_bad_onnx_files_are_refused(exported: Path, tmp_path: Path) -> None:
    content = (exported / "decoder.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.onnx").write_text("text")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value("x", 1, [1])], [value("y", 1, [1])]
    )
    other = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(other, tmp_path / "other.onnx")
    for name, message in (
        ("cut", "not an ONNX model"),
        ("text", "not an ONNX model"),
        ("other", "not a decoder"),
        ("none", "no ONNX"),
    ):
        with pytest.raises(export.ExportError, match=message) as refused:
            Decoder(tmp_path / f"{name}.onnx")
        assert "\n" not in str(refused.value)
    with pytest.raises(export.ExportError, match=r"takes \(batch, 8\)"):
        Decoder(exported / "decoder.onnx").decode(np.zeros((1, 9)))


def test_the_runtime_needs_neither_tensorflow_nor_keras(exported: Path) -> None:
    script = f"""
import sys
for name in ("tensorflow", "keras", "onnx", "tf2onnx", "PIL"):
    sys.modules[name] = None  # importing it fails
from keras_vae.export.runtime import Generator, to_png
images = Generator({str(exported / "generator.onnx")!r}).sample(2, seed=0)
print(images.shape, images.dtype)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(2, 32, 32, 3) float32"
    assert result.stderr == ""


def test_report_is_json(exported: Path) -> None:
    decoder = Decoder(exported / "decoder.onnx")
    report = verify({"a": decoder.decode, "b": decoder.decode}, 8)
    assert json.loads(json.dumps(report.to_json()))["passed"] is True


def test_quiet_blocks_may_overlap_in_threads(capfd: pytest.CaptureFixture[str]) -> None:
    def noisy(_: int) -> None:
        with quiet_stderr():
            os.write(2, b"noise")
            time.sleep(0.005)
            with contextlib.suppress(ZeroDivisionError), quiet_stderr():
                os.write(2, bytes(1 // 0))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(noisy, range(50)))
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"
