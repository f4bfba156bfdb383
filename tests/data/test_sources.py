"""`data.load`: arrays, folders and TFDS sets as batches, and what it refuses."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

import keras_vae
from keras_vae import InputError, data
from keras_vae.data import Avatars, avatars, datasets, pipelines


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
    assert (loaded.train_size, loaded.test_size) == (87, 9)
    assert collect(loaded.train).shape == (80, 16, 16, 1)
    assert data.load(grey_set, batch_size=8).image_shape == (64, 64, 1)


def test_attributes_come_with_the_images(small_avatars: Avatars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avatars, "builder_for", lambda size: small_avatars)
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
        (tmp_path / "empty", "no images"),
        (texts, "no images"),
        (fakes, "3 of 3 images cannot be read"),
        (texts / "a.txt", "is a file"),
        (images[:, :, :, :2], "1 or 3 channels"),
        (images * 255, "array: images range from 4 to 255: scale them to"),
        (images[:1], "at least 2"),
    ]:
        with pytest.raises(InputError, match=message) as refused:
            data.load(source, batch_size=1)
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="batch size 4096 is larger than the"):
        data.load(image_folder, 32, batch_size=4096)
    with pytest.raises(InputError, match="whole number from 1 on"):
        data.load(image_folder, 32, batch_size=0)
    with pytest.raises(InputError, match=r"image_size=\(32, 48\): give a whole number"):
        data.load(image_folder, (32, 48))
    for options, message in [
        ({"image_size": 100_000}, "too much for the free memory"),
        ({"random_crop": 1.5}, "random_crop=1.5"),
        ({"seed": "a"}, "seed='a'"),
        ({"crop": 0}, "crop=0"),
    ]:
        with pytest.raises(InputError, match=message):
            data.load(image_folder, **{"image_size": 32, "batch_size": 8, **options})
    with pytest.raises(InputError, match="the source is empty"):
        data.load("")
    with pytest.raises(InputError, match="source 3: give a folder"):
        data.load(3)
    with pytest.raises(InputError, match="no attributes"):
        data.load(image_folder, 32, 8, attributes=True)


# Files and datasets ---------------------------------------------------------------------------


def test_array_files(images: np.ndarray, tmp_path: Path) -> None:
    pixels = np.round(images * 255).astype(np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "named.npz", images=pixels, labels=np.arange(96))
    np.savez_compressed(tmp_path / "keras.npz", x_train=pixels[:80], x_test=pixels[80:], y_train=np.arange(80))
    np.savez(tmp_path / "other.npz", x=pixels, y=np.arange(96))
    wanted = collect(data.load(pixels, batch_size=8).test)
    for name in ("a.npy", "named.npz"):
        np.testing.assert_array_equal(collect(data.load(tmp_path / name, batch_size=8).test), wanted)
    loaded = data.load(tmp_path / "keras.npz", image_size=16, batch_size=8)
    assert (loaded.train_size, loaded.test_size, loaded.image_shape) == (80, 16, (16, 16, 3))
    np.savez(tmp_path / "empty-test.npz", x_train=pixels, x_test=pixels[:0])
    np.savez(tmp_path / "sizes.npz", x_train=pixels, x_test=pixels[:, :16])
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "named.npz").read_bytes()[:500])
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "scalar.npy", np.float32(3))
    for name, message in [
        ("text.npy", "not an array"),
        ("cut.npz", "not an array"),
        ("objects.npy", "not an array"),
        ("scalar.npy", "of shape"),
        ("missing.npy", "does not exist"),
        ("empty-test.npz", "96 images to train on and 0 held out"),
        ("sizes.npz", "give images of one size"),
        ("other.npz", "holds x, y: name the array"),
    ]:
        with pytest.raises(InputError, match=message) as refused:
            data.load(tmp_path / name, batch_size=8)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", ["single", "batched", "labelled", "dicts", "uint8", "unknown"])
def test_datasets(images: np.ndarray, form: str) -> None:
    dataset = tf.data.Dataset.from_tensor_slices(images)
    if form == "batched":
        dataset = dataset.batch(7)
    elif form == "labelled":
        dataset = dataset.map(lambda image: (image, 1))
    elif form == "dicts":
        dataset = dataset.map(lambda image: {"image": image, "label": 1})
    elif form == "uint8":
        dataset = dataset.map(lambda image: tf.cast(tf.round(image * 255), tf.uint8))
    elif form == "unknown":
        dataset = dataset.filter(lambda image: True)
    loaded = data.load(dataset, batch_size=8)
    assert loaded.train_size + loaded.test_size == 96
    assert loaded.image_shape == (32, 32, 3)
    assert 0 < loaded.test_size < 25
    pixels = {image.tobytes() for image in np.round(images * 255).astype(np.uint8)}
    train, test = (np.round(collect(part) * 255).astype(np.uint8) for part in (loaded.train, loaded.test))
    assert len(train) == loaded.train_size // 8 * 8
    assert {image.tobytes() for image in (*train, *test)} <= pixels
    assert data.load(dataset, 16, 8).image_shape == (16, 16, 3)


def room(monkeypatch: pytest.MonkeyPatch, memory: Callable[[int], bool], disk: Callable[[int], bool]) -> None:
    """Sets what is said to fit in memory and on disk, of a number of bytes."""
    for module in (datasets, pipelines, keras_vae.data.images):
        monkeypatch.setattr(module, "fits_in_memory", memory)
    for module in (pipelines, keras_vae.data.images):
        monkeypatch.setattr(module, "fits_on_disk", disk)


@pytest.mark.parametrize("place", ["memory", "nowhere"])
def test_datasets_that_shuffle_show_no_held_out_image_in_training(
    images: np.ndarray, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(monkeypatch, memory=lambda size: place == "memory" or size > 10**6, disk=lambda size: False)
    loaded = data.load(tf.data.Dataset.from_tensor_slices(images).shuffle(96), 32, batch_size=1)
    tests = [{image.tobytes() for image in collect(loaded.test)} for _ in range(2)]
    assert tests[0] == tests[1]
    assert len(tests[0]) == loaded.test_size
    for _ in range(2):
        train = {image.tobytes() for image in collect(loaded.train)}
        assert len(train) == loaded.train_size
        assert not train & tests[0]


def test_unusable_datasets_are_refused(images: np.ndarray) -> None:
    def failing() -> Iterator[np.ndarray]:
        yield from images[:5]
        raise RuntimeError("no more")

    dataset = tf.data.Dataset.from_tensor_slices(images)
    for source, message in [
        (dataset.repeat(), "never ends"),
        (tf.data.Dataset.range(9), "no images"),
        (dataset.map(lambda image: {"picture": image}), "no images"),
        (dataset.map(lambda image: image[..., :2]), "1 or 3 channels"),
        (dataset.take(1), "at least 2"),
        (dataset.map(lambda image: image * 255), r"images range from .* to 255 in image 0: scale them"),
        (dataset.map(lambda image: image * 2 - 1), "images range from -"),
        (dataset.map(lambda image: image * float("nan")), "NaN or infinite values in image 0"),
        (tf.data.Dataset.from_generator(failing, output_signature=dataset.element_spec), "fails after 5 images"),
    ]:
        with pytest.raises(InputError, match=message):
            data.load(source, batch_size=1)


# Where decoded images are kept ------------------------------------------------------------------


@pytest.mark.parametrize("place", ["memory", "disk", "nowhere"])
@pytest.mark.parametrize("kind", ["folder", "dataset"])
def test_epochs_are_the_same_wherever_images_are_kept(
    image_folder: Path, images: np.ndarray, place: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = image_folder if kind == "folder" else tf.data.Dataset.from_tensor_slices(images)
    wanted = [collect(part) for part in (data.load(source, 32, 8).train, data.load(source, 32, 8).test)]
    room(monkeypatch, memory=lambda size: place == "memory", disk=lambda size: place == "disk")
    loaded = data.load(source, 32, 8)
    for _ in range(2):
        np.testing.assert_array_equal(collect(loaded.test), wanted[1])
    first, second = collect(loaded.train), collect(loaded.train)
    if kind == "folder":  # a dataset is shuffled in another way where it is not in memory
        np.testing.assert_array_equal(first, wanted[0])
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


def test_an_epoch_shows_each_image_once(images: np.ndarray) -> None:
    pixels = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    loaded = data.load(pixels, batch_size=9)
    for _ in range(3):
        seen = np.round(collect(loaded.train)[:, 0, 0, 0] * 255).astype(int)
        assert len(set(seen)) == len(seen) == 180
        assert abs(np.corrcoef(np.arange(180), seen)[0, 1]) < 0.3  # shuffled
    np.testing.assert_array_equal(np.round(collect(loaded.test)[:, 0, 0, 0] * 255), np.arange(180, 200))


# Augmentation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "dataset"])
def test_flips_mirror_about_half_of_the_training_images(images: np.ndarray, kind: str) -> None:
    pixels = np.round(images * 255).astype(np.uint8)
    source = pixels if kind == "array" else tf.data.Dataset.from_tensor_slices(pixels)
    originals = {image.tobytes() for image in pixels}
    mirrored = {image[:, ::-1].tobytes() for image in pixels}
    loaded = data.load(source, batch_size=8, flip=True)
    found = [image.tobytes() for image in np.round(collect(loaded.train) * 255).astype(np.uint8)]
    assert set(found) <= originals | mirrored
    assert 0.3 < np.mean([image in mirrored for image in found]) < 0.7
    assert {image.tobytes() for image in np.round(collect(loaded.test) * 255).astype(np.uint8)} <= originals


def test_random_crops_move_images_by_a_few_pixels(images: np.ndarray) -> None:
    pixels = np.zeros((100, 17, 17, 1), np.uint8)
    pixels[:, 8, 8] = 255
    train = collect(data.load(pixels, batch_size=10, random_crop=2).train)
    places = np.argwhere(train[..., 0] == 1)[:, 1:]
    assert places.min() == 6
    assert places.max() == 10
    assert len(np.unique(places, axis=0)) > 15
    with pytest.raises(InputError, match="random_crop=17"):
        data.load(pixels, batch_size=10, random_crop=17)


def test_augmentation_follows_the_seed_and_differs_by_epoch(images: np.ndarray) -> None:
    def epochs(seed: int) -> list[str]:
        loaded = data.load(images, batch_size=8, seed=seed, flip=True, random_crop=4)
        return [hashlib.sha256(collect(loaded.train).tobytes()).hexdigest() for _ in range(2)]

    assert epochs(0) == epochs(0)
    assert len({*epochs(0), *epochs(1)}) == 4


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


def test_an_iterator_that_is_given_up_does_not_cut_the_cache_short() -> None:
    """What reads ahead is told to stop, and answers that it has come to its end; that must not be kept."""

    def slow(number: int) -> int:
        time.sleep(0.005)
        return number

    counts = []
    for _ in range(5):
        part = tf.data.Dataset.range(40).map(lambda number: tf.numpy_function(slow, [number], tf.int64)).prefetch(1)
        cached, _ = pipelines.cached(*2 * [pipelines.Examples(part, 40, (1, 1, 1))])
        batches = cached.dataset.batch(10).prefetch(2)
        given_up = iter(batches)
        next(given_up)
        del given_up
        time.sleep(0.05)
        counts.append(sum(len(batch) for batch in batches))
    assert counts == [40] * 5
