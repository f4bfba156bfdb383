"""The encoder as an ONNX file: equal to Keras's, whole or not there, and refused when it is something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest

from keras_vae import VAE
from keras_vae.export import encoder as exporting
from keras_vae.export import runtime
from keras_vae.export.errors import ExportError, VerificationError


@pytest.fixture(scope="module")
def vae() -> VAE:
    """Of mixed precision, and of batch statistics that are not those of a fresh model."""
    keras.utils.set_random_seed(0)
    made = VAE((32, 32, 3), 8, perceptual=None, seed=0, dtype="mixed_bfloat16", network_options={"width": 8})
    rng = np.random.default_rng(0)
    for weight in made.encoder.weights:
        if any(part in weight.path for part in ("moving", "gamma", "beta")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return made


@pytest.fixture(scope="module")
def exported(vae: VAE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    assert exporting.export_encoder(vae.encoder, path, {"model": "abc"}) < 1e-4
    return path


def test_it_encodes_as_keras_does(vae: VAE, exported: Path, images: np.ndarray) -> None:
    opened = runtime.Encoder(exported)
    assert (opened.latent_dim, opened.image_shape, opened.metadata["model"]) == (8, (32, 32, 3), "abc")
    mean, log_var = opened.encode(images[:9])
    posterior = vae.encode(images[:9])  # in bfloat16
    np.testing.assert_allclose(mean, posterior.mean, atol=0.05)
    np.testing.assert_allclose(log_var, posterior.log_var, atol=0.1)
    assert opened.encode(images[:0])[0].shape == (0, 8)
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph_of(exported)
    ]
    assert shapes == [["batch", 32, 32, 3], ["batch", 8], ["batch", 8]]


def graph_of(path: Path) -> list[Any]:
    graph = onnx.load(path).graph
    assert sorted(value.name for value in graph.output) == ["log_var", "mean"]
    return [*graph.input, *graph.output]


def test_the_same_weights_give_the_same_bytes(vae: VAE, exported: Path, tmp_path: Path) -> None:
    exporting.export_encoder(vae.encoder, tmp_path / "again.onnx", {"model": "abc"})
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_an_encoder_with_a_pair_of_outputs(tmp_path: Path, images: np.ndarray) -> None:
    image = keras.Input((32, 32, 3))
    hidden = keras.layers.Flatten()(image)
    model = keras.Model(image, [keras.layers.Dense(3)(hidden), keras.layers.Dense(3)(hidden)])
    exporting.export_encoder(model, tmp_path / "encoder.onnx")
    mean, log_var = runtime.Encoder(tmp_path / "encoder.onnx").encode(images[:2])
    expected = model(images[:2])
    np.testing.assert_allclose(mean, expected[0], atol=1e-4)
    np.testing.assert_allclose(log_var, expected[1], atol=1e-4)


def test_an_encoder_that_differs_is_not_kept(
    vae: VAE, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "encoder.onnx"
    kept.write_bytes(exported.read_bytes())
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(VerificationError, match="differs from Keras"):
        exporting.export_encoder(vae.encoder, kept)
    assert kept.read_bytes() == exported.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]


def test_other_files_are_refused(exported: Path, tmp_path: Path, images: np.ndarray, deployed: Any) -> None:
    with pytest.raises(
        ExportError, match="is not an encoder: it has z, image where an encoder has image and mean and log"
    ):
        runtime.Encoder(deployed.onnx)
    with pytest.raises(ExportError, match="is not a decoder"):
        runtime.Decoder(exported)
    content = bytearray(exported.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "changed.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=r"checksum differs|can read"):
        runtime.Encoder(tmp_path / "changed.onnx")
    with pytest.raises(ExportError, match="images have shape"):
        runtime.Encoder(exported).encode(images[:2, :16])
    with pytest.raises(ExportError, match=r"ends in \.onnx"):
        exporting.export_encoder(None, tmp_path / "encoder")  # type: ignore[arg-type]
