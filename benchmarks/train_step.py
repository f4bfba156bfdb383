"""How fast a training step is: ours beside the same networks in PyTorch, and how its cost grows.

    python -m benchmarks.train_step            # beside PyTorch: train_step.json and train_step.md
    python -m benchmarks.train_step --growth   # ours by batch, image, width and data: train_step_growth.json and .png
    python -m benchmarks.train_step --changes  # ours without each of its changes: train_step_changes.json and .md
    python -m benchmarks.train_step --device cuda --growth       # on a GPU; also --changes
    python -m benchmarks.bench_gpu                               # on a GPU, beside PyTorch

Each runner has a process of its own (`benchmarks.steps`), and in each of several rounds all take their steps in turn.
Before anything is timed, both compute the same terms of the loss from the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import runners
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras-vae", "keras", "tensorflow", "torch", "numpy")
OURS = "ours"
# PyTorch's own advice on CPUs: memory that is freed is kept, rather than handed back and asked for again each step. It
# is not what `pip install torch` gives, and gives TensorFlow, which keeps memory by itself, nothing.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    OURS: ("ours", {}),
    "PyTorch, eager": ("eager", {}),
    "PyTorch, compiled": ("compiled", {}),
    "PyTorch, compiled, malloc set to keep memory": ("compiled", KEEP_MEMORY),
}
CHANGES = (
    "the low resolution",
    "fused normalization",
    "matrix products",
    "one pass over features",
    "all of these",
)
# The reach is measured against PyTorch as it is installed.
PEERS = ("PyTorch, eager", "PyTorch, compiled")
OBJECTIVES = ("plain", "vae-123", "vae-345")
PRECISIONS = ("float32", "bfloat16", "float16")
SECONDS_A_TURN = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="bfloat16 and float32")
    parser.add_argument("--sizes", nargs="+", type=int, help="64 and 128")
    parser.add_argument("--batches", nargs="+", type=int, help="images a batch: 64, on a GPU 256")
    parser.add_argument("--changes", action="store_true", help="measure ours without each of its changes instead")
    parser.add_argument("--growth", action="store_true", help="measure how cost grows instead")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: give at least 2, for a spread")
    if arguments.device == "cuda" and not (arguments.growth or arguments.changes):
        parser.error("--device cuda: beside PyTorch, GPUs are measured by python -m benchmarks.bench_gpu")
    arguments.out.mkdir(parents=True, exist_ok=True)
    device = arguments.device
    suffix = "" if device == "cpu" else "_cuda"
    record = {
        "device": runners.device_name(device),
        "cores": os.cpu_count(),
        "versions": runners.versions(PACKAGES),
        "rounds": arguments.rounds,
    }
    if arguments.growth:
        record |= growth(device)
        _write(arguments.out / f"train_step_growth{suffix}.json", record)
        draw(record, arguments.out / f"train_step_growth{suffix}.png")
        return
    kinds = KINDS
    name, heading = f"train_step{suffix}", table
    if arguments.changes:
        kinds = {OURS: ("ours", {}), **{f"without {change}": (f"ours without {change}", {}) for change in CHANGES}}
        name, heading = f"train_step_changes{suffix}", table_of_changes
    record["cases"] = []
    for case in cases(arguments):
        record["cases"].append(measure({**case, "device": device}, kinds, arguments.rounds))
        # After each: a run that is cut short leaves what it measured.
        _write(arguments.out / f"{name}.json", record)
        (arguments.out / f"{name}.md").write_text(heading(record))
    print(heading(record))


def cases(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What is asked for; where batches are not, other sizes of them for two objectives besides."""
    cuda = arguments.device == "cuda"
    usual = 256 if cuda else 64
    found = [
        {"objective": objective, "precision": precision, "size": size, "batch": batch, "width": 32}
        for precision in arguments.precisions or ["bfloat16", "float32"]
        for size in arguments.sizes or [64, 128]
        for objective in arguments.objectives
        for batch in arguments.batches or [usual]
    ]
    if arguments.batches or arguments.changes:
        return found
    scaled = [case for case in found if case["objective"] != "vae-345" and case["precision"] == "bfloat16"]
    return found + [
        {**case, "batch": batch} for case in scaled if case["size"] == 64 for batch in (usual // 4, 4 * usual)
    ]


def _write(path: Path, record: dict[str, Any]) -> None:
    write_json(path, record)


# Beside PyTorch -----------------------------------------------------------------------------------


def measure(case: dict[str, Any], kinds: dict[str, tuple[str, dict[str, str]]], rounds: int) -> dict[str, Any]:
    """Runs ours and the others in turn, and returns the case with what was measured."""
    name = f"{case['objective']} {case['precision']} {case['size']}x{case['size']} batch {case['batch']}"
    print(name, file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        settings = json.dumps({**case, "folder": folder})
        workers: dict[str, runners.Runner] = {}
        for runner, (kind, environment) in kinds.items():
            workers[runner] = runners.start("benchmarks.steps", kind, settings, **environment)
            terms = runners.ask(workers[runner], {"terms": True})
            del terms["peak_mib"]
            if runner == OURS:
                expected = terms
            _compare(runner, terms, expected, 1e-3 if case["precision"] == "float32" else 0.05)
        seconds: dict[str, list[float]] = {runner: [] for runner in workers}
        for number in range(rounds):
            for runner, worker in workers.items():
                time.sleep(0.25)  # threads of the one before stop spinning
                seconds[runner].append(statistics.median(runners.ask(worker, {"seconds": SECONDS_A_TURN})["steps"]))
            print(f"  round {number + 1} of {rounds}", file=sys.stderr)
        memory = {runner: runners.ask(worker, {"peak": True})["peak_mib"] for runner, worker in workers.items()}
        convolutions = runners.ask(workers[OURS], {"convolutions": True})
        del convolutions["peak_mib"]
        for worker in workers.values():
            runners.end(worker)
    found: dict[str, Any] = {**case, "convolutions": convolutions, "runners": {}}
    for runner, times in seconds.items():
        ratios = [one / ours for one, ours in zip(times, seconds[OURS], strict=True)]
        found["runners"][runner] = {
            "median_ms": 1e3 * statistics.median(times),
            "images_per_second": case["batch"] / statistics.median(times),
            "times_ours": statistics.median(ratios),
            "quartiles": statistics.quantiles(ratios, n=4)[::2],
            "peak_mib": memory[runner],
        }
    if all(runner in seconds for runner in PEERS):
        found["best_peer"] = min(PEERS, key=lambda runner: statistics.median(seconds[runner]))
    convolutions["share_of_step"] = convolutions["alone_ms"] / found["runners"][OURS]["median_ms"]
    return found


def _compare(runner: str, terms: dict[str, float], expected: dict[str, float], tolerance: float) -> None:
    for name, value in terms.items():
        if not math.isclose(value, expected[name], rel_tol=tolerance):
            raise SystemExit(f"{runner} has a {name} of {value}, ours is {expected[name]}: this is not the same work")


def table(record: dict[str, Any]) -> str:
    """The cases as a Markdown table."""
    lines = [
        f"{record['device']}, {record['cores']} cores; TensorFlow {record['versions'].get('tensorflow')}, "
        f"PyTorch {record['versions'].get('torch')}. Medians of {record['rounds']} rounds; ratios are medians of the "
        "rounds' own, with their quartiles.",
        "",
        "| objective | size | precision | batch | ours, images/s | PyTorch eager | compiled | compiled, malloc set | "
        "best of the first two to ours | peak MiB, ours / PyTorch eager / compiled | convolutions' share |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in record["cases"]:
        of = case["runners"]
        rates = [f"{of[name]['images_per_second']:.0f}" if name in of else "-" for name in KINDS]
        best = of[case["best_peer"]]
        low, high = best["quartiles"]
        memory = " / ".join(f"{of[name]['peak_mib']:.0f}" for name in (OURS, *PEERS))
        lines.append(
            f"| {case['objective']} | {case['size']} | {case['precision']} | {case['batch']} | {' | '.join(rates)} | "
            f"{best['times_ours']:.2f} ({low:.2f} to {high:.2f}) | {memory} | "
            f"{case['convolutions']['share_of_step']:.0%} at {case['convolutions']['tflops']:.2f} TFLOP/s |"
        )
    return "\n".join([*lines, ""])


def table_of_changes(record: dict[str, Any]) -> str:
    """How many times as long a step takes without each change, as a Markdown table."""
    lines = [f"{record['device']}, {record['cores']} cores. A step's time to ours, quartiles, and peak MiB.", ""]
    cases = record["cases"]
    names = [f"{case['objective']}, {case['precision']}, {case['size']}x{case['size']}" for case in cases]
    lines += [f"| | {' | '.join(names)} |", "|---" * (1 + len(cases)) + "|"]
    for runner in cases[0]["runners"]:
        cells = []
        for case in cases:
            of = case["runners"][runner]
            low, high = of["quartiles"]
            spread = (
                f"{of['median_ms']:.0f} ms" if runner == OURS else f"{of['times_ours']:.2f} ({low:.2f} to {high:.2f})"
            )
            cells.append(f"{spread}, {of['peak_mib']:.0f}")
        lines.append(f"| {runner} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


# How cost grows -------------------------------------------------------------------------------------


GROWTH = {"batch": (16, 64, 128, 256), "size": (32, 64, 96, 128), "width": (16, 32, 64)}
DATA_SIZES = (1024, 2048, 4096)


def growth(device: str) -> dict[str, Any]:
    """Our steps' time and memory by batch, image size and width, and an epoch's time by the data set's size."""
    record: dict[str, Any] = {}
    base = {"precision": "bfloat16", "size": 64, "batch": 64 if device == "cpu" else 256, "width": 32}
    for objective in ("plain", "vae-123"):
        record[objective] = {**base, "by": {}}
        for axis, values in GROWTH.items():
            points = record[objective]["by"][axis] = []
            for value in values:
                case = {**base, axis: value, "objective": objective, "device": device, "folder": ""}
                worker = runners.start("benchmarks.steps", "ours", json.dumps(case))
                runners.ask(worker, {"seconds": 1.0})
                steps = runners.ask(worker, {"seconds": 3 * SECONDS_A_TURN})["steps"]
                points.append(
                    {axis: value, "ms": 1e3 * statistics.median(steps), "peak_mib": runners.end(worker)["peak_mib"]}
                )
                print(objective, points[-1], file=sys.stderr)
    case = {**base, "objective": "plain", "device": device, "folder": ""}
    worker = runners.start("benchmarks.steps", "ours", json.dumps(case))
    runners.ask(worker, {"seconds": 1.0})
    at_hand = statistics.median(runners.ask(worker, {"seconds": 3 * SECONDS_A_TURN})["steps"])
    record["epochs"] = runners.ask(worker, {"epochs": list(DATA_SIZES)})["points"]
    for point in record["epochs"]:
        # The share of an epoch that its steps take with batches at hand: how busy the device is kept.
        point["busy"] = point["images"] // case["batch"] * at_hand / point["seconds"]
    runners.end(worker)
    return record


def draw(record: dict[str, Any], path: Path) -> None:
    """The plot of how cost grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 4, figsize=(13, 5.5), constrained_layout=True)
    for objective, color in (("plain", "tab:blue"), ("vae-123", "tab:red")):
        for column, (axis, points) in enumerate(record[objective]["by"].items()):
            places = [point[axis] for point in points]
            for row, key in ((0, "ms"), (1, "peak_mib")):
                axes[row, column].plot(places, [point[key] for point in points], "o-", color=color, label=objective)
    words = {"batch": "images a batch", "size": "pixels a side", "width": "width of the network"}
    for column, axis in enumerate(GROWTH):
        for row, label in ((0, "step, ms"), (1, "peak memory, MiB")):
            axes[row, column].set(xlabel=words[axis], ylabel=label, ylim=(0, None))
    axes[0, 0].legend()
    points = record["epochs"]
    for row, key, label in ((0, "seconds", "epoch, s"), (1, "images_per_second", "images/s")):
        axes[row, 3].plot(
            [point["images"] for point in points], [point[key] for point in points], "o-", color="tab:blue"
        )
        axes[row, 3].set(xlabel="images in a folder", ylabel=label, ylim=(0, None))
    figure.suptitle(f"A training step in bfloat16 on {record['device']}, {record['cores']} cores")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
