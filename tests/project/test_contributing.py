"""What CONTRIBUTING has a contributor add: each is one entry in one table, and the rest of the house knows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from pages import ROOT, blocks
from scipy import stats

import keras_vae
from keras_vae.features import judges


@pytest.fixture
def added(registries: None) -> dict[str, Any]:
    """The names of CONTRIBUTING's code, which has just added to the tables."""
    names: dict[str, Any] = {"__name__": "contribution"}
    exec(compile("\n".join(blocks(ROOT / "CONTRIBUTING.md", "python")), "CONTRIBUTING.md", "exec"), names)
    return names


@pytest.mark.slow
def test_one_of_each_through_the_command(
    added: dict[str, Any], command: Callable[..., Any], image_folder: Path, tmp_path: Path
) -> None:
    """Train, evaluate, export in the new format and in ONNX, verify, sample: no other file knows of them."""
    run, small = tmp_path / "run", ("--image-size", 32, "--latent-dim", 4, "--batch-size", 16, "--steps", 2)
    chosen = ("--network", "dense", "--network-option", "units=8", "--likelihood", "laplace", "--perceptual", "random")
    result = command("train", "--data", image_folder, "--out", run, *small, *chosen)
    assert result.status == 0, result.err
    config = json.loads((run / "config.json").read_text())
    assert config["network_options"] == {"units": 8}

    result = command("evaluate", run, "--features", "random", "--json")
    assert result.status == 0, result.err
    figures = json.loads(result.out)
    assert {"elbo", "perceptual", "density_bits_per_dim"} <= figures.keys()
    assert figures["features"] == "random, late averaged over places"
    assert figures["reconstructions"]["feature_distance"] > 0

    result = command("export", run, "--format", "arrays,onnx", "--json")
    assert result.status == 0, result.err
    assert [each["format"] for each in json.loads(result.out)["artifacts"]] == ["arrays", "arrays", "onnx", "onnx"]
    result = command("verify", run, "--json")
    assert result.status == 0, result.err
    assert [each["format"] for each in json.loads(result.out)["artifacts"]] == ["onnx", "onnx", "arrays", "arrays"]
    result = command("sample", run / "export" / "generator.arrays", "--count", 4, "--out", tmp_path / "samples.png")
    assert result.status == 0, result.err

    (run / "export" / "decoder.arrays").write_bytes(b"cut")
    result = command("verify", run, "--json")
    assert result.status == 1
    assert "is damaged" in json.loads(result.out)["artifacts"][2]["problem"]


def test_one_of_each_in_python(added: dict[str, Any], images: np.ndarray, tmp_path: Path) -> None:
    vae = keras_vae.VAE(
        (32, 32, 3), 4, network="dense", likelihood="laplace", perceptual="random", perceptual_layers=["early"]
    )
    vae.compile()
    vae.fit(images, batch_size=32, epochs=1, verbose=0)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    assert (loaded.network, loaded.likelihood.kind, loaded.perceptual.network) == ("dense", "laplace", "random")
    np.testing.assert_array_equal(vae.predict(images[:4], verbose=0), loaded.predict(images[:4], verbose=0))

    decoded = images[4:8]
    expected = stats.laplace.logpdf(images[:4], decoded, 0.1).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(added["Laplace"]().log_prob(images[:4], decoded), expected, rtol=1e-5)


def test_the_messages_name_what_was_added(added: dict[str, Any]) -> None:
    for arguments, message in [
        ({"network": "unet"}, "dfc, resnet, ppca, dense"),
        ({"likelihood": "cauchy"}, "discretized-logistic, laplace"),
        ({"perceptual": "alexnet"}, "hed-vgg16, random"),
        ({"perceptual": "random", "perceptual_layers": ["deep"]}, "it has early, late"),
        ({"perceptual": "random", "perceptual_layers": "vae-345"}, "choose vae-123, or name layers such as early,late"),
    ]:
        with pytest.raises(keras_vae.InputError, match=message):
            keras_vae.VAE((32, 32, 3), 4, **{"perceptual": None, **arguments})
    with pytest.raises(keras_vae.InputError, match="hed-vgg16, random"):
        judges.load("alexnet")
