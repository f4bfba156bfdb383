"""How fast decoders run: our ONNX file beside the one Keras itself exports, and beside PyTorch, on the CPU.

    python -m benchmarks.decoding

The paper's decoder, 64x64, 100 latents, random weights, float32, batches of 1 and 64: all are run in turn, many rounds,
in one process with as many threads as cores; the medians, and the medians of the rounds' ratios, are written to
benchmarks/results/decoding.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np
import onnxruntime
import torch

from export import export_decoder
from keras_vae import VAE, __version__

RESULTS = Path(__file__).parent / "results"
LATENTS = 100
OURS = "ours, onnxruntime"


class TorchDecoder(torch.nn.Module):
    """The same network as torch users write it, with the weights of the Keras one."""

    def __init__(self, decoder: keras.Model) -> None:
        super().__init__()

        def of(name: str) -> list[torch.Tensor]:
            return [torch.from_numpy(np.array(weight)) for weight in decoder.get_layer(name).get_weights()]

        kernel, bias = of("project")
        self.project = torch.nn.Linear(*kernel.shape)
        # Keras lays the 4x4x256 out channels last, torch channels first.
        self.project.weight.data = (
            kernel.T.reshape(4, 4, -1, LATENTS).permute(2, 0, 1, 3).reshape(-1, LATENTS).contiguous()
        )
        self.project.bias.data = bias.reshape(4, 4, -1).permute(2, 0, 1).reshape(-1).contiguous()
        layers: list[torch.nn.Module] = []
        for index in range(1, 5):
            weights = of(f"conv{index}")
            filters, channels = weights[0].shape[3], weights[0].shape[2]
            conv = torch.nn.Conv2d(channels, filters, 3, bias=len(weights) > 1)
            conv.weight.data = weights[0].permute(3, 2, 0, 1).contiguous()
            layers += [torch.nn.Upsample(scale_factor=2), torch.nn.ReplicationPad2d(1), conv]
            if index == 4:
                assert conv.bias is not None
                conv.bias.data = weights[1]
                layers.append(torch.nn.Sigmoid())
            else:
                gamma, beta, mean, variance = of(f"conv{index}_norm")
                norm = torch.nn.BatchNorm2d(filters, eps=decoder.get_layer(f"conv{index}_norm").epsilon)
                norm.weight.data, norm.bias.data = gamma, beta
                norm.running_mean, norm.running_var = mean, variance
                layers += [norm, torch.nn.LeakyReLU(0.2)]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.layers(self.project(z).reshape(len(z), -1, 4, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for decoding.json")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    decoder = VAE((64, 64, 3), LATENTS, perceptual=None).decoder
    rng = np.random.default_rng(0)
    for weight in decoder.weights:
        if any(part in weight.path for part in ("moving", "gamma", "beta")):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    peer = TorchDecoder(decoder).eval()
    runners: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        export_decoder(decoder, Path(folder) / "ours.onnx", "onnx")
        decoder(np.zeros((1, LATENTS), np.float32))  # Keras exports what was called once
        decoder.export(f"{folder}/keras.onnx", format="onnx", verbose=False)
        sizes = {}
        for name, file in ((OURS, "ours.onnx"), ("Keras's export, onnxruntime", "keras.onnx")):
            sizes[name] = (Path(folder) / file).stat().st_size
            session = onnxruntime.InferenceSession(f"{folder}/{file}", providers=["CPUExecutionProvider"])
            feed = session.get_inputs()[0].name
            runners[name] = lambda z, session=session, feed=feed: session.run(None, {feed: z})[0]  # type: ignore[misc]

        def torch_runner(model: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[np.ndarray], np.ndarray]:
            def run(z: np.ndarray) -> np.ndarray:
                with torch.inference_mode():
                    return model(torch.from_numpy(z)).permute(0, 2, 3, 1).numpy()

            return run

        torch.set_num_threads(os.cpu_count() or 1)
        runners["PyTorch, eager"] = torch_runner(peer)
        runners["PyTorch, compiled"] = torch_runner(torch.compile(peer))
        record: dict[str, object] = {
            "cores": os.cpu_count(),
            "versions": {
                "keras_vae": __version__,
                "python": platform.python_version(),
                **{name: version(name) for name in ("keras", "tf2onnx", "onnxruntime-gpu", "torch")},
            },
            "bytes": sizes,
        }
        for batch in (1, 64):
            z = rng.standard_normal((batch, LATENTS)).astype(np.float32)
            expected = runners[OURS](z)
            for name, run in runners.items():
                for _ in range(3):
                    difference = float(np.abs(run(z) - expected).max())
                assert difference < 1e-4, f"{name} differs by {difference}"
            seconds: dict[str, list[float]] = {name: [] for name in runners}
            for _ in range(arguments.rounds * (8 if batch == 1 else 1)):
                for name, run in runners.items():
                    start = time.perf_counter()
                    run(z)
                    seconds[name].append(time.perf_counter() - start)
            record[f"batch_{batch}"] = {
                name: {
                    "median_ms": 1e3 * statistics.median(found),
                    "times_ours": statistics.median(one / ours for one, ours in zip(found, seconds[OURS], strict=True)),
                    "quartiles": statistics.quantiles(
                        (one / ours for one, ours in zip(found, seconds[OURS], strict=True)), n=4
                    )[::2],
                }
                for name, found in seconds.items()
            }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "decoding.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
