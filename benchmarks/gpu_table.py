"""Turns the GPU benchmarks' results into a page: benchmarks/results/gpu.md, and a picture of losses and loss scales.

python -m benchmarks.gpu_table
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import cells as kinds
from benchmarks import gpu, numerics
from keras_vae.support.files import write_aside

NOTHING = """# On a GPU

Nothing is measured this way yet: no card was at hand. `make bench-gpu FACES=FOLDER` does so in ten minutes on a machine
with an NVIDIA card, and writes this page.
"""
Cell = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=gpu.RESULTS, help="folder of the results")
    options = parser.parse_args()
    print(write(options.out, options.device))


def write(folder: Path, device: str) -> Path:
    """Writes the page of a folder of results, and returns where."""
    path = gpu.path_of(device, folder).with_suffix(".md")
    with write_aside(path) as aside:
        aside.write_text(page(folder, device))
    return path


def page(folder: Path, device: str) -> str:
    """The page, as Markdown; it draws the picture beside it."""
    path = gpu.path_of(device, folder)
    runs = json.loads(path.read_text())["runs"] if path.is_file() else []
    parts: list[str] = []
    for run in runs:
        if not run["cells"]:
            continue
        parts += [f"## {run['machine']['device']}", _machine(run["machine"])]
        for part, section in SECTIONS.items():
            cells = [cell for cell in run["cells"] if cell["key"]["part"] == part and "failed" not in cell]
            if cells:
                parts += [f"### {TITLES[part]}", *section(cells, run)]
        parts += _not_measured(run)
    if not parts:
        return NOTHING
    measured = [cell for cell in runs[-1]["cells"] if cell["key"]["part"] == "numerics" and "failed" not in cell]
    if measured:
        draw(measured, path.with_suffix(".png"))
        parts.append(f"![Losses and loss scales of the last run]({path.with_suffix('.png').name})")
    title = "# On a GPU" if device == "cuda" else "# A rehearsal on a CPU"
    return "\n\n".join([title, "Written by `python -m benchmarks.gpu_table`.", *parts]) + "\n"


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    driver = ""
    if "driver" in machine:
        driver = (
            f"Compute capability {machine['compute_capability']}, {machine['memory_mib']:,} MiB, driver "
            f"{machine['driver']}, which runs CUDA up to {machine['driver_runs_cuda']}. "
        )
    return f"{driver}{machine['cores']} cores. {versions}."


def _table(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _not_measured(run: dict[str, Any]) -> list[str]:
    def words(key: dict[str, Any]) -> str:
        return ", ".join(map(str, key.values()))

    lines = [
        f"- {words(cell['key'])}: {'out of memory: ' if cell['out_of_memory'] else ''}{cell['failed'][:200]}"
        for cell in run["cells"]
        if "failed" in cell
    ]
    left: dict[str, list[str]] = {}
    for key in run.get("left", ()):
        case = {what: value for what, value in key.items() if what != "runner"}
        left.setdefault(words(case), []).extend([key["runner"]] if "runner" in key else [])
    for case_words, names in left.items():
        by = f" ({'; '.join(names)})" if names else ""
        lines.append(f"- {case_words}{by}: not reached in the time given; run it again to go on")
    return ["### Not measured", "\n".join(lines)] if lines else []


def _times(timing: dict[str, Any]) -> str:
    """Ours to a peer: how many times its images/s."""
    if "times_ours" not in timing:
        return ""
    return f"{timing['times_ours']:.2f} ({timing['quartiles'][0]:.2f} to {timing['quartiles'][1]:.2f})"


# The training step ------------------------------------------------------------------------------


def _step(cells: list[Cell], run: dict[str, Any]) -> list[str]:
    rows, notes, beside = [], [], []
    place = {name: number for number, name in enumerate(kinds.STEPS)}
    by_case: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        key = cell["key"]
        by_case.setdefault((key["objective"], key["size"], key["precision"], key["batch"]), []).append(cell)
    for case, found in by_case.items():
        for cell in sorted(found, key=lambda cell: place[cell["key"]["runner"]]):
            key, timing = cell["key"], cell["timings"][str(cell["key"]["batch"])]
            tflops = cell["gflop"] / timing["median_ms"]
            peak = gpu.peak(run["machine"]["device"], key["precision"])
            low, high = timing["quartiles_ms"]
            rows.append(
                [
                    *map(str, (*case, key["runner"])),
                    f"{timing['images_per_second']:.0f}",
                    f"{timing['median_ms']:.3g} ({low:.3g} to {high:.3g})",
                    "" if key["runner"] == "ours, XLA" else _times(timing),
                    f"{cell['peak_mib']:.0f}",
                    "-" if peak is None else f"{tflops / peak:.1%}",
                    f"{cell['first_steps_s']:.0f}",
                ]
            )
            if "note" in cell:
                notes.append(f"{', '.join(map(str, case))}: {cell['note']}.")
        peers = [cell["timings"][str(case[3])].get("times_ours") for cell in found if kinds.package(cell["key"])]
        beside += [min(known) for known in [[ratio for ratio in peers if ratio is not None]] if known]
    heading = ["objective", "size", "precision", "batch", "by", "images/s", "ms, quartiles", "ours, XLA, to it"]
    heading += ["peak MiB", "share of peak", "first steps, s"]
    words = (
        "`ours, XLA, to it`: how many times its images/s ours reaches, median and quartiles of the rounds' own ratios. "
        "Peak MiB: of the device's memory. Share of the card's peak in that precision (`benchmarks/gpu.py`; - where it "
        "is not known): of the multiplications and additions of convolutions and matrix products. float32 is TF32 "
        "where the card has it."
    )
    reached = (
        [f"At least the best peer in {sum(each >= 1 for each in beside)} of {len(beside)} cases."] if beside else []
    )
    return [words, _table(heading, rows), *reached, *notes]


# The decoder ------------------------------------------------------------------------------------


def _decoder(cells: list[Cell], run: dict[str, Any]) -> list[str]:
    batches = list(cells[0]["timings"])
    rows = []
    for cell in cells:
        timings = cell["timings"]
        times = [f"{timings[batch]['median_ms']:.3g}; {_times(timings[batch])}" for batch in batches]
        best = max(each["images_per_second"] for each in timings.values())
        parity = f"{cell['difference_from_keras']:.1e}{'' if cell['parity'] else ', TOO FAR'}"
        rows.append([cell["key"]["runner"], *times, f"{best:.0f}", parity])
    heading = ["runner", *(f"batch of {batch}, ms; times ours" for batch in batches), "images/s at best", "from Keras"]
    words = (
        "The paper's decoder at 64x64. `bound`: latents and images stay on the device; the others come from the host's "
        "memory and back. Times ours: of the first row's milliseconds, median and quartiles of the rounds' ratios. "
        "Last: the largest difference of a pixel from Keras in float32 on the CPU, over 64 latents; what TF32 does to "
        "it is in the rows that name it."
    )
    return [words, _table(heading, rows)]


# Numerics ---------------------------------------------------------------------------------------


def _numerics(cells: list[Cell], run: dict[str, Any]) -> list[str]:
    rows = []
    for cell in cells:
        key = cell["key"]
        full = next((each for each in cells if each["key"] == {**key, "precision": "float32"}), None)
        difference = None if full is None else abs(cell["final_loss"] / full["final_loss"] - 1)
        far = "" if difference is None or difference <= numerics.ALLOWED else ", too far"
        scales = cell["loss_scales"]
        rows.append(
            [
                *(str(key[name]) for name in ("data", "objective", "size", "batch", "steps", "precision")),
                f"{cell['final_loss']:.5g}",
                "" if difference is None else f"{difference:.2%}{far}",
                "none" if cell["finite"] else "SOME",
                f"{scales[0]:g}, {min(scales):g} to {max(scales):g}, {scales[-1]:g}"
                if key["precision"] == "float16"
                else "",
                str(cell["steps_left_out"]),
                "yes" if cell["xla"] else "no",
            ]
        )
    heading = ["data", "objective", "size", "batch", "steps", "precision", "final loss", "from float32", "NaN"]
    return [_table([*heading, "loss scale: first, range, last", "steps left out", "XLA"], rows)]


def draw(cells: list[Cell], path: Path) -> None:
    """Losses by step, an axis for each objective, and float16's loss scale."""
    from matplotlib.figure import Figure

    objectives = list(dict.fromkeys(cell["key"]["objective"] for cell in cells))
    figure = Figure(figsize=(4.5 * (len(objectives) + 1), 3.4), layout="constrained")
    (axes,) = figure.subplots(1, len(objectives) + 1, squeeze=False)
    for cell in cells:
        key, losses = cell["key"], [math.nan if loss is None else loss for loss in cell["losses"]]
        steps = [cell["steps_a_mean"] * (place + 1) for place in range(len(losses))]
        axes[objectives.index(key["objective"])].plot(steps, losses, label=key["precision"])
        if key["precision"] == "float16":
            axes[-1].plot(steps, cell["loss_scales"], label=key["objective"])
    for axis, objective in zip(axes, objectives, strict=False):
        axis.set(title=objective, xlabel="step", ylabel="loss")
        axis.legend()
    axes[-1].set(title="float16's loss scale", xlabel="step")
    if axes[-1].lines:
        axes[-1].set_yscale("log", base=2)
        axes[-1].legend()
    figure.savefig(path, dpi=80)


# The real run -----------------------------------------------------------------------------------


def _run(cells: list[Cell], run: dict[str, Any]) -> list[str]:
    rows = []
    for cell in cells:
        key, card = cell["key"], cell["card"]
        busy = f"not known ({card.get('problem')})"
        if "busy" in card:
            busy = f"{card['busy']:.0%}, {card['samples']} samples, a tenth below {card['least_busy']:.0%}"
        row = [*(str(key[name]) for name in ("data", "preset", "size", "batch", "minutes")), cell["precision"]]
        rows.append([*row, f"{cell['steps']} ({cell['epochs']})", f"{cell['images_per_second']:.0f}"])
        rows[-1] += [f"{cell['start_s']:.0f}", f"{cell['between_steps']:.0%}", busy]
    heading = [
        "data",
        "preset",
        "size",
        "batch",
        "minutes",
        "precision",
        "steps (epochs)",
        "images/s of the last epoch",
        "seconds to the first step",
        "between steps",
    ]
    return [_table([*heading, "card busy after the first epoch"], rows)]


TITLES = {"step": "A training step", "decoder": "Decoding", "numerics": "Numerics", "run": "A real run"}
SECTIONS: dict[str, Callable[[list[Cell], dict[str, Any]], list[str]]] = {
    "step": _step,
    "decoder": _decoder,
    "numerics": _numerics,
    "run": _run,
}


if __name__ == "__main__":
    main()
