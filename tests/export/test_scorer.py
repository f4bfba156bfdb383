"""The scorer as an artifact: equal to Keras's scores and ranks, whole or not there, and refused when it is another."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from browser import few_draws, tool
from conftest import flow

from keras_vae import VAE, InputError
from keras_vae.export import runtime
from keras_vae.export import scorer as exporting
from keras_vae.export.errors import ExportError, VerificationError
from keras_vae.export.formats import open_artifact
from keras_vae.export.scored import Scored


@pytest.fixture(scope="module")
def images(images: np.ndarray) -> np.ndarray:
    """96 avatars, smaller ones: float32 (96, 16, 16, 3)."""
    return np.ascontiguousarray(images[:, ::2, ::2])


@pytest.fixture(scope="module")
def vae(images: np.ndarray) -> VAE:
    """With a learned prior, and of reconstructions that differ."""
    keras.utils.set_random_seed(0)
    made = VAE((16, 16, 3), 8, perceptual=None, seed=0, network_options={"width": 8})
    made.compile(keras.optimizers.Adam(1e-3))
    made.fit(images, batch_size=16, epochs=2, verbose=0)
    made.set_prior(flow(8))
    return made


@pytest.fixture(scope="module")
def exported(vae: VAE, images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scorer") / "scorer.onnx"
    assert vae.export_scorer(path, images[:60], run_id="abc") < 1e-4
    return path


@pytest.fixture(scope="module")
def wanted(vae: VAE, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return expected(vae, images)


def expected(vae: VAE, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    usual, found = (vae.score(each, draws=0) for each in (images[:60], images[60:]))
    return found.combined(usual), found.ranks(usual)["combined"]


def test_it_scores_as_keras_does(vae: VAE, exported: Path, images: np.ndarray, wanted: Any) -> None:
    scorer = runtime.Scorer(exported)
    assert (scorer.image_shape, scorer.metadata["run_id"]) == ((16, 16, 3), "abc")
    assert scorer.metadata["model"] == vae.fingerprint()
    found = scorer.score(images[60:])
    score, rank = wanted
    np.testing.assert_allclose(found.score, score, rtol=1e-3)
    np.testing.assert_allclose(found.rank, rank, atol=1 / 60)  # scores that are all but equal may change places
    assert 0.0 <= found.rank.min() < 0.3
    np.testing.assert_allclose(found.error_map, vae.error_maps(images[60:]), atol=1e-5)
    np.testing.assert_allclose(found.reconstruction, vae.predict(images[60:], verbose=0), atol=1e-5)
    assert [each.shape for each in scorer.score(images[:0])] == [(0,), (0,), (0, 16, 16), (0, 16, 16, 3)]


def test_the_same_weights_give_the_same_bytes(vae: VAE, exported: Path, images: np.ndarray, tmp_path: Path) -> None:
    vae.export_scorer(tmp_path / "again.onnx", images[:60], run_id="abc")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


@few_draws()
def test_a_saved_model_holds_it_too(vae: VAE, images: np.ndarray, wanted: Any, tmp_path: Path) -> None:
    vae.export(tmp_path / "1", scorer=vae.scorer(images[:60]), encoder=True)
    opened = open_artifact(tmp_path / "1")
    assert opened.score is not None
    found = opened.score(images[60:])
    assert set(found) == set(Scored._fields)
    np.testing.assert_allclose(found["score"], wanted[0], rtol=1e-3)
    assert opened.score(images[:0])["rank"].shape == (0,)
    vae.export(tmp_path / "2")
    assert open_artifact(tmp_path / "2").score is None


def test_averaged_weights_are_what_is_exported(images: np.ndarray, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    vae = VAE((16, 16, 3), 4, perceptual=None, seed=0, network_options={"width": 4})
    vae.compile(keras.optimizers.Adam(5e-3, use_ema=True, ema_momentum=0.99))
    vae.fit(images, batch_size=16, epochs=5, verbose=0)
    vae.export_scorer(tmp_path / "scorer.onnx", images[:60])
    found = runtime.Scorer(tmp_path / "scorer.onnx").score(images[60:])
    np.testing.assert_allclose(found.score, expected(vae, images)[0], rtol=1e-3)


def test_a_scorer_keeps_its_weights_and_is_of_one_model(vae: VAE, images: np.ndarray, tmp_path: Path) -> None:
    model = keras.models.clone_model(vae)
    model.set_weights(vae.get_weights())
    model.compile(keras.optimizers.Adam(1e-3))
    scorer = model.scorer(images[:60])
    before = np.asarray(scorer(images[:4])["score"])
    model.fit(images, batch_size=16, epochs=1, verbose=0)
    np.testing.assert_array_equal(scorer(images[:4])["score"], before)
    for wrong in (scorer, True):
        with pytest.raises(InputError, match=r"is not of these weights: give what vae\.scorer"):
            model.export(tmp_path / "1", scorer=wrong)
    assert not (tmp_path / "1").exists()


def test_a_scorer_that_differs_is_not_kept(
    vae: VAE, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "scorer.onnx"
    kept.write_bytes(b"before")
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(VerificationError, match="was not written: the scorer differs from Keras by"):
        vae.export_scorer(kept, images[:9])
    assert kept.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["scorer.onnx"]


def test_what_is_refused(vae: VAE, exported: Path, images: np.ndarray, tmp_path: Path, deployed: Any) -> None:
    scorer = runtime.Scorer(exported)
    with pytest.raises(ExportError, match=r"images have shape \(2, 8, 16, 3\): this scorer takes"):
        scorer.score(images[:2, :8])
    levels = np.round(images[:2] * 255).astype(np.uint8)
    np.testing.assert_allclose(scorer.score(levels).score, scorer.score(levels / 255.0).score, rtol=1e-5)
    with pytest.raises(ExportError, match=r"images range from .*: scale them to \[0, 1\]"):
        scorer.score(levels.astype(np.float32))
    with pytest.raises(ExportError, match="images hold NaN"):
        scorer.score(images[:2] * np.nan)
    with pytest.raises(ExportError, match="is not a scorer: it has z, image where a scorer has image and score and"):
        runtime.Scorer(deployed.onnx)
    with pytest.raises(ExportError, match="no ONNX file at"):
        runtime.Scorer(tmp_path / "nothing.onnx")
    with pytest.raises(ExportError, match=r"name a file that ends in \.onnx"):
        vae.export_scorer(tmp_path / "scorer", images)
    with pytest.raises(InputError, match="no images to score"):
        vae.export_scorer(tmp_path / "scorer.onnx", [])
    with pytest.raises(ExportError, match="only a SavedModel holds a scorer, and the format is onnx"):
        vae.export(tmp_path / "decoder.onnx", format="onnx", scorer=vae.scorer(images[:9]))
    assert not list(tmp_path.iterdir())


def test_node_scores_as_onnxruntime_in_python_does(
    kit: Path, exported: Path, images: np.ndarray, deployed: Any, tmp_path: Path
) -> None:
    script = """
        import { readFile } from "node:fs/promises";
        import ort from "onnxruntime-node";
        import { Scorer } from "./scorer.mjs";
        const [, model, file] = process.argv;
        try {
          const scorer = await Scorer.load(ort, model);
          const found = await scorer.score(new Float32Array((await readFile(file)).buffer.slice(0)));
          const { score, rank, errorMap, reconstruction } = found;
          console.log(JSON.stringify([scorer.imageShape, [score, rank], [...errorMap], [...reconstruction]]));
        } catch (error) {
          console.log(`${error.name}: ${error.message}`);
        }
        """
    images[70].tofile(tmp_path / "image.f32")
    images[70, :2].tofile(tmp_path / "part.f32")

    def node(*arguments: Path) -> str:
        command = [tool("node"), "--input-type=module", "-e", script, *map(str, arguments)]
        return subprocess.run(command, cwd=kit, capture_output=True, text=True, timeout=60, check=True).stdout

    shape, numbers, error_map, reconstruction = json.loads(node(exported, tmp_path / "image.f32"))
    python = runtime.Scorer(exported).score(images[70:71])
    assert shape == [16, 16, 3]
    np.testing.assert_allclose(numbers, [python.score[0], python.rank[0]], rtol=1e-4)
    np.testing.assert_allclose(error_map, python.error_map.ravel(), atol=1e-5)
    np.testing.assert_allclose(reconstruction, python.reconstruction.ravel(), atol=1e-5)
    assert "DecoderError: the picture has 96 values: give 768" in node(exported, tmp_path / "part.f32")
    assert "is not a scorer: it has z, image where one has" in node(deployed.onnx, tmp_path / "image.f32")
