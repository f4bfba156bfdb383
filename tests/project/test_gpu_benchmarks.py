"""The benchmarks of GPUs, in small form on a CPU: what they keep, survive, and say where there is no card."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_gpu, decoders, gpu, gpu_table, numerics, real_run, runners, steps
from keras_vae import VAE
from keras_vae.cli import gpu_cards

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"device": "NVIDIA L4", "cores": 8, "versions": {"tensorflow": "2.21.0"}}
without_gpu = pytest.mark.skipif(bool(gpu_cards.find().cards), reason="about machines without a GPU")


# The card ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", (494.7, 989.4)),
        ("NVIDIA H100 PCIe", (378.0, 756.0)),
        ("NVIDIA A100-SXM4-80GB", (156.0, 312.0)),
        ("NVIDIA A100 80GB PCIe", (156.0, 312.0)),
        ("NVIDIA L4", (60.0, 121.0)),
        ("NVIDIA L40S", (183.0, 362.0)),
        ("NVIDIA GeForce RTX 4090", (82.6, 165.2)),
        ("Tesla T4", (8.1, None)),
        ("Tesla V100-SXM2-16GB", (15.7, None)),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", (None, None)),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", (None, None)),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", (None, None)),
        ("Intel(R) Xeon(R) Processor", (None, None)),
    ],
)
def test_the_peak_of_a_card(name: str, expected: tuple[float | None, float | None]) -> None:
    assert (gpu.peak(name, "float32"), gpu.peak(name, "bfloat16")) == expected


class Nvml:
    """NVML of a card that is busy every other time."""

    asked = 0

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"card {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetUtilizationRates(self, card: str) -> Any:  # noqa: N802
        self.asked += 1
        return argparse.Namespace(gpu=100 if self.asked % 2 else 0)

    def nvmlDeviceGetMemoryInfo(self, card: str) -> Any:  # noqa: N802
        return argparse.Namespace(used=self.asked * 2**20)


def test_busy_is_the_mean_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SECONDS_BETWEEN_SAMPLES", 0.01)
    with gpu.Busy(Nvml()) as busy:
        while len(busy.samples) < 6:
            time.sleep(0.01)
    del busy.samples[6:]
    found = busy.summary()
    assert (found["samples"], found["busy"], found["memory_mib"]) == (6, 0.5, 6.0)
    late = busy.summary(start=1e6)
    assert late == {"samples": 0, "problem": "no sample in that time"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert gpu._first_card(Nvml()) == "card 2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    assert gpu._first_card(Nvml()) == "GPU-1234"


@without_gpu
def test_without_nvml_a_run_goes_on() -> None:
    with gpu.Busy() as busy:
        time.sleep(0.3)
    assert busy.summary()["samples"] == 0
    assert busy.summary()["problem"]


# Results ----------------------------------------------------------------------------------------


def test_results_are_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gpu.json"
    results = gpu.Results(path, MACHINE)
    assert not path.parent.exists()  # nothing is written before there is something to write
    results.add({"batch": 1}, median_ms=2.0)
    results.fail({"batch": 2}, RuntimeError("no such\noperation"))
    results.fail({"batch": 4}, "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
    again = gpu.Results(path, MACHINE)
    assert again.find({"batch": 1}) == {"key": {"batch": 1}, "median_ms": 2.0}
    assert again.find({"batch": 2}) is None  # may have been chance
    found = again.find({"batch": 4})
    assert found is not None
    assert found["out_of_memory"]
    assert gpu.Results(path, MACHINE, fresh=True).find({"batch": 1}) is None
    other = gpu.Results(path, {**MACHINE, "versions": {"tensorflow": "2.22.0"}})
    assert other.find({"batch": 1}) is None
    other.add({"batch": 1}, median_ms=1.0)
    first, last = json.loads(path.read_text())["runs"]
    assert (first["machine"], len(first["cells"])) == (MACHINE, 3)
    assert last["cells"] == [{"key": {"batch": 1}, "median_ms": 1.0}]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    path.write_text('{"cases": []}')
    with pytest.raises(SystemExit, match="not a results file"):
        gpu.Results(path, MACHINE)


# Steps ------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX, of the peers' environment")
@pytest.mark.parametrize(("objective", "size"), [("plain", 32), ("vae-123", 32)])
def test_jax_computes_the_same(objective: str, size: int, tmp_path: Path) -> None:
    """The same terms of the loss from the same weights, to float32's rounding; and it learns."""
    from benchmarks import peer_jax

    case = {"objective": objective, "precision": "float32", "size": size, "batch": 4, "width": 8, "device": "cpu"}
    case["folder"] = str(tmp_path)
    expected = steps.ours("ours", case)({"terms": True})
    jax = steps.in_jax("jax", case)
    assert jax({"terms": True}) == pytest.approx(expected, rel=1e-5)
    losses = peer_jax.Step(objective, "bfloat16", *steps._given(case))
    images = steps._images(case)[0]
    first = float(losses(images))
    for _ in range(20):
        last = float(losses(images))
    assert last < 0.9 * first
    assert len(jax({"seconds": 0.0, "together": 2})["steps"]) == steps.LEAST_STEPS


@pytest.mark.slow
def test_ours_counts_its_operations_and_takes_steps(tmp_path: Path) -> None:
    """Of `plain` at 32x32 by hand: forward, and back to weights and inputs, but not to the images."""
    case = {"objective": "plain", "precision": "float32", "size": 32, "batch": 2, "width": 8, "device": "cpu"}
    answer = steps.ours("ours without XLA", {**case, "folder": str(tmp_path)})
    assert len(answer({"seconds": 0.0, "together": 2})["steps"]) == steps.LEAST_STEPS
    assert answer({"memory": True}) == {"device_mib": 0.0}
    found = answer({"gflop": [1, 2]})["gflop"]
    width = 8
    first = 16**2 * 4 * 4 * 3 * width  # places, kernel, channels, filters
    encoder = first + sum((16 // 2**each) ** 2 * 16 * width * 2 ** (each - 1) * width * 2**each for each in (1, 2, 3))
    heads = 2 * 2**2 * 8 * width * steps.LATENTS
    project = steps.LATENTS * 2**2 * 8 * width
    channels = [8 * width, 4 * width, 2 * width, width, 3]
    decoder = sum(
        (4 * 2**each) ** 2 * 9 * one * other for each, (one, other) in enumerate(itertools.pairwise(channels))
    )
    expected = 2 * (3 * (encoder + heads + project + decoder) - first) / 1e9
    assert found["as written"][0] == pytest.approx(expected, rel=1e-6)
    assert found["as written"][1] == pytest.approx(2 * expected, rel=1e-6)
    assert found["ours"][0] < found["as written"][0]


# The other parts --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def array(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("array") / "avatars.npy"
    np.save(path, images)
    return path


@pytest.mark.slow
def test_numerics_in_one_fit(array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the processes, in this one; and the page of what they found."""
    results = gpu.Results(tmp_path / "cpu.json", MACHINE)
    fits: list[int] = []
    original = VAE.fit
    monkeypatch.setattr(VAE, "fit", lambda self, *given, **options: fits.append(1) or original(self, *given, **options))
    for precision in ("float32", "bfloat16"):
        key = bench_gpu._numerics("plain", precision, gpu.source_name(str(array)), 32, 16, 20)
        results.add(key, **numerics.train({**key, "data": str(array), "device": "cpu"})({"train": True}))
    assert len(fits) == 2
    for cell in results.run["cells"]:
        assert cell["finite"]
        assert len(cell["losses"]) == len(cell["loss_scales"]) == 20
        assert cell["steps_left_out"] == 0
        assert cell["losses"][-1] < cell["losses"][0]
    results.add(bench_gpu._run("avatars.npy", 32, 16, "plain", 0.05), **RUN)
    page = gpu_table.write(tmp_path, "cpu").read_text()
    assert "| avatars.npy | plain | 32 | 16 | 20 | float32 |" in page
    assert (
        "| avatars.npy | plain | 32 | 16 | 0.05 | float32 | 3 (1) | 10 | 12 | 4% | 95%, 2 samples, a tenth below 90% |"
        in page
    )
    assert (tmp_path / "cpu.png").stat().st_size > 1000
    assert str(array.parent) not in page


RUN: dict[str, Any] = {
    "images_per_second": 10.0,
    "epochs": 1,
    "steps": 3,
    "precision": "float32",
    "start_s": 12.3,
    "between_steps": 0.04,
    "card": {"samples": 2, "busy": 0.95, "least_busy": 0.9, "memory_mib": 9.0},
}


@pytest.mark.slow
def test_segments_are_means_of_their_own_steps(array: Path) -> None:
    """As a fit of as many epochs would have them."""
    key = bench_gpu._numerics("plain", "float32", "x", 32, 16, 200)
    case = {**key, "data": str(array), "device": "cpu", "steps": 6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numerics, "SEGMENTS", 6)
        single = numerics.train(case)({"train": True})["losses"]
        patch.setattr(numerics, "SEGMENTS", 2)
        means = numerics.train(case)({"train": True})["losses"]
    assert means == pytest.approx([sum(single[:3]) / 3, sum(single[3:]) / 3], rel=1e-4)


def test_a_real_run_is_watched_after_its_first_epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a command that leaves what `keras-vae train` leaves."""
    (tmp_path / "train.py").write_text(
        "import json, pathlib, sys, time\n"
        "run = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n"
        "run.mkdir()\n"
        "(run / 'config.json').write_text(json.dumps({'precision': 'float32'}))\n"
        "for epoch in range(1, 4):\n"
        "    time.sleep(0.5)\n"
        "    with (run / 'metrics.jsonl').open('a') as file:\n"
        "        stages = {'first step': 0.1, 'steps': 0.2, 'validation': 0.02 * epoch, 'pictures': 0.01}\n"
        "        figures = {'images_per_second': 9.0, 'step': 2 * epoch, 'epoch': epoch, 'seconds': 0.5 * epoch}\n"
        "        print(json.dumps({**figures, 'seconds_by_stage': stages}), file=file)\n"
    )
    monkeypatch.setattr(real_run, "COMMAND", (sys.executable, str(tmp_path / "train.py")))
    found = real_run.trained({"data": "x", "size": 32, "batch": 4, "minutes": 1, "preset": "plain"})
    assert (found["steps"], found["epochs"], found["precision"]) == (6, 3, "float32")
    assert 0.5 < found["card"]["seconds"] < 3.0
    assert found["start_s"] == pytest.approx(found["card"]["first_line_s"] - 0.2 - 0.02)
    assert found["between_steps"] == pytest.approx((0.06 + 0.01) / 1.5)
    (tmp_path / "train.py").write_text("import sys; print('no images'); sys.exit(2)")
    with pytest.raises(runners.RunnerError, match="training ended with status 2: no images"):
        real_run.trained({"data": "x", "size": 32, "batch": 4, "minutes": 1, "preset": "plain"})


def test_bound_decoders_decode_as_the_others(deployed: Any) -> None:
    """As onnxruntime binds them on a GPU, on the CPU."""
    plain, bound, nhwc = (
        decoders.RUNNERS[kind](str(deployed.onnx), "tf32", "cpu")
        for kind in ("onnxruntime", "onnxruntime-bound", "onnxruntime-nhwc-bound")
    )
    np.testing.assert_array_equal(nhwc(deployed.z)(), plain(deployed.z))
    np.testing.assert_array_equal(bound(deployed.z)(), plain(deployed.z))
    np.testing.assert_allclose(bound(deployed.z)(), deployed.images, atol=1e-4)
    assert bound(deployed.z[:2])().shape == (2, 32, 32, 3)


# All of it --------------------------------------------------------------------------------------


def test_nothing_measured_says_so(tmp_path: Path) -> None:
    assert "Nothing is measured this way yet" in gpu_table.write(tmp_path, "cuda").read_text()


@without_gpu
def test_without_a_gpu_it_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_gpu", "--device", "cuda", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as error:
        bench_gpu.main()
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no GPU to measure here: ")
    assert not (tmp_path / "out").exists()


@without_gpu
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_bench_gpu_without_a_gpu(tmp_path: Path) -> None:
    """Within seconds, in a line besides make's own, with status 2, and nothing is installed or written."""
    environments = [f"GPU_VENV={tmp_path / 'gpu'}", f"PEER_VENV={tmp_path / 'peer'}"]
    start = time.monotonic()
    command = ["make", "-j2", "-C", str(ROOT), "bench-gpu", f"PYTHON={sys.executable}", *environments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert time.monotonic() - start < 30
    assert ended.returncode == 2
    lines = [line for line in (ended.stdout + ended.stderr).splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert lines[0].startswith("no GPU to measure here: ")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(faces=Path("/nowhere"), device="cpu", minutes=10.0)
    assert bench_gpu.run(options) == 2
    assert "FACES=FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_a_rehearsal_of_everything(array: Path, tmp_path: Path) -> None:
    """Each cell in a process of its own; those of a peer that is not installed say so."""
    command = [sys.executable, "-m", "benchmarks.bench_gpu", "--device", "cpu", "--faces", array, "--out", tmp_path]
    ended = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    page = (tmp_path / "cpu.md").read_text()
    for title in gpu_table.TITLES.values():
        assert f"### {title}" in page
