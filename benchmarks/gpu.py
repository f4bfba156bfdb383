"""What the benchmarks of GPUs share: the machine's name and peak, how busy it is, results that can be gone on with."""

from __future__ import annotations

import importlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import runners
from keras_vae.cli import gpu_cards
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras-vae", "keras", "tensorflow", "onnxruntime-gpu", "nvidia-cudnn-cu12", "nvidia-cuda-runtime-cu12")
PEERS = ("torch", "jax", "jax-cuda12-plugin", "jax-cuda13-plugin")
# TFLOP/s that NVIDIA states for a card at its boost clock: dense, no sparsity, sums in float32. "float32" is without
# tensor cores, which TensorFlow and PyTorch use for float32 too, as TF32, where there is such a thing.
# H100, H200: H100 and H200 datasheets, whose tensor figures "with sparsity" are halved. A100: A100 datasheet. A10: A10
# datasheet. L4, L40S: datasheets, halved likewise. T4, V100: datasheets. RTX 4090: Ada architecture whitepaper,
# appendix. RTX 3090: GA102 architecture whitepaper, appendix.
PEAKS: dict[str, dict[str, float]] = {
    r"NVIDIA (H100 80GB HBM3|H200)": {"float32": 67.0, "tf32": 494.7, "float16": 989.4, "bfloat16": 989.4},
    r"NVIDIA H100 PCIe": {"float32": 51.0, "tf32": 378.0, "float16": 756.0, "bfloat16": 756.0},
    r"NVIDIA (H100|H200) NVL": {"float32": 60.0, "tf32": 417.5, "float16": 835.5, "bfloat16": 835.5},
    r"(NVIDIA )?A100[ -].*": {"float32": 19.5, "tf32": 156.0, "float16": 312.0, "bfloat16": 312.0},
    r"NVIDIA A10": {"float32": 31.2, "tf32": 62.5, "float16": 125.0, "bfloat16": 125.0},
    r"NVIDIA L4": {"float32": 30.3, "tf32": 60.0, "float16": 121.0, "bfloat16": 121.0},
    r"NVIDIA L40S": {"float32": 91.6, "tf32": 183.0, "float16": 362.0, "bfloat16": 362.0},
    r"NVIDIA GeForce RTX 4090": {"float32": 82.6, "tf32": 82.6, "float16": 165.2, "bfloat16": 165.2},
    r"NVIDIA GeForce RTX 3090": {"float32": 35.6, "tf32": 35.6, "float16": 71.0, "bfloat16": 71.0},
    r"(NVIDIA )?(Tesla )?T4": {"float32": 8.1, "float16": 65.0},
    r"(NVIDIA )?(Tesla )?V100-SXM2-.*": {"float32": 15.7, "float16": 125.0},
    r"(NVIDIA )?(Tesla )?V100-PCIE-.*": {"float32": 14.0, "float16": 112.0},
}
OUT_OF_MEMORY = re.compile(r"out of memory|OOM|RESOURCE_?EXHAUSTED|failed to allocate", re.IGNORECASE)
SECONDS_BETWEEN_SAMPLES = 0.2


def peak(name: str, precision: str) -> float | None:
    """TFLOP/s of a card in a precision, "float32", "float16" or "bfloat16"; None where it is not known.

    Of float32 it is TF32's where the card has it: that is what TensorFlow computes by default, and PyTorch here.
    A part of a card (MIG) has a name of its own, and is not known.
    """
    known = next((each for pattern, each in PEAKS.items() if re.fullmatch(pattern, name) and "MIG" not in name), {})
    if precision == "float32":
        return known.get("tf32", known.get("float32"))
    return known.get(precision)


def machine(device: str, peer_python: str = sys.executable) -> dict[str, Any]:
    """What a result was measured by: two results of the same machine compare.

    Args:
        device: "cpu" or "cuda".
        peer_python: the Python of the peers' environment.

    Raises:
        SystemExit: there is no GPU.
    """
    found: dict[str, Any] = {"device": runners.device_name(device), "cores": os.cpu_count()}
    if device == "cuda":
        driver = gpu_cards.find()
        found |= {
            "compute_capability": ".".join(map(str, driver.cards[0].capability)),
            "memory_mib": driver.cards[0].memory_mib,
            "driver": driver.driver,
            "driver_runs_cuda": driver.cuda,
        }
    return {**found, "versions": {**runners.versions(PACKAGES), **_peer_versions(peer_python)}}


def _peer_versions(python: str) -> dict[str, str]:
    # With the suffixes that name their CUDA: "2.13.0+cu130", "jax-cuda13-plugin".
    script = (
        "import json; from importlib.metadata import distributions; "
        "print(json.dumps({each.name: each.version for each in distributions() if each.name in %r}))"
    )
    try:
        ended = subprocess.run([python, "-c", script % (PEERS,)], capture_output=True, text=True)
    except OSError:  # no such Python
        return {}
    return json.loads(ended.stdout) if ended.returncode == 0 else {}


class Results:
    """A results file of cells, gone on with where it was left: what this machine has measured is not measured again.

    Each machine - device, driver, versions - has a run of its own in the file; those of others stay as they are.

    Args:
        path: the JSON file, there or not.
        machine: as `machine` returns it.
        fresh: whether to forget what this machine measured before.

    Raises:
        SystemExit: the file is none of these.
    """

    def __init__(self, path: Path, machine: dict[str, Any], fresh: bool = False) -> None:
        self.path = path
        try:
            self.runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.is_file() else []
        except (ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path} is not a results file of these benchmarks ({error}): move it away") from error
        none: dict[str, Any] = {"machine": machine, "cells": []}
        own = next((run for run in self.runs if run["machine"] == machine), none)
        # The last run is the one measured last.
        self.runs = [run for run in self.runs if run is not own] + [own]
        self.run = own
        if fresh:
            own["cells"] = []

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The cell of a key, measured or found to need more memory than there is; None where it is to be measured."""
        for cell in self.run["cells"]:
            if cell["key"] == key and ("failed" not in cell or cell.get("out_of_memory")):
                return cell
        return None

    def add(self, key: dict[str, Any], **found: Any) -> None:
        """Keeps what was found, and writes the file aside and renames it."""
        self.run["cells"] = [cell for cell in self.run["cells"] if cell["key"] != key] + [{"key": key, **found}]
        self.write()

    def fail(self, key: dict[str, Any], error: object) -> None:
        """Keeps why a cell could not be measured."""
        message = " ".join(str(error).split())[:500]
        self.add(key, failed=message, out_of_memory=bool(OUT_OF_MEMORY.search(message)))

    def write(self) -> None:
        """Writes the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"runs": self.runs}, indent=1)


def path_of(device: str, folder: Path = RESULTS) -> Path:
    """Where results are kept; the page is beside them."""
    return folder / ("gpu.json" if device == "cuda" else "cpu.json")


def source_name(data: str) -> str:
    """What images are called in results: of a folder or file its name alone, for where it lies is nobody's business."""
    path = Path(data)
    return path.resolve().name if path.exists() else data


class Busy:
    """Samples, within a `with` block, how busy the first card is, by NVML: the extra `gpu` brings nvidia-ml-py.

    NVML's utilization is the share of time in which some kernel ran. It says nothing of how much of the card that used.
    On a machine without NVML it samples nothing.

    Attributes:
        samples: dicts of `seconds` since the block began, `busy` in [0, 1], `memory_mib` in use by everyone.
        problem: why there are none.
    """

    def __init__(self, nvml: Any = None) -> None:
        self.samples: list[dict[str, float]] = []
        self.problem = ""
        self._nvml = nvml
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(10.0)

    def _sample(self) -> None:
        try:
            nvml = self._nvml or importlib.import_module("pynvml")
            nvml.nvmlInit()
            card = _first_card(nvml)
            start = time.monotonic()
            while not self._ended.wait(SECONDS_BETWEEN_SAMPLES):
                self.samples.append(
                    {
                        "seconds": time.monotonic() - start,
                        "busy": nvml.nvmlDeviceGetUtilizationRates(card).gpu / 100,
                        "memory_mib": nvml.nvmlDeviceGetMemoryInfo(card).used / 2**20,
                    }
                )
        except Exception as error:  # NVMLError, or no such module: a run is not lost for it
            self.problem = " ".join(f"{type(error).__name__}: {error}".split())

    def summary(self, start: float = 0.0, end: float = float("inf")) -> dict[str, Any]:
        """Mean `busy`, `least_busy` (a tenth is below), most `memory_mib`, `samples`; without samples the `problem`.

        Args:
            start, end: seconds since the block began; what lies outside does not count.
        """
        counted = [each for each in self.samples if start <= each["seconds"] <= end]
        if not counted:
            return {"samples": 0, "problem": self.problem or "no sample in that time"}
        busy = [each["busy"] for each in counted]
        return {
            "samples": len(counted),
            "busy": statistics.fmean(busy),
            "least_busy": statistics.quantiles(busy, n=10)[0] if len(busy) > 1 else busy[0],
            "memory_mib": max(each["memory_mib"] for each in counted),
        }


def _first_card(nvml: Any) -> Any:
    """The card that CUDA calls its first one: NVML counts those too that CUDA_VISIBLE_DEVICES hides."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return nvml.nvmlDeviceGetHandleByIndex(int(first)) if first.isdigit() else nvml.nvmlDeviceGetHandleByUUID(first)


def spread(values: Iterable[float]) -> list[float]:
    """First and third quartile."""
    listed = list(values)
    return statistics.quantiles(listed, n=4)[::2] if len(listed) > 1 else [listed[0], listed[0]]
