"""How fast decoders run: ours beside the file Keras itself exports, and beside PyTorch.

    python -m benchmarks.decoding

The paper's decoder, 64x64, 100 latents, random weights. Each runner has a process of its own, so that nobody's idle
threads spin beside another's work, and in each of many rounds all decode in turn. Written to
benchmarks/results/decoding.json: medians, the medians and quartiles of the rounds' ratios to ours, sizes of files, peak
memory. What must be exported first is, so that a machine without TensorFlow can run it too:

    python -m benchmarks.decoding --prepare FOLDER
    python -m benchmarks.decoding --models FOLDER --device cuda

On a GPU each runner is alone on the card, with batches of 1, 64 and 1,024, and is compared with Keras in float32 on the
CPU, which does not round to TF32. `bound` runners leave latents and images on the card; the others bring them from the
host's memory and back, `uint8` in a quarter of the bytes. `NHWC` runners have onnxruntime convolve with channels last,
the layout of tensor cores, which it does not do by itself. --alone does the same on a CPU. Written to
gpu_decoding.json, and gone on with as `benchmarks.sweep` goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gpu, runners
from keras_vae.support.files import write_json
from keras_vae.support.pixels import to_float

RESULTS = Path(__file__).parent / "results"
LATENTS = 100
OURS = "ours, onnxruntime"
# By name: kind of runner, precision, file below the folder of models.
CPU = {
    OURS: ("onnxruntime", "float32", "ours.onnx"),
    "ours, onnxruntime, int8": ("onnxruntime", "int8", "ours.int8.onnx"),
    "ours, onnxruntime, float16": ("onnxruntime", "float16", "ours.float16.onnx"),
    "ours, OpenVINO": ("openvino", "f32", "ours.xml"),
    "ours, OpenVINO, bfloat16": ("openvino", "bf16", "ours.xml"),
    "ours, LiteRT": ("litert", "float32", "ours.tflite"),
    "ours, SavedModel in TensorFlow": ("tensorflow", "float32", "ours"),
    "Keras's export, onnxruntime": ("onnxruntime", "float32", "keras.onnx"),
    "PyTorch, eager": ("torch", "float32", "weights.npz"),
    "PyTorch, compiled": ("torch-compiled", "float32", "weights.npz"),
    "PyTorch, bfloat16, eager": ("torch", "bfloat16", "weights.npz"),
    "PyTorch, bfloat16, compiled": ("torch-compiled", "bfloat16", "weights.npz"),
}
# Alone on the device. "tf32" is float32 whose products are rounded to TF32 where the card has it: the default of
# onnxruntime, as of TensorFlow.
ALONE = {
    "ours, onnxruntime": ("onnxruntime", "float32", "ours.onnx"),
    "ours, onnxruntime, TF32": ("onnxruntime", "tf32", "ours.onnx"),
    "ours, onnxruntime, TF32, uint8": ("onnxruntime", "tf32", "ours.uint8.onnx"),
    "ours, onnxruntime, float16": ("onnxruntime", "float16", "ours.float16.onnx"),
    "ours, onnxruntime, bound": ("onnxruntime-bound", "float32", "ours.onnx"),
    "ours, onnxruntime, TF32, bound": ("onnxruntime-bound", "tf32", "ours.onnx"),
    "ours, onnxruntime, TF32, NHWC, bound": ("onnxruntime-nhwc-bound", "tf32", "ours.onnx"),
    "ours, onnxruntime, float16, bound": ("onnxruntime-bound", "float16", "ours.float16.onnx"),
    "ours, onnxruntime, float16, NHWC, bound": ("onnxruntime-nhwc-bound", "float16", "ours.float16.onnx"),
    "Keras's export, onnxruntime, TF32": ("onnxruntime", "tf32", "keras.onnx"),
    "PyTorch, compiled": ("torch-compiled", "float32", "weights.npz"),
    "PyTorch, compiled, bound": ("torch-compiled-bound", "float32", "weights.npz"),
    "PyTorch, compiled, TF32, bound": ("torch-compiled-bound", "tf32", "weights.npz"),
    "PyTorch, compiled, float16, bound": ("torch-compiled-bound", "float16", "weights.npz"),
}
PACKAGES = (
    "keras-vae",
    "keras",
    "tensorflow",
    "tf2onnx",
    "onnxruntime-gpu",
    "openvino",
    "ai-edge-litert",
    "torch",
)
BATCHES = (1, 64)
BATCHES_ALONE = (1, 64, 1024)
COMPARED = 64  # images, whose pixels are compared
SECONDS_A_RUNNER = 420.0
PARITY = 1e-3  # largest difference of a pixel from Keras that float32 and TF32 may have
HALF_A_LEVEL = 0.5 / 255  # what rounding to uint8 adds
# Largest difference of a pixel from ours in float32 that a runner of this precision may have.
ALLOWED = {"float32": 1e-4, "f32": 1e-4, "float16": 0.02, "bfloat16": 0.1, "bf16": 0.1, "int8": 0.2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="30, alone on a device 5")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="export the models there, and measure nothing")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="what --prepare wrote; else it is made anew")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for decoding.json")
    parser.add_argument("--alone", action="store_true", help="measure as on a GPU")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES_ALONE, help="alone: 1, 64 and 1024")
    parser.add_argument("--runners", nargs="+", choices=ALONE, default=list(ALONE), help="alone")
    parser.add_argument("--fresh", action="store_true", help="alone: measure again what was measured")
    parser.add_argument("--peer-python", default=sys.executable, help="alone: the Python of PyTorch's environment")
    parser.add_argument(
        "--work", nargs=4, help=argparse.SUPPRESS
    )  # kind, precision, file, device: one runner's process
    arguments = parser.parse_args()
    alone = arguments.alone or arguments.device == "cuda"
    rounds = arguments.rounds or (5 if alone else 30)
    if rounds < 2:
        parser.error("--rounds: give at least 2, for a spread")
    if arguments.work:
        runners.serve(lambda: work(*arguments.work))
        return
    if arguments.prepare:
        prepare(arguments.prepare, alone)
        return
    results: gpu.Results | None = None
    if alone:  # first: without a GPU nothing is exported
        machine = gpu.machine(arguments.device, arguments.peer_python)
        results = gpu.Results(gpu.path_of("decoding", arguments.device, arguments.out), machine, arguments.fresh)
    with tempfile.TemporaryDirectory() as folder:
        models = arguments.models or Path(folder)
        if arguments.models is None:
            # In a process of its own: TensorFlow is not to hold threads and memory beside the runners.
            command = [sys.executable, "-m", "benchmarks.decoding", "--prepare", folder]
            if alone:
                command.append("--alone")
            # Without a GPU: Keras's images are to be those of float32, not of TF32.
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
            ended = subprocess.run(command, env=environment, capture_output=True, text=True)
            if ended.returncode:
                reason = (ended.stderr.strip() or "it said nothing").splitlines()[-1]
                raise SystemExit(f"the decoders cannot be exported: {reason}")
        if results is not None:
            raise SystemExit(0 if measure_alone(models, arguments, rounds, results) else 1)
        record = measure(models, rounds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "decoding.json", record)
    print(json.dumps(record, indent=2))


def prepare(folder: Path, alone: bool) -> None:
    """Exports the decoder in every way, or in those measured alone; its weights for PyTorch, and images by Keras."""
    import keras

    from keras_vae import VAE
    from keras_vae.export import export_decoder

    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    decoder = VAE((64, 64, 3), LATENTS, perceptual=None).decoder
    rng = np.random.default_rng(0)
    for weight in decoder.weights:
        if any(part in weight.path for part in ("moving", "gamma", "beta")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    latents = rng.standard_normal((512, LATENTS)).astype(np.float32)
    for precision, name in (("float32", "ours"), ("float16", "ours.float16"), ("int8", "ours.int8")):
        if precision != "int8" or not alone:
            export_decoder(decoder, folder / f"{name}.onnx", "onnx", precision=precision, calibration=latents)
    export_decoder(decoder, folder / "ours.uint8.onnx", "onnx", output="uint8")
    if not alone:
        export_decoder(decoder, folder / "ours.tflite", "litert")
        export_decoder(decoder, folder / "ours.xml", "openvino")
        export_decoder(decoder, folder / "ours", "tf_saved_model")
    decoder(np.zeros((1, LATENTS), np.float32))  # Keras exports what was called once
    decoder.export(str(folder / "keras.onnx"), format="onnx", verbose=False)
    arrays: dict[str, Any] = {"epsilon": decoder.get_layer("conv1").normalization.epsilon}
    arrays |= {
        f"{layer.name}/{place}": np.array(weight)
        for layer in decoder.layers
        for place, weight in enumerate(layer.get_weights())
    }
    np.savez(folder / "weights.npz", **arrays)
    np.save(folder / "keras.npy", decoder.predict(_latents(COMPARED), verbose=0))


def _latents(batch: int) -> np.ndarray:
    """Latents, float32 (batch, 100), the same for every runner."""
    return np.random.default_rng(batch).standard_normal((batch, LATENTS)).astype(np.float32)


def measure_alone(models: Path, options: argparse.Namespace, rounds: int, results: gpu.Results) -> bool:
    """Measures each runner alone on the device, and returns whether any could be."""
    expected = np.load(models / "keras.npy")[:, ::16, ::16]
    for name in options.runners:
        kind, precision, file = ALONE[name]
        keys = [{"runner": name, "batch": batch} for batch in options.batches]
        if all(results.find(key) is not None for key in keys):
            print(f"{name}: measured before", file=sys.stderr)
            continue
        python = options.peer_python if kind.startswith("torch") else sys.executable
        arguments = (kind, precision, str(models / file), options.device)
        worker = runners.start("benchmarks.decoding", *arguments, python=python)
        try:
            image = np.array(runners.ask(worker, {"batch": COMPARED, "runs": 1}, SECONDS_A_RUNNER)["pixels"])
            difference = float(np.abs(image - expected).max())
            allowed = PARITY if precision in ("float32", "tf32") else ALLOWED[precision]
            allowed += HALF_A_LEVEL if "uint8" in file else 0.0
            for key in keys:
                request = {"batch": key["batch"], "runs": 30}
                seconds = [
                    statistics.median(runners.ask(worker, request, SECONDS_A_RUNNER)["seconds"]) for _ in range(rounds)
                ]
                results.add(
                    key,
                    median_ms=1e3 * statistics.median(seconds),
                    quartiles_ms=[1e3 * each for each in gpu.spread(seconds)],
                    images_per_second=key["batch"] / statistics.median(seconds),
                    difference_from_keras=difference,
                    parity=difference <= allowed,
                )
                print(f"{name}, batch {key['batch']}: {1e3 * statistics.median(seconds):.2f} ms", file=sys.stderr)
        except runners.RunnerError as error:
            for key in keys:
                if results.find(key) is None:
                    results.fail(key, error)
            print(f"{name}: failed: {error}", file=sys.stderr)
        finally:
            runners.stop(worker)
    return any("failed" not in cell for cell in results.run["cells"])


def measure(models: Path, rounds: int) -> dict[str, Any]:
    """Runs all in turn on the CPU, and returns what is written."""
    device, known = "cpu", CPU
    workers: dict[str, runners.Runner] = {}
    for name, (kind, precision, file) in known.items():
        workers[name] = runners.start("benchmarks.decoding", kind, precision, str(models / file), device)
        runners.ask(workers[name], {"batch": 1, "runs": 1})  # one after the other: starting takes all cores
        print(f"{name} is ready", file=sys.stderr)
    record: dict[str, Any] = {
        "device": runners.device_name(device),
        "cores": os.cpu_count(),
        "versions": runners.versions(PACKAGES),
    }
    for batch in BATCHES:
        record[f"batch_{batch}"] = {}
        expected = None
        for name, (_, precision, _) in known.items():
            image = np.array(runners.ask(workers[name], {"batch": batch, "runs": 5})["pixels"])
            expected = image if expected is None else expected
            difference = float(np.abs(image - expected).max())
            if difference > ALLOWED[precision]:
                raise SystemExit(f"{name} differs from {OURS} by {difference}: these are not the same decoder")
        seconds: dict[str, list[float]] = {name: [] for name in known}
        for number in range(rounds):
            print(f"batch {batch}, round {number + 1} of {rounds}", file=sys.stderr)
            for name in known:
                time.sleep(0.25)  # threads of the one before stop spinning
                found = runners.ask(workers[name], {"batch": batch, "runs": 30 if batch == 1 else 6})["seconds"]
                seconds[name].append(statistics.median(found))
        for name, found in seconds.items():
            ratios = [one / ours for one, ours in zip(found, seconds[OURS], strict=True)]
            record[f"batch_{batch}"][name] = {
                "median_ms": 1e3 * statistics.median(found),
                "times_ours": statistics.median(ratios),
                "quartiles": statistics.quantiles(ratios, n=4)[::2],
            }
    record["peak_memory_mib"] = {name: runners.end(worker)["peak_mib"] for name, worker in workers.items()}
    record["first_image_s"] = first_image(models / "ours.onnx")
    record["bytes"] = {name: _size(models / file) for name, (_, _, file) in known.items()}
    return record


def first_image(path: Path, starts: int = 11) -> float:
    """Seconds, the median, from the start of Python to the first image by `keras_vae.export.runtime`."""
    script = (
        "import sys; from keras_vae.export.runtime import Decoder; "
        "decoder = Decoder(sys.argv[1]); decoder.decode([[0.0] * decoder.latent_dim])"
    )
    seconds = []
    for _ in range(starts):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _size(path: Path) -> int:
    if path.suffix == ".xml":
        return path.stat().st_size + path.with_suffix(".bin").stat().st_size
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


# One runner's process ------------------------------------------------------------------------------


def work(kind: str, precision: str, file: str, device: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What decodes as it is asked to."""
    run = RUNNERS[kind](file, precision, device)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        z = _latents(request["batch"])
        run(z)  # caches and threads are warm for all alike
        seconds = []
        for _ in range(request["runs"]):
            start = time.perf_counter()
            images = run(z)
            seconds.append(time.perf_counter() - start)
        if callable(images):  # it is still on the device
            images = images()
        if request["batch"] > COMPARED:
            return {"seconds": seconds}
        return {"seconds": seconds, "pixels": to_float(images[:, ::16, ::16]).astype(float).round(6).tolist()}

    return answer


Runner = Callable[[np.ndarray], Any]  # images, or what brings them from the device


def _onnxruntime(file: str, precision: str, device: str) -> Runner:
    session = _session(file, precision, device)
    name = session.get_inputs()[0].name
    return lambda z: session.run(None, {name: z})[0]


def _onnxruntime_bound(file: str, precision: str, device: str, nhwc: bool = False) -> Runner:
    """Latents and images stay on the device."""
    import onnxruntime

    session = _session(file, precision, device, nhwc)
    bound: dict[int, Any] = {}

    def run(z: np.ndarray) -> Any:
        if len(z) not in bound:
            binding = session.io_binding()
            latents = onnxruntime.OrtValue.ortvalue_from_numpy(z, device, 0)
            binding.bind_ortvalue_input(session.get_inputs()[0].name, latents)
            binding.bind_output(session.get_outputs()[0].name, device, 0)
            bound[len(z)] = binding
        binding = bound[len(z)]
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return lambda: binding.copy_outputs_to_cpu()[0]

    return run


def _session(file: str, precision: str, device: str, nhwc: bool = False) -> Any:
    import onnxruntime

    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        onnxruntime.preload_dlls()  # CUDA's libraries from their pip packages
        options = {"use_tf32": "1" if precision == "tf32" else "0", "prefer_nhwc": "1" if nhwc else "0"}
        providers.insert(0, ("CUDAExecutionProvider", options))
    session = onnxruntime.InferenceSession(file, providers=providers)
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise SystemExit("onnxruntime does not run on the GPU: keras-vae doctor says why")
    return session


def _openvino(file: str, precision: str, device: str) -> Runner:
    import openvino

    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return lambda z: model({"z": z})["image"].copy()


def _litert(file: str, precision: str, device: str) -> Runner:
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(file, num_threads=os.cpu_count()).get_signature_runner()
    return lambda z: run(z=z)["image"]


def _tensorflow(file: str, precision: str, device: str) -> Runner:
    import tensorflow as tf

    loaded = tf.saved_model.load(file)  # as a server does: where there is a card, on it
    return lambda z: loaded.signatures["serving_default"](z=tf.constant(z))["image"].numpy()


def _torch(file: str, precision: str, device: str) -> Runner:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    rounded = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = rounded
    dtype = torch.float32 if rounded else getattr(torch, precision)
    model: Any = torch_decoder(dict(np.load(file))).eval().to(device, dtype)
    if device == "cuda":  # the layout that tensor cores take
        model = model.to(memory_format=torch.channels_last)

    def run(z: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return run.model(torch.from_numpy(z).to(device, dtype)).permute(0, 2, 3, 1).float().cpu().numpy()  # type: ignore[attr-defined]

    run.model = model  # type: ignore[attr-defined]
    return run


def _torch_compiled(file: str, precision: str, device: str) -> Runner:
    import torch

    run = _torch(file, precision, device)
    run.model = torch.compile(run.model)  # type: ignore[attr-defined]
    return run


def _torch_compiled_bound(file: str, precision: str, device: str) -> Runner:
    """Latents and images stay on the device."""
    import torch

    run = _torch_compiled(file, precision, device)
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    placed: dict[int, Any] = {}

    def bound(z: np.ndarray) -> Any:
        if len(z) not in placed:
            placed[len(z)] = torch.from_numpy(z).to(device, dtype)
        with torch.inference_mode():
            images = run.model(placed[len(z)])  # type: ignore[attr-defined]
        if device == "cuda":
            torch.cuda.synchronize()
        return lambda: images.permute(0, 2, 3, 1).float().cpu().numpy()

    return bound


def torch_decoder(weights: dict[str, np.ndarray]) -> Any:
    """The same network as torch users write it, with the weights of the Keras one."""
    import torch

    def of(name: str) -> list[torch.Tensor]:
        found = sorted(key for key in weights if key.startswith(f"{name}/"))
        return [torch.from_numpy(weights[key]) for key in found]

    kernel, bias = of("project")
    project = torch.nn.Linear(*kernel.shape)
    # Keras lays the 4x4x256 out channels last, torch channels first.
    project.weight.data = kernel.T.reshape(4, 4, -1, LATENTS).permute(2, 0, 1, 3).reshape(-1, LATENTS).contiguous()
    project.bias.data = bias.reshape(4, 4, -1).permute(2, 0, 1).reshape(-1).contiguous()
    layers: list[torch.nn.Module] = [project, torch.nn.Unflatten(1, (-1, 4, 4))]
    for index in range(1, 5):
        kernel, *rest = of(f"conv{index}")
        channels, filters = kernel.shape[2:]
        conv = torch.nn.Conv2d(channels, filters, 3, bias=index == 4)
        conv.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
        layers += [torch.nn.Upsample(scale_factor=2), torch.nn.ReplicationPad2d(1), conv]
        if index == 4:
            assert conv.bias is not None
            (conv.bias.data,) = rest
            layers.append(torch.nn.Sigmoid())
        else:
            gamma, beta, mean, variance = rest
            norm = torch.nn.BatchNorm2d(filters, eps=float(weights["epsilon"]))
            norm.weight.data, norm.bias.data = gamma, beta
            norm.running_mean, norm.running_var = mean, variance
            layers += [norm, torch.nn.LeakyReLU(0.2)]
    return torch.nn.Sequential(*layers)


RUNNERS: dict[str, Callable[[str, str, str], Runner]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime-bound": _onnxruntime_bound,
    "onnxruntime-nhwc-bound": functools.partial(_onnxruntime_bound, nhwc=True),
    "openvino": _openvino,
    "litert": _litert,
    "tensorflow": _tensorflow,
    "torch": _torch,
    "torch-compiled": _torch_compiled,
    "torch-compiled-bound": _torch_compiled_bound,
}


if __name__ == "__main__":
    main()
