"""What a preset costs by the size of its images: training, memory, and its decoder in onnxruntime.

    python -m benchmarks.sizes

runs `keras-vae train` and `keras-vae export --format onnx` for each preset and size, times the decoder's ONNX file in
rounds, all files in turn, and writes benchmarks/results/sizes.json and sizes.md. Peak memory is that of the training
process, TensorFlow included.
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
import onnxruntime

from benchmarks import runners
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
FACES = Path(__file__).resolve().parents[2] / "shared" / "faces" / "images"
PACKAGES = ("keras-vae", "keras", "tensorflow", "onnxruntime-gpu")
PRESETS = ("dfc-paper", "photo")
SIZES = (64, 128, 256)
BATCHES = (1, 16)
ROUNDS = 7
COMMAND = (sys.executable, "-m", "keras_vae.cli")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=str(FACES), help="as keras-vae train takes it")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training for each")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for sizes.json and .md")
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "device": runners.machine(),
        "versions": runners.versions(PACKAGES),
        "minutes": arguments.minutes,
        "cases": [],
    }
    sessions = []
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            for preset in PRESETS:
                run = Path(folder) / f"{preset}_{size}"
                record["cases"].append({"preset": preset, "size": size, **trained(preset, size, run, arguments)})
                print(json.dumps(record["cases"][-1]), flush=True)
                decoder = run / "export" / "decoder.onnx"
                sessions.append(onnxruntime.InferenceSession(decoder, providers=["CPUExecutionProvider"]))
        for case, milliseconds in zip(record["cases"], timed(sessions), strict=True):
            case["decoder_ms"] = milliseconds
    write_json(arguments.out / "sizes.json", record)
    (arguments.out / "sizes.md").write_text(table(record))
    print(table(record))


def trained(preset: str, size: int, run: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains and exports; speed and peak memory of training, parameters and megabytes of the decoder."""
    options = ["--preset", preset, "--data", arguments.data, "--image-size", str(size), "--out", str(run)]
    options += ["--minutes", str(arguments.minutes), "--prior", "standard", "--perceptual", "hed-vgg16", "--json"]
    with subprocess.Popen([*COMMAND, "train", *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        figures = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"keras-vae train {' '.join(options)} failed")
    subprocess.run([*COMMAND, "export", str(run), "--format", "onnx"], check=True)
    config = json.loads((run / "config.json").read_text())
    return {
        "batch_size": config["batch_size"],
        "precision": figures["precision"],
        "images_per_second": figures["images_per_second"],
        "peak_mib": usage.ru_maxrss / 1024,
        "decoder_mb": (run / "export" / "decoder.onnx").stat().st_size / 1e6,
    }


def timed(sessions: list[onnxruntime.InferenceSession]) -> list[dict[str, float]]:
    """Milliseconds of each decoder for batches of `BATCHES`: medians of rounds in which all take their turn."""
    found: list[dict[str, list[float]]] = [{str(batch): [] for batch in BATCHES} for _ in sessions]
    rng = np.random.default_rng(0)
    for number in range(ROUNDS + 1):
        for session, times in zip(sessions, found, strict=True):
            (entry,) = session.get_inputs()
            for batch in BATCHES:
                z = rng.standard_normal((batch, entry.shape[1]), np.float32)
                start = time.perf_counter()
                session.run(None, {entry.name: z})
                if number:  # the first round warms up
                    times[str(batch)].append(1e3 * (time.perf_counter() - start))
    return [{batch: statistics.median(values) for batch, values in times.items()} for times in found]


def table(record: dict[str, Any]) -> str:
    """The figures as Markdown."""
    heads = ["preset", "size", "batch", "training, images/s", "peak memory, MiB"]
    heads += [*(f"decoder, batch of {batch}, ms" for batch in BATCHES), "decoder, MB"]
    lines = [f"{record['device']}; versions in sizes.json.", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for case in record["cases"]:
        cells = [f"`{case['preset']}`", f"{case['size']}", f"{case['batch_size']}"]
        cells += [f"{case['images_per_second']:.0f}", f"{case['peak_mib']:,.0f}"]
        cells += [*(f"{case['decoder_ms'][str(batch)]:.2f}" for batch in BATCHES), f"{case['decoder_mb']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
