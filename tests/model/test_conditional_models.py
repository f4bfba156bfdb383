"""Models that are asked for a class or for attributes: what they draw, and how labels reach them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vae import VAE, Condition, InputError, distributions, networks, priors
from keras_vae.model import conditioning, flow_matching

SHAPE, CLASSES = (16, 16, 1), 3
SMALL: dict[str, Any] = {"image_shape": SHAPE, "latent_dim": 4, "perceptual": None, "network_options": {"width": 8}}


@pytest.fixture(scope="module")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Images whose left column tells their class by its brightness: 0.1, 0.45 or 0.8, and noise beside it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 512)
    images = (0.2 * rng.uniform(size=(512, *SHAPE))).astype(np.float32)
    images += 0.35 * labels[:, None, None, None].astype(np.float32)
    return images, labels


def own_networks() -> dict[str, keras.Model]:
    """A layer each way, for what the networks are all one to: their graph is made in a third of the time."""
    image, condition, z = keras.Input(SHAPE), keras.Input((CLASSES,)), keras.Input((4,))
    x = keras.layers.Concatenate()([keras.layers.Flatten()(image), condition])
    y = keras.layers.Dense(256, "sigmoid")(keras.layers.Concatenate()([z, condition]))
    return {
        "encoder": keras.Model([image, condition], keras.layers.Dense(8)(x)),
        "decoder": keras.Model([z, condition], keras.layers.Reshape(SHAPE)(y)),
    }


@pytest.fixture(
    scope="module", params=["dfc", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ppca", "resnet"))]
)
def trained(request: pytest.FixtureRequest, labelled: tuple[np.ndarray, np.ndarray]) -> VAE:
    keras.utils.set_random_seed(0)
    vae = VAE(**SMALL, network=request.param, condition=Condition(("dark", "grey", "light"), exclusive=True), seed=0)
    vae.compile(keras.optimizers.Adam(2e-3))
    images, labels = labelled
    vae.fit(images, labels, epochs=6, verbose=0)
    vae.fit_prior(images, steps=150, labels=labels)
    return vae


def test_samples_are_of_the_class_that_was_asked_for(trained: VAE) -> None:
    asked = {"dark": 0.1, "grey": 0.45, 2: 0.8}
    for condition, brightness in asked.items():
        samples = np.asarray(trained.sample(32, seed=1, condition=condition))
        assert samples.mean() == pytest.approx(brightness, abs=0.1)
    each = np.asarray(trained.sample(3, seed=1, condition=["light", "dark", None]))
    np.testing.assert_allclose(each[:1], trained.sample(3, seed=1, condition="light")[:1], atol=1e-5)
    # Without one they are of all kinds.
    assert np.asarray(trained.sample(64, seed=1)).mean(axis=(1, 2, 3)).std() > 0.15


def test_images_as_of_another_class(trained: VAE, labelled: tuple[np.ndarray, np.ndarray]) -> None:
    images = labelled[0][labelled[1] == 0][:16]
    for condition, brightness in (("dark", 0.1), ("light", 0.8)):
        made = np.asarray(trained.transfer(images, condition, "dark"))
        assert made.mean() == pytest.approx(brightness, abs=0.12)
    # As of what they are, they are their reconstructions.
    reconstructed = np.asarray(trained(images, condition="dark"))
    assert np.abs(np.asarray(trained.transfer(images, "dark", "dark")) - reconstructed).mean() < 0.03


def test_a_saved_model_knows_its_names_and_draws_the_same(trained: VAE, tmp_path: Path) -> None:
    trained.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.condition == Condition(("dark", "grey", "light"), exclusive=True)
    assert isinstance(loaded.prior, priors.FlowMatchingPrior)
    assert loaded.prior.condition_dim == CLASSES
    np.testing.assert_array_equal(
        loaded.sample(4, seed=0, condition="grey"), trained.sample(4, seed=0, condition="grey")
    )


def test_knowing_the_class_tells_more(trained: VAE, labelled: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = labelled
    known = trained.evaluate(images, labels, verbose=0, return_dict=True)
    unknown = trained.evaluate(images, verbose=0, return_dict=True)
    assert known["elbo"] > unknown["elbo"]
    reconstructed = trained.predict(images[:5], verbose=0)
    np.testing.assert_allclose(reconstructed, trained(images[:5]), atol=1e-5)
    assert np.isfinite(trained.score(images[:8], draws=2).bound).all()


@pytest.mark.parametrize("network", sorted(networks.FAMILIES))
def test_an_unknown_condition_leaves_a_network_as_it_is(network: str) -> None:
    """Whatever the weights: the shifts are linear, and of zeros none."""
    plain = networks.build(network, SHAPE, 4, "float32", {"width": 8})
    conditional = networks.build(network, SHAPE, 4, "float32", {"width": 8}, CLASSES)
    rng = np.random.default_rng(0)
    given = (rng.uniform(size=(3, *SHAPE)).astype(np.float32), rng.standard_normal((3, 4), np.float32))
    for one, other, x in zip(plain, conditional, given, strict=True):
        assert [each.name for each in other.inputs] == [one.inputs[0].name, "condition"]
        weights = {layer.name: layer for layer in one.layers}
        for layer in other.layers:
            if layer.name in weights:
                layer.set_weights(weights[layer.name].get_weights())
            elif layer.weights:
                layer.set_weights([rng.standard_normal(each.shape) * ("kernel" in each.path) for each in layer.weights])
        zeros, some = np.zeros((3, CLASSES), np.float32), np.eye(CLASSES, dtype=np.float32)
        # In training, for untrained networks that end in zeros tell nothing apart.
        expected, same, different = one(x), other([x, zeros]), other([x, some])
        expected, same, different = (
            np.concatenate([np.asarray(each[key]) for key in sorted(each)]) if isinstance(each, dict) else each
            for each in (expected, same, different)
        )
        np.testing.assert_allclose(same, expected, atol=1e-6)
        assert np.abs(np.asarray(different) - np.asarray(expected)).max() > 1e-3
        np.testing.assert_allclose(
            networks.without_condition(other)(x)["mean"] if one is plain[0] else networks.without_condition(other)(x),
            other([x, zeros])["mean"] if one is plain[0] else other([x, zeros]),
            atol=1e-6,
        )


def test_every_way_to_give_labels(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = labelled[0][:8], labelled[1][:8]
    classes, attributes = Condition.of(CLASSES), Condition(("a", "b", "c"))
    assert classes is not None
    rows = np.eye(CLASSES, dtype=np.float32)[labels]
    for data in (
        (images, labels),
        (images, labels.astype(np.uint8)),
        (images, labels[:, np.newaxis]),
        (images, rows),
        (images, rows.astype(int)),
        {"image": images, "condition": rows},
        ({"image": images, "label": labels},),
        ({"image": images}, labels),
    ):
        found = conditioning.of_labels(conditioning.labels_of(data), classes)
        np.testing.assert_array_equal(found, rows)
        np.testing.assert_array_equal(classes.rows(conditioning.labels_of(data), 8), rows)
    for given in (rows.astype(np.uint8), rows.astype(bool), 2 * rows.astype(int) - 1, 2 * rows - 1):
        np.testing.assert_array_equal(conditioning.of_labels(given, attributes), 2 * rows - 1)
        np.testing.assert_array_equal(attributes.rows(given, 8), 2 * rows - 1)
    for nothing in (images, (images,), (images, None), {"image": images}):
        assert conditioning.labels_of(nothing) is None


def test_arrays_and_datasets_train_alike(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = labelled[0][:64], labelled[1][:64]
    rows = np.eye(CLASSES, dtype=np.float32)[labels]

    def weights(*data: Any) -> np.ndarray:
        keras.utils.set_random_seed(0)
        vae = VAE(**own_networks(), perceptual=None, condition=CLASSES, seed=0)
        vae.compile(keras.optimizers.Adam(1e-3))
        vae.fit(*data, shuffle=False, verbose=0)
        return np.concatenate([weight.numpy().ravel() for weight in vae.trainable_weights])

    dataset = tf.data.Dataset.from_tensor_slices({"image": images, "condition": rows}).batch(32)
    np.testing.assert_array_equal(weights(images, labels), weights(dataset))


def test_labels_of_another_form_are_taken_later(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    """A step that has seen numbers, a column of them and rows no longer knows the rank when it is traced again."""
    images, labels = labelled[0][:64], labelled[1][:64]
    vae = VAE(**own_networks(), perceptual=None, condition=CLASSES, seed=0)
    vae.compile(keras.optimizers.SGD(0.0))
    found = []
    for form in (labels, labels[:, None], np.eye(CLASSES, dtype=int)[labels], labels):
        data = tf.data.Dataset.from_tensor_slices((images, form)).batch(16)
        vae.fit(data, verbose=0)
        found.append(vae.evaluate(data, verbose=0))
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], rtol=0.05)  # another draw
    with pytest.raises(InputError, match="are no classes, not finite, or not one for each"):
        vae.fit(tf.data.Dataset.from_tensor_slices((images, labels[:, None] + 1)).batch(16), verbose=0)


def test_a_replica_may_have_no_labels() -> None:
    condition = Condition.of(CLASSES)
    assert condition is not None
    for none in (
        np.zeros(0, int),
        np.zeros((0, 1), int),
        np.zeros((0, CLASSES), int),
        np.zeros((0, CLASSES), np.float32),
    ):
        found = conditioning.one_each(conditioning.of_labels(none, condition), tf.zeros((0, *SHAPE)))
        assert found.shape == (0, CLASSES)


def test_names_in_a_dict(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    images, names = labelled[0][:32], labelled[1][:32].astype(str)
    vae = VAE(**own_networks(), perceptual=None, condition=CLASSES, seed=0)
    vae.compile(keras.optimizers.SGD(0.0))
    data = {"image": images, "label": names, "file": np.array(["a.png"] * 32)}
    by_dict = vae.evaluate(data, verbose=0)
    np.testing.assert_allclose(by_dict, vae.evaluate(images, names, verbose=0), rtol=0.05)
    vae.fit(data, validation_data=data, verbose=0)
    assert list(data) == ["image", "label", "file"]


def test_a_class_that_is_not_known_is_any(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    images = labelled[0][:32]
    vae = VAE(**SMALL, condition=CLASSES, seed=0)
    vae.compile()
    unknown = vae.evaluate(images, verbose=0, return_dict=True)
    assert vae.evaluate(images, np.full(32, -1), verbose=0, return_dict=True) == unknown


def test_attributes_are_asked_for_together_and_alone() -> None:
    """Two attributes, each a half of the image that is light or dark."""
    rng = np.random.default_rng(0)
    attributes = rng.integers(0, 2, (512, 2)).astype(np.uint8)
    images = (0.1 * rng.uniform(size=(512, *SHAPE))).astype(np.float32)
    images[:, :8] += 0.6 * attributes[:, 0, None, None, None]
    images[:, 8:] += 0.6 * attributes[:, 1, None, None, None]
    keras.utils.set_random_seed(0)
    vae = VAE(**SMALL, condition=("top", "bottom"), seed=0)
    vae.compile(keras.optimizers.Adam(2e-3))
    vae.fit(images, attributes, epochs=10, verbose=0)
    vae.fit_prior(images, steps=200, labels=attributes)

    def halves(condition: Any) -> tuple[float, float]:
        samples = np.asarray(vae.sample(32, seed=0, condition=condition))
        return samples[:, :8].mean(), samples[:, 8:].mean()

    assert halves({"top": 1, "bottom": 0}) == pytest.approx((0.65, 0.05), abs=0.12)
    assert halves({"top": 0, "bottom": 1}) == pytest.approx((0.05, 0.65), abs=0.12)
    top, bottom = halves({"top": 1})
    assert top == pytest.approx(0.65, abs=0.12)
    assert 0.15 < bottom < 0.55


def test_what_is_left_out_in_training() -> None:
    """A tenth of all conditions; and of attributes in a fifth of the images, half of them on average."""
    noise = np.random.default_rng(0).standard_normal((20_000, 5), np.float32)
    classes = np.asarray(conditioning.partly_unknown(tf.ones((20_000, 4)), noise[:, :1]))
    assert set(classes.sum(axis=1)) == {0.0, 4.0}
    assert (classes.sum(axis=1) == 0).mean() == pytest.approx(0.1, abs=0.01)
    attributes = np.asarray(conditioning.partly_unknown(tf.ones((20_000, 4)), noise))
    left = attributes.sum(axis=1)
    assert (left == 4).mean() == pytest.approx(0.7 + 0.2 / 5, abs=0.01)  # of a uniform share all four stay in a fifth
    assert (left == 0).mean() == pytest.approx(0.1 + 0.2 / 5, abs=0.01)
    assert attributes.mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
def test_conditions_are_finite_and_repeat_themselves(policy: str, labelled: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = labelled[0][:64], labelled[1][:64]

    def losses() -> list[float]:
        keras.utils.set_random_seed(0)
        vae = VAE(**SMALL, condition=CLASSES, seed=3, dtype=policy)
        vae.compile(keras.optimizers.Adam(1e-3))
        return vae.fit(images, labels, epochs=2, batch_size=16, verbose=0).history["loss"]

    first = losses()
    assert np.isfinite(first).all()
    if policy == "float32":
        assert losses() == pytest.approx(first, rel=1e-5)


def test_networks_of_the_users_own(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    own = own_networks()
    vae = VAE(**own, perceptual=None, condition=CLASSES)
    vae.compile(keras.optimizers.Adam(1e-2))
    vae.fit(*labelled, epochs=5, verbose=0)
    light, dark = (np.asarray(vae.sample(16, seed=0, condition=each)).mean() for each in (2, 0))
    assert light > dark + 0.15
    image = keras.Input(SHAPE)
    plain = keras.Model(image, keras.layers.Dense(8)(keras.layers.Flatten()(image)))
    with pytest.raises(InputError, match=r"the encoder takes .*: give one with two inputs of fixed shapes"):
        VAE(encoder=plain, decoder=own["decoder"], perceptual=None, condition=CLASSES)
    with pytest.raises(InputError, match="give one with a single input of fixed shape"):
        VAE(**own, perceptual=None)


def test_conditions_that_a_model_does_not_take_are_pointed_out(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    images = labelled[0][:32]
    vae = VAE(**{**SMALL, "network_options": {"width": 4}})
    vae.compile()
    with pytest.warns(UserWarning, match="the images come with conditions, and the model takes none"):
        vae.fit({"image": images, "condition": np.zeros((32, 3), np.float32)}, verbose=0)


def test_wrong_labels_are_one_line(
    labelled: tuple[np.ndarray, np.ndarray], make_vae: Callable[..., VAE], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = labelled[0][:32], labelled[1][:32]
    vae = VAE(**own_networks(), perceptual=None, condition=CLASSES)
    vae.compile()
    before = [weight.numpy() for weight in vae.weights]

    def batches(*data: Any) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(data).batch(32)

    for data, message in (
        ((images,), "this model is trained on images with their class: give fit(images, labels)"),
        ((batches(images),), "this model is trained on images with their class"),
        ((images, labels + 1), "class 3: this model knows 3, from 0 on"),
        ((images, labels[:5]), "32 images and 5 labels: give one for each image"),
        ((images, np.eye(3, dtype=int)[:1]), "32 images and 1 label: give one for each image"),
        ((images, "1"), "32 images and 1 label: give one for each image"),
        (({"image": images, "label": labels[:1]},), "32 images and 1 label: give one for each image"),
        (
            (batches(images, labels).map(lambda x, y: (x, y[:1])),),
            "labels in batch 1 are no classes, not finite, or not",
        ),
        (
            (batches(images, labels).map(lambda x, y: (x, y[:5])),),
            "labels in batch 1 are no classes, not finite, or not",
        ),
        ((batches(images, {"label": labels}),), "labels are of dict: give one dense tensor of them"),
        ((images, np.array(["a"] * 32)), "no class 'a'"),
        ((batches(images, labels + 1),), "labels in batch 1 are no classes, not finite, or not"),
        (
            (batches(images, np.full((32, 3), np.nan, np.float32)),),
            "labels in batch 1 are no classes, not finite, or not",
        ),
        (
            (batches(images, np.zeros((32, 4), np.float32)),),
            "labels have shape (batch, 4) and type float32: give numbers of classes, (batch,), or (batch, 3)",
        ),
        ((batches(images, np.array(["a"] * 32)),), "labels have shape (batch) and type string"),
    ):
        with pytest.raises(InputError) as refused:
            vae.fit(*data, verbose=0)
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)
    z, tensor = np.zeros((2, 4), np.float32), tf.constant
    for wrong, message in (
        (tensor([7, 0]), "class 7: this model knows 3"),
        (tensor([1]), r"conditions of 2 images are of shape \(1,\)"),
        (tensor([[float("nan"), 0, 0]] * 2), "conditions hold NaN"),
        (tf.ragged.constant([[1, 0], [1]]), "conditions are of RaggedTensor: give one dense tensor"),
    ):
        with pytest.raises(InputError, match=message):
            vae.decode(z, wrong)
    for right in (tensor([1, 2]), tensor(np.eye(3)[1:], tf.bfloat16), tf.Variable([1, 2])):
        np.testing.assert_array_equal(vae.decode(z, right), vae.decode(z, [1, 2]))
    with pytest.raises(InputError, match="class 3: this model knows 3"):
        vae.fit_prior(batches(images, labels + 1))
    # What a generator lacks shows when it is asked for a batch.
    with pytest.raises(InputError, match="this model is trained on images with their class"):
        vae.fit(((images,) for _ in range(2)), steps_per_epoch=2, verbose=0)
    with pytest.raises(InputError, match="this model is trained on images with their class"):
        VAE(**SMALL, network="ppca", condition=CLASSES).adapt(iter([images]))
    for weight, value in zip(vae.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    with pytest.raises(InputError, match="no class 'boot': this model knows 0, 1, 2"):
        vae.sample(2, condition="boot")
    with pytest.raises(InputError, match="condition='boot': this model was trained without conditions"):
        make_vae().sample(2, condition="boot")
    with pytest.raises(InputError, match="the prior takes conditions of 0 numbers, and the model of 3"):
        vae.set_prior(priors.FlowMatchingPrior(4))
    family = networks.FAMILIES["dfc"]
    bare = networks.Family(lambda image_shape, latent_dim, dtype: None, family.decoder)
    monkeypatch.setitem(networks.FAMILIES, "bare", bare)
    with pytest.raises(InputError, match="the network 'bare' takes no conditions: choose one of dfc, resnet, ppca"):
        VAE(**{**SMALL, "network_options": {}}, network="bare", condition=3)


def test_a_prior_of_known_codes() -> None:
    """Codes of two classes about -2 and 2: noise flows to the one that is asked for, or to either."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    mean = (rng.standard_normal((2000, 2)) * 0.7 + 4.0 * labels[:, None] - 2.0).astype(np.float32)
    conditions = np.eye(2, dtype=np.float32)[labels]
    log_var = np.full_like(mean, -6.0)
    prior = flow_matching.fit(mean, log_var, 0, 350, conditions, (mean, log_var), Condition.of(2))
    noise = rng.standard_normal((500, 2), np.float32)
    for number, place in ((0, -2.0), (1, 2.0)):
        codes = np.asarray(prior(noise, np.eye(2, dtype=np.float32)[[number] * 500]))
        assert codes.mean(axis=0) == pytest.approx([place, place], abs=0.5)  # guided, they go a little too far
        back = np.asarray(prior.inverse(codes, np.eye(2, dtype=np.float32)[[number] * 500]))
        assert np.corrcoef(back.ravel(), noise.ravel())[0, 1] > 0.9
    either = np.asarray(prior(noise, np.zeros((500, 2), np.float32)))[:, 0]
    assert 0.3 < (either > 0).mean() < 0.7
    np.testing.assert_allclose(either, np.asarray(prior(noise))[:, 0], atol=1e-4)
    near = np.array([[2.0, 2.0]], np.float32)
    right, wrong = (float(prior.log_prob(near, np.eye(2, dtype=np.float32)[[number]])[0]) for number in (1, 0))
    assert right > wrong + 5.0


def test_ppca_centres_each_class() -> None:
    """Adapted to two constant classes, the linear path draws each at its brightness, and the mean of all between."""
    labels = np.arange(200) % 2
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, (200, *SHAPE))
    images = (0.3 + 0.4 * labels[:, None, None, None] + noise).astype(np.float32)
    vae = VAE(**SMALL, network="ppca", condition=2)
    vae.adapt(images, labels=labels)
    for condition, brightness in ((0, 0.3), (1, 0.7), (None, 0.5)):
        assert np.asarray(vae.decode(np.zeros((1, 4)), condition=condition)).mean() == pytest.approx(
            brightness, abs=0.02
        )
    posterior = vae.encode(images, condition=labels)
    assert np.asarray(posterior.mean).mean(axis=0) == pytest.approx(np.zeros(4), abs=0.05)


def test_the_objective_is_that_of_the_condition(labelled: tuple[np.ndarray, np.ndarray]) -> None:
    """-log p(x | z, c) + KL(q(z | x, c) || p(z)), computed here from encode and decode."""
    images, labels = labelled[0][:8], labelled[1][:8]
    vae = VAE(**SMALL, condition=CLASSES, likelihood="gaussian", seed=0)
    for layer in (*vae.encoder.layers, *vae.decoder.layers):
        if layer.name.endswith("_condition"):
            layer.kernel.assign(np.random.default_rng(1).standard_normal(layer.kernel.shape))
    noise = np.random.default_rng(0).standard_normal((8, 4), np.float32)
    terms, posterior = vae.objective(images, tf.constant(noise), training=False, condition=labels)
    z = np.asarray(posterior.mean) + np.exp(0.5 * np.asarray(posterior.log_var)) * noise
    decoded = vae.decode(z, condition=labels)
    expected = -distributions.get_likelihood("gaussian").log_prob(images, decoded) + posterior.kl()
    np.testing.assert_allclose(terms["loss"], expected, rtol=1e-5)
    other, _ = vae.objective(images, tf.constant(noise), training=False, condition=(labels + 1) % CLASSES)
    assert np.abs(np.asarray(other["loss"]) - np.asarray(terms["loss"])).max() > 1.0
