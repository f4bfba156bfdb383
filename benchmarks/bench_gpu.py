"""What is measured on an NVIDIA card, in ten minutes, the most telling first: `make bench-gpu`.

    python -m benchmarks.bench_gpu --faces FOLDER --peer-python PYTHON
    python -m benchmarks.bench_gpu --minutes 20 --faces FOLDER    # more of the same list
    python -m benchmarks.bench_gpu --device cpu --faces FOLDER --out ANOTHER    # all of it, small, on a CPU

Each cell has a process of its own. Those of a wave start and compile side by side, and are then timed alone, in turn,
for several rounds, so that ratios are those of one moment. A process that fails or hangs costs its own cell, which is
kept with the reason. No wave is begun that would not end in time; results are written after each, and what is left is
named. Run again, it goes on with that, and tries again what failed. The results are gpu.json and the page gpu.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import cells, gpu, gpu_table, runners
from benchmarks.cells import PARTS, Bench, Key
from keras_vae.cli import doctor, gpu_cards

MAIN = ("ours, XLA", "PyTorch, CUDA graphs", "JAX")
A_ROUND = 5.0  # seconds before the end in which no round is begun
MIXED = ("float32", "bfloat16", "float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--faces", type=Path, metavar="FOLDER", help="images to train on; avatars, drawn at first use")
    parser.add_argument("--minutes", type=float, default=10.0, help="no more than this")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--together", type=int, default=6, help="processes that compile side by side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="of steps, a round")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python of PyTorch's and JAX's environment")
    parser.add_argument("--out", type=Path, default=gpu.RESULTS)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: give at least 2, for a spread")
    raise SystemExit(run(options))


def run(options: argparse.Namespace) -> int:
    """Measures. Exit status: 0 done, 2 no GPU or bad input, 1 nothing could be measured."""
    deadline = time.monotonic() + 60 * options.minutes
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
    machine = gpu.machine(options.device, options.peer_python)
    results = gpu.Results(gpu.path_of(options.device, options.out), machine, options.fresh)
    data = "avatars" if options.faces is None else str(options.faces)
    groups = [group for group in plan(options.device, gpu.source_name(data)) if group[0]["part"] in options.parts]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options.device, data, options.peer_python, options.seconds, deadline, Path(folder))
        measure(groups, bench, results, options)
    print(f"results in {gpu_table.write(options.out, options.device)}")
    found = [cell for cell in results.run["cells"] if "failed" not in cell]
    return 0 if found else _refuse("nothing could be measured", 1)


def _refuse(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


def plan(device: str, data: str) -> list[list[Key]]:
    """Groups of cells that are compared with each other, the most telling first; on a CPU few and small ones."""
    if device == "cpu":
        return [
            _steps("plain", 32, "float32", 4, tuple(cells.STEPS)),
            _decoders(1, 4),
            [_numerics("plain", precision, data, 32, 16, 20) for precision in MIXED[:2]],
            [_run(data, 32, 16, "plain", 0.05)],
        ]
    return [
        *(_steps(objective, 64, "bfloat16", 256, tuple(cells.STEPS)) for objective in ("plain", "vae-123")),
        *(_steps(objective, 64, "float32", 256) for objective in ("plain", "vae-123")),
        _steps("vae-123", 128, "bfloat16", 256),
        *(_steps(objective, 64, "bfloat16", 64) for objective in ("plain", "vae-123")),
        _decoders(1, 64, 1024),
        *(
            [_numerics(objective, precision, data, 64, 64, 500) for precision in MIXED]
            for objective in ("plain", "vae-123")
        ),
        [_run(data, 64, 256, "default", 1.5)],
        *(_steps(objective, 64, "bfloat16", 1024) for objective in ("plain", "vae-123")),
        _steps("plain", 128, "bfloat16", 256),
        _steps("vae-123", 128, "float32", 256),
    ]


def _steps(objective: str, size: int, precision: str, batch: int, names: tuple[str, ...] = MAIN) -> list[Key]:
    case = {"part": "step", "objective": objective, "size": size, "precision": precision, "batch": batch}
    return [{**case, "runner": name} for name in names]


def _decoders(*batches: int) -> list[Key]:
    return [{"part": "decoder", "batches": list(batches), "runner": name} for name in cells.DECODERS]


def _numerics(objective: str, precision: str, data: str, size: int, batch: int, steps: int) -> Key:
    case = {"part": "numerics", "data": data, "objective": objective, "size": size, "batch": batch, "steps": steps}
    return {**case, "precision": precision}


def _run(data: str, size: int, batch: int, preset: str, minutes: float) -> Key:
    return {"part": "run", "data": data, "size": size, "batch": batch, "preset": preset, "minutes": minutes}


def measure(groups: list[list[Key]], bench: Bench, results: gpu.Results, options: argparse.Namespace) -> None:
    """Measures what is not measured yet, wave after wave, as long as there is time."""
    took: dict[str, float] = {}
    known = results.run["machine"]["versions"]
    wanted = []
    for group in groups:
        present = [key for key in group if not cells.package(key) or cells.package(key) in known]
        for key in group:
            if key not in present:
                results.fail(key, f"{cells.package(key)} is not installed in the peers' environment")
        if all(results.find(key) for key in present):
            _say(f"{name(group)}: measured before")
        else:
            wanted.append(present)
    for wave in waves(wanted, options.together):
        part = wave[0]["part"]
        start = time.monotonic()
        if start + took.get(part, PARTS[part].seconds) > bench.deadline:
            _say(f"{name(wave)}: left out, for want of time")
            continue
        _say(f"{name(wave)}: {len(wave)} processes")
        measure_wave(wave, bench, results, options)
        took[part] = max(took.get(part, 0.0), time.monotonic() - start)
        _say(f"  {time.monotonic() - start:.0f} s")
        results.write()  # makes the folder, even if nothing was found
        gpu_table.write(options.out, options.device)
    done = [cell["key"] for cell in results.run["cells"]]
    results.run["left"] = [key for group in wanted for key in group if key not in done]
    results.write()


def waves(groups: list[list[Key]], together: int) -> list[list[Key]]:
    """Groups by what is measured at a time: whole ones, of one part, as many as fit."""
    found: list[list[Key]] = []
    for group in groups:
        if found and found[-1][0]["part"] == group[0]["part"] and len(found[-1]) + len(group) <= together:
            found[-1] += group
        else:
            found.append(list(group))
    return found


def measure_wave(wave: list[Key], bench: Bench, results: gpu.Results, options: argparse.Namespace) -> None:
    """Has the cells' processes get ready side by side, then times them in turn, and keeps what was found."""
    part = PARTS[wave[0]["part"]]
    turn = part.turn
    workers: dict[int, runners.Runner] = {}
    found: dict[int, dict[str, Any]] = {}
    rounds: dict[int, list[dict[str, float]]] = {}
    errors: dict[int, runners.RunnerError] = {}

    def failed(number: int, error: runners.RunnerError) -> None:
        found.pop(number, None)
        if time.monotonic() < bench.deadline:  # else it was cut off, and is left
            errors[number] = error
            _say(f"{name(wave[number : number + 1])}: failed: {error}")

    def get_ready(number: int) -> None:
        try:
            workers[number] = part.start(wave[number], bench)
            found[number] = part.ready(workers[number], wave[number], bench)
        except runners.RunnerError as error:
            failed(number, error)

    pool = ThreadPoolExecutor(options.together)
    try:
        list(pool.map(get_ready, range(len(wave))))
        for _ in range(options.rounds):
            if turn is None or time.monotonic() + A_ROUND > bench.deadline:
                break
            for number in sorted(found):
                time.sleep(0.1)  # threads of the one before stop spinning
                try:
                    rounds.setdefault(number, []).append(turn(workers[number], wave[number], bench))
                except runners.RunnerError as error:
                    failed(number, error)
    finally:
        for worker in list(workers.values()):
            runners.stop(worker)
        pool.shutdown(cancel_futures=True)
    for number, reason in errors.items():
        results.fail(wave[number], reason)
    for number in sorted(found):
        if turn and len(rounds.get(number, ())) < 2:  # the time was up: it is left
            continue
        first = next(other for other in range(len(wave)) if case(wave[other]) == case(wave[number]))
        timed = {"timings": timings(rounds[number], rounds.get(first, []))} if turn else {}
        results.add(wave[number], **found[number], **timed)


def timings(rounds: list[dict[str, float]], ours: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """By batch size: milliseconds and images/s, and how many times ours' seconds of the same round they are."""
    found: dict[str, dict[str, Any]] = {}
    for batch in rounds[0]:
        seconds = [each[batch] for each in rounds]
        ratios = [one[batch] / other[batch] for one, other in zip(rounds, ours, strict=False)]
        median = statistics.median(seconds)
        found[batch] = {
            "median_ms": 1e3 * median,
            "quartiles_ms": [1e3 * each for each in gpu.spread(seconds)],
            "images_per_second": int(batch) / median,
        }
        if ratios:
            found[batch] |= {"times_ours": statistics.median(ratios), "quartiles": gpu.spread(ratios)}
    return found


def case(key: Key) -> Key:
    """What cells that are compared have in common."""
    return {what: value for what, value in key.items() if what != "runner"}


def name(keys: list[Key]) -> str:
    """What is measured, in words."""
    said = (", ".join(str(value) for what, value in key.items() if what != "runner") for key in keys)
    runner = f", {keys[0]['runner']}" if len(keys) == 1 and "runner" in keys[0] else ""
    return "; ".join(dict.fromkeys(said)) + runner


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
