"""Whether long training holds its memory, its file handles and its speed.

    python -m benchmarks.soak --minutes 30    # benchmarks/results/soak.json and soak.png

Runs `keras-vae train` in a process of its own, with checkpoints, pictures and validation, and looks at it from outside
every five seconds. Slopes are least squares over what follows the first fifth, with their standard errors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import psutil

from benchmarks import runners
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
SECONDS = 5
WARM = 0.2  # of the time, whose memory and speed do not count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--data", default="avatars")
    parser.add_argument("--keep", type=Path, help="the run folder, to be kept; a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.keep or Path(folder) / "run"
        training = ["--data", options.data, "--minutes", str(options.minutes), "--out", str(run), *more]
        samples = _watch([sys.executable, "-c", "from keras_vae.cli import main; main()", "train", *training])
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        batch = json.loads((run / "config.json").read_text())["batch_size"]
    speed = _speed(epochs, batch)
    result: dict[str, Any] = {
        "device": runners.device_name("cpu"),
        "cores": os.cpu_count(),
        "versions": runners.versions(("keras-vae", "keras", "tensorflow")),
        "arguments": more,
        "minutes": options.minutes,
        "steps": epochs[-1]["step"],
        "epochs": len(epochs),
        "memory_mib": _trend(samples, "mib"),
        "file_handles": _trend(samples, "handles"),
        "threads": _trend(samples, "threads"),
        "images_per_second": _trend(speed, "images_per_second"),
        "samples": samples,
        "speed": speed,
    }
    write_json(options.out / "soak.json", result, indent=1)
    _plot(samples, speed, result, options.out / "soak.png")
    for name in ("memory_mib", "file_handles", "threads", "images_per_second"):
        trend = result[name]
        print(
            f"{name}: median {trend['median']:.4g}, slope {trend['per_hour']:.3g} an hour "
            f"(standard error {trend['standard_error']:.2g})"
        )


def _watch(command: list[str]) -> list[dict[str, float]]:
    with subprocess.Popen(command) as process:
        watched = psutil.Process(process.pid)
        start = time.monotonic()
        samples = []
        while process.poll() is None:
            try:
                mib = watched.memory_info().rss / 2**20
                samples.append(
                    {
                        "seconds": round(time.monotonic() - start, 1),
                        "mib": round(mib, 1),
                        "handles": watched.num_fds(),
                        "threads": watched.num_threads(),
                    }
                )
            except psutil.NoSuchProcess:
                break
            time.sleep(SECONDS)
    if process.returncode:
        raise SystemExit(f"training ended with {process.returncode}")
    # The last are of the end: pictures, the model's file.
    return samples[:-2]


def _speed(epochs: list[dict[str, float]], batch: int) -> list[dict[str, float]]:
    """Images a second of each epoch, of means since the start."""
    taken = [batch * each["step"] / each["images_per_second"] for each in epochs]
    pairs = zip(epochs, epochs[1:], taken, taken[1:], strict=False)
    return [
        {
            "seconds": other["seconds"],
            "images_per_second": round(batch * (other["step"] - one["step"]) / (after - before), 1),
        }
        for one, other, before, after in pairs
        if after > before
    ]


def _trend(samples: list[dict[str, float]], name: str) -> dict[str, float]:
    counted = [each for each in samples if each["seconds"] >= WARM * samples[-1]["seconds"]]
    hours = np.array([each["seconds"] for each in counted]) / 3600
    values = np.array([each[name] for each in counted])
    (slope, _), covariance = np.polyfit(hours, values, 1, cov=True)
    return {
        "median": round(float(np.median(values)), 1),
        "least": float(values.min()),
        "most": float(values.max()),
        "per_hour": round(float(slope), 2),
        "standard_error": round(float(np.sqrt(covariance[0, 0])), 2),
    }


def _plot(samples: list[dict[str, float]], speed: list[dict[str, float]], result: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    minutes = [each["seconds"] / 60 for each in samples]
    axes[0].plot(minutes, [each["mib"] for each in samples])
    axes[0].set(ylabel="resident memory, MiB", ylim=(0, None))
    axes[1].plot(minutes, [each["handles"] for each in samples], label="file handles")
    axes[1].plot(minutes, [each["threads"] for each in samples], label="threads")
    axes[1].set(ylim=(0, None))
    axes[1].legend()
    axes[2].plot([each["seconds"] / 60 for each in speed], [each["images_per_second"] for each in speed])
    axes[2].set(ylabel="images/s in the steps", ylim=(0, None))
    for each in axes:
        each.set(xlabel="minutes")
    figure.suptitle(f"{result['steps']} steps of training on {result['device']}, {result['cores']} cores")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
