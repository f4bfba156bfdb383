"""The kit for TensorFlow Serving: its clients against servers that answer as it does, and files that agree.

The servers follow tensorflow/serving's sources: predict_util.cc, batching_session.cc, http_rest_api_handler.cc and
json_tensor.cc. They run the SavedModel's own signatures.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format, wrappers_pb2
from PIL import Image
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from keras_vae.export import latents
from keras_vae.export.errors import ExportError
from keras_vae.export.serving import grpc_client, rest_client, served
from keras_vae.export.serving.grpc_client import GrpcDecoder
from keras_vae.export.serving.rest_client import RestDecoder, ServedDecoder, ServerError

KIT = Path(__file__).resolve().parents[2] / "export" / "serving"
README = (KIT / "README.md").read_text()
Connect = Callable[..., ServedDecoder]


class StatusError(Exception):
    """An error of the server: its code and its text."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        self.code, self.text = code, text


INVALID = grpc.StatusCode.INVALID_ARGUMENT
HTTP_STATUS = {INVALID: 400, grpc.StatusCode.FAILED_PRECONDITION: 400, grpc.StatusCode.NOT_FOUND: 404}


class Loaded:
    """A version of a model that is available."""

    def __init__(self, folder: Path) -> None:
        (graph,) = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs
        self.signature_def = dict(graph.signature_def)
        self.model = tf.saved_model.load(str(folder))


class TfServing:
    """What TensorFlow Serving does with requests, whichever port they come by."""

    def __init__(self) -> None:
        self.models: dict[str, dict[int, Loaded | tuple[str, str]]] = {}  # or the state and the error of a version
        self.max_batch_size: int | None = None  # of a server that batches
        self.requests: list[tuple[str, tuple[int, ...]]] = []  # signatures, and the shape of their first input
        self.tamper: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict

    def find(self, name: str, version: int | None) -> tuple[int, Loaded]:
        available = {each: model for each, model in self.models.get(name, {}).items() if isinstance(model, Loaded)}
        wanted = max(available, default=None) if version is None else version
        if wanted is None or wanted not in available:
            request = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise StatusError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request}")
        return wanted, available[wanted]

    def states(self, name: str) -> get_model_status_pb2.GetModelStatusResponse:
        if name not in self.models:
            raise StatusError(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, model in self.models[name].items():
            state, text = ("AVAILABLE", "") if isinstance(model, Loaded) else model
            added = response.model_version_status.add(version=version, state=state)
            added.status.error_message = text
        return response

    def predict(self, loaded: Loaded, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if signature not in loaded.signature_def:
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{signature}" not found.')
        wanted = loaded.signature_def[signature].inputs
        if set(inputs) != set(wanted):
            raise StatusError(INVALID, f"input size does not match signature: {len(inputs)}!={len(wanted)}")
        self.requests.append((signature, next(iter(inputs.values())).shape))
        for name, value in inputs.items():
            dtype, shape = tf.dtypes.as_dtype(wanted[name].dtype), tf.TensorShape(wanted[name].tensor_shape)
            if value.dtype != dtype.as_numpy_dtype:
                raise StatusError(INVALID, f"Expects arg[0] to be {dtype.name} but {value.dtype.name} is provided")
            if not shape.is_compatible_with(value.shape):
                raise StatusError(
                    INVALID, f"Matrix size-incompatible: In[0]: {list(value.shape)}\n\t [[{{{{node MatMul}}}}]]"
                )
        if self.max_batch_size is not None:
            self.batch(list(inputs.values()))
        run = loaded.model.signatures[signature]
        outputs = run(**{name: tf.constant(value) for name, value in inputs.items()})
        return self.tamper({name: value.numpy() for name, value in outputs.items()})

    def batch(self, inputs: list[np.ndarray]) -> None:
        assert self.max_batch_size is not None
        if any(value.ndim == 0 for value in inputs):
            raise StatusError(INVALID, "Batching Run() input tensors must have at least one dimension")
        rows = len(inputs[0])
        if rows > self.max_batch_size:
            text = f"Task size {rows} is larger than maximum input batch size {self.max_batch_size}"
            raise StatusError(INVALID, text)


class GrpcService(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """The gRPC port."""

    def __init__(self, serving: TfServing) -> None:
        self.serving = serving

    def find(self, spec: Any) -> tuple[int, Loaded]:
        return self.serving.find(spec.name, spec.version.value if spec.HasField("version") else None)

    def Predict(self, request: Any, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:  # noqa: N802
        response = predict_pb2.PredictResponse()
        try:
            _, loaded = self.find(request.model_spec)
            signature = request.model_spec.signature_name or "serving_default"
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            for name, value in self.serving.predict(loaded, signature, inputs).items():
                response.outputs[name].CopyFrom(as_field(value))
        except StatusError as failure:
            context.abort(failure.code, failure.text)
        return response

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        try:
            version, loaded = self.find(request.model_spec)
        except StatusError as failure:
            context.abort(failure.code, failure.text)
        assert list(request.metadata_field) == ["signature_def"]
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        response.metadata["signature_def"].Pack(signature_map(loaded))
        return response

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        try:
            return self.serving.states(request.model_spec.name)
        except StatusError as failure:
            context.abort(failure.code, failure.text)


def as_field(value: np.ndarray) -> Any:
    """A TensorProto with a number in each entry of a field, as the server writes them."""
    proto = tf.make_tensor_proto(value)
    if value.dtype == np.float32:
        proto.ClearField("tensor_content")
        proto.float_val[:] = value.ravel()
    if value.dtype == np.uint8:
        proto.ClearField("tensor_content")
        proto.int_val[:] = value.ravel()
    return proto


def signature_map(loaded: Loaded) -> Any:
    definitions = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in loaded.signature_def.items():
        definitions.signature_def[name].CopyFrom(definition)
    return definitions


def rest_handler(serving: TfServing) -> type[BaseHTTPRequestHandler]:
    """The REST port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(self.get)

        def do_POST(self) -> None:
            self.reply(self.post)

        def reply(self, answer: Callable[[], bytes]) -> None:
            try:
                status, body = 200, answer()
            except StatusError as failure:
                status = HTTP_STATUS[failure.code]
                body = json.dumps({"error": failure.text}, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def match(self, pattern: str) -> tuple[str, int | None]:
            found = re.fullmatch(rf"/v1/models/([^/:]+)(?:/versions/(\d+))?{pattern}", self.path)
            if found is None:
                raise StatusError(INVALID, f"Malformed request: {self.command} {self.path}")
            return found[1], int(found[2]) if found[2] else None

        def get(self) -> bytes:
            if not self.path.endswith("/metadata"):
                return in_json(serving.states(self.match("")[0])).encode()
            name, version = self.match("/metadata")
            version, loaded = serving.find(name, version)
            spec = {"name": name, "signature_name": "", "version": str(version)}
            definitions = json.loads(in_json(signature_map(loaded)))
            return json.dumps({"model_spec": spec, "metadata": {"signature_def": definitions}}).encode()

        def post(self) -> bytes:
            _, loaded = serving.find(*self.match(":predict"))
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            signature = request.get("signature_name", "serving_default")
            if signature not in loaded.signature_def:
                raise StatusError(INVALID, f'Serving signature name: "{signature}" not found in signature def')
            columns = request["inputs"]
            inputs = {}
            for name, info in loaded.signature_def[signature].inputs.items():
                if name not in columns:
                    raise StatusError(INVALID, f"Missing named input: {name} in 'inputs' object.")
                inputs[name] = np.array(columns[name], tf.dtypes.as_dtype(info.dtype).as_numpy_dtype)
            outputs = serving.predict(loaded, signature, inputs)
            columns = {name: as_json(name, value) for name, value in outputs.items()}
            content = columns if len(columns) > 1 else next(iter(columns.values()))
            # Strings are written byte for byte: those that are no UTF-8 make the whole no UTF-8.
            return json.dumps({"outputs": content}, ensure_ascii=False).encode("latin-1")

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def in_json(message: Any) -> str:
    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def as_json(name: str, value: np.ndarray) -> Any:
    if value.dtype != object:
        return value.tolist()
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(each).decode()} for each in value]
    return [each.decode("latin-1") for each in value]


class Tiny(tf.Module):
    """Decoders of 2 latents and 4x6x3 images with other signatures than the exported one's."""

    def __init__(self) -> None:
        self.weights = tf.Variable(np.random.default_rng(0).standard_normal((2, 72)).astype(np.float32))

    def image(self, z: tf.Tensor) -> tf.Tensor:
        return tf.reshape(tf.sigmoid(z @ self.weights), (-1, 4, 6, 3))

    @tf.function(input_signature=[tf.TensorSpec((None, 2), name="z")])
    def decode(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"image": self.image(z)}

    @tf.function(input_signature=[tf.TensorSpec((None, 2), name="z")])
    def png(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        pixels = tf.cast(tf.round(255 * self.image(z)), tf.uint8)
        return {"png_bytes": tf.map_fn(tf.io.encode_png, pixels, fn_output_signature=tf.string)}

    @tf.function(input_signature=[tf.TensorSpec((None, 4, 6, 3), name="image")])
    def encode(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        mean = tf.reduce_mean(image, axis=(1, 2))[:, :2]
        return {"mean": mean, "log_var": -mean}

    @tf.function(input_signature=[tf.TensorSpec((None, 4, 6, 3), name="image")])
    def score(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        error = tf.reduce_mean(image, axis=-1)
        score = tf.reduce_mean(error, axis=(1, 2))
        return {"score": score, "rank": score / 2, "error_map": error, "reconstruction": 1.0 - image}

    @tf.function(input_signature=[tf.TensorSpec((None, 2), name="x")])
    def double(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": 2 * x}


class Ports:
    """A server's ports, and what is behind them."""

    def __init__(self, serving: TfServing, grpc_port: int, rest_port: int) -> None:
        self.serving = serving
        self.address, self.url = f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{rest_port}"


@pytest.fixture(scope="module")
def running(deployed: Any, deployed_uint8: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    folder, module, serving = tmp_path_factory.mktemp("models"), Tiny(), TfServing()
    signatures = {
        "bare": {"serving_default": module.decode},
        "tiny": {"serving_default": module.decode, "png": module.png, "encode": module.encode, "score": module.score},
        "doubler": {"serving_default": module.double},
    }
    for name, functions in signatures.items():
        tf.saved_model.save(module, str(folder / name / "1"), signatures=functions)
        serving.models[name] = {1: Loaded(folder / name / "1")}
    serving.models["decoder"] = {1: Loaded(deployed.saved_model)}
    serving.models["levels"] = {1: Loaded(deployed_uint8.saved_model)}
    serving.models["slow"] = {3: ("LOADING", "")}
    serving.models["broken"] = {1: ("END", "Read less bytes\nthan requested")}

    grpc_server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(GrpcService(serving), grpc_server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(GrpcService(serving), grpc_server)
    grpc_port = grpc_server.add_insecure_port("127.0.0.1:0")
    grpc_server.start()
    with serve_http(rest_handler(serving)) as rest_port:
        yield Ports(serving, grpc_port, rest_port)
    grpc_server.stop(None)


class serve_http:  # noqa: N801
    """Runs an HTTP server for the length of the block; gives its port."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> int:
        threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True).start()
        return self.server.server_address[1]

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def ports(running: Ports) -> Iterator[Ports]:
    """The server with nothing asked yet, as it comes: not batching."""
    running.serving.requests.clear()
    yield running
    running.serving.max_batch_size, running.serving.tamper = None, dict


@pytest.fixture(params=["rest", "grpc"])
def connect(request: pytest.FixtureRequest, ports: Ports) -> Iterator[Connect]:
    """Makes clients of either port."""
    opened: list[GrpcDecoder] = []

    def make(model: str = "decoder", where: int | None = None, **arguments: Any) -> ServedDecoder:
        if request.param == "rest":
            return RestDecoder(ports.url if where is None else f"http://127.0.0.1:{where}", model, **arguments)
        opened.append(GrpcDecoder(ports.address if where is None else f"127.0.0.1:{where}", model, **arguments))
        return opened[-1]

    yield make
    for decoder in opened:
        decoder.close()


def refused(
    call: Callable[[], object], pattern: str, kind: type[ExportError] = ServerError, within: float = 5.0
) -> None:
    start = time.monotonic()
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert time.monotonic() - start < within
    assert "\n" not in str(caught.value)


def test_the_server_describes_the_decoder(connect: Connect) -> None:
    decoder = connect()
    assert (decoder.latent_dim, decoder.image_shape, decoder.version) == (8, (32, 32, 3), 1)
    assert {"generate", "generate_png", "png", "sample", "serving_default"} <= set(decoder.signatures)
    assert not any(name.startswith("__") for name in decoder.signatures)
    assert connect(version=1).version == 1


def test_decodes_what_keras_decodes(connect: Connect, deployed: Any) -> None:
    decoder = connect()
    images = decoder.decode(deployed.z)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, deployed.images, atol=1e-5)
    np.testing.assert_allclose(decoder.decode(deployed.z.tolist()), deployed.images, atol=1e-5)


def test_generates_what_keras_generates(connect: Connect, deployed: Any) -> None:
    decoder = connect()
    images = decoder.generate(deployed.noise)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, deployed.generated, atol=1e-5)
    np.testing.assert_allclose(decoder.generate(deployed.noise.tolist()), deployed.generated, atol=1e-5)
    for file, image in zip(decoder.generate_png(deployed.noise), images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), np.round(image * 255))


def test_large_batches_are_split(connect: Connect, ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = connect()
    z = latents.draw(150, 8, seed=0)
    ports.serving.max_batch_size = 64
    images = decoder.decode(z)
    assert [shape for _, shape in ports.serving.requests] == [(64, 8), (64, 8), (22, 8)]
    np.testing.assert_allclose(images[100:103], decoder.decode(z[100:103]), atol=1e-5)
    assert len(decoder.png(z[:70])) == 70
    generated = decoder.generate(z)
    np.testing.assert_allclose(generated[100:103], decoder.generate(z[100:103]), atol=1e-5)
    assert len(decoder.generate_png(z[:70])) == 70

    ports.serving.requests.clear()
    monkeypatch.setattr(served, "MESSAGE_BYTES", 10 * decoder.bytes_a_value["float32"] * 32 * 32 * 3)
    np.testing.assert_allclose(decoder.decode(z), images, atol=1e-5)
    assert {shape[0] for _, shape in ports.serving.requests} == {10}
    refused(lambda: decoder.sample(11, seed=0), "one answer holds 10 images at most", ExportError)


def test_images_from_0_to_255(connect: Connect, deployed_uint8: Any) -> None:
    decoder = connect("levels")
    assert (decoder.output, connect().output) == ("uint8", "float32")
    images = decoder.decode(deployed_uint8.z)
    for found, expected in (
        (images, deployed_uint8.images),
        (decoder.generate(deployed_uint8.noise), deployed_uint8.generated),
    ):
        assert found.dtype == np.uint8
        assert np.abs(found - 255 * expected).max() < 0.5 + 255e-4
    for file, image in zip(decoder.png(deployed_uint8.z), images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), image)
    assert decoder.decode(np.zeros((0, 8))).dtype == decoder.sample(2, seed=0).dtype == np.uint8
    picture = served.tile(images)  # five in two rows of three
    np.testing.assert_array_equal(picture[:32, 32:64], images[1])
    assert (picture[32:, 64:] == 255).all()


def test_nothing_is_sent_for_no_rows(connect: Connect, ports: Ports) -> None:
    decoder, tiny = connect(), connect("tiny")
    assert decoder.decode(np.zeros((0, 8))).shape == (0, 32, 32, 3)
    assert decoder.png(np.zeros((0, 8))) == []
    assert decoder.generate(np.zeros((0, 8))).shape == (0, 32, 32, 3)
    assert decoder.generate_png(np.zeros((0, 8))) == []
    assert [each.shape for each in tiny.encode(np.zeros((0, 4, 6, 3)))] == [(0, 2), (0, 2)]
    assert ports.serving.requests == []


@pytest.mark.parametrize("model", ["decoder", "tiny"])  # the second names its output png_bytes
def test_png_files_are_the_images(connect: Connect, model: str) -> None:
    decoder = connect(model)
    z = latents.draw(5, decoder.latent_dim, seed=1)
    for file, image in zip(decoder.png(z), decoder.decode(z), strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), np.round(image * 255))


def test_samples_are_the_same_for_the_same_seed(connect: Connect, ports: Ports) -> None:
    decoder = connect()
    images = decoder.sample(4, seed=7)
    signature = ports.serving.find("decoder", None)[1].model.signatures["sample"]
    expected = signature(count=tf.constant(4, tf.int64), seed=tf.constant(7, tf.int64))["image"]
    np.testing.assert_allclose(images, expected, atol=1e-6)
    np.testing.assert_allclose(decoder.sample(2, seed=7), images[:2], atol=1e-6)
    assert abs(decoder.sample(4, seed=-8) - images).max() > 0.01


def test_a_server_that_batches_refuses_samples_and_the_client_says_what_to_do(connect: Connect, ports: Ports) -> None:
    ports.serving.max_batch_size = 64
    decoder = connect()
    refused(lambda: decoder.sample(4, seed=0), r"cannot batch 'sample': generate\(keras_vae.export.latents.draw")
    assert decoder.generate(latents.draw(4, decoder.latent_dim, 0)).shape == (4, 32, 32, 3)


def test_encodes_with_models_that_can(connect: Connect, ports: Ports) -> None:
    decoder = connect("tiny", batch_size=3)
    images = np.random.default_rng(0).uniform(size=(7, 4, 6, 3))
    mean, log_var = decoder.encode(images)
    np.testing.assert_allclose(mean, images.mean((1, 2))[:, :2], atol=1e-6)
    np.testing.assert_allclose(log_var, -mean, atol=1e-6)
    assert [shape[0] for _, shape in ports.serving.requests] == [3, 3, 1]
    refused(lambda: decoder.encode(images[:, :3]), r"images have shape .* takes \(batch, 4, 6, 3\)", ExportError)
    refused(lambda: decoder.encode(images * np.nan), "images hold NaN", ExportError)


def test_scores_with_models_that_can(connect: Connect, ports: Ports) -> None:
    decoder = connect("tiny", batch_size=3)
    images = np.random.default_rng(0).uniform(size=(7, 4, 6, 3))
    found = decoder.score(images)
    np.testing.assert_allclose(found.score, images.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found.rank, found.score / 2, atol=1e-6)
    np.testing.assert_allclose(found.error_map, images.mean(-1), atol=1e-6)
    np.testing.assert_allclose(found.reconstruction, 1.0 - images, atol=1e-6)
    assert [shape[0] for _, shape in ports.serving.requests] == [3, 3, 1]
    assert [each.shape for each in decoder.score(images[:0])] == [(0,), (0,), (0, 4, 6), (0, 4, 6, 3)]
    refused(lambda: decoder.score(images[:, :3]), r"images have shape .* takes \(batch, 4, 6, 3\)", ExportError)


def test_signatures_that_a_model_lacks(connect: Connect) -> None:
    bare = connect("bare")
    assert bare.signatures == ("serving_default",)
    refused(lambda: bare.encode(np.zeros((1, 4, 6, 3))), r"no signature 'encode' \(it has serving_default\): .*encoder")
    refused(lambda: bare.score(np.zeros((1, 4, 6, 3))), "no signature 'score'.*export it with its scorer")
    refused(lambda: bare.png(np.zeros((1, 2))), "no signature 'png'.*1 or 3 channels")
    refused(lambda: bare.sample(1, seed=0), "no signature 'sample'")
    older = r"no signature '{}' \(it has serving_default\): export it again, with its prior"
    refused(lambda: bare.generate(np.zeros((1, 2))), older.format("generate"))
    refused(lambda: bare.generate_png(np.zeros((1, 2))), older.format("generate_png"))


def test_many_threads_share_a_client(connect: Connect) -> None:
    decoder = connect()
    batches = [latents.draw(3, 8, seed) for seed in range(24)]
    expected = [decoder.decode(z) for z in batches]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(decoder.decode, batches), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_is_no_latent_is_not_sent(connect: Connect, ports: Ports) -> None:
    decoder = connect()
    good = np.zeros((2, 8))
    for wrong, message in [
        (good[:, :7], "latents have shape (2, 7): this decoder takes (batch, 8)"),
        (good[0], "takes (batch, 8)"),
        (good + np.nan, "NaN or infinity"),
        (good + 1e300, "more than float32"),
        (good.astype(str), "real numbers"),
        ([[0.0] * 8, [0.0] * 7], "not an array"),
    ]:
        refused(lambda wrong=wrong: decoder.decode(wrong), re.escape(message), ExportError)  # type: ignore[misc]
        refused(lambda wrong=wrong: decoder.png(wrong), re.escape(message), ExportError)  # type: ignore[misc]
        noise = message.replace("latents", "noise values").replace("decoder", "generator")
        refused(lambda wrong=wrong: decoder.generate(wrong), re.escape(noise), ExportError)  # type: ignore[misc]
        refused(lambda wrong=wrong: decoder.generate_png(wrong), re.escape(noise), ExportError)  # type: ignore[misc]
    refused(lambda: decoder.sample(0, seed=0), "count=0: give a whole number", ExportError)
    refused(lambda: decoder.sample(1, seed=2**63), "seed=.*64 bits", ExportError)
    assert ports.serving.requests == []


def test_arguments_that_cannot_be(connect: Connect) -> None:
    for arguments, message in [
        ({"version": -1}, "version=-1"),
        ({"timeout": 0}, "timeout=0: give seconds"),
        ({"batch_size": 0}, "batch_size=0"),
    ]:
        refused(lambda arguments=arguments: connect(**arguments), message, ExportError)  # type: ignore[misc]
    for url in ("localhost:8501", "ftp://localhost", "http://", "file:///etc/passwd"):
        refused(lambda url=url: RestDecoder(url), "give http://HOST:PORT", ExportError)  # type: ignore[misc]
    for url in ("http://localhost:port", "http://[::1", "http://a..b"):
        refused(lambda url=url: RestDecoder(url), "no answer from .*give its REST address")  # type: ignore[misc]
    refused(lambda: GrpcDecoder("http://localhost:8500"), "give HOST:PORT", ExportError)


def test_models_that_are_not_served(connect: Connect) -> None:
    for model, version, message in [
        ("faces", None, "has no model 'faces'.*models.config"),
        ("a/b c", None, "has no model 'a/b c'"),
        ("decoder", 7, r"'decoder' at .* has no version 7 \(it has 1\)"),
        ("slow", None, "still loading version 3: ask again"),
        (
            "broken",
            None,
            r"does not serve version 1 \(END: Read less bytes than requested\): look at the server's log",
        ),
        ("doubler", None, r"is not a decoder: its serving_default has x, y where a decoder has z, .*image"),
    ]:
        refused(lambda model=model, version=version: connect(model, version=version), message)  # type: ignore[misc]


def test_no_server(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    refused(lambda: connect(where=port), f"no answer from .*127.0.0.1:{port}.*start the server, or give its")


def test_a_server_that_says_nothing(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        refused(lambda: connect(where=port, timeout=0.3), "did not answer within 0.3 s", within=2)


def test_the_ports_taken_for_each_other(ports: Ports) -> None:
    refused(
        lambda: RestDecoder(f"http://{ports.address}", timeout=2), "give its REST address|REST address of a TF Serving"
    )
    refused(lambda: GrpcDecoder(ports.url.removeprefix("http://"), timeout=2), "gRPC address")


def test_the_servers_own_error_comes_in_one_line(connect: Connect, ports: Ports) -> None:
    decoder = connect(batch_size=100)
    ports.serving.max_batch_size = 64
    refused(
        lambda: decoder.decode(np.zeros((80, 8))),
        "answered .*: Task size 80 is larger than maximum input batch size 64",
    )

    def fail(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise StatusError(INVALID, "Größe:\n\t [[{{node MatMul}}]]")

    ports.serving.tamper = fail
    refused(lambda: decoder.decode(np.zeros((1, 8))), r"Größe: \[\[\{\{node MatMul\}\}\]\]")


def test_answers_that_are_not_what_was_asked_for(connect: Connect, ports: Ports) -> None:
    decoder = connect()
    ports.serving.tamper = lambda outputs: {name: value[:1] for name, value in outputs.items()}
    refused(
        lambda: decoder.decode(np.zeros((2, 8))), r"answered with \(1, 32, 32, 3\) for 'image', where \(2, 32, 32, 3\)"
    )


def test_the_servers_check_what_they_get(ports: Ports) -> None:
    """The servers here refuse what the real one refuses: otherwise the tests above would prove little."""
    with GrpcDecoder(ports.address) as decoder:
        wrong = {"z": np.zeros((1, 8))}, {"z": np.zeros((1, 7), np.float32)}, {"x": np.zeros((1, 8), np.float32)}
        for inputs, message in zip(wrong, ["to be float32 but float64", "incompatible", "does not match"], strict=True):
            refused(lambda inputs=inputs: decoder._predict("serving_default", inputs), message)  # type: ignore[misc]
        refused(lambda: decoder._predict("nothing", {}), 'signature key "nothing" not found')
    rest = RestDecoder(ports.url)
    refused(lambda: rest._ask(":predict", {"inputs": {"x": [[0.0] * 8]}}), "HTTP 400: Missing named input: z")
    refused(lambda: rest._ask(":predict", {"inputs": {"z": [[0.0] * 7]}}), "HTTP 400: Matrix size-incompatible")


def test_messages_too_large_for_grpc(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_client, "MESSAGE_BYTES", 0)  # and a megabyte for what is not an image
    with GrpcDecoder(ports.address, batch_size=100) as decoder:
        refused(
            lambda: decoder.decode(np.zeros((100, 8))), r"too large .*ask for fewer images at a time \(batch_size\)"
        )
        assert decoder.decode(np.zeros((80, 8))).shape == (80, 32, 32, 3)


class Web(BaseHTTPRequestHandler):
    """A web server that is not TF Serving: each path answers in its own way."""

    answers: ClassVar = {
        "html": b"<html>",
        "list": b"[]",
        "state": b'{"metadata": {}}',
        "cut": b'{"metadata": {"signature_def',
        "odd": b'{"model_spec": {"version": 1}, "metadata": {"signature_def": {"signature_def": {"png": 3}}}}',
    }

    def do_GET(self) -> None:
        name = self.path.split("/")[3]
        self.send_response(404 if name == "none" else 200)
        self.end_headers()
        if name == "drip":
            while True:
                self.wfile.write(b" ")
                time.sleep(0.05)
        self.wfile.write(self.answers.get(name, b"no such page"))

    def log_message(self, *arguments: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has gone
            super().handle()


def test_web_servers_that_are_no_tf_serving() -> None:
    with serve_http(Web) as port:
        for name in ("html", "none", "cut"):
            pattern = "answered HTTP (200|404) with something that is not JSON: give the REST address of a TF Serving"
            refused(lambda name=name: RestDecoder(f"http://127.0.0.1:{port}", name), pattern)  # type: ignore[misc]
        for name in ("list", "state"):
            refused(lambda name=name: RestDecoder(f"http://127.0.0.1:{port}", name), "is not TF Serving")  # type: ignore[misc]
        refused(lambda: RestDecoder(f"http://127.0.0.1:{port}", "odd"), "in a form that is not TF Serving's")
        refused(
            lambda: RestDecoder(f"http://127.0.0.1:{port}", "drip", timeout=0.3), "did not answer within 0.3", within=2
        )


@pytest.mark.parametrize("kind", ["rest", "grpc"])
def test_commands_draw_a_picture(kind: str, ports: Ports, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, server = {
        "rest": (rest_client.main, ["--url", ports.url]),
        "grpc": (grpc_client.main, ["--address", ports.address]),
    }[kind]
    ports.serving.max_batch_size = 64  # as the kit's server is configured
    out = tmp_path / "samples.png"
    assert main([*server, "--model", "decoder", "--count", "5", "--seed", "3", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"5 images of (32, 32, 3), version 1: {out}\n"
    picture = np.asarray(Image.open(out))
    expected = np.round(255 * RestDecoder(ports.url).generate(latents.draw(5, 8, seed=3)))
    assert picture.shape == (64, 96, 3)
    np.testing.assert_allclose(picture[32:, 32:64], expected[4], atol=1)
    assert (picture[32:, 64:] == 255).all()

    for arguments, message in [
        ([*server, "--model", "faces", "--out", str(out)], "has no model 'faces'"),
        ([*server, "--model", "bare", "--out", str(out)], "has no signature 'generate' (it has serving_default)"),
        ([*server, "--count", "0", "--out", str(out)], "count=0"),
        ([*server, "--seed", "-1", "--out", str(out)], "seed=-1"),
        ([*server, "--out", str(tmp_path / "none" / "samples.png")], "give a file that ends in .png, in a folder"),
        ([*server, "--out", str(tmp_path / "samples.jpg")], "ends in .png"),
        ([server[0], server[1].rpartition(":")[0] + ":1", "--out", str(out)], "no answer from"),
    ]:
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"python -m keras_vae.export.serving.{kind}_client: ")
        assert message in captured.err
        assert captured.err.count("\n") == 1


def run_without(modules: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    script = f"import sys\nfor name in {modules!r}:\n    sys.modules[name] = None  # importing it fails\n{code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_the_rest_client_needs_numpy_alone(ports: Ports) -> None:
    code = f"""
from keras_vae.export.serving.rest_client import RestDecoder
decoder = RestDecoder({ports.url!r})
print(decoder.decode([[0.0] * 8]).shape, len(decoder.png([[0.0] * 8])), decoder.sample(2, seed=0).shape)
"""
    result = run_without(("tensorflow", "keras", "onnx", "onnxruntime", "grpc", "google", "PIL", "requests"), code)
    assert (result.stdout, result.stderr) == ("(1, 32, 32, 3) 1 (2, 32, 32, 3)\n", "")


def test_the_grpc_client_says_what_it_needs() -> None:
    code = "from keras_vae.export.serving import grpc_client\nsys.exit(grpc_client.main([]))"
    result = run_without(("grpc", "tensorflow", "tensorflow_serving"), code)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'keras-vae[serving]'" in result.stderr


def test_latents_are_drawn_as_the_runtime_draws_them(deployed: Any) -> None:
    from keras_vae.export.runtime import Decoder, Generator

    generator = Generator(deployed.generator, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(generator.generate(latents.draw(3, 8, seed=5)), generator.sample(3, seed=5))
    decoder = Decoder(deployed.onnx, providers=["CPUExecutionProvider"])
    for wrong in (deployed.z[:, :7], deployed.z + np.inf, deployed.z.astype(str), [[0.0], [0.0, 1.0]]):
        with pytest.raises(ExportError) as by_runtime:
            decoder.decode(wrong)
        with pytest.raises(ExportError) as here:
            latents.check(wrong, 8)
        assert str(here.value) == str(by_runtime.value)


# The files


def models_config() -> Any:
    config = text_format.Parse((KIT / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    return model


def batching_config() -> Any:
    """batching.config as BatchingParameters, which tensorflow-serving-api has not: session_bundle_config.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="batching.proto", package="serving", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    message = file.message_type.add(name="BatchingParameters")
    field = descriptor_pb2.FieldDescriptorProto
    for number, name in enumerate(
        ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"), start=1
    ):
        message.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=".google.protobuf.Int64Value",
            label=field.LABEL_OPTIONAL,
        )
    message.field.add(name="allowed_batch_sizes", number=6, type=field.TYPE_INT64, label=field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    parameters = message_factory.GetMessageClass(pool.FindMessageTypeByName("serving.BatchingParameters"))
    return text_format.Parse((KIT / "batching.config").read_text(), parameters())


def compose_service() -> Any:
    (service,) = yaml.safe_load((KIT / "compose.yaml").read_text())["services"].values()
    return service


def kubernetes() -> dict[str, Any]:
    documents = list(yaml.safe_load_all((KIT / "kubernetes.yaml").read_text()))
    assert len({each["kind"] for each in documents}) == len(documents)
    return {each["kind"]: each for each in documents}


def flags(arguments: list[str]) -> dict[str, str]:
    return dict(argument.removeprefix("--").split("=") for argument in arguments)


def test_the_configuration_is_the_clients() -> None:
    model, batching = models_config(), batching_config()
    assert (model.name, model.base_path, model.model_platform) == (rest_client.MODEL, "/models/decoder", "tensorflow")
    assert batching.max_batch_size.value == rest_client.BATCH_SIZE
    for field in ("batch_timeout_micros", "num_batch_threads", "max_enqueued_batches"):
        value = getattr(batching, field).value
        assert value > 0
        assert f"| `{field}` {value} |" in README
    assert f"| `max_batch_size` {rest_client.BATCH_SIZE} |" in README
    sizes = list(batching.allowed_batch_sizes)
    assert sizes == sorted(sizes)
    assert not sizes or sizes[-1] == batching.max_batch_size.value


def test_compose_and_kubernetes_start_the_same_server() -> None:
    service, deployment = compose_service(), kubernetes()["Deployment"]["spec"]["template"]["spec"]
    (container,) = deployment["containers"]
    assert service["image"] == container["image"]
    assert f"`{service['image']}`" in README
    assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+", service["image"])
    assert service["entrypoint"] == container["command"]
    for_both, for_pods = flags(service["command"]), flags(container["args"])
    assert for_both.items() <= for_pods.items()
    assert {"port": "8500", "rest_api_port": "8501", "enable_batching": "true"}.items() <= for_both.items()
    cpus = container["resources"]["requests"]["cpu"]
    assert [for_pods[f"tensorflow_{kind}_op_parallelism"] for kind in ("intra", "inter")] == [cpus, cpus]
    assert str(batching_config().num_batch_threads.value) == cpus


def test_compose_mounts_what_the_flags_name() -> None:
    service = compose_service()
    assert [port.split(":")[-2:] for port in service["ports"]] == [["8500", "8500"], ["8501", "8501"]]
    mounts = {mount["target"]: mount for mount in service["volumes"]}
    assert all(mount["read_only"] for mount in mounts.values())
    for flag in ("model_config_file", "batching_parameters_file"):
        mount = mounts[flags(service["command"])[flag]]
        assert (KIT / mount["source"]).is_file()
    models = re.fullmatch(r"\$\{DECODER:-(.*)\}", mounts[models_config().base_path]["source"])
    assert models is not None
    versions = [path.name for path in (KIT / models[1]).iterdir() if path.name.isdecimal()]
    assert versions
    assert all((KIT / models[1] / version / "saved_model.pb").is_file() for version in versions)


def test_kubernetes_resources_belong_together() -> None:
    resources = kubernetes()
    spec = resources["Deployment"]["spec"]
    pod, labels = spec["template"]["spec"], spec["template"]["metadata"]["labels"]
    (container,) = pod["containers"]
    assert labels == spec["selector"]["matchLabels"] == resources["Service"]["spec"]["selector"]
    assert labels == resources["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {port["targetPort"]: port["port"] for port in resources["Service"]["spec"]["ports"]} == ports
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": f"/v1/models/{models_config().name}", "port": "rest"}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts) == set(volumes)
    assert mounts["models"]["mountPath"] == models_config().base_path
    assert mounts["models"]["readOnly"]
    claim, configuration = (
        volumes["models"]["persistentVolumeClaim"]["claimName"],
        volumes["config"]["configMap"]["name"],
    )
    assert f"PersistentVolumeClaim `{claim}`" in README
    assert f"kubectl create configmap {configuration} " in README
    for flag in ("model_config_file", "batching_parameters_file"):
        assert Path(flags(container["args"])[flag]).parent == Path(mounts["config"]["mountPath"])
        assert f"--from-file=export/serving/{Path(flags(container['args'])[flag]).name}" in README
    scaler = resources["HorizontalPodAutoscaler"]
    target = {key: resources["Deployment"][key] for key in ("apiVersion", "kind")}
    assert scaler["spec"]["scaleTargetRef"] == {**target, "name": resources["Deployment"]["metadata"]["name"]}
    assert "replicas" not in spec  # it would fight with the scaler
    assert scaler["spec"]["minReplicas"] > resources["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    grace = pod["terminationGracePeriodSeconds"]
    assert grace > int(container["lifecycle"]["preStop"]["exec"]["command"][1])


def test_pods_may_do_nothing_but_serve() -> None:
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    restrictions = pod["containers"][0]["securityContext"]
    assert restrictions["readOnlyRootFilesystem"]
    assert not restrictions["allowPrivilegeEscalation"]
    assert restrictions["capabilities"] == {"drop": ["ALL"]}
    service = compose_service()
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["user"] == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"


def test_the_health_check_asks_for_the_model(ports: Ports) -> None:
    if shutil.which("bash") is None and "CI" not in os.environ:
        pytest.skip("needs bash")
    test = compose_service()["healthcheck"]["test"]
    assert test[:3] == ["CMD", "bash", "-c"]
    assert "/8501" in test[3]

    def healthy(model: str, port: str) -> bool:
        command = test[3].replace("/8501", f"/{port}").replace("/decoder", f"/{model}")
        return subprocess.run(["bash", "-c", command], capture_output=True, timeout=10).returncode == 0

    rest_port = ports.url.rpartition(":")[2]
    assert healthy("decoder", rest_port)
    assert not healthy("slow", rest_port)
    assert not healthy("none", rest_port)
    assert not healthy("decoder", "1")


def test_exported_models_warm_up_on_the_kits_server(deployed: Any, ports: Ports) -> None:
    """TensorFlow Serving does not load a version if one of its warm-up requests fails."""
    ports.serving.max_batch_size = batching_config().max_batch_size.value
    _, loaded = ports.serving.find("decoder", None)
    file = deployed.saved_model / "assets.extra" / "tf_serving_warmup_requests"
    records = [
        prediction_log_pb2.PredictionLog.FromString(each)
        for each in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    ]
    assert 0 < len(records) <= 1000
    for record in records:
        request = record.predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        try:
            ports.serving.predict(loaded, request.model_spec.signature_name or "serving_default", inputs)
        except StatusError as failure:
            pytest.fail(f"the request for {request.model_spec.signature_name} fails: {failure.text}")


def test_the_readmes_commands_and_python_run(
    ports: Ports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^python -m keras_vae\.export\.serving\.rest_client (.*)$", README, re.MULTILINE)
    assert len(commands) == 1
    assert rest_client.main(shlex.split(commands[0].replace("http://localhost:8501", ports.url))) == 0
    assert Image.open(tmp_path / "samples.png").size == (128, 128)
    assert re.search(r"python -m keras_vae\.export\.serving\.grpc_client\s+--address localhost:8500", README)

    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "RestDecoder" in block]
    names: dict[str, Any] = {"z": np.zeros((2, 8))}
    exec(compile(code.replace("http://localhost:8501", ports.url), "README.md", "exec"), names)
    assert names["images"].shape == (2, 32, 32, 3)
    assert [file[:4] for file in names["files"]] == [b"\x89PNG", b"\x89PNG"]
    np.testing.assert_allclose(names["samples"], names["decoder"].generate(latents.draw(16, 8, seed=0)), atol=1e-6)

    (body,) = re.findall(r"curl -d '(.*)' http://localhost:8501/v1/models/decoder(:predict)", README)
    assert len(RestDecoder(ports.url)._ask(body[1], json.loads(body[0]))["outputs"]["image"]) == 4
