"""Images from 0 to 255: rounded as PNG files are, by every format, and refused where a level is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from browser import few_draws

from keras_vae import VAE, export
from keras_vae.export.artifact import keras_runner
from keras_vae.export.formats import open_artifact
from keras_vae.export.png import to_png
from keras_vae.export.runtime import Decoder, Generator
from keras_vae.export.verify import verify
from keras_vae.support.pixels import to_float, to_uint8

ARTIFACTS = {
    "1": ("tf_saved_model", "float32"),
    "decoder.onnx": ("onnx", "float32"),
    "decoder.float16.onnx": ("onnx", "float16"),
    "decoder.int8.onnx": ("onnx", "int8"),
    "decoder.tflite": ("litert", "float32"),
    "decoder.xml": ("openvino", "float32"),
}
IN_FLOAT32 = [name for name, (_, precision) in ARTIFACTS.items() if precision == "float32"]


@pytest.fixture(scope="module")
def exported(
    deployed_vae: VAE, deployed_uint8: Any, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Each format and precision, by name: `vae.export` has verified them."""
    folder = tmp_path_factory.mktemp("uint8")
    found = {"1": deployed_uint8.saved_model, "decoder.onnx": deployed_uint8.onnx}
    for name, (format, precision) in ARTIFACTS.items():
        if name not in found:
            found[name] = folder / name
            with few_draws():
                deployed_vae.export(found[name], format, precision=precision, output="uint8", calibration=images)
    return found


@pytest.mark.parametrize("name", ARTIFACTS)
def test_every_artifact_has_the_levels_of_keras(
    exported: dict[str, Path], deployed_vae: VAE, images: np.ndarray, name: str
) -> None:
    opened = open_artifact(exported[name])
    assert (opened.output, opened.precision, opened.metadata["output"]) == ("uint8", ARTIFACTS[name][1], "uint8")
    for batch in (0, 3, 64):
        z = keras.ops.convert_to_numpy(deployed_vae.encode(images[: max(batch, 1)]).mean)[:batch]
        found = opened.decode(z)
        assert (found.shape, found.dtype) == ((batch, 32, 32, 3), np.uint8)
        if batch:
            expected = to_uint8(keras.ops.convert_to_numpy(deployed_vae.decode(z)))
            apart = np.abs(found.astype(int) - expected)
            assert apart.max() <= (1 if opened.precision != "int8" else 60)
            assert (apart > 0).mean() < {"float32": 1e-3, "float16": 0.1, "int8": 1}[opened.precision]


@pytest.fixture(scope="module")
def pixels_given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoders whose images are their latents, in each format but int8."""
    folder = tmp_path_factory.mktemp("given")
    decoder = keras.Sequential([keras.Input((12,)), keras.layers.Reshape((2, 2, 3))])
    for name, (format, precision) in ARTIFACTS.items():
        if precision != "int8":
            export.export_decoder(decoder, folder / name, format, precision=precision, output="uint8")
    return folder


@pytest.mark.parametrize("name", [*IN_FLOAT32, "decoder.float16.onnx"])
def test_rounding_is_that_of_png_files_to_the_bit(pixels_given: Path, name: str) -> None:
    ties = np.arange(-3, 260, dtype=np.float32) / 255 + np.float32(0.5 / 255)
    values = [np.nextafter(ties, np.float32(step)) for step in (-1, 2)]
    beyond = np.array([-1, -1e-9, 0, 1, np.nextafter(np.float32(1), np.float32(2)), 1.01, 2, 300, -300], np.float32)
    z = np.resize(np.concatenate([ties, *values, beyond]), (70, 12))
    found = open_artifact(pixels_given / name).decode(z).reshape(z.shape)
    if "float16" in name:  # scaled after it is float32 again
        z = z.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, to_uint8(z))
    picture = z[:1].reshape(1, 12, 1)
    assert to_png(picture) == to_png(to_uint8(picture))
    np.testing.assert_array_equal(to_uint8(to_float(found)), found)


@pytest.mark.parametrize(
    "name", ["decoder.onnx", *(pytest.param(each, marks=pytest.mark.slow) for each in ("1", "decoder.xml"))]
)
def test_a_weight_that_differs_by_a_thousandth_is_found(
    deployed_vae: VAE, exported: dict[str, Path], name: str
) -> None:
    other = keras.models.clone_model(deployed_vae.decoder)
    other.set_weights(deployed_vae.decoder.get_weights())
    bias = other.get_layer("conv4").bias
    bias.assign(keras.ops.convert_to_numpy(bias) + np.array([0, 1e-3, 0], np.float32))
    (pair,) = verify({"keras": keras_runner(other), "found": open_artifact(exported[name]).decode}, 8).pairs
    assert not pair.passed
    assert 1e-4 < pair.max_difference < 1e-3
    assert pair.psnr > 55  # levels that are one apart


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_images_that_are_cut_off_instead_of_rounded_are_found(precision: str) -> None:
    weights = np.random.default_rng(0).standard_normal((8, 48)).astype(np.float32)

    def images(z: np.ndarray) -> np.ndarray:
        return (0.5 + 0.5 * np.tanh(z @ weights)).reshape(-1, 4, 4, 3)

    for wrong in (
        lambda z: np.floor(255 * images(z)).astype(np.uint8),
        lambda z: np.minimum(to_uint8(images(z)), 254) + np.uint8(1),
        lambda z: (256 * np.minimum(images(z), 0.9999)).astype(np.uint8),
        lambda z: to_uint8(images(z) / 255),  # scaled twice
    ):
        right, found = verify(
            {"keras": images, "right": lambda z: to_uint8(images(z)), "found": wrong},
            8,
            precisions={"right": precision, "found": precision},
        ).pairs
        assert right.passed
        assert not found.passed, found


def test_two_that_round_may_differ_by_a_level_and_rarely() -> None:
    def levels(z: np.ndarray) -> np.ndarray:
        return to_uint8(np.tile(np.abs(z[:, :, None, None]) % 1, (1, 1, 50, 3)))

    for every, by, passed in ((100, 1, True), (10, 1, False), (100, 2, False)):

        def off(z: np.ndarray, every: int = every, by: int = by) -> np.ndarray:
            made = levels(z)
            places = made.reshape(-1)[::every]
            made.reshape(-1)[::every] = np.where(places > 100, places - by, places + by)
            return made

        (pair,) = verify({"a": levels, "b": off}, 3).pairs
        assert pair.passed is passed, (every, by, pair)
    assert not verify(
        {"a": lambda z: np.full((len(z), 1, 1, 1), np.nan), "b": lambda z: levels(z)[:, :1, :1, :1]}, 3
    ).passed


@pytest.mark.slow
def test_a_wrong_file_replaces_nothing(deployed_vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer's last node but one cuts values off."""
    from keras_vae.export.writers import onnx as writer

    save = writer.save

    def save_cut_off(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
        (node,) = [each for each in model.graph.node if each.op_type == "Round"]
        node.op_type = "Floor"
        save(model, path, metadata)

    monkeypatch.setattr(writer, "save", save_cut_off)
    with pytest.raises(export.VerificationError, match="keras and onnx uint8"):
        deployed_vae.export(tmp_path / "decoder.onnx", "onnx", output="uint8")
    assert list(tmp_path.iterdir()) == []


def test_the_last_nodes_compute_in_float32(exported: dict[str, Path]) -> None:
    for name in ("decoder.onnx", "decoder.float16.onnx", "decoder.int8.onnx"):
        graph = onnx.shape_inference.infer_shapes(onnx.load(exported[name])).graph
        assert [node.op_type for node in graph.node][-4:] == ["Clip", "Mul", "Round", "Cast"]
        types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
        assert {types[node.input[0]] for node in graph.node[-4:]} == {onnx.TensorProto.FLOAT}


def test_the_runtime_gives_levels(deployed_uint8: Any) -> None:
    decoder, generator = Decoder(deployed_uint8.onnx), Generator(deployed_uint8.generator)
    assert decoder.output == generator.output == "uint8"
    for found, wanted in (
        (decoder.decode(deployed_uint8.z), deployed_uint8.images),
        (generator.generate(deployed_uint8.noise), deployed_uint8.generated),
    ):
        assert found.dtype == np.uint8
        assert np.abs(found - 255 * wanted).max() < 0.5 + 255e-4


def test_an_output_that_is_none_is_one_line(deployed_vae: VAE, tmp_path: Path) -> None:
    for output in ("float16", "int8", ""):
        with pytest.raises(export.ExportError, match=r"unknown output .*: choose float32, .*, or uint8") as refused:
            deployed_vae.export(tmp_path / "decoder.onnx", "onnx", output=output)
        assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
