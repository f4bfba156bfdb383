"""All that is measured on a GPU, one part after the other, in under an hour: `make bench-gpu`.

    python -m benchmarks.bench_gpu --faces FOLDER --peer-python PYTHON
    python -m benchmarks.bench_gpu --device cpu --faces FOLDER --out rehearsal    # the same, small, on a CPU

Parts are the decoder (some 5 minutes), numerics (5), the real run (14) and the training step (20); a part that fails
does not stop the next. Run again, it goes on where it was left. The last thing it writes is the page gpu.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import gpu, gpu_table
from keras_vae.cli import doctor, gpu_cards

# The arguments of a rehearsal on a CPU.
SMALL = {
    "decoding": ["--alone", "--batches", "1", "4", "--rounds", "2"],
    "numerics": ["--steps", "20", "--size", "32", "--batch", "16", "--objectives", "plain"],
    "real_run": ["--sizes", "32", "--minutes", "0.05", "--batch", "16", "--pipeline-seconds", "1", "--preset", "plain"],
    "sweep": ["--objectives", "plain", "--sizes", "32", "--batches", "4", "--rounds", "2", "--seconds", "0.2"],
}
FULL = {"decoding": [], "numerics": ["--objectives", "plain", "vae-123", "vae-345"], "real_run": ["--minutes", "10"]}
WITH_PEER = ("decoding", "sweep")
WITH_DATA = ("numerics", "real_run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--faces", type=Path, metavar="FOLDER", help="images to train on; avatars, drawn at first use")
    parser.add_argument("--parts", nargs="+", choices=SMALL, default=list(SMALL))
    parser.add_argument("--full", action="store_true", help="all cells of the training step, and longer runs: hours")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python of PyTorch's environment")
    parser.add_argument("--out", type=Path, default=gpu.RESULTS)
    options = parser.parse_args()
    raise SystemExit(run(options))


def run(options: argparse.Namespace) -> int:
    """Runs the parts. Exit status: 0 done, 2 no GPU or bad input, 1 something failed."""
    if options.faces is not None and not options.faces.exists():
        return _refuse(f"no folder of images at {options.faces}: give one with FACES=FOLDER", 2)
    if options.device == "cuda":
        gpu_cards.require()
        # One card, numbered alike by CUDA and NVML.
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
        problems = doctor.examine()["problems"]
        if problems:
            return _refuse(f"this environment does not use the GPU: {'; '.join(problems)}", 1)
    failed = []
    for part in options.parts:
        print(f"== {part}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{part}", *arguments(part, options)]).returncode:
            failed.append(part)
        # After each: what is measured is shown, should the next end the run.
        page = gpu_table.write(options.out, options.device) if options.out.is_dir() else None
    if page is not None:
        print(f"results in {page}")
    return _refuse(f"failed: {', '.join(failed)}", 1) if failed else 0


def arguments(part: str, options: argparse.Namespace) -> list[str]:
    """The command line of a part."""
    given = ["--device", options.device, "--out", str(options.out)]
    if part in WITH_PEER:
        given += ["--peer-python", options.peer_python]
    if part in WITH_DATA and options.faces is not None:
        given += ["--data", str(options.faces)]
    if options.fresh:
        given.append("--fresh")
    if options.device == "cpu":
        return given + SMALL[part]
    if options.full:
        return given + FULL.get(part, ["--full"])
    return given


def _refuse(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
