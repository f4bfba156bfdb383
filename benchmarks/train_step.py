"""How fast a training step is: ours beside the same networks in PyTorch, and how its cost grows.

    python -m benchmarks.train_step            # beside PyTorch: train_step.json and train_step.md
    python -m benchmarks.train_step --growth   # ours by batch, image, width and data: train_step_growth.json and .png
    python -m benchmarks.train_step --changes  # ours without each of its changes: train_step_changes.json and .md
    python -m benchmarks.train_step --device cuda --growth       # on a GPU; also --changes
    python -m benchmarks.sweep                                   # on a GPU, beside PyTorch

Each runner has a process of its own, and in each of several rounds all take their steps in turn. Ours is what `fit`
runs, its metrics included, on batches that a tf.data pipeline hands over; PyTorch's is `benchmarks.peer`, eager and
compiled. Before anything is timed, both compute the same terms of the loss from the same weights. Batches are in
memory, random images: nothing a step does depends on what they show.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import runners
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("keras-vae", "keras", "tensorflow", "torch", "numpy")
LATENTS = 100
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
LEAST_STEPS = 2
WARM_STEPS = 3
COMPARED = 16  # images, of which the terms of the loss are compared
LARGE_BATCH = 256 * 128**2  # pixels, of which fewer batches are kept in memory


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
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)  # kind and case: one runner's process
    arguments = parser.parse_args()
    if arguments.work:
        kind, case = arguments.work[0], json.loads(arguments.work[1])
        runners.serve(lambda: _ours(kind, case) if kind.startswith("ours") else _torch(kind, case))
        return
    if arguments.rounds < 2:
        parser.error("--rounds: give at least 2, for a spread")
    if arguments.device == "cuda" and not (arguments.growth or arguments.changes):
        parser.error("--device cuda: beside PyTorch, GPUs are measured by python -m benchmarks.sweep")
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
            workers[runner] = runners.start("benchmarks.train_step", kind, settings, **environment)
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
                worker = runners.start("benchmarks.train_step", "ours", json.dumps(case))
                runners.ask(worker, {"seconds": 1.0})
                steps = runners.ask(worker, {"seconds": 3 * SECONDS_A_TURN})["steps"]
                points.append(
                    {axis: value, "ms": 1e3 * statistics.median(steps), "peak_mib": runners.end(worker)["peak_mib"]}
                )
                print(objective, points[-1], file=sys.stderr)
    case = {**base, "objective": "plain", "device": device, "folder": ""}
    worker = runners.start("benchmarks.train_step", "ours", json.dumps(case))
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


# One runner's process -------------------------------------------------------------------------------


Answer = Callable[[dict[str, Any]], dict[str, Any]]


def _images(case: dict[str, Any], count: int = 4) -> np.ndarray:
    """Some batches of smooth random images: float32 (count, batch, size, size, 3)."""
    size = case["size"]
    if case["batch"] * size**2 > LARGE_BATCH:
        count = min(count, 2)
    coarse = np.random.default_rng(0).random((count, case["batch"], size // 8, size // 8, 3), np.float32)
    return np.repeat(np.repeat(coarse, 8, axis=2), 8, axis=3)


def _compared(case: dict[str, Any]) -> np.ndarray:
    """The images of which all runners compute the terms of the loss, the same for every batch size."""
    return _images({**case, "batch": COMPARED}, 1)[0]


def _times(step: Callable[[], Any], wait: Callable[[Any], Any], request: dict[str, Any]) -> list[float]:
    """Seconds a step, for the requested time, and of a few at least.

    A device computes while Python is a few steps ahead, in `fit` too: `together` is how many steps are begun before the
    last one's loss is waited for.
    """
    together = request.get("together", 1)
    found: list[float] = []
    while len(found) < LEAST_STEPS or together * sum(found) < request["seconds"]:
        start = time.perf_counter()
        for _ in range(together):
            loss = step()
        wait(loss)
        found.append((time.perf_counter() - start) / together)
    return found


def _at_the_high_resolution(block: Any, images: Any, kernel: Any, bias: Any = None) -> Any:
    """What stands in for `UpsampledConv2D._convolved`: the block as the paper writes it."""
    from keras import ops

    _, height, width, _ = block.compute_output_shape(images.shape)
    pixels = ops.repeat(ops.repeat(images, 2, axis=1), 2, axis=2)[:, :height, :width]
    if block.padding == "edge":
        pixels = ops.concatenate([pixels[:, :1], pixels, pixels[:, -1:]], axis=1)
        pixels = ops.concatenate([pixels[:, :, :1], pixels, pixels[:, :, -1:]], axis=2)
    padding = "valid" if block.padding == "edge" else "same"
    pixels = ops.conv(pixels, ops.cast(kernel, block.compute_dtype), 1, padding, "channels_last")
    return pixels if bias is None else pixels + ops.cast(bias, block.compute_dtype)


def _without(change: str) -> None:
    """Has ours compute one thing, or all, the straightforward way."""
    import keras
    from keras import ops

    from keras_vae import PerceptualLoss
    from keras_vae.networks import layers

    def distances(self: Any, targets: list[Any], decoded: Any) -> Any:
        pairs = zip(targets, self.features(decoded), strict=True)
        squares = [ops.square(ops.cast(one, "float32") - ops.cast(other, "float32")) for one, other in pairs]
        return ops.stack([0.5 * ops.mean(each, axis=(1, 2, 3)) for each in squares], axis=1)

    ways: dict[str, tuple[Any, str, Any]] = {
        "the low resolution": (layers.UpsampledConv2D, "_convolved", _at_the_high_resolution),
        "fused normalization": (layers.BatchNormalization, "call", keras.layers.BatchNormalization.call),
        "matrix products": (layers, "as_matrix", lambda *_: False),
        "one pass over features": (PerceptualLoss, "distances", distances),
    }
    for name, (owner, attribute, way) in ways.items():
        if change in (name, "all of these"):
            setattr(owner, attribute, way)


def _ours(kind: str, case: dict[str, Any]) -> Answer:
    import keras
    import tensorflow as tf

    from keras_vae import OBJECTIVES, VAE
    from keras_vae.networks.layers import UpsampledConv2D

    _without(kind.removeprefix("ours without "))
    keras.utils.set_random_seed(0)
    objective = {**OBJECTIVES[case["objective"]], "latent_dim": LATENTS, "network_options": {"width": case["width"]}}
    if case["objective"] != "plain":
        objective["perceptual"] = "hed-vgg16"
    policy = case["precision"] if case["precision"] == "float32" else f"mixed_{case['precision']}"
    vae = VAE((case["size"], case["size"], 3), **objective, seed=0, dtype=policy)
    compiled: dict[str, bool] = {"ours without XLA": False, "ours with XLA": True}
    vae.compile(keras.optimizers.Adam(5e-4), jit_compile=compiled.get(kind, "auto"))
    gpus = tf.config.list_logical_devices("GPU")
    if case["device"] == "cuda" and not gpus:
        raise SystemExit("TensorFlow sees no GPU: keras-vae doctor says why")
    batches = _images(case)
    step: list[Any] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "terms" in request:
            return _our_terms(vae, _compared(case), Path(case["folder"]), request.get("given", False))
        if "convolutions" in request:
            return _convolutions(vae, case)
        if "gflop" in request:
            ours = _gflop(vae, case["size"], request["gflop"])
            with mock.patch.object(UpsampledConv2D, "_convolved", _at_the_high_resolution):
                return {"gflop": {"ours": ours, "as written": _gflop(vae, case["size"], request["gflop"])}}
        if "memory" in request:
            peak = tf.config.experimental.get_memory_info(gpus[0].name.removeprefix("/device:"))["peak"] if gpus else 0
            return {"device_mib": peak / 2**20}
        if "epochs" in request:
            return {"points": [_epoch(vae, case, count) for count in request["epochs"]]}
        if not step:
            with tf.device("/CPU:0"):  # else the images lie on the GPU, and count as the step's memory
                data = tf.data.Dataset.from_tensors(batches[0])
                data = data.concatenate(tf.data.Dataset.from_tensor_slices(batches[1:]))
            iterator = iter(data.cache().repeat().prefetch(2))
            vae.make_train_function()
            step.append(lambda: vae.train_function(iterator)["loss"])
            if gpus:
                tf.config.experimental.reset_memory_stats(gpus[0].name.removeprefix("/device:"))
            for _ in range(WARM_STEPS):
                float(step[0]())
        return {"steps": _times(step[0], float, request)}

    return answer


def _our_terms(vae: Any, images: np.ndarray, folder: Path, given: bool) -> dict[str, Any]:
    """The loss's terms with latents at the posterior's mean; weights are read from the folder, or left there."""
    weights = {
        f"{role}/{weight.path}": weight
        for role, network in (("encoder", vae.encoder), ("decoder", vae.decoder))
        for weight in network.trainable_weights
    }
    vae.load_perceptual()
    if given:
        for name, value in np.load(folder / "weights.npz").items():
            weights[name].assign(value)
    else:
        np.savez(folder / "weights.npz", **{name: weight.numpy() for name, weight in weights.items()})
    if vae.perceptual is not None and not given:
        layers = vae.perceptual._features.layers
        vgg = {f"{layer.name}/{place}": each for layer in layers for place, each in enumerate(layer.get_weights())}
        np.savez(folder / "vgg.npz", **vgg)
    posterior = vae.encode(images, training=True)
    decoded = np.array(vae.decode(posterior.mean, training=True))
    terms = {
        "kl": float(np.mean(posterior.kl())),
        "squared_error": float(np.square(images - decoded).sum((1, 2, 3)).mean()),
    }
    if vae.perceptual is not None:
        terms["perceptual"] = float(np.mean(vae.perceptual(images, decoded)))
    return terms


def _epoch(vae: Any, case: dict[str, Any], count: int) -> dict[str, Any]:
    """An epoch of `fit` from a folder of so many JPEG files, the second: seconds, and images/s."""
    from PIL import Image

    from keras_vae import data

    with tempfile.TemporaryDirectory() as folder:
        pixels = (255 * _images(case, 1)[0]).astype(np.uint8)
        for index in range(count + count // 9):  # a tenth is held out
            # No two files the same: those are read once.
            Image.fromarray(np.roll(pixels[index % len(pixels)], index // len(pixels), 0)).save(
                Path(folder) / f"{index:06d}.jpg"
            )
        images = data.load(folder, case["size"], case["batch"], 0)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            vae.fit(images.train, epochs=1, verbose=0)
            seconds.append(time.perf_counter() - start)
    return {"images": images.train_size, "seconds": seconds[-1], "images_per_second": images.train_size / seconds[-1]}


def _gflop(vae: Any, size: int, batches: list[int]) -> list[float]:
    """Multiplications and additions of a training step, forward and back, in thousand millions, for batches of so many.

    Those of each convolution and matrix product in the step's graph, two for each product of two numbers. What is left
    out - normalization, activations, the distance, Adam - is under a hundredth of them.
    """
    # In graphs of 2 and 4 images, for it is linear: of a batch of any size TensorFlow does not know all shapes.
    two, four = (
        sum(_flop(operation, count) or 0.0 for operation in _operations(vae, (count, size, size, 3))) / 1e9
        for count in (2, 4)
    )
    return [two + (batch - 2) * (four - two) / 2 for batch in batches]


def _operations(vae: Any, shape: tuple[int, ...]) -> list[Any]:
    """The operations that a training step computes, for images of a shape.

    TensorFlow writes a convolution's gradients down both, that of the images or of a frozen kernel too, and leaves out
    those that nothing asks for when it runs the graph.
    """
    import tensorflow as tf

    graph = tf.function(vae.train_step, autograph=False).get_concrete_function(tf.TensorSpec(shape)).graph
    needed = [*(output.op for output in graph.outputs), *graph.control_outputs]
    seen = {id(operation) for operation in needed}
    for operation in needed:  # which grows meanwhile
        for before in (*(each.op for each in operation.inputs), *operation.control_inputs):
            if id(before) not in seen:
                seen.add(id(before))
                needed.append(before)
    return needed


def _flop(operation: Any, batch: int) -> float | None:
    """Multiplications and additions of an operation of a graph; None where it is none of those counted."""
    if operation.type == "MatMul":
        inner = _shape(operation.inputs[0], batch)[0 if operation.get_attr("transpose_a") else 1]
        return 2.0 * inner * math.prod(_shape(operation.outputs[0], batch))
    if operation.type == "Conv2D":
        kernel, result = operation.inputs[1], operation.outputs[0]
    elif operation.type == "Conv2DBackpropInput":
        kernel, result = operation.inputs[1], operation.inputs[2]
    elif operation.type == "Conv2DBackpropFilter":
        kernel, result = operation.outputs[0], operation.inputs[2]
    else:
        return None
    return 2.0 * math.prod(_shape(result, batch)) * math.prod(_shape(kernel, batch)[:3])


def _shape(tensor: Any, batch: int) -> tuple[int, ...]:
    return tuple(batch if side is None else side for side in tensor.shape)


def _convolutions(vae: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Every convolution and matrix product in the step's graph, forward and back, run alone.

    Returns:
        `alone_ms`, their time together; `gflop`, of the step; `tflops`, what they reach alone; `peak_tflops`, what a
        large matrix product reaches in the same precision: the roof.
    """
    import tensorflow as tf

    total_ms = total_flop = 0.0
    for operation in _operations(vae, (case["batch"], case["size"], case["size"], 3)):
        made = _alone(operation, case["batch"])
        if made is not None:
            run, flop = made
            total_ms += 1e3 * _median_seconds(run)
            total_flop += flop
    side = 4096
    square = tf.cast(tf.random.normal((side, side)), case["precision"])
    product = tf.function(lambda a: tf.matmul(a, a)[:1, :1])
    return {
        "alone_ms": total_ms,
        "gflop": total_flop / 1e9,
        "tflops": total_flop / total_ms / 1e9,
        "peak_tflops": 2.0 * side**3 / _median_seconds(lambda: product(square)) / 1e12,
    }


def _alone(operation: Any, batch: int) -> tuple[Callable[[], Any], float] | None:
    """What runs an operation of a graph on random numbers, and its multiplications and additions."""
    import tensorflow as tf

    flop = _flop(operation, batch)
    if flop is None:
        return None

    def shape(tensor: Any) -> tuple[int, ...]:
        return _shape(tensor, batch)

    def random(tensor: Any) -> Any:
        return tf.cast(tf.random.normal(shape(tensor)), tensor.dtype)

    if operation.type == "MatMul":
        one, other = map(random, operation.inputs)
        transposed = {name: operation.get_attr(name) for name in ("transpose_a", "transpose_b")}
        return tf.function(lambda: tf.matmul(one, other, **transposed)), flop
    settings = {name: operation.get_attr(name) for name in ("strides", "padding", "explicit_paddings", "dilations")}
    settings["padding"] = settings["padding"].decode()
    if operation.type == "Conv2D":
        x, k = random(operation.inputs[0]), random(operation.inputs[1])
        function = tf.function(lambda: tf.raw_ops.Conv2D(input=x, filter=k, **settings))
    elif operation.type == "Conv2DBackpropInput":
        k, y, sizes = random(operation.inputs[1]), random(operation.inputs[2]), shape(operation.outputs[0])
        function = tf.function(
            lambda: tf.raw_ops.Conv2DBackpropInput(input_sizes=sizes, filter=k, out_backprop=y, **settings)
        )
    else:
        x, y, sizes = random(operation.inputs[0]), random(operation.inputs[2]), shape(operation.outputs[0])
        function = tf.function(
            lambda: tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=sizes, out_backprop=y, **settings)
        )
    return function, flop


def _median_seconds(run: Callable[[], Any], runs: int = 7) -> float:
    run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()[0].device  # noqa: B018
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _torch(kind: str, case: dict[str, Any]) -> Answer:
    import torch

    from benchmarks.peer import Step

    torch.set_num_threads(os.cpu_count() or 1)
    device = case["device"]
    steps: list[Step] = []
    layout: Any = {"memory_format": torch.channels_last}
    batches = [torch.from_numpy(np.moveaxis(each, -1, 1)).to(**layout) for each in _images(case)]
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # as TensorFlow by default, and PyTorch for convolutions
        batches = [each.pin_memory() for each in batches]  # as DataLoader(pin_memory=True) hands them over
    taken: list[int] = []

    def run() -> Any:
        images = batches[len(taken) % len(batches)].to(device, non_blocking=True, **layout)
        taken.append(1)
        return steps[0](images)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if "memory" in request:
            return {"device_mib": torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0}
        if "terms" in request:
            folder = Path(case["folder"])
            vgg = {} if case["objective"] == "plain" else dict(np.load(folder / "vgg.npz"))
            settings = (case["objective"], case["precision"], case["size"], case["width"])
            steps.append(Step(*settings, kind.startswith("compiled"), vgg, device, "graphs" in kind))
            steps[0].load(dict(np.load(folder / "weights.npz")))
            return steps[0].terms(torch.from_numpy(np.moveaxis(_compared(case), -1, 1)).to(device, **layout))
        if not taken:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for _ in range(WARM_STEPS):
                run().item()
        return {"steps": _times(run, lambda loss: loss.item(), request)}

    return answer


if __name__ == "__main__":
    main()
