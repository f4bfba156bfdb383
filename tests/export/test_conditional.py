"""Artifacts of conditional models: equal to Keras whatever images are asked for, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from browser import few_draws
from google.protobuf import json_format
from tensorflow.core.protobuf import saved_model_pb2

from keras_vae import VAE, Condition, priors
from keras_vae.export import seal, triton
from keras_vae.export.artifact import export_decoder, keras_runner
from keras_vae.export.encoder import export_encoder
from keras_vae.export.errors import ExportError, VerificationError
from keras_vae.export.formats import FORMATS, open_artifact
from keras_vae.export.prior import export_prior
from keras_vae.export.runtime import Decoder, Encoder, Generator
from keras_vae.export.serving.served import ServedDecoder
from keras_vae.export.verify import verify
from keras_vae.networks import without_condition
from keras_vae.runs.opening import open_model
from keras_vae.support.errors import InputError

CONDITIONS = {
    "classes": Condition(("shirt", "boot", "bag"), exclusive=True),
    "attributes": Condition(("glasses", "hat")),
}
SHAPE = (16, 16, 1)
EXPORTS: dict[str, dict[str, dict[str, Any]]] = {
    "classes": {
        "1": {"format": "tf_saved_model", "encoder": True},
        "decoder.onnx": {"format": "onnx"},
        "generator.onnx": {"format": "onnx", "part": "generator"},
        "generator.float16.onnx": {"format": "onnx", "part": "generator", "precision": "float16"},
        "generator.int8.uint8.onnx": {"format": "onnx", "part": "generator", "precision": "int8", "output": "uint8"},
        "generator.tflite": {"format": "litert", "part": "generator"},
        "decoder.xml": {"format": "openvino"},
    },
    "attributes": {
        "decoder.onnx": {"format": "onnx"},
        "generator.onnx": {"format": "onnx", "part": "generator"},
        "decoder.uint8.onnx": {"format": "onnx", "output": "uint8"},
        "decoder.int8.onnx": {"format": "onnx", "precision": "int8"},
        "decoder.tflite": {"format": "litert"},
        "generator.xml": {"format": "openvino", "part": "generator"},
    },
}
# The same writers make others of these, of the other part or kind.
RARE = ("decoder.uint8.onnx", "decoder.int8.onnx", "decoder.tflite", "generator.float16.onnx", "generator.xml")
of_classes = pytest.mark.parametrize("kind", ["classes"])
TOLERANCE = {"float32": 1e-4, "float16": 0.01, "int8": 0.2}


def make(condition: Any, network: str = "dfc", **arguments: Any) -> VAE:
    """A small model, untrained, whose images follow from the condition, by the decoder and by the prior."""
    keras.utils.set_random_seed(1)
    options = {"width": 8}
    vae = VAE(SHAPE, 4, network, perceptual=None, network_options=options, condition=condition, seed=1, **arguments)
    rng = np.random.default_rng(1)
    for weight in (*vae.encoder.weights, *vae.decoder.weights):
        if any(part in weight.path for part in ("moving", "gamma", "beta")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif "_condition" in weight.path:
            weight.assign(rng.standard_normal(weight.shape))
    prior = priors.FlowMatchingPrior(4, width=16, blocks=1, condition_dim=len(vae.condition or ()))
    for weight in (prior.last, *([prior.condition] if vae.condition else [])):
        weight.assign(0.5 * rng.standard_normal(weight.shape))
    vae.set_prior(prior)
    return vae


@pytest.fixture(scope="module")
def vaes() -> dict[str, VAE]:
    return {kind: make(condition) for kind, condition in CONDITIONS.items()}


@pytest.fixture(scope="module")
def export(vaes: dict[str, VAE], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes an artifact of `EXPORTS`, once: `vae.export` has verified it."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in EXPORTS}

    @functools.cache
    def exported(kind: str, name: str) -> Path:
        vae, path = vaes[kind], folders[kind] / name
        images = np.random.default_rng(2).uniform(size=(64, *SHAPE)).astype(np.float32)
        labels = np.random.default_rng(2).integers(-1, 2, (64, len(names_of(vae)))).astype(np.float32)
        calibration = tf.data.Dataset.from_tensor_slices((images, labels)).batch(32)
        with few_draws():
            vae.export(path, calibration=calibration, run_id="abc", **EXPORTS[kind][name])
        return path

    return exported


@pytest.fixture(params=CONDITIONS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def vae(kind: str, vaes: dict[str, VAE]) -> VAE:
    return vaes[kind]


@pytest.fixture
def folder(kind: str, export: Callable[[str, str], Path]) -> Path:
    """Most formats and precisions, of decoder and generator."""
    paths = [export(kind, name) for name in EXPORTS[kind] if name not in RARE]
    return paths[0].parent


def names_of(vae: VAE) -> tuple[str, ...]:
    assert vae.condition is not None
    return vae.condition.names


def drawn(vae: VAE, condition: Any = None) -> np.ndarray:
    return keras.ops.convert_to_numpy(vae.sample(6, seed=0, condition=condition))


def refused(call: Callable[[], object], pattern: str, kind: type[Exception] = InputError) -> None:
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_condition_makes_a_difference(vae: VAE) -> None:
    """To the decoder and to the prior; the tests below prove nothing otherwise."""
    noise = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    asked = [None, *names_of(vae)]
    for made in (
        [keras.ops.convert_to_numpy(vae.decode(noise, condition=each)) for each in asked],
        [keras.ops.convert_to_numpy(vae.prior(noise, vae.condition.rows(each, 6))) for each in asked],
    ):
        for number, one in enumerate(made):
            assert all(np.abs(one - other).max() > 0.05 for other in made[:number])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=[pytest.mark.slow] if name in RARE else [])
        for kind, names in EXPORTS.items()
        for name in names
    ],
)
def test_every_artifact_makes_what_keras_makes_of_each_name_and_of_none(
    export: Callable[[str, str], Path], vae: VAE, kind: str, name: str
) -> None:
    path = export(kind, name)
    opened, model = open_artifact(path), open_model(path)
    assert opened.condition == model.condition == vae.condition
    assert opened.metadata["condition"] == vae.condition.metadata()["condition"]
    assert json.loads(opened.metadata["condition"])["names"] == [*names_of(vae)]
    z = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    for asked in (None, *names_of(vae), [*names_of(vae), None, None, None, None][:6]):
        if model.decoder is not None:
            expected = keras.ops.convert_to_numpy(vae.decode(z, condition=asked))
            assert np.abs(model.decode(z, asked) - expected).max() < TOLERANCE[opened.precision] + 1 / 255
            if (opened.precision, opened.output) == ("float32", "float32"):
                np.testing.assert_allclose(opened.decode(z, vae.condition.rows(asked, 6)), expected, atol=1e-4)
        if model.generator is not None:
            found = model.sample(6, seed=0, condition=asked)
            assert np.abs(found - drawn(vae, asked)).max() < TOLERANCE[opened.precision] + 1 / 255
            if (opened.precision, opened.output) == ("float32", "float32"):
                np.testing.assert_allclose(found, drawn(vae, asked), atol=1e-4)
    assert model.condition is not None
    refused(lambda: model.decode(z, "mittens") if model.decoder else model.generate(z, "mittens"), "this model knows")


def test_the_runtime_takes_names_and_says_which_there_are(folder: Path, vae: VAE) -> None:
    decoder, generator = Decoder(folder / "decoder.onnx"), Generator(folder / "generator.onnx")
    assert decoder.condition == generator.condition == vae.condition
    first = names_of(vae)[0]
    rows = decoder.condition.rows(first, 3)
    z = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(decoder.decode(z, first), decoder.decode(z, rows))
    np.testing.assert_array_equal(decoder.decode(z), decoder.decode(z, 0 * rows))
    np.testing.assert_array_equal(generator.generate(z, first), generator.generate(z, rows))
    np.testing.assert_allclose(generator.sample(6, 0, 0.7, first), vae.sample(6, 0, 0.7, first), atol=1e-4)
    if not decoder.condition.exclusive:
        wearing = {"glasses": False, "hat": True}
        np.testing.assert_allclose(decoder.decode(z, wearing), vae.decode(z, condition=wearing), atol=1e-4)
    assert decoder.decode(z[:0], first).shape == (0, *SHAPE)
    for call in (lambda: decoder.decode(z, "mittens"), lambda: generator.sample(3, 0, condition="mittens")):
        refused(call, f"no {'class' if vae.condition.exclusive else 'attribute'} 'mittens'.*{', '.join(names_of(vae))}")
    refused(lambda: decoder.decode(z, np.zeros((3, 7), np.float32)), r"shape \(3, 7\).*give numbers")
    refused(lambda: decoder.decode(z, np.zeros((2, len(rows[0])), np.float32)), "conditions of 3 images")
    refused(lambda: decoder.decode(z, np.full_like(rows, np.nan)), "NaN")
    refused(lambda: decoder.decode(np.zeros((3, 5)), first), "latents have shape", ExportError)


def test_the_runtime_asks_by_name_with_numpy_and_onnxruntime_alone(folder: Path, vae: VAE) -> None:
    code = (
        "import sys; from keras_vae.export.runtime import Generator\n"
        "print(Generator(sys.argv[1]).sample(2, 0, condition=sys.argv[2]).shape)\n"
        "assert not {'keras', 'tensorflow', 'onnx'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, str(folder / "generator.onnx"), names_of(vae)[0]]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "(2, 16, 16, 1)\n"


def test_a_condition_asked_of_a_model_without_any_is_refused(tmp_path: Path) -> None:
    vae = make(None)
    FORMATS["onnx"].write(vae.decoder, tmp_path / "decoder.onnx", {})
    FORMATS["onnx"].write(vae.decoder, tmp_path / "generator.onnx", {}, prior=vae.prior)
    decoder, generator = Decoder(tmp_path / "decoder.onnx"), Generator(tmp_path / "generator.onnx")
    assert decoder.condition is generator.condition is None
    assert "condition" not in decoder.metadata
    z = np.zeros((1, 4), np.float32)
    without = "this model was trained without conditions"
    refused(lambda: decoder.decode(z, "boot"), without)
    refused(lambda: generator.generate(z, "boot"), without)
    refused(lambda: generator.sample(1, condition="boot"), without)
    refused(lambda: open_model(tmp_path / "decoder.onnx").decode(z, "boot"), without)


@pytest.mark.parametrize("format", FORMATS)
def test_a_condition_that_does_not_fit_the_metadata_is_refused(tmp_path: Path, format: str) -> None:
    decoder = make(3).decoder
    path = tmp_path / Path(FORMATS[format].place).name
    for metadata, said in (({}, "its metadata name none"), (CONDITIONS["attributes"].metadata(), "metadata name 2")):
        refused(lambda metadata=metadata: export_decoder(decoder, path, format, metadata), said, ExportError)
        assert not path.exists()
    FORMATS[format].write(decoder, path, {})
    refused(lambda: open_artifact(path), r"takes conditions of 3 numbers, and its metadata name none", ExportError)


def test_an_onnx_file_with_other_names_or_another_input_is_refused(folder: Path, vae: VAE, tmp_path: Path) -> None:
    def changed(metadata: Mapping[str, str], drop: bool = False) -> Path:
        model = onnx.load(folder / "decoder.onnx")
        kept = {each.key: each.value for each in model.metadata_props if each.key not in ("sha256", "condition")}
        onnx.helper.set_model_props(model, {**kept, **metadata})
        if drop:
            (given,) = (each for each in model.graph.input if each.name == "condition")
            given.type.tensor_type.shape.dim[1].dim_param = "some"
        (tmp_path / "changed.onnx").write_bytes(seal.seal_onnx(model.SerializeToString()))
        return tmp_path / "changed.onnx"

    size = len(names_of(vae))
    named = vae.condition.metadata()
    assert Decoder(changed(named)).condition == vae.condition
    for path, said in (
        (lambda: changed({}), f"takes conditions of {size} numbers, and its metadata name none"),
        (lambda: changed({"condition": json.dumps({"names": ["a"], "exclusive": False})}), "metadata name 1"),
        (lambda: changed({"condition": "{"}), "'condition' is damaged"),
        (lambda: changed({"condition": "3.5"}), "'condition' is damaged"),
        (lambda: changed(named, drop=True), "takes conditions of some numbers"),
    ):
        file = path()
        refused(lambda file=file: Decoder(file), said, ExportError)
        refused(lambda file=file: triton.write(file, tmp_path / "repository"), "changed.onnx", ExportError)


def test_verification_sees_a_difference_of_a_single_name_or_of_none() -> None:
    for condition in (*CONDITIONS.values(), Condition(tuple(map(str, range(1000))), exclusive=True)):

        def good(z: np.ndarray, rows: np.ndarray) -> np.ndarray:
            assert rows.dtype == np.float32
            return np.tile(z[:, :1, None, None], (1, 2, 2, 1)) + rows.sum(axis=1)[:, None, None, None]

        assert verify({"a": good, "b": good}, 3, condition=condition).passed

        def off(z: np.ndarray, rows: np.ndarray, kind: np.ndarray) -> np.ndarray:
            return good(z, rows) + 0.01 * (rows == kind).all(axis=1)[:, None, None, None]

        each = condition.each()
        kinds = [0 * each[0], *(each[:5] if len(each) > 5 else each), each[-1]]
        for kind in kinds:
            pair = verify({"a": good, "b": lambda z, rows, kind=kind: off(z, rows, kind)}, 3, condition=condition)
            assert not pair.passed
        assert not verify({"a": good, "b": lambda z, rows: good(z, 0 * rows)}, 3, condition=condition).passed


@few_draws()
def test_an_artifact_that_confuses_names_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, original = make(3), FORMATS["onnx"]

    def confused(decoder: keras.Model, path: Path, metadata: Any, prior: Any = None) -> None:
        z, condition = (keras.Input(each.shape[1:]) for each in decoder.inputs)
        original.write(keras.Model([z, condition], decoder([z, condition[:, ::-1]])), path, metadata, prior)

    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(original, writer=confused))
    with pytest.raises(VerificationError, match="differs from Keras"):
        vae.export(tmp_path / "new.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prior", ["learned", "standard"])
def test_a_prior_of_its_own_takes_noise_and_condition(vae: VAE, tmp_path: Path, prior: str) -> None:
    layer = vae.prior if prior == "learned" else priors.StandardNormal(4)
    assert export_prior(layer, tmp_path / "prior.onnx", vae.condition.metadata()) < 1e-4
    inputs = onnx.load(tmp_path / "prior.onnx").graph.input
    sizes = [[dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in inputs]
    assert [each.name for each in inputs] == ["noise", "condition"]
    assert sizes == [["batch", 4], ["batch", len(names_of(vae))]]
    if prior == "learned":
        refused(lambda: export_prior(layer, tmp_path / "other.onnx"), "its metadata name none", ExportError)
    assert not (tmp_path / "other.onnx").exists()


@of_classes
@few_draws()
def test_a_generator_of_the_standard_normal_is_conditional_too(vae: VAE, tmp_path: Path) -> None:
    metadata = vae.condition.metadata()
    export_decoder(vae.decoder, tmp_path / "generator.onnx", "onnx", metadata, prior=priors.StandardNormal(4))
    noise = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    found = Generator(tmp_path / "generator.onnx").generate(noise, names_of(vae)[1])
    np.testing.assert_allclose(found, vae.decode(noise, condition=names_of(vae)[1]), atol=1e-4)


@of_classes
def test_every_signature_of_a_saved_model(folder: Path, vae: VAE) -> None:
    signatures = tf.saved_model.load(str(folder / "1")).signatures
    size = len(names_of(vae))
    shapes = {
        name: {given: spec.shape.as_list() for given, spec in function.structured_input_signature[1].items()}
        for name, function in signatures.items()
    }
    latents, noise = ({first: [None, 4], "condition": [None, size]} for first in ("z", "noise"))
    assert shapes == {
        "serving_default": latents,
        "png": latents,
        "generate": noise,
        "generate_png": noise,
        "sample": {"count": [], "seed": [], "condition": [size]},
        "encode": {"image": [None, *SHAPE]},
    }
    for name in names_of(vae):
        row = vae.condition.rows(name, 1)[0]
        made = signatures["sample"](count=tf.constant(3, tf.int64), seed=tf.constant(1, tf.int64), condition=row)
        np.testing.assert_allclose(made["image"], vae.decode(made["z"], condition=name), atol=1e-4)
        given = {"noise": made["z"], "condition": tf.constant(vae.condition.rows(name, 3))}
        (png, *_) = signatures["generate_png"](**given)["png_bytes"].numpy()
        (image, *_) = signatures["generate"](**given)["image"].numpy()
        assert np.abs(tf.io.decode_png(png).numpy() / 255 - image).max() < 0.51 / 255
    images = np.random.default_rng(2).uniform(size=(3, *SHAPE)).astype(np.float32)
    found, posterior = signatures["encode"](image=images), vae.encode(images)
    np.testing.assert_allclose(found["mean"], posterior.mean, atol=1e-4)
    assert signatures["serving_default"](z=tf.zeros((0, 4)), condition=tf.zeros((0, size)))["image"].shape[0] == 0


@of_classes
def test_warmup_requests_are_what_the_signatures_take(folder: Path) -> None:
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    signatures = tf.saved_model.load(str(folder / "1")).signatures
    seen = set()
    for record in tf.data.TFRecordDataset(str(folder / "1/assets.extra/tf_serving_warmup_requests")):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        name = request.model_spec.signature_name
        seen.add((name, len(next(iter(signatures[name](**inputs).values())))))
    assert {(name, batch) for name in ("serving_default", "png", "generate") for batch in (1, 8, 64)} <= seen


class Local(ServedDecoder):
    """A client whose server is a SavedModel in this process."""

    bytes_a_value = {"float32": 4, "uint8": 2}  # noqa: RUF012

    def __init__(self, folder: Path, loaded: Any, condition: Condition | None = None) -> None:
        self.folder, self.loaded, self.sent = folder, loaded, 0
        super().__init__("local", "decoder", None, 1.0, 4, condition)

    def _metadata(self) -> tuple[Mapping[str, Any], int]:
        (graph,) = saved_model_pb2.SavedModel.FromString((self.folder / "saved_model.pb").read_bytes()).meta_graphs
        definitions = dict(graph.signature_def)
        return {
            name: json_format.MessageToDict(each, preserving_proto_field_name=True)
            for name, each in definitions.items()
        }, 1

    def _predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.sent += 1
        found = self.loaded.signatures[signature](**{name: tf.constant(each) for name, each in inputs.items()})
        return {name: value.numpy() for name, value in found.items()}


@of_classes
def test_clients_ask_by_rows_and_by_name_if_they_know_the_names(folder: Path, vae: VAE) -> None:
    loaded = tf.saved_model.load(str(folder / "1"))
    plain, named = Local(folder / "1", loaded), Local(folder / "1", loaded, vae.condition)
    z = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    name = names_of(vae)[1]
    rows = vae.condition.rows(name, 6)
    expected = keras.ops.convert_to_numpy(vae.decode(z, condition=name))
    for images in (plain.decode(z, rows), plain.decode(z, rows.tolist()), named.decode(z, name)):
        np.testing.assert_allclose(images, expected, atol=1e-4)
    assert plain.sent == 4  # six rows in requests of four
    np.testing.assert_allclose(plain.decode(z), vae.decode(z), atol=1e-4)
    np.testing.assert_allclose(named.generate(z, name), vae.decode(vae.prior(z, rows), condition=name), atol=1e-4)
    np.testing.assert_array_equal(named.sample(3, 1, name), plain.sample(3, 1, rows[:1]))
    assert np.abs(named.sample(3, 1, name) - named.sample(3, 1)).max() > 0.05
    assert named.png(z, name) == plain.png(z, rows) != plain.png(z)
    assert named.generate_png(z, name) == plain.generate_png(z, rows)
    sent = plain.sent
    refused(lambda: plain.decode(z, rows[:2]), "2 conditions of 6 images", ExportError)
    refused(lambda: plain.decode(z, rows[:, :1]), "conditions have shape", ExportError)
    refused(lambda: plain.decode(z, name), r"conditions are of type <U\d: give real numbers", ExportError)
    refused(lambda: named.decode(z, "mittens"), "this model knows")
    assert plain.sent == sent
    refused(lambda: Local(folder / "1", loaded, Condition(("one",))), "condition names 1, and 'decoder' at local takes")
    np.testing.assert_allclose(
        plain.encode(np.zeros((1, *SHAPE)))[0], vae.encode(np.zeros((1, *SHAPE))).mean, atol=1e-4
    )


def test_triton_is_told_of_the_second_input(folder: Path, vae: VAE, tmp_path: Path) -> None:
    from tritonclient.grpc import model_config_pb2

    for part, first in (("decoder", "z"), ("generator", "noise")):
        model = triton.write(folder / f"{part}.onnx", tmp_path)
        text = (model / "config.pbtxt").read_text()
        config = triton.text_format.Parse(text, model_config_pb2.ModelConfig())
        assert [(each.name, list(each.dims)) for each in config.input] == [
            (first, [4]),
            ("condition", [len(names_of(vae))]),
        ]
        assert json.loads(config.parameters["condition"].string_value) == vae.condition.config()
        triton.check(model)
        (model / "config.pbtxt").write_text(text.replace(f"dims: {len(names_of(vae))}", "dims: 9"))
        refused(lambda model=model: triton.check(model), r"input\.dims is \[9\] and should be", ExportError)
        (model / "config.pbtxt").write_text(text.replace('name: "condition"', 'name: "label"'))
        refused(lambda model=model: triton.check(model), r"input\.name is 'label' and should be 'cond", ExportError)


@pytest.mark.parametrize("network", ["resnet", pytest.param("ppca", marks=pytest.mark.slow)])
def test_other_networks(tmp_path: Path, network: str) -> None:
    vae = make(CONDITIONS["classes"], network)
    FORMATS["onnx"].write(vae.decoder, tmp_path / "generator.onnx", vae.condition.metadata(), prior=vae.prior)
    found = Generator(tmp_path / "generator.onnx").sample(6, 0, condition="bag")
    np.testing.assert_allclose(found, drawn(vae, "bag"), atol=1e-4)
    assert np.abs(found - drawn(vae)).max() > 0.01


@few_draws()
def test_a_model_of_mixed_precision(tmp_path: Path) -> None:
    vae = make(CONDITIONS["attributes"], dtype="mixed_bfloat16")
    assert vae.export(tmp_path / "decoder.onnx", "onnx").passed
    images = np.random.default_rng(2).uniform(size=(3, *SHAPE)).astype(np.float32)
    assert export_encoder(without_condition(vae.encoder), tmp_path / "encoder.onnx") < 1e-4
    mean, _ = Encoder(tmp_path / "encoder.onnx").encode(images)
    np.testing.assert_allclose(mean, vae.encode(images).mean, atol=0.1)


@few_draws()
def test_a_decoder_that_cannot_reshape_empty_batches(tmp_path: Path) -> None:
    """With attention, whose einsum is run on one row instead: of latents and of conditions."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    z, condition = keras.Input((4,), name="z"), keras.Input((2,), name="condition")
    x = layers.Reshape((4, 4))(layers.Dense(16)(layers.Concatenate()([z, condition])))
    x = layers.MultiHeadAttention(2, 4)(x, x)
    image = layers.Reshape((4, 4, 1))(layers.Activation("sigmoid")(x))
    decoder = keras.Model([z, condition], image)
    assert export_decoder(decoder, tmp_path / "decoder.onnx", "onnx", CONDITIONS["attributes"].metadata()).passed
    rows = np.ones((3, 4), np.float32), np.eye(3, 2, dtype=np.float32)
    np.testing.assert_allclose(
        Decoder(tmp_path / "decoder.onnx").decode(*rows), keras_runner(decoder)(*rows), atol=1e-5
    )


@of_classes
@few_draws()
def test_the_command_line_exports_and_verifies(
    vae: VAE, folder: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    vae.save(tmp_path / "model.keras")
    out = tmp_path / "export"
    result = command("export", tmp_path / "model.keras", "--out", out, "--format", "onnx,triton", "--encoder", "--json")
    assert result.status == 0, result.err
    assert Encoder(out / "encoder.onnx").image_shape == SHAPE
    assert [each["part"] for each in json.loads(result.out)["artifacts"]] == ["decoder", "generator"] * 2
    result = command(
        "verify", tmp_path / "model.keras", folder / "generator.tflite", out / "triton" / "generator", "--json"
    )
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["passed"]
    assert [pair["second"] for pair in report["pairs"]] == ["litert generator", "onnx generator"]
    FORMATS["onnx"].write(make(None).decoder, tmp_path / "decoder.onnx", {})
    result = command("verify", tmp_path / "model.keras", tmp_path / "decoder.onnx")
    assert result.status == 2
    assert "have other conditions: give decoders of the same model" in result.err
