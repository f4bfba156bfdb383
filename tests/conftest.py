"""Shared by all tests: the avatars drawn once, small real images, and the command line in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import keras_vae
from keras_vae import cli, networks
from keras_vae.data.tfds import builders
from keras_vae.export.formats import FORMATS
from keras_vae.features import perceptual
from keras_vae.model import distributions, priors
from keras_vae.training import TrainingConfig, train

pytest_plugins = ("browser",)  # fixtures that several modules share, and take long to make

# The modules that take longest go first: two processes then end together, `--no-loadscope-reorder` given.
LONGEST = ("test_resume", "test_cli", "test_evaluate", "test_distributed", "test_vae", "test_docs", "test_deployment")
FACES = Path(__file__).resolve().parents[2] / "shared" / "faces" / "images"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def tfds_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests neither see nor fill the user's TFDS folder."""
    folder = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        patch.setattr(tfds.core.constants, "DATA_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def small_avatars(tfds_data_dir: Path) -> keras_vae.data.Avatars:
    """A prepared TFDS builder of 96 + 24 avatars, 32x32: real images at a size that trains in seconds."""
    config = keras_vae.data.AvatarsConfig(name="few", size=32, seed=7, train_examples=96, test_examples=24)
    builder = keras_vae.data.Avatars(config=config, data_dir=tfds_data_dir)
    builder.download_and_prepare()
    return builder


@pytest.fixture(scope="session")
def images(small_avatars: keras_vae.data.Avatars) -> np.ndarray:
    """96 avatars: float32 (96, 32, 32, 3) in [0, 1]."""
    examples = tfds.as_numpy(small_avatars.as_dataset(split="train", shuffle_files=False))
    return np.stack([example["image"] for example in examples]).astype(np.float32) / 255


@pytest.fixture
def celeb_a(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The set's own features and shapes, 218x178, with made-up pixels: the set itself cannot be had everywhere."""
    builder = tfds.builder("celeb_a")
    template = tfds.core.ShardedFileTemplate(data_dir="", dataset_name="celeb_a", filetype_suffix="tfrecord")
    parts = {"train": 24, "validation": 8, "test": 8}
    splits = [tfds.core.SplitInfo(name, [count], 0, template) for name, count in parts.items()]
    builder.info.set_splits(tfds.core.splits.SplitDict(splits))
    monkeypatch.setattr(builders, "find", lambda name: builder)
    monkeypatch.setattr(builders, "is_prepared", lambda builder: True)
    with tfds.testing.mock_data(num_examples=24):
        yield builder


@pytest.fixture(scope="session")
def image_folder(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The avatars as PNG files in a folder with a subfolder."""
    folder = tmp_path_factory.mktemp("folder") / "avatars"
    (folder / "more").mkdir(parents=True)
    for index, image in enumerate(images):
        below = folder / "more" if index % 3 == 0 else folder
        Image.fromarray(np.round(image * 255).astype(np.uint8)).save(below / f"{index:03d}.png")
    return folder


@pytest.fixture(scope="session")
def train_small(image_folder: Path) -> Callable[..., Path]:
    """Trains a small run on the folder of avatars, in a folder of that path, with further settings."""

    def trained(out: Path, **settings: Any) -> Path:
        small: dict[str, Any] = {"latent_dim": 8, "network_options": {"width": 8}, "perceptual": None}
        train(TrainingConfig(data=str(image_folder), out=str(out), precision="float32", **small, **settings))
        return out

    return trained


@pytest.fixture
def faces() -> Path:
    """The folder of face photos, where this checkout stands beside it."""
    if not FACES.is_dir():
        pytest.skip("needs ../shared/faces")
    return FACES


@pytest.fixture(scope="session")
def make_vae() -> Callable[..., keras_vae.VAE]:
    """Makes a compiled small VAE, always with the same initial weights."""

    def make(**arguments: object) -> keras_vae.VAE:
        keras.utils.set_random_seed(1)
        settings = {"image_shape": (32, 32, 3), "latent_dim": 8, "perceptual": None, "seed": 1, **arguments}
        vae = keras_vae.VAE(**settings)
        vae.compile(keras.optimizers.Adam(1e-3))
        return vae

    return make


class Deployed(NamedTuple):
    """A model of 8 latents and 32x32x3 images with a learned prior, exported, and what Keras makes of some latents.

    Of `deployed_uint8` the artifacts' images are uint8, and those that Keras makes float32 all the same.
    """

    saved_model: Path  # .../faces/1
    onnx: Path
    z: np.ndarray  # float32 (5, 8)
    images: np.ndarray  # float32 (5, 32, 32, 3)
    generator: Path  # generator.onnx
    noise: np.ndarray  # float32 (5, 8)
    generated: np.ndarray  # float32 (5, 32, 32, 3), images of the noise


def flow(latent_dim: int, seed: int = 3) -> priors.FlowMatchingPrior:
    """A small prior that is far from the identity: noise flows, and is turned and stretched."""
    keras.utils.set_random_seed(seed)
    prior = priors.FlowMatchingPrior(latent_dim, width=16, blocks=1)
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.standard_normal((latent_dim, latent_dim)))[0]
    prior.axes.assign(turned * np.geomspace(1.5, 0.3, latent_dim))
    prior.mean.assign(0.3 * rng.standard_normal(latent_dim))
    prior.last.assign(0.3 * rng.standard_normal(prior.last.shape))
    return prior


@pytest.fixture(scope="session")
def deployed_vae() -> keras_vae.VAE:
    """The model that is deployed: not to be changed."""
    keras.utils.set_random_seed(3)
    vae = keras_vae.VAE((32, 32, 3), 8, perceptual=None, seed=3)
    rng = np.random.default_rng(3)
    for weight in vae.decoder.weights:  # an untrained one makes images of one grey
        if any(part in weight.path for part in ("moving", "gamma", "beta")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    vae.set_prior(flow(8))
    return vae


@pytest.fixture(scope="session")
def deployed(deployed_vae: keras_vae.VAE, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """What the kits of other apps run: not to be changed."""
    return deploy(deployed_vae, tmp_path_factory.mktemp("deployed"), "float32")


@pytest.fixture(scope="session")
def deployed_uint8(deployed_vae: keras_vae.VAE, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """The same model with images from 0 to 255."""
    return deploy(deployed_vae, tmp_path_factory.mktemp("deployed_uint8"), "uint8")


def deploy(vae: keras_vae.VAE, folder: Path, output: str) -> Deployed:
    from browser import few_draws  # not at the top: pytest is to prepare the plug-in for assertions first

    with few_draws():
        vae.export(folder / "faces" / "1", output=output)
        vae.export(folder / "decoder.onnx", format="onnx", output=output, run_id="abc")
        vae.export(folder / "generator.onnx", format="onnx", output=output, part="generator", run_id="abc")
    rng = np.random.default_rng(4)
    z, noise = rng.standard_normal((2, 5, 8)).astype(np.float32)
    images, generated = (keras.ops.convert_to_numpy(vae.decode(each)) for each in (z, vae.prior(noise)))
    assert images.std() > 0.05
    assert np.abs(generated - keras.ops.convert_to_numpy(vae.decode(noise))).max() > 0.05  # the prior does something
    return Deployed(
        folder / "faces" / "1", folder / "decoder.onnx", z, images, folder / "generator.onnx", noise, generated
    )


class Outcome(NamedTuple):
    """What a command did: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `keras-vae` with these arguments in this process."""

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        status = cli.run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


@pytest.fixture
def registries() -> Iterator[None]:
    """What a test adds to the tables of networks, likelihoods, feature networks and formats is gone afterwards."""
    tables: list[dict[str, Any]] = [networks.FAMILIES, distributions.LIKELIHOODS, perceptual.NETWORKS, FORMATS]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
