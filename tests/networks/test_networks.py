"""The families: their layers, the sizes they make, what they refuse; and networks of the user's own."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vae import VAE, InputError, networks
from keras_vae.networks.layers import UpsampledConv2D
from keras_vae.runs.keras_file import load_vae


@pytest.mark.parametrize("network", sorted(networks.FAMILIES))
@pytest.mark.parametrize(
    "shape",
    [(16, 16, 3), (28, 28, 1), (32, 64, 1), (64, 64, 3), (96, 80, 3), (45, 33, 3), (128, 128, 3), (256, 256, 3)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_shapes(network: str, shape: tuple[int, int, int]) -> None:
    encoder, decoder = networks.build(network, shape, 5, "float32", {"width": 8})
    parameters = encoder(np.zeros((2, *shape), np.float32))
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {"mean": (2, 5), "log_var": (2, 5)}
    image = decoder(np.random.default_rng(0).standard_normal((2, 5), np.float32)).numpy()
    assert image.shape == (2, *shape)
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize("network", sorted(networks.FAMILIES))
def test_the_smallest_images_have_places(network: str) -> None:
    """Pixels differ from their neighbours in both directions: of one place, all would be alike."""
    for shape in ((16, 16, 1), (16, 40, 1), (40, 16, 1)):
        keras.utils.set_random_seed(0)
        _, decoder = networks.build(network, shape, 4, "float32", {"width": 8})
        rng = np.random.default_rng(0)
        for weight in decoder.weights:  # those that end in zeros draw nothing yet
            weight.assign(
                rng.uniform(0.5, 1.0, weight.shape)
                * rng.choice([-1.0, 1.0], weight.shape) ** ("var" not in weight.path)
            )
        image = np.asarray(decoder(rng.standard_normal((1, 4), np.float32)))[0]
        assert min(np.ptp(image, axis=axis).max() for axis in (0, 1)) > 1e-3


def test_layers_are_the_papers() -> None:
    encoder, decoder = networks.build("dfc", (64, 64, 3), 100, "float32")
    down = [layer for layer in encoder.layers if isinstance(layer, keras.layers.Conv2D)]
    up = [layer for layer in decoder.layers if isinstance(layer, UpsampledConv2D)]
    assert [(conv.filters, conv.kernel_size, conv.strides) for conv in down] == [
        (width, (4, 4), (2, 2)) for width in (32, 64, 128, 256)
    ]
    assert [(conv.filters, tuple(conv.kernel.shape[:2]), conv.padding) for conv in up] == [
        (width, (3, 3), "edge") for width in (128, 64, 32, 3)
    ]
    assert decoder.get_layer("project").units == 4 * 4 * 256


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_float32_goes_in_and_comes_out(policy: str) -> None:
    encoder, decoder = networks.build("dfc", (16, 16, 3), 4, policy)
    assert {value.dtype for value in encoder.output.values()} == {"float32"}
    assert decoder.output.dtype == "float32"
    compute = keras.DTypePolicy(policy).compute_dtype
    assert encoder.get_layer("conv1").compute_dtype == decoder.get_layer("conv1").compute_dtype == compute


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_resnet_options(policy: str) -> None:
    options = {"width": 16, "blocks": 2, "attention": True}
    encoder, decoder = networks.build("resnet", (32, 32, 3), 4, policy, options)
    for model in (encoder, decoder):
        kinds = [type(layer).__name__ for layer in model.layers]
        assert kinds.count("MultiHeadAttention") == 1
        assert kinds.count("Add") == 2 * 2 + 2 + 1  # two blocks at two resolutions, two below, one attention
        assert {layer.compute_dtype for layer in model.layers if "conv" in layer.name} == {
            keras.DTypePolicy(policy).compute_dtype
        }
    plain, _ = networks.build("resnet", (32, 32, 3), 4, policy, {"width": 16})
    assert plain.count_params() < encoder.count_params()


@pytest.mark.parametrize("network", sorted(networks.FAMILIES))
def test_width_widens(network: str) -> None:
    narrow, wide = (networks.build(network, (32, 32, 3), 4, "float32", {"width": width})[0] for width in (16, 32))
    assert 2 < wide.count_params() / narrow.count_params() < 4.1


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        ("dfc", (33, 20, 3)),
        *(
            pytest.param(network, shape, marks=pytest.mark.slow)
            for network, shape in (
                ("dfc", (28, 28, 1)),
                ("resnet", (16, 20, 3)),
                ("resnet", (28, 28, 1)),
                ("resnet", (33, 20, 3)),
            )
        ),
    ],
)
def test_families_train_save_and_export(network: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((8, *shape), np.float32)
    options = {"width": 8, **({"attention": True} if network == "resnet" else {})}
    vae = VAE(shape, 4, network, perceptual=None, network_options=options, seed=0)
    vae.compile()
    vae.fit(images, batch_size=4, verbose=0)
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(vae.sample(2, seed=0), loaded.sample(2, seed=0))
    assert vae.export(tmp_path / "decoder.onnx", format="onnx").passed
    if shape[2] == 1:
        assert vae.export(tmp_path / "1").passed


@pytest.mark.parametrize("network", ["dfc", "resnet"])
def test_files_of_the_layers_before_are_refused_in_one_line(network: str, tmp_path: Path) -> None:
    vae = VAE((16, 16, 3), 2, network, perceptual=None, network_options={"width": 8})
    vae.save(tmp_path / "vae.keras")
    with zipfile.ZipFile(tmp_path / "vae.keras") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    assert config["config"].pop("layout") == networks.LAYOUT
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    for load, where in ((load_vae, str(tmp_path / "old.keras")), (keras.saving.load_model, "")):
        with pytest.raises(
            InputError, match=f"{network!r} had other layers .* set_weights .* or train again"
        ) as refused:
            load(tmp_path / "old.keras")
        assert "\n" not in str(refused.value)
        assert where in str(refused.value)


def test_replication_padding_repeats_the_border() -> None:
    images = np.random.default_rng(0).random((2, 3, 4, 2), np.float32)
    expected = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    np.testing.assert_array_equal(networks.ReplicationPadding2D()(images), expected)


def test_log_variance_is_safe_and_its_gradient_alive() -> None:
    raw = tf.Variable([-1e6, -50.0, -10.0, -3.0, 0.0, 2.0, 30.0, 1e6])
    with tf.GradientTape() as tape:
        bent = networks.SafeLogVariance()(raw)
        kl = tf.reduce_sum(0.5 * (tf.exp(bent) - 1.0 - bent))
    np.testing.assert_array_equal(bent[2:6], raw[2:6])
    assert np.isfinite(kl)
    gradient = tape.gradient(kl, raw).numpy()
    assert np.isfinite(gradient).all()
    assert (np.delete(gradient, 4) != 0).all()  # at 0 the KL is least
    assert (np.sign(gradient[[0, 1, 6, 7]]) == [-1, -1, 1, 1]).all()  # towards the range


@pytest.mark.parametrize(
    ("network", "shape", "latent_dim", "message"),
    [
        ("unet", (64, 64, 3), 8, "dfc"),
        ("dfc", (15, 64, 3), 8, "16 pixels a side and more"),
        ("resnet", (0, 0, 3), 8, "16 pixels a side and more"),
        ("dfc", (64, 64, 4), 8, "1 or 3 channels"),
        ("dfc", (64, 64, 3), 0, "at least 1 latent"),
    ],
)
def test_what_cannot_be_built_is_refused(
    network: str, shape: tuple[int, int, int], latent_dim: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        networks.build(network, shape, latent_dim, "float32")


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("dfc", {"attention": True}, "no option 'attention': it has width"),
        ("dfc", {"width": 0}, "width=0"),
        ("dfc", {"width": 1.5}, "whole number"),
        ("resnet", {"width": 20}, "multiples of 8"),
        ("resnet", {"attention": 1}, "True or False"),
    ],
)
def test_unusable_options_are_refused(network: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        networks.build(network, (32, 32, 3), 8, "float32", options)


# Networks of the user's own -------------------------------------------------------------------


def own_encoder(outputs: str = "dict", latents: int = 3) -> keras.Model:
    image = keras.Input((12, 10, 1))
    hidden = keras.layers.Dense(16, "relu")(keras.layers.Flatten()(image))
    mean, log_var = (keras.layers.Dense(latents, name=name)(hidden) for name in ("mine", "other"))
    forms = {
        "dict": {"mean": mean, "log_var": log_var},
        "pair": [mean, log_var],
        "one": keras.layers.Concatenate()([mean, log_var]),
    }
    return keras.Model(image, forms[outputs])


def own_decoder(latents: int = 3, shape: tuple[int, int, int] = (12, 10, 1), last: str = "sigmoid") -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((latents,)),
            keras.layers.Dense(int(np.prod(shape)), last, bias_initializer=keras.initializers.Constant(1.1)),
            keras.layers.Reshape(shape),
        ]
    )


class Subclassed(keras.Model):
    """An encoder that says nothing of its shapes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(6)

    def call(self, images: Any) -> Any:
        return self.dense(self.flatten(images))


keras.saving.register_keras_serializable("tests")(Subclassed)


@pytest.mark.parametrize(
    ("form", "policy"),
    [
        # Of the mixed ones, those that may round otherwise when they are loaded, and one that scales its loss.
        pytest.param(
            form,
            policy,
            marks=()
            if policy == "float32" or (form, policy) in (("subclassed", "mixed_bfloat16"), ("dict", "mixed_float16"))
            else pytest.mark.slow,
        )
        for form in ("dict", "pair", "one", "subclassed")
        for policy in ("float32", "mixed_bfloat16", "mixed_float16")
    ],
)
def test_own_networks_train_save_and_export(form: str, policy: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((16, 12, 10, 1), np.float32)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        encoder = Subclassed() if form == "subclassed" else own_encoder(form)
        decoder = own_decoder()
    finally:
        keras.config.set_dtype_policy(before)
    vae = VAE((12, 10, 1), 3, encoder=encoder, decoder=decoder, perceptual=None, seed=0)
    assert (vae.image_shape, vae.latent_dim) == ((12, 10, 1), 3)
    vae.compile(keras.optimizers.Adam(1e-2))
    assert isinstance(vae.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    losses = vae.fit(images, batch_size=8, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert {value.dtype for value in vae.encoder(images[:1]).values()} == {tf.float32}
    vae.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    # Loaded layers of a subclassed model follow the global policy of the moment: in bfloat16 they may round otherwise.
    tolerance = 1e-6 if policy == "float32" else 0.01
    np.testing.assert_allclose(vae.predict(images, verbose=0), loaded.predict(images, verbose=0), atol=tolerance)
    assert loaded.export(tmp_path / "decoder.onnx", format="onnx").passed


def test_log_variance_of_own_encoders_is_kept_safe_once() -> None:
    encoder = own_encoder()
    adopted, *_ = networks.adopt(encoder, own_decoder(), (12, 10, 1), 3)
    image = 1e4 * np.ones((1, 12, 10, 1), np.float32)
    raw, safe = encoder(image)["log_var"].numpy(), adopted(image)["log_var"].numpy()
    assert np.abs(raw).max() > 50 > np.abs(safe).max()
    again, *_ = networks.adopt(adopted, own_decoder(), (12, 10, 1), 3)
    assert again is adopted


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (lambda: own_encoder(latents=4), own_decoder, "4 latents, the decoder takes 3"),
        (own_encoder, lambda: own_decoder(shape=(12, 12, 1)), "give a pair that fits"),
        (own_encoder, lambda: own_decoder(last="linear"), "sigmoid"),
        (own_decoder, own_decoder, "encoder"),
        (own_encoder, lambda: None, "both encoder and decoder"),
    ],
)
def test_own_networks_that_do_not_fit_are_refused(
    encoder: Callable[[], Any], decoder: Callable[[], Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        VAE((12, 10, 1), 3, encoder=encoder(), decoder=decoder(), perceptual=None)
    assert "\n" not in str(refused.value)


def test_variances_of_features_from_before_are_refused() -> None:
    """They had another place in files, whatever the networks are."""
    config = VAE((32, 32, 3), 2, perceptual="hed-vgg16", perceptual_weight="balanced").get_config()
    del config["layout"]
    own = {**config, "network": "mine", "encoder": None}
    with pytest.raises(InputError, match=r"had other layers .* set_weights"):
        VAE.from_config(own)
