"""A real run on the device: `keras-vae train` on a folder of images as a user runs it, and how busy the card is.

With validation, pictures and checkpoints. How busy the card is comes from NVML, five times a second, from the end of
the first epoch, in which images are decoded and steps compiled, to the end of the last. `benchmarks.bench_gpu` starts
the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import gpu, runners

COMMAND = (sys.executable, "-m", "keras_vae.cli", "train")


def trained(case: dict[str, Any]) -> dict[str, Any]:
    """Figures of `keras-vae train`.

    Raises:
        RunnerError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        options = ["--data", case["data"], "--out", str(run), "--image-size", str(case["size"])]
        options += ["--batch-size", str(case["batch"]), "--minutes", str(case["minutes"]), "--preset", case["preset"]]
        options += ["--prior", "standard"]  # the learned one is fitted after the last epoch
        options += ["--perceptual", "none" if case["preset"] in ("plain", "gaussian-calibrated") else "hed-vgg16"]
        card = _watched([*COMMAND, *options], run / "metrics.jsonl")
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        precision = json.loads((run / "config.json").read_text())["precision"]
    return {
        "images_per_second": last["images_per_second"],
        "steps": last["step"],
        "epochs": last["epoch"],
        "card": card,
        "precision": precision,
    }


def _watched(command: list[str], metrics: Path) -> dict[str, Any]:
    """Runs training, and returns how busy the card was from the end of its first epoch to that of its last."""
    ends: list[float] = []
    known = 0
    with gpu.Busy() as busy, tempfile.TemporaryFile("w+", errors="replace") as log:
        start = time.monotonic()
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ) as process:
            while process.poll() is None:
                size = metrics.stat().st_size if metrics.is_file() else 0
                if size > known:
                    known = size
                    ends.append(time.monotonic() - start)
                time.sleep(0.2)
        if process.returncode:
            log.seek(0)
            said = log.read().strip().splitlines() or ["it said nothing"]
            raise runners.RunnerError(f"training ended with status {process.returncode}: {said[-1][:400]}")
    return {**busy.summary(ends[0], ends[-1]), "seconds": ends[-1] - ends[0]} if ends else busy.summary()


if __name__ == "__main__":
    runners.serve(lambda: lambda request: trained(json.loads(sys.argv[2])))
