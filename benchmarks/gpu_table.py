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

from benchmarks import gpu, numerics, sweep
from keras_vae.support.files import write_aside

NOTHING = """# On a GPU

Nothing is measured yet: no card was at hand. `make bench-gpu FACES=FOLDER` measures all of it on a machine with an
NVIDIA card, and writes this page.
"""
GOAL_BUSY = 0.9
GOAL_MIXED = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=gpu.RESULTS, help="folder of the results")
    options = parser.parse_args()
    print(write(options.out, options.device))


def write(folder: Path, device: str) -> Path:
    """Writes the page of a folder of results, and returns where."""
    path = folder / ("gpu.md" if device == "cuda" else "cpu.md")
    with write_aside(path) as aside:
        aside.write_text(page(folder, device))
    return path


def page(folder: Path, device: str) -> str:
    """The page, as Markdown; it draws the picture beside it."""
    parts: list[str] = []
    for part, section in SECTIONS.items():
        path = gpu.path_of(part, device, folder)
        if not path.is_file():
            continue
        for run in json.loads(path.read_text())["runs"]:
            if run["cells"]:
                parts += [f"## {TITLES[part]}: {run['machine']['device']}", _machine(run["machine"])]
                parts += section(run)
        if part == "numerics":
            picture = path.with_suffix(".png")
            draw(json.loads(path.read_text())["runs"][-1]["cells"], picture)
            parts.append(f"![Losses and loss scales]({picture.name})")
    if not parts:
        return NOTHING
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


def _failed(cells: list[dict[str, Any]]) -> list[str]:
    return [
        f"Not measured: {', '.join(map(str, cell['key'].values()))}: "
        f"{'out of memory: ' if cell['out_of_memory'] else ''}{cell['failed'][:200]}"
        for cell in cells
        if "failed" in cell
    ]


# The training step ------------------------------------------------------------------------------


def _train_step(run: dict[str, Any]) -> list[str]:
    by_case: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for cell in run["cells"]:
        key = cell["key"]
        case = (key["objective"], key["size"], key["precision"], key["batch"])
        by_case.setdefault(case, {})[key["runner"]] = cell
    present = {runner for cells in by_case.values() for runner in cells}
    names = [name for name in sweep.RUNNERS if name in present]
    rows = []
    for case in sorted(by_case, key=lambda case: (case[1], sweep.OBJECTIVES.index(case[0]), case[2], case[3])):
        cells = by_case[case]
        ratio = _to_peer(cells)
        rows.append(
            [*map(str, case), *(_step(cells.get(name)) for name in names), "" if ratio is None else f"{ratio:.2f}"]
        )
    heading = ["objective", "size", "precision", "batch", *names, "ours to PyTorch's best"]
    words = (
        "Each cell: images/s; peak MiB of the device's memory; share of the card's peak in that precision "
        "(`benchmarks/gpu.py`; - where it is not known), of the multiplications and additions of convolutions and "
        "matrix products. float32 is TF32 where the card has it."
    )
    return [words, _table(heading, rows), *_goals(by_case), *_failed(run["cells"]), *_left(run)]


def _step(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if "failed" in cell:
        return "out of memory" if cell["out_of_memory"] else "failed"
    share = "-" if cell["share_of_peak"] is None else f"{cell['share_of_peak']:.0%}"
    return f"{cell['images_per_second']:.0f}; {cell['peak_mib']:.0f}; {share}"


def _best(cells: dict[str, dict[str, Any]], whose: str) -> float | None:
    rates = [
        cell["images_per_second"] for name, cell in cells.items() if name.startswith(whose) and "failed" not in cell
    ]
    return max(rates, default=None)


def _to_peer(cells: dict[str, dict[str, Any]]) -> float | None:
    ours, peer = _best(cells, "ours"), _best(cells, "PyTorch")
    return None if ours is None or peer is None else ours / peer


def _goals(by_case: dict[tuple[Any, ...], dict[str, dict[str, Any]]]) -> list[str]:
    ratios = [ratio for cells in by_case.values() if (ratio := _to_peer(cells)) is not None]
    mixed = []
    for (objective, size, precision, batch), cells in by_case.items():
        ours, full = _best(cells, "ours"), _best(by_case.get((objective, size, "float32", batch), {}), "ours")
        if precision != "float32" and ours is not None and full is not None:
            mixed.append(ours / full)
    lines = []
    if ratios:
        lines.append(f"At least PyTorch's best in {sum(ratio >= 1 for ratio in ratios)} of {len(ratios)} cases.")
    if mixed:
        reached = sum(ratio >= GOAL_MIXED for ratio in mixed)
        lines.append(
            f"Mixed precision at least {GOAL_MIXED:g} times float32 in {reached} of {len(mixed)} cases "
            f"({min(mixed):.2f} to {max(mixed):.2f} times)."
        )
    return lines


def _left(run: dict[str, Any]) -> list[str]:
    left = len(run.get("left", ()))
    return [f"{left} cells were not reached in the time given: run it again to go on."] if left else []


# Numerics ---------------------------------------------------------------------------------------


def _numerics(run: dict[str, Any]) -> list[str]:
    measured = [cell for cell in run["cells"] if "failed" not in cell]
    rows = []
    for cell in measured:
        key = cell["key"]
        full = next((each for each in measured if each["key"] == {**key, "precision": "float32"}), None)
        difference = None if full is None else abs(cell["final_loss"] / full["final_loss"] - 1)
        scales = cell["loss_scales"]
        rows.append(
            [
                *(str(key[name]) for name in ("data", "objective", "size", "batch", "steps", "precision")),
                f"{cell['final_loss']:.5g}",
                ""
                if difference is None
                else f"{difference:.2%}{'' if difference <= numerics.ALLOWED else ', too far'}",
                "none" if cell["finite"] else "SOME",
                f"{scales[0]:g}, {min(scales):g} to {max(scales):g}, {scales[-1]:g}"
                if key["precision"] == "float16"
                else "",
                str(cell["steps_left_out"]),
                "yes" if cell["xla"] else "no",
            ]
        )
    heading = ["data", "objective", "size", "batch", "steps", "precision", "final loss", "from float32", "NaN"]
    heading += ["loss scale: first, range, last", "steps left out", "XLA"]
    return [_table(heading, rows), *_failed(run["cells"])]


def draw(cells: list[dict[str, Any]], path: Path) -> None:
    """Losses by step, an axis for each objective, and float16's loss scale."""
    from matplotlib.figure import Figure

    measured = [cell for cell in cells if "failed" not in cell]
    objectives = list(dict.fromkeys(cell["key"]["objective"] for cell in measured))
    figure = Figure(figsize=(4.5 * (len(objectives) + 1), 3.4), layout="constrained")
    (axes,) = figure.subplots(1, len(objectives) + 1, squeeze=False)
    for cell in measured:
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


# The decoder ------------------------------------------------------------------------------------


def _decoding(run: dict[str, Any]) -> list[str]:
    measured = [cell for cell in run["cells"] if "failed" not in cell]
    batches = sorted({cell["key"]["batch"] for cell in measured})
    rows = []
    for name in dict.fromkeys(cell["key"]["runner"] for cell in measured):
        of = {cell["key"]["batch"]: cell for cell in measured if cell["key"]["runner"] == name}
        first = next(iter(of.values()))
        times = [f"{of[batch]['median_ms']:.3g}" if batch in of else "" for batch in batches]
        best = max(cell["images_per_second"] for cell in of.values())
        parity = f"{first['difference_from_keras']:.1e}{'' if first['parity'] else ', TOO FAR'}"
        rows.append([name, *times, f"{best:.0f}", parity])
    heading = ["runner", *(f"batch of {batch}, ms" for batch in batches), "images/s at best", "from Keras"]
    words = (
        "The paper's decoder at 64x64. `bound`: latents and images stay on the device; the others come from the host's "
        "memory and back. Last: the largest difference of a pixel from Keras in float32 on the CPU, over 64 latents; "
        "what TF32 does to it is in the rows that name it."
    )
    return [words, _table(heading, rows), *_failed(run["cells"])]


# The real run -----------------------------------------------------------------------------------


def _run(run: dict[str, Any]) -> list[str]:
    measured = [cell for cell in run["cells"] if "failed" not in cell]
    lines, rows = [], []
    for cell in measured:
        key = cell["key"]
        what = (
            f"`fit` alone, {key['objective']}"
            if key["part"] == "pipeline"
            else f"{key['minutes']:g} min, {key['preset']}"
        )
        rows.append(
            [
                *(what, str(key["data"]), str(key["size"]), str(key["batch"]), cell["precision"]),
                *(f"{cell['images_per_second']:.0f}", _busy(cell["card"])),
            ]
        )
    lines.append(_table(["what", "data", "size", "batch", "precision", "images/s", "card busy"], rows))
    shares = [cell["card"]["busy"] for cell in measured if "busy" in cell["card"]]
    if shares:
        reached = sum(share > GOAL_BUSY for share in shares)
        lines.append(f"The card is over {GOAL_BUSY:.0%} busy in {reached} of {len(shares)} cases.")
    for cell in measured:
        if cell["key"]["part"] == "run":
            size = cell["key"]["size"]
            figures = ", ".join(f"{name} {value:.4g}" for name, value in cell["evaluation"].items())
            lines.append(f"At {size} pixels, after {cell['steps']} steps ({cell['epochs']} epochs): {figures}")
            device = "gpu" if "driver" in run["machine"] else "cpu"
            lines += [f"![At {size} pixels]({device}_run_{size}_{name})" for name in PICTURES]
    return [*lines, *_failed(run["cells"])]


def _busy(card: dict[str, Any]) -> str:
    if "busy" not in card:
        return f"not known ({card['problem']})"
    return f"{card['busy']:.0%}, {card['samples']} samples, a tenth below {card['least_busy']:.0%}"


PICTURES = ("reconstructions.png", "samples.png")
TITLES = {"train_step": "A training step", "numerics": "Numerics", "decoding": "Decoding", "run": "A real run"}
SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "train_step": _train_step,
    "numerics": _numerics,
    "decoding": _decoding,
    "run": _run,
}


if __name__ == "__main__":
    main()
