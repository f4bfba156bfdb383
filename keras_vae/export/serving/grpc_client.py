"""Decoders behind TensorFlow Serving's gRPC port; needs tensorflow-serving-api: pip install 'keras-vae[serving]'.

    with GrpcDecoder("localhost:8500") as decoder:
        samples = decoder.generate(noise)  # standard normal
        images = decoder.decode(z)

As a command:

    python -m keras_vae.export.serving.grpc_client --address localhost:8500 --count 4 --seed 0 --out samples.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_vae.export.errors import ExportError
from keras_vae.export.serving.served import BATCH_SIZE, MESSAGE_BYTES, MODEL, ServedDecoder, ServerError, one_line, run
from keras_vae.support.conditions import Condition
from keras_vae.support.quiet import quiet_stderr

try:
    with quiet_stderr():
        import grpc
        import tensorflow as tf
        from google.protobuf import json_format
        from tensorflow_serving.apis import (
            get_model_metadata_pb2,
            get_model_status_pb2,
            model_pb2,
            model_service_pb2_grpc,
            predict_pb2,
            prediction_service_pb2_grpc,
        )
except ImportError as error:
    grpc, missing = None, error


class GrpcDecoder(ServedDecoder):
    """A decoder behind TensorFlow Serving's gRPC port.

    Args:
        address: of the server, as localhost:8500.
        model: its name there.
        version: one of those the server has loaded; by default the latest.
        timeout: seconds that a request may take.
        batch_size: the most rows of a request.
        credentials: for a server with TLS, as `grpc.ssl_channel_credentials` makes them.
        condition: names of a conditional model's conditions, which the server does not tell, to ask by these.

    Attributes: those of `ServedDecoder`.

    Any number of threads may use it at once. `close` it, or use it in a `with` statement.

    Raises:
        ExportError: an argument that cannot be, or tensorflow-serving-api is not installed.
        ServerError: (an ExportError) no server, no such model or version, one that is still loading, or no decoder.
    """

    bytes_a_value: ClassVar[Mapping[str, int]] = {
        "float32": 4,
        "uint8": 2,
    }  # levels from 128 on take two, where each is a varint

    def __init__(
        self,
        address: str,
        model: str = MODEL,
        version: int | None = None,
        timeout: float = 10.0,
        batch_size: int = BATCH_SIZE,
        credentials: Any = None,
        condition: Condition | None = None,
    ) -> None:
        if grpc is None:
            raise ExportError(
                f"the gRPC client needs tensorflow-serving-api ({missing}): pip install 'keras-vae[serving]'"
            )
        if not address or address.startswith(("http:", "https:")):
            raise ExportError(f"address={address!r}: give HOST:PORT, the port for gRPC (8500 by default)")
        # gRPC's own limit, 4 MiB, is 85 images of 64x64.
        options = [("grpc.max_receive_message_length", MESSAGE_BYTES + (1 << 20))]
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        self._service = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._spec = model_pb2.ModelSpec(name=model)
        try:
            super().__init__(address, model, version, timeout, batch_size, condition)
        except ExportError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> GrpcDecoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _metadata(self) -> tuple[Mapping[str, Any], int]:
        if self._version is not None:
            self._spec.version.value = self._version
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        answer = self._ask(self._service.GetModelMetadata, request)
        definitions = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(definitions)
        as_json = json_format.MessageToDict(definitions, preserving_proto_field_name=True)
        return as_json.get("signature_def", {}), answer.model_spec.version.value

    def _predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        answer = self._ask(self._service.Predict, request)
        return {name: tf.make_ndarray(value) for name, value in answer.outputs.items()}

    def _ask(self, method: Callable[..., Any], request: Any) -> Any:
        """The answer to a request about the model, or an error that says why there is none."""
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise self._not_served(self._states()) from error
            raise self._error(error) from error

    def _states(self) -> dict[int, tuple[str, str]] | None:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=model_pb2.ModelSpec(name=self._model))
        try:
            answer = model_service_pb2_grpc.ModelServiceStub(self._channel).GetModelStatus(
                request, timeout=self._timeout
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            raise self._error(error) from error
        names = get_model_status_pb2.ModelVersionStatus.State
        return {
            each.version: (names.Name(each.state), one_line(each.status.error_message))
            for each in answer.model_version_status
        } or None

    def _error(self, error: Any) -> ServerError:
        code, text = error.code(), one_line(error.details() or "")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return ServerError(
                f"{self._server} did not answer within {self._timeout:g} s: it may be overloaded; try again, or allow "
                "more time (timeout)"
            )
        if code == grpc.StatusCode.UNAVAILABLE and "queue" not in text:  # a full queue is a server's own answer
            return ServerError(
                f"no answer from {self._server} ({text}): start the server, or give its gRPC address (port 8500 by "
                "default)"
            )
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in text:
            return ServerError(
                f"a message to or from {self._server} is too large ({text}): ask for fewer images at a time "
                "(batch_size)"
            )
        return ServerError(f"{self._server} answered {code.name}: {text or 'no reason given'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws a picture of samples: what `python -m keras_vae.export.serving.grpc_client` does."""
    parser = argparse.ArgumentParser(
        prog="python -m keras_vae.export.serving.grpc_client",
        description="Draw samples of a model behind TF Serving, by gRPC.",
    )
    parser.add_argument("--address", default="localhost:8500", help="of the server (%(default)s)")

    def connect(options: argparse.Namespace) -> GrpcDecoder:
        return GrpcDecoder(options.address, options.model, options.version, options.timeout)

    return run(parser, connect, arguments)


if __name__ == "__main__":
    sys.exit(main())
