"""TFDS sets: prepared where they can be, refused fast where not, and built of folders."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from keras_vae import InputError, data
from keras_vae.data.tfds import builders
from keras_vae.support import hosts

Command = Callable[..., Any]
needs_debian = pytest.mark.skipif(
    not builders.DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)


def collect(pipeline: object) -> np.ndarray:
    return np.concatenate(list(pipeline.as_numpy_iterator()))


# Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "builder", "split"),
    [
        ("mnist", "mnist", None),
        ("mnist:train", "mnist", "train"),
        ("mnist:train[:10%]", "mnist", "train[:10%]"),
        ("mnist:3.0.1", "mnist:3.0.1", None),
        ("mnist:3.*.*:test", "mnist:3.*.*", "test"),
        ("avatars/64x64", "avatars/64x64", None),
        ("avatars/64x64:test", "avatars/64x64", "test"),
        ("mnist:", "mnist", None),
    ],
)
def test_names(text: str, builder: str, split: str | None) -> None:
    assert builders.Name.parse(text) == builders.Name(builder, split)


def test_splits(small_avatars: data.Avatars) -> None:
    name = f"tfds:avatars/{small_avatars.builder_config.name}"
    whole, test, half = (data.load(f"{name}{split}", batch_size=4) for split in ("", ":test", ":train[:50%]"))
    assert (whole.train_size, whole.test_size) == (96, 24)
    assert (test.train_size, test.test_size) == (22, 2)
    assert (half.train_size, half.test_size) == (44, 4)
    np.testing.assert_array_equal(collect(test.test), collect(whole.test)[22:])
    for split in ("validation", "train[5:", "train[:0]"):
        with pytest.raises(InputError) as refused:
            data.load(f"{name}:{split}", batch_size=4)
        assert "\n" not in str(refused.value)
        assert split in str(refused.value)


# Preparing --------------------------------------------------------------------------------------


@needs_debian
@pytest.mark.parametrize("share", [20, pytest.param(1, marks=pytest.mark.slow)], ids=["a twentieth", "whole"])
def test_fashion_mnist_is_prepared_from_debians_files_and_trained_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "sets"))  # its own, as it may be a part
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    fashion_mnist = tfds.image_classification.FashionMNIST
    generate, train, test = fashion_mnist._generate_examples, 60000 // share, 10000 // share
    monkeypatch.setattr(
        fashion_mnist,
        "_generate_examples",
        lambda builder, num_examples, **files: generate(builder, num_examples=num_examples // share, **files),
    )
    result = command("data", "prepare", "fashion_mnist", "--json")
    assert result.status == 0, result.err
    assert json.loads(result.out)["splits"] == {"test": test, "train": train}
    result = command("data", "info", "tfds:fashion_mnist", "--out", tmp_path / "a.png", "--limit", 2000, "--json")
    figures = json.loads(result.out)
    assert (figures["train"], figures["test"], figures["image_shape"]) == (train, test, "28x28x1")
    assert sum(figures["attributes"].values()) == pytest.approx(1, abs=0.01)
    assert Image.open(tmp_path / "a.png").size[0] > 200
    options = ("--latent-dim", 8, "--width", 8, "--perceptual", "none", "--steps", 200, "--learning-rate", 2e-3)
    options = (*options, "--prior", "standard")
    part = "tfds:fashion_mnist:train[:2000]"  # all of them take longer to decode than the steps take
    result = command("train", "--data", part, "--out", tmp_path / "run", *options, "--json")
    assert result.status == 0, result.err
    assert json.loads(result.out)["psnr"] > 15


@needs_debian
def test_debians_files_are_what_tfds_downloads() -> None:
    builder = tfds.builder("fashion_mnist")
    with builders._as_downloaded(builders.DEBIAN_FASHION_MNIST) as folder:
        for url, info in builder.url_infos.items():
            found = tfds.core.download.checksums.compute_url_info(Path(str(folder)) / url.rpartition("/")[2])
            assert found == info


def test_a_set_whose_host_is_silent_is_refused_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that accepts and never answers, which TFDS itself would wait for."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/images.tar"
        monkeypatch.setattr(tfds.image_classification.Cifar10, "url_infos", {url: None})
        start = time.perf_counter()
        with pytest.raises(InputError) as refused:
            data.load("tfds:cifar10", batch_size=1)
    assert time.perf_counter() - start < 10
    message = str(refused.value)
    assert "127.0.0.1" in message
    assert "run `tfds build cifar10`" in message
    assert "TFDS_DATA_DIR" in message
    assert "\n" not in message


def test_sets_to_be_fetched_by_hand_say_so() -> None:
    with pytest.raises(InputError, match="fetched by hand"):
        data.load("tfds:celeb_a_hq", batch_size=1)


def test_hosts_that_answer_and_that_do_not() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        assert set(hosts.silent([url])) == {url}
    assert hosts.silent([]) == {}


def test_a_data_folder_that_cannot_be_written_to_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", "/proc/none")
    monkeypatch.setenv("TFDS_DATA_DIR", "/proc/none")
    with pytest.raises(InputError, match=r"cannot prepare tfds:avatars in /proc/none.*set TFDS_DATA_DIR"):
        data.load("avatars", 32)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "oxford_flowers102", "lfw", "celeb_a", "fashion_mnist"])
def test_sets_by_name_are_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets' own features and shapes, with made-up pixels: the sets themselves cannot be had everywhere."""
    builder = tfds.builder(name)
    template = tfds.core.ShardedFileTemplate(data_dir="", dataset_name=name, filetype_suffix="tfrecord")
    splits = [tfds.core.SplitInfo(split, [20], 0, template) for split in ("train", "test")]
    builder.info.set_splits(tfds.core.splits.SplitDict(splits))
    monkeypatch.setattr(builders, "find", lambda name: builder)
    monkeypatch.setattr(builders, "is_prepared", lambda builder: True)
    shapes = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3), "lfw": (250, 250, 3), "celeb_a": (218, 178, 3)}
    counts = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "oxford_flowers102": 102, "celeb_a": 40, "lfw": 0}
    with tfds.testing.mock_data(num_examples=20):
        own = data.load(f"tfds:{name}", batch_size=4)
        assert own.image_shape == shapes.get(name, (28, 28, 1) if name == "fashion_mnist" else (64, 64, 3))
        assert len(own.attribute_names) == counts[name]
        channels = own.image_shape[2]
        assert next(iter(data.load(f"tfds:{name}", 64, 4, crop=150).train)).shape == (4, 64, 64, channels)
        if counts[name]:
            batch = next(iter(data.load(f"tfds:{name}", 32, 4, attributes=True).train))
            assert batch["attributes"].shape == (4, counts[name])
        else:
            with pytest.raises(InputError, match="has no attributes"):
                data.load(f"tfds:{name}", 32, 4, attributes=True)


@pytest.mark.parametrize(
    ("name", "condition", "message"),
    [
        ("cifar10", ("Smiling",), "tfds:cifar10 has classes, .*: give label, not Smiling"),  # named when downloaded
        ("celeb_a", "label", "tfds:celeb_a has attributes, not classes: give names of these, 5_o_Clock_Shadow"),
        ("lfw", "label", "tfds:lfw has no attributes"),
    ],
)
def test_what_a_set_cannot_be_asked_for_is_refused_before_it_is_downloaded(
    name: str, condition: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders, "prepare", lambda builder: pytest.fail("it was to be downloaded"))
    with pytest.raises(InputError, match=message):
        data.load(f"tfds:{name}", 32, 4, condition=condition)


# Building ---------------------------------------------------------------------------------------


@pytest.fixture
def photos(image_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "My photos"
    shutil.copytree(image_folder, folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [f"{name},{index % 2},{index % 3 == 0}" for index, name in enumerate(names[1:])]
    (tmp_path / "attributes.csv").write_text("\n".join(["image,Odd,Third", *rows, "bad.jpg,0,0"]))
    (folder / "bad.jpg").write_text("text")
    return folder


def test_a_folder_becomes_a_set_of_the_same_images(photos: Path, command: Command, tfds_data_dir: Path) -> None:
    result = command("data", "build", photos, "--image-size", 24, "--json")
    assert result.status == 0, result.err
    figures = json.loads(result.out)
    assert figures["set"] == "tfds:my_photos/24x24"
    assert (figures["train"] + figures["test"], figures["attributes"]) == (95, 2)
    assert figures["reasons"] == {"not an image": 1, "no attributes": 1}
    shards = list(Path(figures["folder"]).glob("*train.array_record*"))
    assert len(shards) == 8
    expected = data.load(photos, 24, 5, attributes=True)
    for source in (figures["set"], figures["folder"]):
        loaded = data.load(source, batch_size=5, attributes=True)
        assert (loaded.train_size, loaded.test_size) == (expected.train_size, expected.test_size)
        assert loaded.attribute_names == ("Odd", "Third")
        for one, other in zip(loaded.test, expected.test, strict=True):
            np.testing.assert_array_equal(one["image"], other["image"])
            np.testing.assert_array_equal(one["attributes"], other["attributes"])
        assert len(list(loaded.train)) == loaded.train_size // 5
    assert data.load(figures["set"], 16, 5).image_shape == (16, 16, 3)
    examples = tfds.builder("my_photos/24x24").as_data_source("train")
    assert examples[0]["name"].decode().endswith(".png")
    result = command("data", "build", photos, "--image-size", 24)
    assert result.status == 2
    assert "is there already" in result.err


def test_what_cannot_be_built_is_refused_and_leaves_nothing(photos: Path, command: Command, tmp_path: Path) -> None:
    sets = tmp_path / "sets"
    for options, message in [
        (("--strict",), "is skipped"),
        (("--name", "Ünï code"), "cannot name a TFDS set"),
        (("--image-size", 0), "whole number from 1 on"),
        (("--data-dir", "/proc/none"), "cannot write /proc/none"),
    ]:
        result = command("data", "build", photos, *(() if "--data-dir" in options else ("--data-dir", sets)), *options)
        assert result.status == 2
        assert message in result.err.splitlines()[-1]
        assert not list(sets.rglob("*.array_record*"))
    result = command("data", "build", photos, "--data-dir", sets, "--no-attributes", "--json")
    assert json.loads(result.out)["attributes"] == 0
    assert json.loads(result.out)["skipped"] == 1


def test_info_of_a_folder(photos: Path, command: Command, tmp_path: Path) -> None:
    result = command("data", "info", photos, "--out", tmp_path / "grid.png", "--json")
    assert result.status == 0, result.err
    figures = json.loads(result.out)
    assert figures["train"] + figures["test"] == figures["read"] == 95
    assert figures["smallest"] == figures["largest"] == "32x32"
    assert figures["attributes"]["Odd"] == pytest.approx(0.5, abs=0.02)
    assert figures["reasons"] == {"not an image": 1, "no attributes": 1}
    assert (tmp_path / "grid.png").exists()
    shown = command("data", "info", photos, "--out", tmp_path / "grid.png").out
    assert "Odd" in shown
    assert command("data", "info", tmp_path / "nowhere", "--out", tmp_path / "a.png").status == 2
    assert command("data", "info", photos, "--out", tmp_path / "a.xyz").status == 2
    inside = command("data", "info", photos, "--out", photos / "001.png")
    assert inside.status == 2
    assert "give --out elsewhere" in inside.err


# Many files -------------------------------------------------------------------------------------

MEMORY = """
import re, sys
from pathlib import Path
from keras_vae.data.image_files import Listing
def peak():  # not getrusage's, which begins at what the calling process took
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
count = int(sys.argv[1])
listing = Listing(f"images/{index % 1000:03d}/{index:08d}.jpg" for index in range(count))
assert len(listing) == count and listing[count // 2].endswith(".jpg")
print((peak() - before) / count)
"""


@pytest.mark.parametrize("count", [1_000_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_a_listing_takes_few_bytes_a_file(count: int) -> None:
    """At the peak, with the names that the system may write back to disk; a list of them would take a hundred."""
    result = subprocess.run([sys.executable, "-c", MEMORY, str(count)], capture_output=True, text=True, check=True)
    assert 5 < float(result.stdout) < 60
