"""How fast decoders run: ours beside the file Keras itself exports, and beside PyTorch.

    python -m benchmarks.decoding

The paper's decoder, 64x64, 100 latents, random weights. Each runner has a process of its own, so that nobody's idle
threads spin beside another's work, and in each of many rounds all decode in turn. Written to
benchmarks/results/decoding.json: medians, the medians and quartiles of the rounds' ratios to ours, sizes of files, peak
memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import runners
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
OURS = "ours, onnxruntime"
# By name: kind of runner, precision, file below the folder of models.
CPU = {
    OURS: ("onnxruntime", "float32", "ours.onnx"),
    "ours, onnxruntime, int8": ("onnxruntime", "int8", "ours.int8.onnx"),
    "ours, onnxruntime, float16": ("onnxruntime", "float16", "ours.float16.onnx"),
    "ours, OpenVINO": ("openvino", "f32", "ours.xml"),
    "ours, OpenVINO, bfloat16": ("openvino", "bf16", "ours.xml"),
    "ours, LiteRT": ("litert", "float32", "ours.tflite"),
    "ours, SavedModel in TensorFlow": ("tensorflow", "float32", "ours"),
    "Keras's export, onnxruntime": ("onnxruntime", "float32", "keras.onnx"),
    "PyTorch, eager": ("torch", "float32", "weights.npz"),
    "PyTorch, compiled": ("torch-compiled", "float32", "weights.npz"),
    "PyTorch, bfloat16, eager": ("torch", "bfloat16", "weights.npz"),
    "PyTorch, bfloat16, compiled": ("torch-compiled", "bfloat16", "weights.npz"),
}
PACKAGES = (
    "keras-vae",
    "keras",
    "tensorflow",
    "tf2onnx",
    "onnxruntime-gpu",
    "openvino",
    "ai-edge-litert",
    "torch",
)
BATCHES = (1, 64)
# Largest difference of a pixel from ours in float32 that a runner of this precision may have.
ALLOWED = {"float32": 1e-4, "f32": 1e-4, "float16": 0.02, "bfloat16": 0.1, "bf16": 0.1, "int8": 0.2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for decoding.json")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: give at least 2, for a spread")
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: TensorFlow is not to hold threads and memory beside the runners.
        exporter = runners.start("benchmarks.decoders", "export", "all", folder, "cpu")
        runners.ask(exporter, {"export": True})
        runners.end(exporter)
        record = measure(Path(folder), arguments.rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "decoding.json", record)
    print(json.dumps(record, indent=2))


def measure(models: Path, rounds: int) -> dict[str, Any]:
    """Runs all in turn on the CPU, and returns what is written."""
    device, known = "cpu", CPU
    workers: dict[str, runners.Runner] = {}
    for name, (kind, precision, file) in known.items():
        workers[name] = runners.start("benchmarks.decoders", kind, precision, str(models / file), device)
        runners.ask(workers[name], {"batch": 1, "runs": 1})  # one after the other: starting takes all cores
        print(f"{name} is ready", file=sys.stderr)
    record: dict[str, Any] = {
        "device": runners.device_name(device),
        "cores": os.cpu_count(),
        "versions": runners.versions(PACKAGES),
    }
    for batch in BATCHES:
        record[f"batch_{batch}"] = {}
        expected = None
        for name, (_, precision, _) in known.items():
            image = np.array(runners.ask(workers[name], {"batch": batch, "runs": 5})["pixels"])
            expected = image if expected is None else expected
            difference = float(np.abs(image - expected).max())
            if difference > ALLOWED[precision]:
                raise SystemExit(f"{name} differs from {OURS} by {difference}: these are not the same decoder")
        seconds: dict[str, list[float]] = {name: [] for name in known}
        for number in range(rounds):
            print(f"batch {batch}, round {number + 1} of {rounds}", file=sys.stderr)
            for name in known:
                time.sleep(0.25)  # threads of the one before stop spinning
                found = runners.ask(workers[name], {"batch": batch, "runs": 30 if batch == 1 else 6})["seconds"]
                seconds[name].append(statistics.median(found))
        for name, found in seconds.items():
            ratios = [one / ours for one, ours in zip(found, seconds[OURS], strict=True)]
            record[f"batch_{batch}"][name] = {
                "median_ms": 1e3 * statistics.median(found),
                "times_ours": statistics.median(ratios),
                "quartiles": statistics.quantiles(ratios, n=4)[::2],
            }
    record["peak_memory_mib"] = {name: runners.end(worker)["peak_mib"] for name, worker in workers.items()}
    record["first_image_s"] = first_image(models / "ours.onnx")
    record["bytes"] = {name: _size(models / file) for name, (_, _, file) in known.items()}
    return record


def first_image(path: Path, starts: int = 11) -> float:
    """Seconds, the median, from the start of Python to the first image by `keras_vae.export.runtime`."""
    script = (
        "import sys; from keras_vae.export.runtime import Decoder; "
        "decoder = Decoder(sys.argv[1]); decoder.decode([[0.0] * decoder.latent_dim])"
    )
    seconds = []
    for _ in range(starts):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _size(path: Path) -> int:
    if path.suffix == ".xml":
        return path.stat().st_size + path.with_suffix(".bin").stat().st_size
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


if __name__ == "__main__":
    main()
