"""A training step on a GPU, cell by cell: images/s, peak memory, the share of the card's peak; beside PyTorch.

    python -m benchmarks.sweep                 # the most telling cells first, for 20 minutes
    python -m benchmarks.sweep --full          # every objective, size, precision and batch, by every runner: hours
    python -m benchmarks.sweep --device cpu --objectives plain --sizes 32 --batches 4 --precisions float32 --seconds 0.2

Each cell has a process of its own, alone on the card. A cell that fails, or needs more memory than there is, is kept
with its message, and the next one is measured. Run again, it goes on: what the same card, driver and versions have
measured is not measured again but with --fresh. Before anything is timed, each runner computes the terms of the loss
from the same weights, and they are compared with ours in float32 on the CPU.

Batches are float32 images in the host's memory: ours come from a tf.data pipeline, PyTorch's from pinned memory. The
share of the peak is of the multiplications and additions of convolutions and matrix products, forward and back: for
ours those of its own graph, which has fewer (benchmarks/NOTES.md, the low resolution), for PyTorch those of the network
as it is written. float32 is TF32 where the card has it, in both.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import gpu, runners
from benchmarks.train_step import OBJECTIVES, PRECISIONS

# By name: the kind of runner `benchmarks.train_step` has.
RUNNERS = {
    "ours, XLA": "ours with XLA",
    "ours": "ours without XLA",
    "PyTorch, compiled": "compiled",
    "PyTorch, compiled, CUDA graphs": "compiled, graphs",
    "PyTorch, eager": "eager",
}
USUAL_RUNNERS = ("ours, XLA", "ours", "PyTorch, compiled")
SIZES = (64, 128, 256)
BATCHES = (64, 256, 1024)
MINUTES = 20.0
SECONDS_A_CELL = 420.0  # for compiling, above all
STEPS_TOGETHER = 5
# Largest relative difference of a term of the loss from ours in float32 on the CPU. TF32 rounds to 10 bits.
TOLERANCE = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.05}
KEY = ("objective", "size", "precision", "batch", "runner")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--full", action="store_true", help="all cells and runners, without a time limit")
    parser.add_argument("--minutes", type=float, help=f"no cell is begun after so many; {MINUTES:g}, with --full none")
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--sizes", nargs="+", type=int, help="pixels a side")
    parser.add_argument("--batches", nargs="+", type=int, help="images a batch")
    parser.add_argument("--runners", nargs="+", choices=RUNNERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of steps, a round")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python of PyTorch's environment")
    parser.add_argument("--out", type=Path, default=gpu.RESULTS)
    options = parser.parse_args()
    results = gpu.Results(
        gpu.path_of("train_step", options.device, options.out),
        gpu.machine(options.device, options.peer_python),
        options.fresh,
    )
    minutes = options.minutes or (math.inf if options.full else MINUTES)
    with tempfile.TemporaryDirectory() as folder:
        failed = sweep(plan(options), options, results, Path(folder), time.monotonic() + 60 * minutes)
    raise SystemExit(1 if failed else 0)


def plan(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The cells to measure, the most telling first; all combinations of what is given."""
    cases: list[Any]
    wanted = options.runners or (list(RUNNERS) if options.full else USUAL_RUNNERS)
    given: tuple[Any, ...] = (options.objectives, options.sizes, options.precisions, options.batches)
    if options.full or any(given):
        standard: tuple[Any, ...] = (OBJECTIVES, SIZES, PRECISIONS, BATCHES)
        cases = [tuple(case) for case in itertools.product(*(a or b for a, b in zip(given, standard, strict=True)))]
    else:
        mixed = ("bfloat16", "float32", "float16")
        cases = [(objective, 64, precision, 256) for precision in mixed for objective in OBJECTIVES]
        cases += [
            (objective, size, "bfloat16", batch) for size, batch in ((128, 256), (256, 64)) for objective in OBJECTIVES
        ]
        cases += [(objective, 64, "bfloat16", batch) for batch in (64, 1024) for objective in ("plain", "vae-123")]
        cases += [
            (objective, size, precision, batch)
            for size, batch in ((128, 256), (256, 64))
            for precision in ("float32", "float16")
            for objective in OBJECTIVES
        ]
    return [dict(zip(KEY, (*case, runner), strict=True)) for case in cases for runner in wanted]


def sweep(
    keys: list[dict[str, Any]], options: argparse.Namespace, results: gpu.Results, folder: Path, deadline: float
) -> bool:
    """Measures cells until the deadline, and returns whether all of them failed."""
    references: dict[tuple[str, int], dict[str, Any] | runners.RunnerError] = {}
    batches = sorted({key["batch"] for key in keys})
    known = [key for key in keys if results.find(key) is not None]
    for number, key in enumerate(keys, 1):
        name = f"{number} of {len(keys)}: {', '.join(map(str, key.values()))}"
        if key in known:
            print(f"{name}: measured before", file=sys.stderr)
            continue
        if time.monotonic() > deadline:
            break
        try:
            at = (key["objective"], key["size"])
            if at not in references:
                references[at] = _tried(key, batches, folder / f"{at[0]}-{at[1]}")
            against = references[at]
            if isinstance(against, runners.RunnerError):
                raise against
            found = measure(key, against, options, results.run["machine"]["device"])
        except runners.RunnerError as error:
            results.fail(key, error)
            print(f"{name}: failed: {error}", file=sys.stderr)
        else:
            results.add(key, **found)
            print(f"{name}: {found['images_per_second']:.0f} images/s", file=sys.stderr)
    left = sum(results.find(key) is None for key in keys)
    results.run["left"] = [key for key in keys if not any(cell["key"] == key for cell in results.run["cells"])]
    results.write()
    if results.run["left"]:
        print(f"{len(results.run['left'])} cells are left: run it again to go on", file=sys.stderr)
    return left == len(keys)


def _tried(key: dict[str, Any], batches: list[int], folder: Path) -> dict[str, Any] | runners.RunnerError:
    """The reference, or why there is none: it is not tried again for each cell."""
    try:
        return reference(key, batches, folder)
    except runners.RunnerError as error:
        return error


def reference(key: dict[str, Any], batches: list[int], folder: Path) -> dict[str, Any]:
    """The terms of the loss in float32 on the CPU and, in `folder`, the weights they were computed with.

    Also `gflop` by batch, of "ours" and of the network "as written".
    """
    folder.mkdir(exist_ok=True)
    case = {**key, "precision": "float32", "batch": 16, "width": 32, "device": "cpu", "folder": str(folder)}
    # Without a GPU, where TensorFlow would round to TF32.
    worker = runners.start("benchmarks.train_step", "ours", json.dumps(case), CUDA_VISIBLE_DEVICES="-1")
    try:
        terms = runners.ask(worker, {"terms": True}, SECONDS_A_CELL)
        gflop = runners.ask(worker, {"gflop": batches}, SECONDS_A_CELL)["gflop"]
    finally:
        runners.stop(worker)
    del terms["peak_mib"]
    by_batch = {network: dict(zip(batches, counted, strict=True)) for network, counted in gflop.items()}
    return {"terms": terms, "gflop": by_batch, "folder": str(folder)}


def measure(key: dict[str, Any], reference: dict[str, Any], options: argparse.Namespace, card: str) -> dict[str, Any]:
    """One cell, by a runner in a process of its own.

    Raises:
        RunnerError: it failed, was too slow, or computes something else.
    """
    kind, batch = RUNNERS[key["runner"]], key["batch"]
    peer = not kind.startswith("ours")
    case = {**key, "width": 32, "device": options.device, "folder": reference["folder"]}
    # TensorFlow takes the whole card otherwise, and what a step needs could not be told.
    worker = runners.start(
        "benchmarks.train_step",
        kind,
        json.dumps(case),
        python=options.peer_python if peer else sys.executable,
        TF_FORCE_GPU_ALLOW_GROWTH="true",
    )
    try:
        terms = runners.ask(worker, {"terms": True, "given": True}, SECONDS_A_CELL)
        differences = {name: abs(terms[name] / value - 1.0) for name, value in reference["terms"].items()}
        worst = max(differences, key=lambda name: differences[name])
        if not differences[worst] <= TOLERANCE[key["precision"]]:
            raise runners.RunnerError(
                f"its {worst} is {terms[worst]}, ours in float32 {reference['terms'][worst]}: this is not the same work"
            )
        start = time.perf_counter()
        request = {"seconds": options.seconds, "together": STEPS_TOGETHER}
        runners.ask(worker, {"seconds": 0.0}, SECONDS_A_CELL)  # compiles
        compiled = time.perf_counter() - start
        # A median a round: the rounds' spread is what the card's clock does over seconds.
        medians = [
            statistics.median(runners.ask(worker, request, SECONDS_A_CELL)["steps"]) for _ in range(options.rounds)
        ]
        memory = runners.ask(worker, {"memory": True}, SECONDS_A_CELL)
    finally:
        runners.stop(worker)
    seconds = statistics.median(medians)
    gflop = reference["gflop"]["as written" if peer else "ours"][batch]
    peak = gpu.peak(card, key["precision"])
    return {
        "median_ms": 1e3 * seconds,
        "quartiles_ms": [1e3 * each for each in gpu.spread(medians)],
        "images_per_second": batch / seconds,
        "peak_mib": memory["device_mib"] or memory["peak_mib"],
        "gflop": gflop,
        "tflops": gflop / seconds / 1e3,
        "share_of_peak": None if peak is None else gflop / seconds / 1e3 / peak,
        "first_steps_s": compiled,
        "largest_difference": differences[worst],
    }


if __name__ == "__main__":
    main()
