"""A real run on the device: minutes of `keras-vae train` on a folder of images, `evaluate`, and how busy the card is.

    python -m benchmarks.real_run --data FOLDER      # five minutes each at 64 and at 128 pixels, on a GPU
    python -m benchmarks.real_run --device cpu --data FOLDER --sizes 32 --minutes 0.1 --batch 16 --pipeline-seconds 1

First, how busy the input pipeline alone keeps the card: `fit` on the images, after the epoch in which they are decoded.
Then the command as a user runs it, with validation, pictures and checkpoints. How busy the card is comes from NVML,
five times a second, from the end of the first epoch to the end of the last.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gpu, runners
from benchmarks.train_step import LATENTS

OBJECTIVES = ("plain", "vae-123")
PICTURES = ("reconstructions.png", "samples.png")
COMMAND = (sys.executable, "-m", "keras_vae.cli")
SECONDS = 1800.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data", default="avatars", help="what keras-vae train --data takes")
    parser.add_argument("--sizes", nargs="+", type=int, default=(64, 128), help="pixels a side")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training at each size")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--preset", default="default", help="of keras-vae train")
    parser.add_argument("--pipeline-seconds", type=float, default=20.0, help="of fit for each objective and size")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=gpu.RESULTS)
    parser.add_argument("--work", help=argparse.SUPPRESS)  # the case: a process that fits
    options = parser.parse_args()
    if options.work:
        case = json.loads(options.work)
        runners.serve(lambda: pipeline(case))
        return
    results = gpu.Results(gpu.path_of("run", options.device, options.out), gpu.machine(options.device), options.fresh)
    common = {"data": gpu.source_name(options.data), "batch": options.batch}
    keys = [
        {"part": "pipeline", **common, "size": size, "objective": objective, "seconds": options.pipeline_seconds}
        for size in options.sizes
        for objective in OBJECTIVES
    ]
    keys += [
        {"part": "run", **common, "size": size, "preset": options.preset, "minutes": options.minutes}
        for size in options.sizes
    ]
    failed = 0
    for key in keys:
        name = ", ".join(map(str, key.values()))
        if results.find(key) is not None:
            print(f"{name}: measured before", file=sys.stderr)
            continue
        print(name, file=sys.stderr)
        try:
            found = fitted(key, options) if key["part"] == "pipeline" else trained(key, options)
        except runners.RunnerError as error:
            results.fail(key, error)
            failed += 1
            print(f"{name}: failed: {error}", file=sys.stderr)
        else:
            results.add(key, **found)
            print(f"{name}: {found['images_per_second']:.0f} images/s", file=sys.stderr)
    raise SystemExit(1 if failed == len(keys) else 0)


# The input pipeline -----------------------------------------------------------------------------


def fitted(key: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Images/s of `fit` and how busy it keeps the card, in a process of its own.

    Raises:
        RunnerError: it failed.
    """
    case = {**key, "data": options.data, "device": options.device}
    worker = runners.start("benchmarks.real_run", json.dumps(case), TF_FORCE_GPU_ALLOW_GROWTH="true")
    try:
        found = runners.ask(worker, {"fit": True}, SECONDS)
    finally:
        runners.stop(worker)
    del found["peak_mib"]
    return found


def pipeline(case: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The process that fits."""
    import keras
    import tensorflow as tf

    from keras_vae import OBJECTIVES as KNOWN
    from keras_vae import VAE, data
    from keras_vae.support import precision

    if case["device"] == "cuda" and not tf.config.list_physical_devices("GPU"):
        raise SystemExit("TensorFlow sees no GPU: keras-vae doctor says why")
    images = data.load(case["data"], case["size"], case["batch"], seed=0)
    objective = dict(KNOWN[case["objective"]])
    if case["objective"] != "plain":
        objective["perceptual"] = "hed-vgg16"
    policy, _ = precision.choose()
    vae = VAE((case["size"], case["size"], 3), latent_dim=LATENTS, seed=0, dtype=policy, **objective)
    vae.compile(keras.optimizers.Adam(5e-4))

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        vae.fit(images.train, epochs=1, verbose=0)  # decodes, and compiles
        epochs = 0
        start = time.perf_counter()
        with gpu.Busy() as busy:
            while not epochs or time.perf_counter() - start < case["seconds"]:
                vae.fit(images.train, epochs=1, verbose=0)
                epochs += 1
            seconds = time.perf_counter() - start
        count = epochs * (images.train_size // case["batch"]) * case["batch"]
        return {
            "images_per_second": count / seconds,
            "card": busy.summary(),
            "precision": policy,
            "xla": bool(vae.jit_compile),
            "images": images.train_size,
            "epochs": epochs,
        }

    return answer


# The command ------------------------------------------------------------------------------------


def trained(key: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Figures of `keras-vae train` and `evaluate`; their pictures go beside the results.

    Raises:
        RunnerError: a command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        training = ["train", "--data", options.data, "--out", str(run), "--image-size", str(key["size"])]
        training += ["--batch-size", str(key["batch"]), "--minutes", str(key["minutes"]), "--preset", key["preset"]]
        training += ["--perceptual", "none" if key["preset"] in ("plain", "gaussian-calibrated") else "hed-vgg16"]
        card = _watched([*COMMAND, *training], run / "metrics.jsonl")
        figures = json.loads(_done([*COMMAND, "evaluate", str(run), "--json"]))
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        options.out.mkdir(parents=True, exist_ok=True)
        for name in PICTURES:
            shutil.copyfile(
                run / "samples" / name, options.out / f"{gpu.path_of('run', options.device).stem}_{key['size']}_{name}"
            )
        precision = json.loads((run / "config.json").read_text())["precision"]
    return {
        "images_per_second": last["images_per_second"],
        "steps": last["step"],
        "epochs": last["epoch"],
        "card": card,
        "precision": precision,
        # Numbers alone: the rest is where things lie on this machine.
        "evaluation": {name: value for name, value in figures.items() if isinstance(value, (int, float))},
    }


def _watched(command: list[str], metrics: Path) -> dict[str, Any]:
    """Runs training, and returns how busy the card was from the end of its first epoch to that of its last."""
    ends: list[float] = []
    known = 0
    with gpu.Busy() as busy, tempfile.TemporaryFile("w+", errors="replace") as log:
        start = time.monotonic()
        environment = {**os.environ, "TF_FORCE_GPU_ALLOW_GROWTH": "true", "TF_CPP_MIN_LOG_LEVEL": "3"}
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as process:
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
    return busy.summary(ends[0], ends[-1]) if ends else busy.summary()


def _done(command: list[str]) -> str:
    ended = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    )
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or ["it said nothing"]
        raise runners.RunnerError(f"evaluate ended with status {ended.returncode}: {said[-1][:400]}")
    return ended.stdout


if __name__ == "__main__":
    main()
