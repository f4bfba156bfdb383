"""What `keras-vae doctor` tries out: the driver, TensorFlow and onnxruntime.

Each of them can hang, print or end the process, so each is tried in a process of its own, within a time limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keras_vae.cli import gpu_cards
from keras_vae.support import precision
from keras_vae.support.backend import require_tensorflow

SECONDS = 90.0  # for each of the three; a first import from a slow disk takes tens of seconds
GPU_PROVIDER = "CUDAExecutionProvider"
LONGEST_MESSAGE = 300


def _driver() -> dict[str, Any]:
    return asdict(gpu_cards.find())


def _tensorflow() -> dict[str, Any]:
    """TensorFlow's devices, and whether a convolution and a compiled function run on the first."""
    require_tensorflow()
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # else it takes the whole card, which may be training
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    device = "GPU:0" if gpus else "CPU:0"

    def convolve() -> None:
        tf.nn.conv2d(tf.ones((1, 8, 8, 3)), tf.ones((3, 3, 3, 4)), 1, "SAME").numpy()

    def compiled() -> None:
        tf.function(lambda x: tf.reduce_sum(x @ x), jit_compile=True)(tf.ones((8, 8))).numpy()

    build = tf.sysconfig.get_build_info()
    policy, why = precision.choose()
    with tf.device(f"/{device}"):
        convolution, xla = _attempt(convolve, device), _attempt(compiled, device)
    import keras

    return {
        "version": tf.__version__,
        "keras": keras.__version__,
        "built_for_cuda": build.get("cuda_version", ""),
        "built_for_cudnn": build.get("cudnn_version", ""),
        "gpus": [
            {
                "name": each.get("device_name", "GPU"),
                "compute_capability": list(each.get("compute_capability", (0, 0))),
            }
            for each in details
        ],
        "precision": policy,
        "why": why,
        "tf32": _tf32(tf.config.experimental.tensor_float_32_execution_enabled(), details),
        "cudnn": _cudnn() if gpus else "not used: no GPU",
        "convolution": convolution,
        "xla": xla,
    }


def _attempt(function: Callable[[], None], device: str) -> dict[str, str]:
    try:
        function()
    except Exception as error:  # TensorFlow raises all kinds, and its message is what is reported
        return {"on": device, "error": _line(error)}
    return {"on": device}


def _tf32(enabled: bool, details: list[dict[str, Any]]) -> str:
    if not any(each.get("compute_capability", (0, 0)) >= (8, 0) for each in details):
        return "not here: it takes a GPU of compute capability 8.0 or higher"
    if not enabled:
        return "off: float32 is computed in full"
    return "on: float32 convolutions and matrix products are rounded to 10 bits of mantissa, TensorFlow's default"


def _cudnn() -> str:
    """The version that the convolution has loaded."""
    try:
        number = ctypes.CDLL("libcudnn.so.9").cudnnGetVersion()
    except (OSError, AttributeError):
        return "libcudnn.so.9 cannot be loaded by name"
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def _onnxruntime() -> dict[str, Any]:
    """Which execution providers really run a model, rather than which were built in."""
    import onnxruntime

    names = onnxruntime.get_available_providers()
    if GPU_PROVIDER in names:
        onnxruntime.preload_dlls()  # CUDA's libraries, where pip installed them
    return {"version": onnxruntime.__version__, "providers": {name: _run_by(name) for name in names}}


def _run_by(provider: str) -> str:
    """ "runs", or why this provider does not compute a matrix product."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    shape = (4, 4)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "product", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    square = np.arange(16, dtype=np.float32).reshape(shape)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        # onnxruntime falls back to the CPU if a provider does not load, or cannot compute an operation; its profile
        # says which provider computed what.
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        with _stderr_kept() as said:
            try:
                session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
                (found,) = session.run(None, {"x": square})
            except Exception as error:  # onnxruntime's exceptions share no base class
                return _line(error)
        events = json.loads(Path(session.end_profiling()).read_text())
    used = {event["args"]["provider"] for event in events if event.get("args", {}).get("provider")}
    if provider not in used:
        missing = re.search(r"(lib[\w.-]+\.so[\w.]*): cannot open shared object", said())
        return f"does not load: {missing[1]} is missing" if missing else f"is not used: {', '.join(sorted(used))} is"
    return "runs" if np.allclose(found, square @ square) else "computes wrong numbers"


@contextlib.contextmanager
def _stderr_kept() -> Iterator[Callable[[], str]]:
    """Captures what libraries write to standard error within the block; yields the function that returns it."""
    with tempfile.TemporaryFile() as sink:
        kept = os.dup(2)
        os.dup2(sink.fileno(), 2)
        text: list[str] = []
        try:
            yield lambda: "".join(text)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            sink.seek(0)
            text.append(sink.read().decode(errors="replace"))


PROBES: dict[str, Callable[[], dict[str, Any]]] = {
    "driver": _driver,
    "tensorflow": _tensorflow,
    "onnxruntime": _onnxruntime,
}


def in_own_process(probe: str) -> dict[str, Any]:
    """Runs a probe in a process of its own and returns what it found, or {"error": why it found nothing}."""
    package = Path(__file__).parents[1]
    paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(paths)}
    try:
        # -P: nothing is imported from the current folder, such as a tensorflow.py.
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "keras_vae.cli.doctor_probes", probe],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {SECONDS:g} s"}
    except OSError as error:
        return {"error": _line(error)}
    try:
        return json.loads(ended.stdout)
    except ValueError:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"error": f"the process ended with status {ended.returncode}: {last[:LONGEST_MESSAGE]}"}


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_MESSAGE]


def _answer(probe: str) -> None:
    """What a probe's process does: prints JSON, alone on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print too
    try:
        found = PROBES[probe]()
    except Exception as error:  # a broken installation may raise anything
        found = {"error": _line(error)}
    print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    _answer(sys.argv[1])
