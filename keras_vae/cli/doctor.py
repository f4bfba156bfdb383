"""What this machine has for training and decoding, and what of it really works.

Whatever can hang, print or end the process - the driver, TensorFlow, onnxruntime - is tried in a process of its own,
within a time limit. Nothing is downloaded, and no address is looked up.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from keras_vae._version import __version__
from keras_vae.cli import cards
from keras_vae.features import weight_files
from keras_vae.support import precision
from keras_vae.support.backend import require_tensorflow

SECONDS = 90.0  # for each of the three; a first import from a slow disk takes tens
PACKAGES = (
    "tensorflow",
    "keras",
    "tensorflow-datasets",
    "onnxruntime-gpu",
    "onnxruntime",
    "onnx",
    "tf2onnx",
    "numpy",
    "nvidia-cudnn-cu12",
    "nvidia-cuda-runtime-cu12",
)
GPU_PROVIDER = "CUDAExecutionProvider"
ADVICE = "pip install 'keras-vae[gpu]' in an environment of its own"
LONGEST_MESSAGE = 300
DRAWING_PACKAGES = ("python_avatars", "resvg_py")


def examine() -> dict[str, Any]:
    """Looks at everything, in ten seconds or so.

    Returns:
        `keras_vae`, `python`, `platform`, `packages` (versions by name), `cpu`, `driver` (what `keras_vae.cli.cards`
        finds), `tensorflow` and `onnxruntime` (what was tried, or `error`), `weights` (path by feature network, None
        where they are not at hand), `data` (`folder`, `prepared` sets, `avatars`), `problems`: a line for each thing
        that does not work and should.
    """
    with ThreadPoolExecutor(len(PROBES)) as pool:
        driver, tensorflow, runtime = pool.map(_in_own_process, PROBES)
    found: dict[str, Any] = {
        "keras_vae": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "cpu": _cpu(),
        "driver": driver,
        "tensorflow": tensorflow,
        "onnxruntime": runtime,
        "weights": _weights(),
        "data": _data(),
    }
    return {**found, "problems": problems(found)}


def problems(found: dict[str, Any]) -> list[str]:
    """What does not work and should, a line each, with what to do. A machine without a card has no problem with that.

    Args:
        found: as `examine` returns it.
    """
    lines = []
    names = [card["name"] for card in found["driver"].get("cards", ())]
    card = names[0] if names else ""
    if "error" in found["driver"]:
        lines.append(f"the NVIDIA driver was asked for its cards, and failed: {found['driver']['error']}")
    tensorflow, runtime = found["tensorflow"], found["onnxruntime"]
    if "error" in tensorflow:
        lines.append(f"TensorFlow does not work here ({tensorflow['error']}): install keras-vae again")
    elif card and not tensorflow["gpus"]:
        lines.append(f"TensorFlow does not use {card}: {ADVICE}")
    else:
        for name, words in (("convolution", "a convolution"), ("xla", "a function compiled by XLA")):
            if "error" in tensorflow[name]:
                lines.append(f"TensorFlow fails at {words} on {tensorflow[name]['on']}: {tensorflow[name]['error']}")
    if {"onnxruntime", "onnxruntime-gpu"} <= set(found["packages"]):
        lines.append(
            "onnxruntime and onnxruntime-gpu are both installed, in one folder: uninstall both, then one again"
        )
    if "error" in runtime:
        lines.append(f"onnxruntime does not work here ({runtime['error']}): install keras-vae again")
    elif card and runtime["providers"].get(GPU_PROVIDER, "not in this build") != "runs":
        reason = runtime["providers"].get(GPU_PROVIDER, "not in this build")
        lines.append(f"onnxruntime does not use {card} ({GPU_PROVIDER}: {reason}): {ADVICE}")
    return lines


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The same in words, a row each.

    Args:
        found: as `examine` returns it.
    """
    packages, cpu, driver, tensorflow = (found[name] for name in ("packages", "cpu", "driver", "tensorflow"))
    lines = [
        ("keras-vae", f"{found['keras_vae']}, Python {found['python']}, {found['platform']}"),
        ("packages", ", ".join(f"{name} {number}" for name, number in packages.items())),
        (
            "CPU",
            f"{cpu['name']}, {cpu['cores']} cores, {cpu['memory_mib'] / 1024:.0f} GiB, bfloat16: {cpu['bfloat16']}",
        ),
    ]
    if driver.get("cards"):
        lines += [
            ("card", f"{card['name']}, compute capability {_dotted(card['capability'])}, {card['memory_mib']:,} MiB")
            for card in driver["cards"]
        ]
        lines.append(("driver", f"{driver['driver'] or 'unknown'}, runs CUDA up to {driver['cuda'] or 'unknown'}"))
    else:
        lines.append(("card", f"none: {driver.get('problem') or driver.get('error')}"))
    if "error" in tensorflow:
        lines.append(("TensorFlow", f"does not work: {tensorflow['error']}"))
    else:
        devices = ", ".join(f"{gpu['name']} ({_dotted(gpu['compute_capability'])})" for gpu in tensorflow["gpus"])
        lines += [
            ("TensorFlow", f"{tensorflow['version']}, {_built(tensorflow)}; GPUs: {devices or 'none'}"),
            ("precision", f"auto is {tensorflow['precision']}: {tensorflow['why']}"),
            ("TF32", tensorflow["tf32"]),
            ("cuDNN", tensorflow["cudnn"]),
            ("convolution", _tried(tensorflow["convolution"])),
            ("XLA", _tried(tensorflow["xla"])),
        ]
    runtime = found["onnxruntime"]
    if "error" in runtime:
        lines.append(("onnxruntime", f"does not work: {runtime['error']}"))
    else:
        lines += [
            (f"onnxruntime {runtime['version']}", f"{name}: {says}") for name, says in runtime["providers"].items()
        ]
    lines += [("weights", f"{name}: {path or 'not at hand'}") for name, path in found["weights"].items()]
    data = found["data"]
    return [
        *lines,
        ("data", f"{data['folder']}: {', '.join(data['prepared']) or 'no set prepared'}"),
        ("avatars", data["avatars"]),
        *(("problem", line) for line in found["problems"]),
    ]


def _dotted(capability: Any) -> str:
    return ".".join(map(str, capability))


def _built(tensorflow: dict[str, Any]) -> str:
    cuda = tensorflow["built_for_cuda"]
    return f"built for CUDA {cuda} and cuDNN {tensorflow['built_for_cudnn']}" if cuda else "built without CUDA"


def _tried(outcome: dict[str, str]) -> str:
    return f"fails on {outcome['on']}: {outcome['error']}" if "error" in outcome else f"runs on {outcome['on']}"


# What needs no framework ------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _cpu() -> dict[str, Any]:
    flags = [flag for flag in precision.BFLOAT16_CPU_FLAGS if flag in precision._cpu_flags()]
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = model[1].strip() if model else name
    return {
        "name": name,
        "cores": os.cpu_count(),
        "memory_mib": psutil.virtual_memory().total >> 20,
        "bfloat16": ", ".join(flags) or "no",
    }


def _weights() -> dict[str, str | None]:
    places = {
        "vgg19": weight_files.vgg("vgg19"),
        "vgg16": weight_files.vgg("vgg16"),
        "hed-vgg16": weight_files.hed(),
        "efficientnet-lite0": weight_files.efficientnet(),
        "inception": weight_files.inception(),
    }
    return {name: str(path) if path is not None and path.is_file() else None for name, path in places.items()}


def _data() -> dict[str, Any]:
    """TFDS's folder and the sets in it, found without TFDS: it would load TensorFlow."""
    folder = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    prepared = sorted(
        "/".join(file.relative_to(folder).parts[:-1])
        for below in ("*/*", "*/*/*")  # NAME/VERSION and NAME/CONFIG/VERSION
        for file in folder.glob(f"{below}/dataset_info.json")
        if "incomplete" not in file.parent.name
    )
    missing = [name.replace("_", "-") for name in DRAWING_PACKAGES if weight_files.package_folder(name) is None]
    drawn = [name for name in prepared if name.startswith("avatars/")]
    avatars = "drawn at the first use, a minute or two"
    if drawn:
        avatars = f"drawn: {', '.join(drawn)}"
    elif missing:
        avatars = f"cannot be drawn without {' and '.join(missing)}: pip install 'keras-vae[demo]'"
    return {"folder": str(folder), "prepared": prepared, "avatars": avatars}


# What is tried, each in a process of its own -----------------------------------------------------


def _driver() -> dict[str, Any]:
    return asdict(cards.find())


def _tensorflow() -> dict[str, Any]:
    """TensorFlow's devices, and whether a convolution and a compiled function run on the first."""
    require_tensorflow()
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # else it takes the whole card, beside someone's training
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
    except Exception as error:  # whatever TensorFlow raises: what it says is what is reported
        return {"on": device, "error": _line(error)}
    return {"on": device}


def _tf32(enabled: bool, details: list[dict[str, Any]]) -> str:
    if not any(each.get("compute_capability", (0, 0)) >= (8, 0) for each in details):
        return "not here: GPUs have it from compute capability 8.0 on"
    if not enabled:
        return "off: float32 is computed in full"
    return "on: float32 convolutions and matrix products are rounded to 10 bits of mantissa, TensorFlow's default"


def _cudnn() -> str:
    """The version that the convolution before has loaded."""
    try:
        number = ctypes.CDLL("libcudnn.so.9").cudnnGetVersion()
    except (OSError, AttributeError):
        return "libcudnn.so.9 cannot be loaded by name"
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def _onnxruntime() -> dict[str, Any]:
    """Which execution providers run a model, rather than which were built in."""
    import onnxruntime

    names = onnxruntime.get_available_providers()
    if GPU_PROVIDER in names:
        onnxruntime.preload_dlls()  # CUDA's libraries, where pip installed them
    return {"version": onnxruntime.__version__, "providers": {name: _run_by(name) for name in names}}


def _run_by(provider: str) -> str:
    """ "runs", or why a product of matrices is not computed by this provider."""
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
        # onnxruntime puts the CPU's in the place of a provider that does not load, and of one that cannot compute an
        # operation; its profile says which of them computed what.
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
    return "runs" if np.allclose(found, square @ square) else "computes something else"


@contextlib.contextmanager
def _stderr_kept() -> Iterator[Callable[[], str]]:
    """Keeps what libraries print into the standard error stream within the block, and yields what returns it."""
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


def _in_own_process(probe: str) -> dict[str, Any]:
    """What a probe found, or {"error": why it found nothing}."""
    package = Path(__file__).parents[1]
    paths = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.pathsep.join(paths)}
    try:
        # -P: what lies in the current folder is not imported, a tensorflow.py for one.
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "keras_vae.cli.doctor", probe],
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
    """A probe's process: JSON alone on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    try:
        found = PROBES[probe]()
    except Exception as error:  # a broken installation raises what it likes
        found = {"error": _line(error)}
    print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    _answer(sys.argv[1])
