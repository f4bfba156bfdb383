"""The kinds of cells that `benchmarks.bench_gpu` measures: how their processes start, get ready and take a turn."""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import decoders, runners

Key = dict[str, Any]  # what tells a cell from all others, the part it is of among it
# By name: the kind of process `benchmarks.steps` has, and the package it takes of the peers' environment.
STEPS = {
    "ours, XLA": ("ours with XLA", ""),
    "ours": ("ours without XLA", ""),
    "PyTorch, compiled": ("compiled", "torch"),
    "PyTorch, CUDA graphs": ("compiled, graphs", "torch"),
    "JAX": ("jax", "jax"),
}
# By name: the kind of process `benchmarks.decoders` has, precision, file. "tf32" is float32 whose products are rounded
# to TF32 where the card has it: the default of onnxruntime, as of TensorFlow. "bound": latents and images stay on the
# device; otherwise they come from the host's memory and go back, "uint8" in a quarter of the bytes. "NHWC": convolved
# with channels last, the layout of tensor cores, which onnxruntime does not do by itself.
DECODERS = {
    "ours, TF32, bound": ("onnxruntime-bound", "tf32", "ours.onnx"),
    "ours, TF32": ("onnxruntime", "tf32", "ours.onnx"),
    "ours, float32, bound": ("onnxruntime-bound", "float32", "ours.onnx"),
    "ours, float16, bound": ("onnxruntime-bound", "float16", "ours.float16.onnx"),
    "ours, float16, NHWC, bound": ("onnxruntime-nhwc-bound", "float16", "ours.float16.onnx"),
    "ours, TF32, NHWC, bound": ("onnxruntime-nhwc-bound", "tf32", "ours.onnx"),
    "ours, TF32, uint8": ("onnxruntime", "tf32", "ours.uint8.onnx"),
    "Keras's export, TF32": ("onnxruntime", "tf32", "keras.onnx"),
    "PyTorch, compiled, TF32, bound": ("torch-compiled-bound", "tf32", "weights.npz"),
    "PyTorch, compiled, float16, bound": ("torch-compiled-bound", "float16", "weights.npz"),
}
LIMIT = 240.0  # seconds that an answer may take
STEPS_TOGETHER = 5
RUNS = 30  # of a decoder, a turn
# Largest relative difference of a term of the loss from ours in float32 on the CPU. TF32 rounds to 10 bits.
TOLERANCE = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.05}
# Largest difference of a decoder's pixel from Keras in float32 on the CPU.
PARITY = {"float32": 1e-3, "tf32": 1e-3, "float16": 0.02}
HALF_A_LEVEL = 0.5 / 255  # what rounding to uint8 adds
# Several processes share the card: none takes all of its memory, and what a step needs can be told.
SHARED = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@dataclass
class Bench:
    """What cells are measured with.

    Attributes:
        device: "cuda" or "cpu".
        data: images to train on, as `keras-vae train --data` takes them.
        peer_python: the Python of the peers' environment.
        seconds: of steps, a turn.
        deadline: of `time.monotonic`, when all ends.
        folder: for what cells share.
    """

    device: str
    data: str
    peer_python: str
    seconds: float
    deadline: float
    folder: Path
    _made: dict[str, Future[Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, worker: runners.Runner, request: dict[str, Any]) -> dict[str, Any]:
        """A process's answer, in the time that is left."""
        return runners.ask(worker, request, max(0.1, min(LIMIT, self.deadline - time.monotonic())))

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What several cells share: the first to ask makes it, the others wait."""
        with self._lock:
            first = name not in self._made
            made = self._made.setdefault(name, Future())
        if first:
            try:
                made.set_result(make())
            except BaseException as error:
                made.set_exception(error)
        return made.result()


@dataclass(frozen=True)
class Part:
    """A kind of cell.

    Attributes:
        start: starts a cell's process.
        ready: beside others: what it found, all that is compiled by then.
        turn: alone: seconds by batch size. None where `ready` finds everything.
        seconds: what a wave of such cells takes, as long as none was seen.
    """

    start: Callable[[Key, Bench], runners.Runner]
    ready: Callable[[runners.Runner, Key, Bench], dict[str, Any]]
    turn: Callable[[runners.Runner, Key, Bench], dict[str, float]] | None = None
    seconds: float = 90.0


def package(key: Key) -> str:
    """What a cell takes of the peers' environment; empty if nothing."""
    if key["part"] == "step":
        return STEPS[key["runner"]][1]
    return "torch" if key["part"] == "decoder" and DECODERS[key["runner"]][0].startswith("torch") else ""


# The training step ------------------------------------------------------------------------------


def _start_step(key: Key, bench: Bench) -> runners.Runner:
    case = {**key, "width": 32, "device": bench.device, "folder": str(_folder(key, bench))}
    python = bench.peer_python if package(key) else sys.executable
    return runners.start("benchmarks.steps", STEPS[key["runner"]][0], json.dumps(case), python=python, **SHARED)


def _ready_step(worker: runners.Runner, key: Key, bench: Bench) -> dict[str, Any]:
    reference = bench.once(_folder(key, bench).name, lambda: _reference(key, bench))
    terms = bench.ask(worker, {"terms": True, "given": True})
    differences = {name: abs(terms[name] / value - 1.0) for name, value in reference["terms"].items()}
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= TOLERANCE[key["precision"]]:
        raise runners.RunnerError(
            f"its {worst} is {terms[worst]}, ours in float32 {reference['terms'][worst]}: this is not the same work"
        )
    start = time.perf_counter()
    bench.ask(worker, {"seconds": 0.0})  # compiles
    compiled = time.perf_counter() - start
    memory = bench.ask(worker, {"memory": True})
    none, one = reference["gflop"]["as written" if package(key) else "ours"]
    found = {
        "peak_mib": memory["device_mib"] or memory["peak_mib"],
        "gflop": none + key["batch"] * (one - none),
        "first_steps_s": compiled,
        "largest_difference": differences[worst],
    }
    return {**found, "note": memory["note"]} if memory.get("note") else found


def _turn_step(worker: runners.Runner, key: Key, bench: Bench) -> dict[str, float]:
    request = {"seconds": bench.seconds, "together": STEPS_TOGETHER}
    return {str(key["batch"]): statistics.median(bench.ask(worker, request)["steps"])}


def _folder(key: Key, bench: Bench) -> Path:
    return bench.folder / f"{key['objective']}-{key['size']}"


def _reference(key: Key, bench: Bench) -> dict[str, Any]:
    """The terms of the loss in float32 on the CPU and, in the case's folder, the weights they were computed with.

    Also `gflop` of batches of 0 and 1 images, of "ours" and of the network "as written".
    """
    folder = _folder(key, bench)
    folder.mkdir()
    case = {**key, "precision": "float32", "batch": 16, "width": 32, "device": "cpu", "folder": str(folder)}
    # Without a GPU, where TensorFlow would round to TF32.
    worker = runners.start("benchmarks.steps", "ours", json.dumps(case), CUDA_VISIBLE_DEVICES="-1")
    try:
        terms = bench.ask(worker, {"terms": True})
        gflop = bench.ask(worker, {"gflop": [0, 1]})["gflop"]
    finally:
        runners.stop(worker)
    del terms["peak_mib"]
    return {"terms": terms, "gflop": gflop}


# The decoder ------------------------------------------------------------------------------------


def _start_decoder(key: Key, bench: Bench) -> runners.Runner:
    models = bench.once("decoders", lambda: _exported(bench))
    kind, precision, file = DECODERS[key["runner"]]
    python = bench.peer_python if package(key) else sys.executable
    return runners.start("benchmarks.decoders", kind, precision, str(models / file), bench.device, python=python)


def _ready_decoder(worker: runners.Runner, key: Key, bench: Bench) -> dict[str, Any]:
    images = np.array(bench.ask(worker, {"batch": decoders.COMPARED, "runs": 1})["pixels"])
    expected = np.load(bench.once("decoders", Path) / "keras.npy")[:, ::16, ::16]
    for batch in key["batches"]:
        bench.ask(worker, {"batch": batch, "runs": 1})  # compiles
    difference = float(np.abs(images - expected).max())
    _, precision, file = DECODERS[key["runner"]]
    allowed = PARITY[precision] + (HALF_A_LEVEL if "uint8" in file else 0.0)
    return {"difference_from_keras": difference, "parity": difference <= allowed}


def _turn_decoder(worker: runners.Runner, key: Key, bench: Bench) -> dict[str, float]:
    return {
        str(batch): statistics.median(bench.ask(worker, {"batch": batch, "runs": RUNS})["seconds"])
        for batch in key["batches"]
    }


def _exported(bench: Bench) -> Path:
    """A folder of decoders to run, and of images by Keras on the CPU, which are those of float32, not of TF32."""
    folder = bench.folder / "decoders"
    worker = runners.start("benchmarks.decoders", "export", "alone", str(folder), "cpu", CUDA_VISIBLE_DEVICES="-1")
    try:
        bench.ask(worker, {"export": True})
    finally:
        runners.stop(worker)
    return folder


# Numerics and the real run ----------------------------------------------------------------------


def _start_training(module: str) -> Callable[[Key, Bench], runners.Runner]:
    def start(key: Key, bench: Bench) -> runners.Runner:
        if bench.data == "avatars":
            bench.once("avatars", lambda: _drawn(bench))
        return runners.start(module, json.dumps({**key, "data": bench.data, "device": bench.device}), **SHARED)

    return start


def _drawn(bench: Bench) -> None:
    """Has the avatars drawn, by one process for all."""
    worker = runners.start("benchmarks.numerics", "null", CUDA_VISIBLE_DEVICES="-1")
    try:
        bench.ask(worker, {"draw": True})
    finally:
        runners.stop(worker)


def _train(worker: runners.Runner, key: Key, bench: Bench) -> dict[str, Any]:
    found = bench.ask(worker, {"train": True})
    del found["peak_mib"]
    return found


PARTS = {
    "step": Part(_start_step, _ready_step, _turn_step),
    "decoder": Part(_start_decoder, _ready_decoder, _turn_decoder),
    "numerics": Part(_start_training("benchmarks.numerics"), _train),
    "run": Part(_start_training("benchmarks.real_run"), _train, seconds=130.0),
}
