"""The paper's network: its layers, the sizes it makes, and what it refuses."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_vae import InputError, networks


@pytest.mark.parametrize("shape", [(16, 16, 3), (64, 64, 3), (32, 64, 1), (128, 128, 3)])
def test_shapes(shape: tuple[int, int, int]) -> None:
    encoder, decoder = networks.build("dfc", shape, 5, "float32")
    parameters = encoder(np.zeros((2, *shape), np.float32))
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {"mean": (2, 5), "log_var": (2, 5)}
    image = decoder(np.random.default_rng(0).standard_normal((2, 5), np.float32)).numpy()
    assert image.shape == (2, *shape)
    assert image.min() >= 0
    assert image.max() <= 1


def test_layers_are_the_papers() -> None:
    encoder, decoder = networks.build("dfc", (64, 64, 3), 100, "float32")
    down = [layer for layer in encoder.layers if isinstance(layer, keras.layers.Conv2D)]
    up = [layer for layer in decoder.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [(conv.filters, conv.kernel_size, conv.strides) for conv in down] == [
        (width, (4, 4), (2, 2)) for width in (32, 64, 128, 256)
    ]
    assert [(conv.filters, conv.kernel_size) for conv in up] == [(width, (3, 3)) for width in (128, 64, 32, 3)]
    assert decoder.get_layer("project").units == 4 * 4 * 256


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_float32_goes_in_and_comes_out(policy: str) -> None:
    encoder, decoder = networks.build("dfc", (16, 16, 3), 4, policy)
    assert {value.dtype for value in encoder.output.values()} == {"float32"}
    assert decoder.output.dtype == "float32"
    compute = keras.DTypePolicy(policy).compute_dtype
    assert encoder.get_layer("conv1").compute_dtype == decoder.get_layer("conv1").compute_dtype == compute


def test_replication_padding_repeats_the_border() -> None:
    images = np.random.default_rng(0).random((2, 3, 4, 2), np.float32)
    expected = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    np.testing.assert_array_equal(networks.ReplicationPadding2D()(images), expected)


@pytest.mark.parametrize(
    ("network", "shape", "latent_dim", "message"),
    [
        ("unet", (64, 64, 3), 8, "dfc"),
        ("dfc", (50, 50, 3), 8, "multiples of 16"),
        ("dfc", (0, 0, 3), 8, "multiples of 16"),
        ("dfc", (64, 64, 4), 8, "1 or 3 channels"),
        ("dfc", (64, 64, 3), 0, "at least 1 latent"),
    ],
)
def test_what_cannot_be_built_is_refused(
    network: str, shape: tuple[int, int, int], latent_dim: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        networks.build(network, shape, latent_dim, "float32")
