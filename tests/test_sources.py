"""`data.load`: arrays, folders and TFDS sets as batches, and what it refuses."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from keras_vae import InputError, data
from keras_vae.data import Avatars, sources


def collect(pipeline: object) -> np.ndarray:
    return np.concatenate(list(pipeline.as_numpy_iterator()))


def test_folder_becomes_float_batches(image_folder: Path) -> None:
    loaded = data.load(image_folder, image_size=32, batch_size=16)
    assert loaded.image_shape == (32, 32, 3)
    assert loaded.train_size + loaded.test_size == 96
    batches = list(loaded.train.as_numpy_iterator())
    assert {batch.shape for batch in batches} == {(16, 32, 32, 3)}
    assert batches[0].dtype == np.float32
    assert 0 <= min(map(np.min, batches)) < max(map(np.max, batches)) <= 1


def test_folder_holds_out_by_name_and_adding_images_moves_none(image_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(image_folder, copy)
    before = {image.tobytes() for image in collect(data.load(copy, 32, 8).test)}
    for index in range(40):
        shutil.copy(image_folder / "001.png", copy / f"added-{index}.png")
    after = {image.tobytes() for image in collect(data.load(copy, 32, 8).test)}
    assert before <= after
    train = {image.tobytes() for image in collect(data.load(image_folder, 32, 8).train)}
    assert not train & before


def test_shuffling_follows_the_seed_and_differs_by_epoch(images: np.ndarray) -> None:
    orders = {}
    for seed in (0, 0, 1):
        loaded = data.load(images, batch_size=8, seed=seed)
        epochs = [hashlib.sha256(collect(loaded.train).tobytes()).hexdigest() for _ in range(2)]
        assert epochs[0] != epochs[1]
        assert orders.setdefault(seed, epochs) == epochs
    assert orders[0] != orders[1]


def test_photos_are_cropped_upright_and_resized(tmp_path: Path) -> None:
    wide = np.zeros((40, 80, 3), np.uint8)
    wide[:, 20:60] = (255, 0, 0)  # the middle square is red
    Image.fromarray(wide).save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees: the red column lies as a row
    Image.fromarray(np.rot90(wide).copy()).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(wide).convert("L").save(tmp_path / "grey.png")
    loaded = data.load(tmp_path, image_size=16, batch_size=1)
    found = np.concatenate([collect(loaded.train), collect(loaded.test)])
    assert found.shape == (3, 16, 16, 3)
    red = [image for image in found if image[..., 0].mean() > 0.95]
    assert len(red) == 2


def test_unreadable_files_are_skipped_and_said(
    image_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(image_folder, folder)
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes((image_folder / "001.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("notes")
    with caplog.at_level(logging.WARNING):
        loaded = data.load(folder, 32, 8)
    assert loaded.train_size + loaded.test_size == 96
    assert "skipped 3 of 99" in caplog.text
    assert "cut.png" in caplog.text


def test_arrays(images: np.ndarray) -> None:
    loaded = data.load(images, batch_size=8)
    np.testing.assert_allclose(collect(loaded.test), np.round(images[-9:] * 255) / 255, atol=1e-6)
    grey = data.load((images[..., 0] * 255).astype(np.uint8), image_size=16, batch_size=8)
    assert grey.image_shape == (16, 16, 1)
    assert collect(grey.test).shape == (9, 16, 16, 1)


def test_tfds_set_by_name(small_avatars: Avatars) -> None:
    name = f"tfds:avatars/{small_avatars.builder_config.name}"
    loaded = data.load(name, image_size=16, batch_size=16)
    assert (loaded.train_size, loaded.test_size, loaded.image_shape) == (96, 24, (16, 16, 3))
    assert [len(batch) for batch in loaded.test.as_numpy_iterator()] == [16, 8]


@pytest.fixture(scope="module")
def grey_set(tfds_data_dir: Path, images: np.ndarray) -> str:
    """A prepared TFDS set of grey images of varying size, with nothing but a train split."""
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 1))})
    pictures = [np.round(image[: 20 + index % 9, :, :1] * 255).astype(np.uint8) for index, image in enumerate(images)]
    tfds.dataset_builders.store_as_tfds_dataset(
        name="grey_faces",
        version="1.0.0",
        features=features,
        split_datasets={"train": [(index, {"image": picture}) for index, picture in enumerate(pictures)]},
        data_dir=tfds_data_dir,
    )
    return "tfds:grey_faces"


def test_tfds_set_from_the_data_folder(grey_set: str) -> None:
    loaded = data.load(grey_set, image_size=16, batch_size=8)
    assert loaded.image_shape == (16, 16, 1)
    assert (loaded.train_size, loaded.test_size) == (86, 10)
    assert collect(loaded.train).shape == (80, 16, 16, 1)
    with pytest.raises(InputError, match="vary in size"):
        data.load(grey_set)


def test_attributes_come_with_the_images(small_avatars: Avatars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sources, "_from_avatars", lambda size, crop: sources._from_builder("a", small_avatars, size, crop)
    )
    loaded = data.load("avatars", 32, 8, attributes=True)
    batch = next(loaded.train.as_numpy_iterator())
    assert batch["image"].shape == (8, 32, 32, 3)
    assert batch["attributes"].shape == (8, len(loaded.attribute_names))
    assert set(np.unique(batch["attributes"])) <= {0, 1}


def test_faces(faces: Path, tmp_path: Path) -> None:
    few = tmp_path / "faces"
    few.mkdir()
    for path in sorted(faces.glob("*.jpg"))[:60]:
        (few / path.name).symlink_to(path)
    loaded = data.load(few, 64, 16)
    assert loaded.train_size + loaded.test_size == 60


def test_unprepared_and_unknown_tfds_sets_are_named_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match="tfds build celeb_a"):
        data.load("tfds:celeb_a")
    with pytest.raises(InputError, match=r"did you mean .*fashion_mnist"):
        data.load("tfds:fashion_mnits")
    with pytest.raises(InputError, match="names no set"):
        data.load("tfds:")
    assert time.perf_counter() - start < 10


def test_unusable_sources_are_refused(tmp_path: Path, image_folder: Path, images: np.ndarray) -> None:
    (tmp_path / "empty").mkdir()
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("text")
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    for index in range(3):
        (fakes / f"{index}.jpg").write_text("text")
    for source, message in [
        (tmp_path / "missing", "unknown data source"),
        (tmp_path / "empty", "no files"),
        (texts, "1 files but no images"),
        (fakes, "0 readable images"),
        (texts / "a.txt", "is a file"),
        (images[:, :, :, :2], "1 or 3 channels"),
        (images * 255, "scale it"),
        (images[:1], "at least 2"),
    ]:
        with pytest.raises(InputError, match=message) as refused:
            data.load(source, batch_size=1)
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="batch size 4096 is larger than the"):
        data.load(image_folder, 32, batch_size=4096)
    with pytest.raises(InputError, match="at least 1"):
        data.load(image_folder, 32, batch_size=0)
    with pytest.raises(InputError, match="no attributes"):
        data.load(image_folder, 32, 8, attributes=True)


# Cropping --------------------------------------------------------------------------------------


def test_crop_cuts_the_middle_out_of_every_source(images: np.ndarray, tmp_path: Path) -> None:
    """Images whose middle is recognizable: a crop as large as the result leaves its pixels as they are."""
    pixels = np.round(images[:20] * 255).astype(np.uint8)
    wanted = np.sort(pixels[:, 8:24, 8:24].reshape(20, -1).sum(1))
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    for source in (pixels, tmp_path):
        loaded = data.load(source, image_size=16, batch_size=1, crop=16)
        found = [np.round(batch * 255) for part in (loaded.train, loaded.test) for batch in part.as_numpy_iterator()]
        np.testing.assert_array_equal(np.sort([batch.sum() for batch in found]), wanted)


def test_crop_of_more_than_there_is_takes_all(images: np.ndarray) -> None:
    one, other = (data.load(images[:20], 16, 2, crop=crop) for crop in (None, 150))
    for first, second in zip(one.test, other.test, strict=True):
        np.testing.assert_array_equal(first, second)


def test_celeb_a_is_read_and_cropped(celeb_a: Any) -> None:
    loaded = data.load("tfds:celeb_a", image_size=64, batch_size=8, crop=150, attributes=True)
    batch = next(iter(loaded.train))
    assert loaded.image_shape == (64, 64, 3)
    assert batch["image"].shape == (8, 64, 64, 3)
    assert len(loaded.attribute_names) == 40
    assert "Smiling" in loaded.attribute_names
    assert set(np.unique(batch["attributes"])) <= {0, 1}
