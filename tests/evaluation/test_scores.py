"""Scores of unusual images: known values, honest ranks, error maps that find drawn defects, and `keras-vae score`."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.distance import mahalanobis

import keras_vae
from keras_vae import VAE, InputError, data
from keras_vae.data import AvatarsConfig, pipelines
from keras_vae.data.images import Images
from keras_vae.evaluation import unusual
from keras_vae.model import priors
from keras_vae.model.bounds import importance_weighted_bound
from keras_vae.model.scoring import Scores
from keras_vae.runs.opening import open_model

Command = Callable[..., Any]
AVATARS = Path(keras_vae.__file__).parents[1] / "saved_models" / "avatars" / "model.keras"


def scores(*values: float) -> Scores:
    """Scores of images of which each is unusual in every way by the same value."""
    found = np.array(values, np.float64)
    return Scores(-found, found, found, found)


# Ranks ----------------------------------------------------------------------------------------------------


def test_a_rank_is_the_share_of_usual_images_that_are_less_unusual() -> None:
    usual = scores(*range(1, 100))  # 99 images
    ranks = scores(0.5, 1.0, 50.0, 99.0, 1000.0).ranks(usual)
    assert set(ranks) == {each.name for each in fields(Scores)} | {"combined"}
    for values in ranks.values():
        np.testing.assert_allclose(values, [0.0, 0.0, 0.49, 0.98, 0.99])


def test_a_usual_image_ranks_among_the_others() -> None:
    usual = scores(*range(1, 101))
    ranks = usual.ranks(usual, np.ones(100, bool))["bound"]
    np.testing.assert_allclose(ranks, np.arange(100) / 100)  # the last is beyond all 99 others


def test_what_was_left_out_has_no_rank() -> None:
    values, unknown = np.array([1.0, 2.0]), np.full(2, np.nan)
    found = Scores(unknown, values, values, unknown)
    assert set(found.ranks(found)) == {"reconstruction_error", "code_distance", "combined"}
    assert set(scores(1.0).ranks(found)) == set(found.ranks(scores(1.0, 2.0))) == set(found.ranks(found))


def test_the_combined_score_sees_either_kind_of_unusual_image() -> None:
    rng = np.random.default_rng(0)
    error, distance = np.exp(rng.standard_normal((2, 999)))
    usual = Scores(-error, error, distance, error)
    odd = Scores(np.zeros(4), np.exp([6.0, 0.0, 6.0, -6.0]), np.exp([0.0, 6.0, -6.0, 6.0]), np.ones(4))
    assert (odd.ranks(usual)["combined"] > 0.99).all()
    logs = np.log([error, distance])
    deviations = (logs - logs.mean(axis=1, keepdims=True)) / logs.std(axis=1, keepdims=True)
    np.testing.assert_allclose(usual.combined(usual), np.log1p(np.exp(deviations)).sum(axis=0), rtol=1e-9)


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0.5, 0.99))
def test_usual_images_are_seldom_flagged(count: int, seed: int, flag: float) -> None:
    """Of n + 1 exchangeable images each is the last with the same chance: at most (1 - flag) of them are flagged."""
    values = np.random.default_rng(seed).integers(0, 10, count + 1).astype(float)  # with ties
    flagged = 0
    for last in range(count + 1):
        others = scores(*np.delete(values, last))
        flagged += scores(values[last]).ranks(others)["reconstruction_error"][0] >= flag
    assert flagged / (count + 1) <= 1.0 - flag + 1e-9


# Scores ---------------------------------------------------------------------------------------------------


def test_code_distance_is_the_mahalanobis_distance_from_the_codes_that_a_prior_was_fitted_to() -> None:
    rng = np.random.default_rng(0)
    mean = (rng.standard_normal((500, 3)) @ [[2.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.3, 0.2]] + 1.0).astype("float32")
    prior = priors.gaussian(mean, np.full_like(mean, -20.0))
    covariance = np.cov(mean.T, bias=True)
    z = rng.standard_normal((7, 3)).astype(np.float32)
    known = [mahalanobis(each, mean.mean(axis=0), np.linalg.inv(covariance)) / np.sqrt(3) for each in z]
    np.testing.assert_allclose(prior.distance()(z), known, rtol=1e-3)
    np.testing.assert_allclose(
        priors.StandardNormal(3).distance()(z), np.linalg.norm(z, axis=1) / np.sqrt(3), rtol=1e-6
    )


def test_scores_are_what_their_names_say(make_vae: Callable[..., VAE], images: np.ndarray) -> None:
    vae = make_vae()
    found = vae.score(images[:40], draws=4, seed=3)
    assert len(found) == 40
    error = np.square(images[:40] - vae.predict(images[:40], verbose=0)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found.reconstruction_error, error, rtol=1e-4)
    codes = np.asarray(vae.encode(images[:40]).mean)
    np.testing.assert_allclose(found.code_distance, np.sqrt(np.square(codes).mean(axis=1)), rtol=1e-4)
    batches = [images[:32], images[32:40]]
    np.testing.assert_allclose(found.bound, importance_weighted_bound(vae, batches, 4, 3).per_image, rtol=1e-6)
    assert np.isnan(found.feature_distance).all()
    assert np.isnan(vae.score(images[:3], draws=0).bound).all()
    judged = vae.score(images[:3], features="efficientnet-lite0", draws=0).feature_distance
    assert (judged > 0.1).all()  # of a model that was not trained


def test_what_can_be_scored(make_vae: Callable[..., VAE], images: np.ndarray) -> None:
    vae = make_vae()
    expected = vae.score(images[:8], draws=0).reconstruction_error
    levels = np.round(images[:8] * 255).astype(np.uint8)
    for given_as in ({"image": images[:8]}, levels, data.load(images[:9], batch_size=8).train_from(0).take(1)):
        found = vae.score(given_as, draws=0).reconstruction_error
        np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=2e-2)
    for wrong, message in (
        ([], "no images to score"),
        (images[:2, :16], "have shape"),
        (tf.data.Dataset.from_tensors(images[:2] * np.nan), "NaN"),
        (images[:2] * 300.0, r"scale them to \[0, 1\]"),
    ):
        with pytest.raises(InputError, match=message):
            vae.score(wrong)
    with pytest.raises(InputError, match="draws=-1"):
        vae.score(images[:2], draws=-1)
    with pytest.raises(InputError, match="scale them"):
        vae.error_maps(images[:2] * 300.0)


def test_a_model_that_diverged_is_refused(make_vae: Callable[..., VAE], images: np.ndarray) -> None:
    vae = make_vae()
    vae.decoder.weights[0].assign(np.full(vae.decoder.weights[0].shape, np.nan))
    with pytest.raises(InputError, match=r"^the model's scores are not finite: its training diverged"):
        vae.score(images[:2])


def test_an_error_map_is_the_error_smoothed() -> None:
    """A decoder of grey images, and one white pixel: a Gaussian about it, of a deviation of a fortieth of the side."""
    side = 80
    image = keras.Input((side, side, 1))
    zeros = keras.layers.Dense(2, kernel_initializer="zeros")
    flat = keras.layers.Flatten()(image)
    encoder = keras.Model(image, {"mean": zeros(flat), "log_var": zeros(flat)})
    z = keras.Input((2,))
    grey = keras.layers.Dense(side * side, "sigmoid", kernel_initializer="zeros")(z)
    decoder = keras.Model(z, keras.layers.Reshape((side, side, 1))(grey))
    vae = VAE(encoder=encoder, decoder=decoder, perceptual=None)
    images = np.full((2, side, side, 1), 0.5, np.float32)
    images[0, 30, 50] = 1.0
    found = np.asarray(vae.error_maps(images))
    assert found.shape == (2, side, side)
    rows, columns = np.ogrid[:side, :side]
    gaussian = np.exp(-((rows - 30) ** 2 + (columns - 50) ** 2) / (2 * 2.0**2))
    np.testing.assert_allclose(found[0], 0.25 * gaussian / gaussian.sum(), atol=1e-6)
    assert not found[1].any()


@pytest.mark.skipif(not AVATARS.is_file(), reason="saved_models are not beside the package")
def test_the_map_of_an_avatar_points_to_its_defect() -> None:
    """A blob anywhere, and an eye painted over; both are found in more than 85 of 100."""
    vae = keras.saving.load_model(AVATARS)
    drawn = data.Avatars(config=AvatarsConfig(name="defects", size=64, seed=5, train_examples=1, test_examples=100))
    drawn.download_and_prepare()
    images = np.stack([each["image"] for each in drawn.as_dataset(split="test").as_numpy_iterator()]) / np.float32(255)
    rows, columns = np.mgrid[:64, :64]
    rng = np.random.default_rng(0)

    def blob(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (height, width), (row, column) = rng.uniform(3, 7, 2), rng.uniform(8, 56, 2)
        inside = ((rows - row) / height) ** 2 + ((columns - column) / width) ** 2 <= 1
        return np.where(inside[..., None], rng.uniform(size=3).astype(np.float32), image), inside

    def missing_eye(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = (rows - 25) ** 2 + (columns - rng.choice([27, 37])) ** 2 <= 4**2
        skin = np.median(image[30:34, 29:36].reshape(-1, 3), axis=0)
        return np.where(inside[..., None], skin, image), inside

    for defect in (blob, missing_eye):
        faulty, inside = (np.stack(column) for column in zip(*map(defect, images), strict=True))
        places = np.asarray(vae.error_maps(faulty)).reshape(100, -1).argmax(axis=1)
        assert inside.reshape(100, -1)[np.arange(100), places].mean() >= 0.85, defect.__name__


# The command line -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, train_small: Callable[..., Path]) -> Path:
    """A run that tells avatars from noise: few epochs, of which each brings a checkpoint."""
    out = tmp_path_factory.mktemp("scores") / "run"
    return train_small(out, image_size=32, batch_size=4, learning_rate=2e-3, epochs=8, network="dfc")


@pytest.fixture(scope="module")
def sorted_folder(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Path:
    """Avatars, and noise that is none, in a subfolder for each."""
    folder = tmp_path_factory.mktemp("sorted") / "images"
    noise = np.random.default_rng(0).uniform(size=(6, 32, 32, 3))
    for name, found in (("fine", images[:30]), ("faulty", noise)):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(found):
            Image.fromarray(np.round(image * 255).astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_score_lists_the_most_unusual_images_first(
    run: Path, sorted_folder: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "scores"
    arguments = ("score", run, "--data", sorted_folder, "--out", out, "--draws", 2, "--features", "none")
    result = command(*arguments, "--unusual", "faulty", "--json")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert (found["images"], found["unusual_images"]) == (36, 6)
    assert next(iter(found["most_unusual"])).startswith("faulty/")
    for name in ("reconstruction_error", "bound"):
        assert list(found["measured"][name]["auroc"].values()) == pytest.approx([1.0, 1.0, 1.0])
    combined = found["measured"]["combined"]["auroc"]
    assert 0.8 < combined["low"] <= combined["value"] <= combined["high"] <= 1.0
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["image"] for row in rows if row["unusual"] == "1"} == {f"faulty/{number}.png" for number in range(6)}
    assert all(row["flagged"] == "1" for row in rows if row["unusual"] == "1")
    ranks = [float(row["rank"]) for row in rows]
    assert ranks == sorted(ranks, reverse=True)
    usual = found["usual_images"]
    assert found["flag"] == usual / (usual + 1)  # too few held-out images for 0.99
    assert "one of the kinds has 6 images alone" in found["notes"][0]
    assert found["flagged"] == sum(int(row["flagged"]) for row in rows) >= 6
    assert "feature_distance" not in rows[0]
    assert float(rows[0]["bound"]) < float(rows[-1]["bound"])
    page = (out / "scores.html").read_text()
    assert "faulty/0.png" in page
    assert page.count("data:image/png;base64,") == 1 + unusual.SHOWN
    all_unusual = command(*arguments, "--unusual", "faulty", "--unusual", "fine")
    assert all_unusual.status == 0
    assert "there is nothing to tell apart" in all_unusual.out
    opposite = json.loads(command(*arguments, "--normal", "fine", "--json").out)
    assert opposite["measured"] == found["measured"]


def test_a_run_scores_its_own_images_and_the_same_each_time(run: Path, command: Command) -> None:
    result = command("score", run, "--features", "none", "--draws", 1)
    assert result.status == 0, result.err
    assert "most unusual" in result.out
    assert "scores.html" in result.out
    first = (run / "scores" / "scores.csv").read_bytes()
    assert len(first.splitlines()) == 97
    assert command("score", run, "--features", "none", "--draws", 1).status == 0
    assert (run / "scores" / "scores.csv").read_bytes() == first


def test_an_odd_held_out_image_is_flagged_among_its_like(
    run: Path, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    folder = Path(shutil.copytree(image_folder, tmp_path / "images"))
    held_out = [part for part in data.load(folder, 32, batch_size=4).named() if part.held_out]
    odd = held_out[0].names[0]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(folder / odd)
    out = tmp_path / "scores"
    cheap = ("--features", "none", "--draws", 0)
    result = command("score", run, "--data", folder, "--usual", folder, "--out", out, *cheap, "--json")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert found["most_unusual"][odd] == found["flag"]  # the highest rank among the other held-out images
    strange = folder / "photo [final].png"  # no markup
    shutil.move(folder / odd, strange)
    shown = command("score", run, "--data", strange, "--out", out, *cheap)
    assert "photo [final].png" in shown.out


def test_folders_are_read_no_further_than_they_are_scored(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And images that cannot be read are left out, be they all of a batch."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(70):
        (folder / f"{number}.png").write_bytes((image_folder / "001.png").read_bytes())
    found = data.load(folder, 32, batch_size=4)
    monkeypatch.setattr(pipelines, "NAMED", 1)
    monkeypatch.setattr(pipelines, "CORES", 2)
    read: list[int] = []
    original = Images.read

    def counted(self: Images, indices: np.ndarray) -> Any:
        read.extend(indices)
        return original(self, indices)

    monkeypatch.setattr(Images, "read", counted)
    next(iter(found.named()))
    assert len(read) <= 2
    (folder / "2.png").write_bytes(b"")
    monkeypatch.setattr(Images, "readable", lambda self, indices: indices[np.asarray(indices) % 7 != 0])
    assert all(len(part.names) == len(part.images) > 0 for part in found.named())


def test_one_image_can_be_scored(run: Path, sorted_folder: Path, tmp_path: Path, command: Command) -> None:
    one = sorted_folder / "faulty" / "3.png"
    result = command("score", run, "--data", one, "--out", tmp_path, "--features", "none", "--draws", 0, "--json")
    assert result.status == 0, result.err
    found = json.loads(result.out)
    assert found["images"] == found["flagged"] == 1
    assert list(found["most_unusual"]) == ["3.png"]


def test_images_are_named_in_order(images: np.ndarray, sorted_folder: Path, small_avatars: data.Avatars) -> None:
    names = [name for part in data.load(images[:20], batch_size=4).named() for name in part.names]
    assert names == [str(number) for number in range(20)]
    found = data.load(sorted_folder, 32, batch_size=4, attributes=True)
    parts = list(found.named())
    names = [name for part in parts for name in part.names]
    assert sorted(names) == sorted(str(each.relative_to(sorted_folder)) for each in sorted_folder.rglob("*.png"))
    faulty = np.concatenate([part.attributes for part in parts])[:, found.attribute_names.index("faulty")]
    assert [name.startswith("faulty/") for name in names] == list(faulty == 1)
    for part in parts:
        for name, image in zip(part.names, part.images, strict=True):
            np.testing.assert_array_equal(image, np.asarray(Image.open(sorted_folder / name)))
    stored = data.load(str(small_avatars.data_path), batch_size=4)  # read one after the other
    names = [name for part in stored.named() for name in part.names]
    assert names == [*(f"training {number}" for number in range(96)), *(f"held-out {number}" for number in range(24))]
    assert [part.held_out for part in stored.named()] == [False, False, True]


def test_what_score_refuses(run: Path, sorted_folder: Path, tmp_path: Path, command: Command) -> None:
    copy = tmp_path / "alone.keras"
    shutil.copy(run / "model.keras", copy)
    decoder = tmp_path / "decoder.onnx"
    open_model(run).whole("testing").export(decoder, format="onnx")
    for arguments, message in (
        ((run, "--flag", 1.5), "--flag 1.5: give a rank between 0 and 1"),
        ((run, "--flag", 0.999), "takes 999 held-out images to rank among"),
        ((run, "--flag", 0.99999), "no more than 5,000 are taken"),
        ((run, "--draws", -1), "--draws -1: give a whole number from 0 on"),
        ((run, "--unusual", "a", "--normal", "b"), "--unusual and --normal are given"),
        ((run, "--data", sorted_folder, "--unusual", "broken"), "broken"),
        ((run, "--unusual", "faulty"), "has no attributes"),
        ((run, "--features", "nonesuch"), "unknown feature network 'nonesuch'"),
        ((run, "--out", sorted_folder / "scores", "--data", sorted_folder), "lies in the data folder"),
        ((copy, "--out", tmp_path / "out"), "does not say what it was trained on: give --data"),
        ((copy, "--out", tmp_path / "out", "--data", sorted_folder), "what it was trained on: give --usual"),
        ((copy, "--data", sorted_folder), "give --out"),
        ((decoder, "--out", tmp_path / "out"), "needs the encoder too"),
        ((tmp_path / "nothing",), "no model at"),
    ):
        given_features = () if "--features" in arguments else ("--features", "none")
        result = command("score", *arguments, *given_features)
        assert result.status == 2, (message, arguments, result)
        *told, error = result.err.strip().splitlines()
        assert message in error, (arguments, result.err)
        assert all("cropped and resized" in line for line in told), told
    assert not (tmp_path / "out").exists()
