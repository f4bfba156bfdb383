"""The benchmarks of GPUs, in small form on a CPU: what they keep, survive, and say where there is no card."""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_gpu, decoding, gpu, gpu_table, numerics, real_run, runners, sweep, train_step
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
    path = tmp_path / "new" / "gpu_train_step.json"
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


# The sweep --------------------------------------------------------------------------------------

# A runner that answers as ours do: float16 needs too much memory, vae-345 crashes, PyTorch computes something else.
FAKE = """
import json, os, sys
kind, case = sys.argv[1], json.loads(sys.argv[2])
for line in sys.stdin:
    request = json.loads(line)
    answer = {"peak_mib": 100.0}
    if "terms" in request:
        answer |= {"kl": 80.0 if kind == "compiled" else 70.0, "squared_error": 3.0}
    elif "gflop" in request:
        answer["gflop"] = {"ours": [2 * b for b in request["gflop"]], "as written": [3 * b for b in request["gflop"]]}
    elif "memory" in request:
        answer["device_mib"] = 12.0
    elif case["objective"] == "vae-345":
        print("Check failed: the last line", file=sys.stderr, flush=True)
        os.abort()
    elif case["precision"] == "float16":
        answer["error"] = "ResourceExhaustedError: Out of memory"
    else:
        answer["steps"] = [0.01, 0.01, 0.03]
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def fake_runners(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Starts the script above for each runner, and lists the kinds of those that were started."""
    (tmp_path / "fake.py").write_text(FAKE)
    started: list[str] = []
    original = runners.Runner

    def start(arguments: list[str], **options: Any) -> Any:
        started.append(arguments[4])
        return original([sys.executable, str(tmp_path / "fake.py"), *arguments[4:]], **options)

    monkeypatch.setattr(runners, "Runner", start)
    return started


def sweep_options(tmp_path: Path, **changed: Any) -> argparse.Namespace:
    settings = {
        **{"device": "cpu", "full": False, "objectives": ["plain", "vae-345"], "sizes": [64], "batches": [4]},
        **{"precisions": ["bfloat16", "float16"], "runners": None, "rounds": 2, "seconds": 0.0, "out": tmp_path},
        "peer_python": sys.executable,
    }
    return argparse.Namespace(**{**settings, **changed})


def test_a_sweep_survives_what_fails_and_goes_on(fake_runners: list[str], tmp_path: Path) -> None:
    options = sweep_options(tmp_path)
    keys = sweep.plan(options)
    assert len(keys) == 2 * 2 * len(sweep.USUAL_RUNNERS)
    path = tmp_path / "gpu_train_step.json"
    results = gpu.Results(path, MACHINE)
    assert not sweep.sweep(keys, options, results, tmp_path, time.monotonic() + 1e3)
    plain = {"objective": "plain", "size": 64, "batch": 4}
    found = results.find({**plain, "precision": "bfloat16", "runner": "ours, XLA"})
    assert found is not None
    assert found["images_per_second"] == pytest.approx(400)
    assert found["peak_mib"] == 12.0
    assert found["share_of_peak"] == pytest.approx(2.0 * 4 * 1e9 / 0.01 / 121e12)
    failed = {tuple(cell["key"].values()): cell for cell in results.run["cells"] if "failed" in cell}
    assert "not the same work" in failed["plain", 64, "bfloat16", 4, "PyTorch, compiled"]["failed"]
    assert failed["plain", 64, "float16", 4, "ours"]["out_of_memory"]
    crashed = failed["vae-345", 64, "bfloat16", 4, "ours"]
    assert (crashed["failed"], crashed["out_of_memory"]) == (
        "a runner ended with status -6: Check failed: the last line",
        False,
    )
    assert results.run["left"] == []
    table = gpu_table.page(tmp_path, "cuda")
    assert "| plain | 64 | bfloat16 | 4 | 400; 12; 1% | 400; 12; 1% | failed |  |" in table
    assert "out of memory" in table
    # The second time only what failed is tried again, but for what had too little memory.
    fake_runners.clear()
    sweep.sweep(keys, options, gpu.Results(path, MACHINE), tmp_path, time.monotonic() + 1e3)
    assert "ours without XLA" in fake_runners
    measured = len(keys) - len(failed)
    assert len(fake_runners) == 2 + len(keys) - measured - 2  # two references; ours in float16, XLA and not, is known


def test_a_sweep_keeps_to_its_time(fake_runners: list[str], tmp_path: Path) -> None:
    options = sweep_options(tmp_path, objectives=["plain"])
    results = gpu.Results(tmp_path / "gpu_train_step.json", MACHINE)
    sweep.sweep(sweep.plan(options), options, results, tmp_path, time.monotonic())
    assert fake_runners == []
    assert len(results.run["left"]) == 6
    results.add({**results.run["left"][0]}, failed="x", out_of_memory=False)
    assert "6 cells were not reached" in gpu_table.page(tmp_path, "cuda")


def test_the_plan_begins_with_what_tells_most() -> None:
    none = {"objectives": None, "sizes": None, "batches": None, "precisions": None, "runners": None}
    usual = sweep.plan(argparse.Namespace(full=False, **none))
    assert usual[0] == {"objective": "plain", "size": 64, "precision": "bfloat16", "batch": 256, "runner": "ours, XLA"}
    everything = sweep.plan(argparse.Namespace(full=True, **none))
    assert len(everything) == 3 * 3 * 3 * 3 * len(sweep.RUNNERS)
    assert all(key in everything for key in usual)
    assert len({json.dumps(key) for key in usual}) == len(usual)


def test_a_runner_that_hangs_is_ended(fake_runners: list[str], tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text("import time; time.sleep(60)")
    worker = runners.start("benchmarks.train_step", "ours", "{}")
    with pytest.raises(runners.RunnerError, match=r"did not answer in 0\.2 s"):
        runners.ask(worker, {"terms": True}, 0.2)
    runners.stop(worker)


def test_ours_counts_its_operations_and_takes_steps(tmp_path: Path) -> None:
    """Of `plain` at 32x32 by hand: forward, and back to weights and inputs, but not to the images."""
    case = {"objective": "plain", "precision": "float32", "size": 32, "batch": 2, "width": 8, "device": "cpu"}
    answer = train_step._ours("ours without XLA", {**case, "folder": str(tmp_path)})
    steps = answer({"seconds": 0.0, "together": 2})["steps"]
    assert len(steps) == train_step.LEAST_STEPS
    assert answer({"memory": True}) == {"device_mib": 0.0}
    found = answer({"gflop": [1, 2]})["gflop"]
    width = 8
    first = 16**2 * 4 * 4 * 3 * width  # places, kernel, channels, filters
    encoder = first + sum((16 // 2**each) ** 2 * 16 * width * 2 ** (each - 1) * width * 2**each for each in (1, 2, 3))
    heads = 2 * 2**2 * 8 * width * train_step.LATENTS
    project = train_step.LATENTS * 2**2 * 8 * width
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


def test_numerics_and_the_real_run(array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the runners' processes, in this one."""

    def in_this_process(serve: Callable[[dict[str, Any]], Any]) -> None:
        monkeypatch.setattr(runners, "start", lambda module, text, **environment: serve(json.loads(text)))
        monkeypatch.setattr(runners, "ask", lambda worker, request, seconds: {**worker(request), "peak_mib": 1.0})
        monkeypatch.setattr(runners, "stop", lambda worker: None)

    common = ["--device", "cpu", "--data", str(array), "--out", str(tmp_path)]
    in_this_process(numerics.train)
    arguments = ["--steps", "20", "--size", "32", "--batch", "16", "--objectives", "plain", "--precisions"]
    monkeypatch.setattr(sys, "argv", ["numerics", *common, *arguments, "float32", "bfloat16"])
    with pytest.raises(SystemExit, match="0"):
        numerics.main()
    cells = json.loads((tmp_path / "cpu_numerics.json").read_text())["runs"][0]["cells"]
    assert [cell["key"]["precision"] for cell in cells] == ["float32", "bfloat16"]
    for cell in cells:
        assert cell["key"]["data"] == "avatars.npy"
        assert cell["finite"]
        assert len(cell["losses"]) == len(cell["loss_scales"]) == 20
        assert cell["steps_left_out"] == 0
        assert cell["losses"][-1] < cell["losses"][0]
    in_this_process(real_run.pipeline)
    monkeypatch.setattr(real_run, "OBJECTIVES", ("plain",))
    monkeypatch.setattr(real_run, "trained", lambda key, options: {**RUN, "steps": 3})
    arguments = ["--sizes", "32", "--batch", "16", "--pipeline-seconds", "0", "--preset", "plain"]
    monkeypatch.setattr(sys, "argv", ["real_run", *common, *arguments])
    with pytest.raises(SystemExit, match="0"):
        real_run.main()
    fitted, trained = json.loads((tmp_path / "cpu_run.json").read_text())["runs"][0]["cells"]
    assert (fitted["key"]["part"], fitted["images"], fitted["epochs"]) == ("pipeline", 87, 1)
    assert fitted["images_per_second"] > 0
    assert trained["steps"] == 3
    page = gpu_table.write(tmp_path, "cpu").read_text()
    assert "| avatars.npy | plain | 32 | 16 | 20 | float32 |" in page
    assert "psnr 20" in page
    assert "![At 32 pixels](cpu_run_32_samples.png)" in page
    assert (tmp_path / "cpu_numerics.png").stat().st_size > 1000
    assert str(array.parent) not in page


RUN: dict[str, Any] = {
    "images_per_second": 10.0,
    "epochs": 1,
    "precision": "float32",
    "card": {"samples": 2, "busy": 0.95, "least_busy": 0.9, "memory_mib": 9.0},
    "evaluation": {"psnr": 20.0},
}


def test_bound_decoders_decode_as_the_others(deployed: Any) -> None:
    """As onnxruntime binds them on a GPU, on the CPU."""
    plain, bound, nhwc = (
        decoding.RUNNERS[kind](str(deployed.onnx), "tf32", "cpu")
        for kind in ("onnxruntime", "onnxruntime-bound", "onnxruntime-nhwc-bound")
    )
    np.testing.assert_array_equal(nhwc(deployed.z)(), plain(deployed.z))
    np.testing.assert_array_equal(bound(deployed.z)(), plain(deployed.z))
    np.testing.assert_allclose(bound(deployed.z)(), deployed.images, atol=1e-4)
    assert bound(deployed.z[:2])().shape == (2, 32, 32, 3)


# All of it --------------------------------------------------------------------------------------


def test_the_parts_get_their_arguments(tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    options = argparse.Namespace(
        device="cuda", out=tmp_path, peer_python="/peer/python", faces=faces, fresh=False, full=False
    )
    common = ["--device", "cuda", "--out", str(tmp_path)]
    assert bench_gpu.arguments("sweep", options) == [*common, "--peer-python", "/peer/python"]
    assert bench_gpu.arguments("real_run", options) == [*common, "--data", str(faces)]
    options.full = True
    assert bench_gpu.arguments("sweep", options)[-1] == "--full"
    assert bench_gpu.arguments("real_run", options)[-2:] == ["--minutes", "10"]


def test_nothing_measured_says_so(tmp_path: Path) -> None:
    assert "Nothing is measured yet" in gpu_table.write(tmp_path, "cuda").read_text()


@without_gpu
@pytest.mark.parametrize("module", ["sweep", "numerics", "decoding", "real_run", "bench_gpu"])
def test_without_a_gpu_it_is_said_in_a_line(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"sweep": sweep, "numerics": numerics, "decoding": decoding, "real_run": real_run, "bench_gpu": bench_gpu}
    monkeypatch.setattr(sys, "argv", [module, "--device", "cuda", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as error:
        found[module].main()  # type: ignore[attr-defined]
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
    options = argparse.Namespace(faces=Path("/nowhere"), device="cpu")
    assert bench_gpu.run(options) == 2
    assert "FACES=FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_a_rehearsal_of_everything(array: Path, tmp_path: Path) -> None:
    """Each part in processes of its own; PyTorch's cells are kept as failed where it is not installed."""
    command = [sys.executable, "-m", "benchmarks.bench_gpu", "--device", "cpu", "--faces", array, "--out", tmp_path]
    ended = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    page = (tmp_path / "cpu.md").read_text()
    for title in gpu_table.TITLES.values():
        assert f"## {title}: " in page
