"""What `keras-vae doctor` says: of this machine, and of others that stand in for it."""

from __future__ import annotations

import copy
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from keras_vae import __version__
from keras_vae.cli import doctor, doctor_probes, gpu_cards

Command = Callable[..., Any]
ON_A_GPU: dict[str, Any] = {
    "keras_vae": "1.0",
    "python": "3.12.1",
    "platform": "Linux",
    "packages": {"tensorflow": "2.21.0", "onnxruntime-gpu": "1.26.0"},
    "cpu": {"name": "Xeon", "cores": 16, "memory_mib": 131072, "bfloat16": "no"},
    "driver": {
        "cards": [{"name": "NVIDIA H100 80GB HBM3", "capability": [9, 0], "memory_mib": 81559}],
        "driver": "570.86.10",
        "cuda": "12.8",
        "problem": "",
    },
    "tensorflow": {
        "version": "2.21.0",
        "keras": "3.15.1",
        "built_for_cuda": "12.5.1",
        "built_for_cudnn": "9",
        "gpus": [{"name": "NVIDIA H100 80GB HBM3", "compute_capability": [9, 0]}],
        "precision": "mixed_bfloat16",
        "why": "NVIDIA H100 80GB HBM3, compute capability 9.0, multiplies in bfloat16",
        "tf32": "on",
        "cudnn": "9.3.0",
        "convolution": {"on": "GPU:0"},
        "xla": {"on": "GPU:0"},
    },
    "onnxruntime": {
        "version": "1.26.0",
        "providers": {"CUDAExecutionProvider": "runs", "CPUExecutionProvider": "runs"},
    },
    "weights": {"vgg19": None, "hed-vgg16": "/weights/hed.h5"},
    "data": {"folder": "/data", "prepared": ["mnist/3.0.1"], "avatars": "drawn at the first use, a minute or two"},
    "problems": [],
}


def changed(*path_and_value: Any) -> dict[str, Any]:
    """The stand-in with one thing changed."""
    found = copy.deepcopy(ON_A_GPU)
    *path, name, value = path_and_value
    place = found
    for part in path:
        place = place[part]
    place[name] = value
    return found


# This machine ------------------------------------------------------------------------------------


def test_this_machine(small_avatars: Any, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As JSON, alone on standard output, with nothing of TensorFlow's; no address is looked up."""
    asked = tmp_path / "asked"
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        f"def refuse(*given): open({str(asked)!r}, 'a').write(f'{{given}}'); raise OSError('no network')\n"
        "socket.getaddrinfo = refuse\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = command("doctor", "--json")
    found = json.loads(outcome.out)
    assert outcome.err == ""
    assert not asked.exists()
    assert outcome.status == (1 if found["problems"] else 0)
    assert (found["keras_vae"], found["tensorflow"]["version"]) == (__version__, tf.__version__)
    assert len(found["tensorflow"]["gpus"]) == len(tf.config.list_physical_devices("GPU"))
    assert "error" not in found["tensorflow"]["convolution"]
    assert "error" not in found["tensorflow"]["xla"]
    assert found["onnxruntime"]["providers"]["CPUExecutionProvider"] == "runs"
    assert Path(found["weights"]["hed-vgg16"]).is_file()
    assert Path(found["weights"]["efficientnet-lite0"]).is_file()
    assert found["data"]["folder"] == os.environ["TFDS_DATA_DIR"]
    assert "avatars/few/1.0.0" in found["data"]["prepared"]
    if not found["driver"]["cards"]:
        assert found["problems"] == []
        assert found["onnxruntime"]["providers"].get("CUDAExecutionProvider", "") != "runs"


def test_the_table_and_the_status(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: ON_A_GPU)
    outcome = command("doctor")
    assert (outcome.status, outcome.err) == (0, "")
    for words in (
        "H100",
        "9.0",
        "81,559 MiB",
        "570.86.10",
        "mixed_bfloat16",
        "XLA",
        "9.3.0",
        "mnist/3.0.1",
        "not at hand",
    ):
        assert words in outcome.out, words
    monkeypatch.setattr(doctor, "examine", lambda: {**ON_A_GPU, "problems": ["something is wrong"]})
    outcome = command("doctor")
    assert (outcome.status, outcome.err) == (1, "")
    assert "something is wrong" in outcome.out


# What others have --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            changed("tensorflow", "gpus", []),
            "TensorFlow does not use NVIDIA H100 80GB HBM3: pip install 'keras-vae[gpu]'",
        ),
        (changed("tensorflow", {"error": "ImportError: libtensorflow"}), "TensorFlow does not work here (ImportError"),
        (
            changed("tensorflow", "xla", {"on": "GPU:0", "error": "no libdevice"}),
            "compiled by XLA on GPU:0: no libdevice",
        ),
        (changed("tensorflow", "convolution", {"on": "GPU:0", "error": "no cuDNN"}), "convolution on GPU:0: no cuDNN"),
        (changed("onnxruntime", {"error": "ImportError: x"}), "onnxruntime does not work here"),
        (
            changed("onnxruntime", "providers", GPU_MISSING := {"CUDAExecutionProvider": "libcublas is missing"}),
            "onnxruntime does not use NVIDIA H100 80GB HBM3 (CUDAExecutionProvider: libcublas is missing)",
        ),
        (changed("onnxruntime", "providers", {"CPUExecutionProvider": "runs"}), "not in this build"),
        (changed("packages", {"onnxruntime": "1", "onnxruntime-gpu": "1"}), "both installed"),
        (changed("driver", {"error": "no answer in 90 s"}), "no answer in 90 s"),
    ],
)
def test_what_does_not_work_is_a_problem(found: dict[str, Any], words: str) -> None:
    (line,) = doctor.problems(found)
    assert words in line
    assert "\n" not in line
    assert doctor.rows({**found, "problems": [line]})[-1] == ("problem", line)


def test_without_a_card_nothing_needs_one() -> None:
    found = changed("driver", {"cards": [], "driver": "", "cuda": "", "problem": "no NVIDIA driver is installed"})
    found["tensorflow"]["gpus"] = []
    found["onnxruntime"]["providers"] = {**GPU_MISSING, "CPUExecutionProvider": "runs"}
    assert doctor.problems(found) == []
    assert ("card", "none: no NVIDIA driver is installed") in doctor.rows(found)


@pytest.mark.parametrize(
    ("tensorflow", "words"),
    [
        ("raise ModuleNotFoundError(\"No module named 'tensorflow'\")", "ModuleNotFoundError: No module named"),
        ("raise ImportError('one line\\nand another')", "ImportError: one line and another"),
        ("import os; print('noise'); os.abort()", "the process ended with status -6"),
        ("import time; time.sleep(60)", "no answer in 3 s"),
    ],
)
def test_a_broken_tensorflow_is_told_of(
    tensorflow: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorflow.py").write_text(tensorflow)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor_probes, "SECONDS", 3.0)
    found = doctor_probes.in_own_process("tensorflow")
    assert words in found["error"]
    (line,) = doctor.problems(changed("tensorflow", found))
    assert "TensorFlow does not work here" in line


def test_another_backend_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert "KERAS_BACKEND is 'jax'" in doctor_probes.in_own_process("tensorflow")["error"]


# The driver --------------------------------------------------------------------------------------


class Driver:
    """CUDA's driver API with these cards: name, capability, bytes."""

    def __init__(self, *found: tuple[str, tuple[int, int], int], status: int = 0) -> None:
        self.found, self.status = found, status

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.found)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:  # noqa: N802
        name.value = self.found[device.value][0].encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:  # noqa: N802
        memory._obj.value = self.found[device.value][2]
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:  # noqa: N802
        number._obj.value = self.found[device.value][1][{75: 0, 76: 1}[attribute]]
        return 0


def test_cards_as_the_driver_sees_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build  (dvs-builder)\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    monkeypatch.setattr(gpu_cards, "DRIVER_VERSION", tmp_path / "version")
    driver = Driver(("NVIDIA H100 80GB HBM3", (9, 0), 85520809984), ("Tesla T4", (7, 5), 15835660288))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    found = gpu_cards.find()
    assert (found.driver, found.cuda, found.problem) == ("570.86.10", "12.8", "")
    assert found.cards == (
        gpu_cards.Card("NVIDIA H100 80GB HBM3", (9, 0), 81559),
        gpu_cards.Card("Tesla T4", (7, 5), 15102),
    )
    gpu_cards.main()
    assert "Tesla T4, compute capability 7.5, 15102 MiB; driver 570.86.10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        (Driver(), "finds no card"),
        (Driver(status=100), "finds no card"),
        (Driver(status=803), "different versions"),
        (Driver(status=2), "CUDA error 2"),
    ],
)
def test_a_driver_without_cards(
    driver: Driver, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert words in gpu_cards.find().problem
    with pytest.raises(SystemExit, match="2"):
        gpu_cards.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.skipif(bool(gpu_cards.find().cards), reason="about machines without a GPU")
def test_cards_answers_without_any_package() -> None:
    """As `make bench-gpu` asks it, before there is an environment."""
    script = Path(gpu_cards.__file__)
    ended = subprocess.run([sys.executable, "-I", "-S", script], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("no GPU to measure here: ")
