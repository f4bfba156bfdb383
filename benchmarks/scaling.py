"""How training speeds up with workers: `--strategy multi-worker`, one core each, beside one worker on one core.

    python -m benchmarks.scaling --data avatars    # benchmarks/results/scaling.json

Each arrangement trains the same number of steps on the same global batch, in turn, several rounds. Efficiency is the
images a second of n workers, over n times those of one. On a machine with GPUs, `--strategy mirrored` and CUDA's
own visible devices take the cores' place: run `keras-vae train` on one and on all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import runners
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
COMMAND = "from keras_vae.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="avatars")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    arrangements = {
        "one worker, one core": [cores[:1]],
        **{
            f"{count} workers, one core each": [[core] for core in cores[:count]]
            for count in (2, 4, 8)
            if count <= len(cores)
        },
        f"one worker, {len(cores)} cores": [cores],
    }
    objectives = {"plain": ["--perceptual", "none"], "vae-123": ["--preset", "vae-123", "--perceptual", "hed-vgg16"]}
    found: dict[str, Any] = {}
    for objective, settings in objectives.items():
        speeds: dict[str, list[float]] = {name: [] for name in arrangements}
        for number in range(options.rounds):
            for name, workers in arrangements.items():
                arguments = ["--data", options.data, "--steps", str(options.steps), "--network", "dfc", *settings]
                speeds[name].append(_train(workers, arguments))
                print(f"{objective}, round {number + 1}, {name}: {speeds[name][-1]:.0f} images/s", flush=True)
        one = speeds["one worker, one core"]
        found[objective] = {
            name: {
                "images_per_second": round(statistics.median(each), 1),
                "times_one_core": round(statistics.median(a / b for a, b in zip(each, one, strict=True)), 3),
                "efficiency": round(
                    statistics.median(a / b for a, b in zip(each, one, strict=True))
                    / sum(map(len, arrangements[name])),
                    3,
                ),
                "least_and_most": [round(min(each), 1), round(max(each), 1)],
            }
            for name, each in speeds.items()
        }
    result = {
        "device": runners.device_name("cpu"),
        "cores": len(cores),
        "versions": runners.versions(("keras-vae", "keras", "tensorflow")),
        "rounds": options.rounds,
        "batch": 64,
        "objectives": found,
    }
    write_json(options.out / "scaling.json", result, indent=1)
    print(json.dumps(found, indent=1))


def _train(workers: list[list[int]], arguments: list[str]) -> float:
    """Images a second of all the workers together, each on its own cores."""
    sockets = [socket.create_server(("localhost", 0)) for _ in workers]
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", COMMAND, "train", "--json", "--out", f"{folder}/run", *arguments]
        processes = []
        for index, cores in enumerate(workers):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "TF_CONFIG": json.dumps(config) if len(workers) > 1 else ""}
            processes.append(
                subprocess.Popen(
                    ["taskset", "--cpu-list", ",".join(map(str, cores)), *command],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
        answers = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a worker failed: run `keras-vae train` with the same arguments to see why")
    return json.loads(answers[0])["images_per_second"]


if __name__ == "__main__":
    main()
