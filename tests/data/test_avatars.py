"""The avatars data set: deterministic, labelled rightly, and a TFDS set like any other."""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np
import pytest
import tensorflow_datasets as tfds

from keras_vae import InputError, data
from keras_vae.data import Avatars, AvatarsConfig, avatar_drawing


@pytest.fixture(scope="module")
def faces_drawn() -> list[avatar_drawing.AvatarExample]:
    parcels = [range(start, start + 50) for start in range(0, 1200, 50)]
    drawn = joblib.Parallel(n_jobs=-1)(joblib.delayed(avatar_drawing.draw_many)(0, "train", p, 32) for p in parcels)
    return [example for parcel in drawn for example in parcel]


def test_a_face_depends_on_seed_split_and_number_alone() -> None:
    face = avatar_drawing.draw(3, "train", 5, 64)
    again = avatar_drawing.draw_many(3, "train", range(4, 6), 64)[1]
    np.testing.assert_array_equal(face.image, again.image)
    assert face.attributes == again.attributes
    for other in (avatar_drawing.draw(4, "train", 5, 64), avatar_drawing.draw(3, "test", 5, 64)):
        assert (other.image != face.image).any()


@pytest.mark.parametrize("size", [32, 64, 128])
def test_every_size_shows_the_same_face(size: int) -> None:
    face = avatar_drawing.draw(0, "train", 1, size)
    assert face.image.shape == (size, size, 3)
    assert face.image.dtype == np.uint8
    reference = avatar_drawing.draw(0, "train", 1, 128)
    assert face.attributes == reference.attributes
    blocks = reference.image.reshape(32, 4, 32, 4, 3).mean((1, 3))
    small = face.image.reshape(32, size // 32, 32, size // 32, 3).mean((1, 3))
    assert np.abs(blocks - small).mean() < 6


def test_attributes_vary_independently_where_the_drawing_allows(
    faces_drawn: list[avatar_drawing.AvatarExample],
) -> None:
    names = avatar_drawing.ATTRIBUTES
    assert len(names) >= 12
    table = np.array([[example.attributes[name] for name in names] for example in faces_drawn])
    column = dict(zip(names, table.T, strict=True))
    assert set(np.unique(table)) == {0, 1}
    assert (table.mean(0) > 0.03).all()
    free = ("smiling", "open_mouth", "facial_hair", "dark_skin", "hat", "glasses")
    correlations = np.corrcoef([column[name] for name in free])
    assert np.abs(correlations - np.eye(len(free))).max() < 0.12  # 4 standard errors of 1,200 draws
    hair = sum(column[f"{group}_hair"] for group in avatar_drawing.HAIR_COLORS)
    np.testing.assert_array_equal(hair, 1 - np.maximum(column["hat"], column["bald"]))
    assert not (column["glasses"] & column["sunglasses"]).any()
    assert not (column["long_hair"] & (column["hat"] | column["bald"])).any()


def test_each_attribute_is_seen_in_the_picture(faces_drawn: list[avatar_drawing.AvatarExample]) -> None:
    """Faces with and without it differ on average, and where the attribute sits."""
    images = np.stack([example.image for example in faces_drawn]).astype(float)
    for name in avatar_drawing.ATTRIBUTES:
        has = np.array([example.attributes[name] for example in faces_drawn], bool)
        assert np.abs(images[has].mean(0) - images[~has].mean(0)).max() > 15, name


def test_it_is_a_tfds_set(small_avatars: Avatars, tfds_data_dir: Path) -> None:
    loaded = tfds.builder_from_directory(str(small_avatars.data_path))
    assert {name: split.num_examples for name, split in loaded.info.splits.items()} == {"train": 96, "test": 24}
    example = next(iter(tfds.as_numpy(loaded.as_dataset(split="test"))))
    assert example["image"].shape == (32, 32, 3)
    assert example["image"].dtype == np.uint8
    assert set(example["attributes"]) == set(avatar_drawing.ATTRIBUTES)
    assert tfds.builder("avatars/256x256").info.features["image"].shape == (256, 256, 3)
    assert {"avatars/32x32", "avatars/64x64", "avatars/128x128", "avatars/256x256"} <= {
        f"avatars/{config.name}" for config in Avatars.BUILDER_CONFIGS
    }


def test_the_set_is_the_drawings_in_any_number_of_processes(small_avatars: Avatars) -> None:
    stored = {example["image"].tobytes() for example in tfds.as_numpy(small_avatars.as_dataset(split="train"))}
    assert stored == {avatar_drawing.draw(7, "train", index, 32).image.tobytes() for index in range(96)}


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'keras-vae\[demo\]'"):
        Avatars(config=AvatarsConfig(name="x", size=32), data_dir=tmp_path)


@pytest.mark.parametrize(("condition", "message"), [("label", "has attributes, not classes"), (("cats",), "'cats'")])
def test_what_avatars_cannot_be_asked_for_is_refused_before_they_are_drawn(
    condition: object, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=message):
        data.load("avatars", image_size=32, condition=condition)
    assert not list(tmp_path.rglob("*"))


def test_sizes_beyond_the_drawings_are_refused() -> None:
    with pytest.raises(InputError, match="256"):
        data.load("avatars", image_size=512)
