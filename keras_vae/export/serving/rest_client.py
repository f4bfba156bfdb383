"""Decoders behind TensorFlow Serving's REST port: the standard library and numpy alone.

    decoder = RestDecoder("http://localhost:8501")
    samples = decoder.generate(noise)  # standard normal
    images = decoder.decode(z)

As a command:

    python -m keras_vae.export.serving.rest_client --url http://localhost:8501 --count 4 --seed 0 --out samples.png
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from keras_vae.export.errors import ExportError
from keras_vae.export.serving.served import BATCH_SIZE, MODEL, TYPES, ServedDecoder, ServerError, one_line, run
from keras_vae.support.conditions import Condition


class RestDecoder(ServedDecoder):
    """A decoder behind TensorFlow Serving's REST port.

    Args:
        url: of the server, as http://localhost:8501.
        model: its name there.
        version: one of those the server has loaded; by default the latest.
        timeout: seconds that a request may take.
        batch_size: the most rows of a request.
        condition: names of a conditional model's conditions, which the server does not tell, to ask by these.

    Attributes: those of `ServedDecoder`.

    Any number of threads may use it at once.

    Raises:
        ExportError: an argument that cannot be.
        ServerError: (an ExportError) no server, no such model or version, one that is still loading, or no decoder.
    """

    # A digit before the point, nine after it, an exponent, and what separates numbers; or three digits and that.
    bytes_a_value: ClassVar[Mapping[str, int]] = {"float32": 14, "uint8": 5}

    def __init__(
        self,
        url: str,
        model: str = MODEL,
        version: int | None = None,
        timeout: float = 10.0,
        batch_size: int = BATCH_SIZE,
        condition: Condition | None = None,
    ) -> None:
        if not re.match("https?://[^/]", url):
            raise ExportError(f"url={url!r}: give http://HOST:PORT, the port for REST (8501 by default)")
        super().__init__(url.rstrip("/"), model, version, timeout, batch_size, condition)

    def _metadata(self) -> tuple[Mapping[str, Any], int]:
        answer = self._ask("/metadata")
        try:
            return answer["metadata"]["signature_def"]["signature_def"], int(answer["model_spec"]["version"])
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self._server} is not TF Serving: it describes no model; check the port") from error

    def _predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        # By column: by row, each input would need a batch, and those of `sample` have none.
        columns = {name: value.tolist() for name, value in inputs.items()}
        answer = self._ask(":predict", {"signature_name": signature, "inputs": columns})
        tensors = self._signatures[signature].outputs
        try:
            values = answer["outputs"]
            named = values if len(tensors) > 1 else dict.fromkeys(tensors, values)  # a single output comes unnamed
            return {name: _array(named[name], tensor.dtype) for name, tensor in tensors.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ServerError(f"{self._server} answered {signature!r} with something else than its outputs") from error

    def _ask(self, method: str, content: Any = None) -> Any:
        """The answer to a request about the model, or an error that says why there is none."""
        version = "" if self._version is None else f"/versions/{self._version}"
        status, answer = self._request(f"{version}{method}", content)
        if status == 404:
            raise self._not_served(self._states())
        if status != 200:
            text = answer.get("error", "") if isinstance(answer, dict) else ""
            raise ServerError(f"{self._server} answered HTTP {status}: {_text(str(text)) or 'no reason given'}")
        return answer

    def _states(self) -> dict[int, tuple[str, str]] | None:
        status, answer = self._request("")
        if status == 404:
            return None
        try:
            return {
                int(each["version"]): (each["state"], _text(each["status"]["error_message"]))
                for each in answer["model_version_status"]
            } or None
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(
                f"{self._server} is not TF Serving: it reports no model's state; check the port"
            ) from error

    def _request(self, path: str, content: Any = None) -> tuple[int, Any]:
        """The status of an answer and its JSON, its strings holding a byte in each character."""
        url = f"{self._server}/v1/models/{urllib.parse.quote(self._model, safe='')}{path}"
        data = None if content is None else json.dumps(content).encode()
        try:
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with _OPENER.open(request, timeout=self._timeout) as response:
                status, body = response.status, _read(response, time.monotonic() + self._timeout)
        except (OSError, http.client.HTTPException, ValueError) as error:  # the last of addresses that cannot be
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise ServerError(
                    f"{self._server} did not answer within {self._timeout:g} s: it may be overloaded; try again, or "
                    "allow more time (timeout)"
                ) from error
            raise ServerError(
                f"no answer from {self._server} ({one_line(str(reason))}): start the server, or give its REST address "
                "(port 8501 by default)"
            ) from error
        try:
            # Not UTF-8: TF Serving writes strings as they are, PNG files too, unless the output is named *_bytes.
            return status, json.loads(body.decode("latin-1"))
        except ValueError as error:
            raise ServerError(
                f"{self._server} answered HTTP {status} with something that is not JSON: give the REST address of a "
                "TF Serving (port 8501 by default)"
            ) from error


class _KeepErrors(urllib.request.HTTPErrorProcessor):
    """Returns answers of every status: what an error says is in its body."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    https_response = http_response


_OPENER = urllib.request.build_opener(_KeepErrors)


def _read(response: Any, deadline: float) -> bytes:
    parts = []
    while part := response.read1(1 << 20):
        parts.append(part)
        if time.monotonic() > deadline:  # the socket's own time-out starts anew with each piece
            raise TimeoutError
    return b"".join(parts)


def _array(value: Any, dtype: str) -> np.ndarray:
    if dtype != "DT_STRING":
        return np.asarray(value, TYPES.get(dtype, "float32"))
    files = [base64.b64decode(each["b64"]) if isinstance(each, dict) else each.encode("latin-1") for each in value]
    return np.array(files, object)


def _text(characters: str) -> str:
    """Text from a string of one byte a character, in one line."""
    with contextlib.suppress(UnicodeError):  # it was escaped, and is text already
        characters = characters.encode("latin-1").decode()
    return one_line(characters)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws a picture of samples: what `python -m keras_vae.export.serving.rest_client` does."""
    parser = argparse.ArgumentParser(
        prog="python -m keras_vae.export.serving.rest_client",
        description="Draw samples of a model behind TF Serving, by REST.",
    )
    parser.add_argument("--url", default="http://localhost:8501", help="of the server (%(default)s)")
    return run(
        parser, lambda options: RestDecoder(options.url, options.model, options.version, options.timeout), arguments
    )


if __name__ == "__main__":
    sys.exit(main())
