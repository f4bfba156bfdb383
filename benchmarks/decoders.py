"""The processes that decode: ours in every runtime, the file Keras itself exports, and PyTorch.

`benchmarks.decoding` and `benchmarks.bench_gpu` start them: `python -m benchmarks.decoders --work KIND PRECISION FILE
DEVICE`. The kind "export" writes what the others decode: the paper's decoder, 64x64, 100 latents, random weights.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import runners
from keras_vae.support.pixels import to_float

LATENTS = 100
COMPARED = 64  # images, whose pixels are compared


def work(kind: str, precision: str, file: str, device: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What decodes as it is asked to; of the kind "export", what exports to a folder."""
    if kind == "export":
        return lambda request: export(Path(file), precision == "alone")
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


def export(folder: Path, alone: bool) -> dict[str, Any]:
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
    return {}


def _latents(batch: int) -> np.ndarray:
    """Latents, float32 (batch, 100), the same for every runner."""
    return np.random.default_rng(batch).standard_normal((batch, LATENTS)).astype(np.float32)


if __name__ == "__main__":
    runners.serve(lambda: work(*sys.argv[2:]))
