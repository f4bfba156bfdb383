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
from keras_vae.training import stages

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
        options += ["--network", "dfc"]  # the peers'
        options += ["--prior", "standard"]  # the learned one is fitted after the last epoch
        options += ["--perceptual", "none" if case["preset"] in ("plain", "gaussian-calibrated") else "hed-vgg16"]
        card = _watched([*COMMAND, *options], run / "metrics.jsonl")
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        first, last = lines[0]["seconds_by_stage"], lines[-1]["seconds_by_stage"]
        precision = json.loads((run / "config.json").read_text())["precision"]
    return {
        "images_per_second": lines[-1]["images_per_second"],
        "steps": lines[-1]["step"],
        "epochs": lines[-1]["epoch"],
        # From the command to its first step, which includes compiling: a line is written after an epoch's validation.
        "start_s": card["first_line_s"] - first.get("steps", 0.0) - first.get("validation", 0.0),
        "between_steps": sum(last.get(stage, 0.0) for stage in stages.BETWEEN) / lines[-1]["seconds"],
        "seconds_by_stage": last,
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
    return {**busy.summary(ends[0], ends[-1]), "seconds": ends[-1] - ends[0], "first_line_s": ends[0]}


if __name__ == "__main__":
    runners.serve(lambda: lambda request: trained(json.loads(sys.argv[2])))
