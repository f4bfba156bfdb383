"""The waves in which GPUs are measured, with processes that only answer: what fails, hangs, or is left."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_gpu, cells, gpu, gpu_table, runners

MACHINE = {"device": "NVIDIA L4", "cores": 8, "versions": {"tensorflow": "2.21.0"}}

# A runner that answers as ours do: float16 needs too much memory, vae-345 crashes, PyTorch computes something else,
# JAX hangs once it is to take steps.
FAKE = """
import json, os, sys, time
kind, case = sys.argv[1], json.loads(sys.argv[2])
for line in sys.stdin:
    request = json.loads(line)
    answer = {"peak_mib": 100.0}
    if "terms" in request:
        answer |= {"kl": 80.0 if kind == "compiled" else 70.0, "squared_error": 3.0}
    elif "gflop" in request:
        answer["gflop"] = {"ours": [1, 3], "as written": [0, 3]}  # of batches of 0 and 1
    elif "memory" in request:
        answer |= {"device_mib": 12.0, "note": "a remark" if "graphs" in kind else ""}
    elif case["objective"] == "vae-345":
        print("Check failed: the last line", file=sys.stderr, flush=True)
        os.abort()
    elif case["precision"] == "float16":
        answer["error"] = "ResourceExhaustedError: Out of memory"
    elif kind == "jax" and request["seconds"]:
        time.sleep(60)
    else:
        answer["steps"] = [0.01, 0.01, 0.03] if "XLA" in kind else [0.02]
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


def measured(groups: list[list[cells.Key]], tmp_path: Path, seconds: float = 1e3) -> gpu.Results:
    """What of some groups is measured in so many seconds."""
    results = gpu.Results(tmp_path / "gpu.json", {**MACHINE, "versions": {"torch": "2.13.0", "jax": "0.10.2"}})
    with tempfile.TemporaryDirectory() as folder:
        bench = cells.Bench("cpu", "avatars", sys.executable, 0.01, time.monotonic() + seconds, Path(folder))
        options = argparse.Namespace(together=6, rounds=2, out=tmp_path, device="cuda")
        bench_gpu.measure(groups, bench, results, options)
    return results


def groups_of(objectives: tuple[str, ...], precisions: tuple[str, ...]) -> list[list[cells.Key]]:
    names = tuple(cells.STEPS)
    return [bench_gpu._steps(each, 64, precision, 4, names) for each in objectives for precision in precisions]


def test_what_fails_costs_its_own_cell_and_is_gone_on_with(
    fake_runners: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "LIMIT", 3.0)
    groups = groups_of(("plain", "vae-345"), ("bfloat16", "float16"))
    results = measured(groups, tmp_path)
    plain = {"part": "step", "objective": "plain", "size": 64, "precision": "bfloat16", "batch": 4}
    found = results.find({**plain, "runner": "ours, XLA"})
    assert found is not None
    assert found["timings"]["4"]["images_per_second"] == pytest.approx(400)
    assert found["peak_mib"] == 12.0
    assert found["gflop"] == 9.0
    peer = results.find({**plain, "runner": "PyTorch, CUDA graphs"})
    assert peer is not None
    assert (peer["timings"]["4"]["times_ours"], peer["timings"]["4"]["quartiles"]) == (2.0, [2.0, 2.0])
    assert peer["gflop"] == 12.0
    failed = {tuple(cell["key"].values())[1:]: cell for cell in results.run["cells"] if "failed" in cell}
    assert "not the same work" in failed["plain", 64, "bfloat16", 4, "PyTorch, compiled"]["failed"]
    assert failed["plain", 64, "bfloat16", 4, "JAX"]["failed"] == "a runner did not answer in 3 s"
    assert failed["plain", 64, "float16", 4, "ours"]["out_of_memory"]
    crashed = failed["vae-345", 64, "bfloat16", 4, "ours"]
    assert (crashed["failed"], crashed["out_of_memory"]) == (
        "a runner ended with status -6: Check failed: the last line",
        False,
    )
    assert results.run["left"] == []
    table = gpu_table.page(tmp_path, "cuda")
    assert "| plain | 64 | bfloat16 | 4 | ours, XLA | 400 | 10 (10 to 10) |  | 12 | 0.7% | " in table
    assert "| PyTorch, CUDA graphs | 200 | 20 (20 to 20) | 2.00 (2.00 to 2.00) | 12 | " in table
    assert "plain, 64, bfloat16, 4: a remark." in table
    assert "- step, plain, 64, float16, 4, ours: out of memory: ResourceExhaustedError: Out of memory" in table
    # The second time, groups with something that failed are measured again, but for what had too little memory.
    fake_runners.clear()
    measured([bench_gpu._steps("plain", 64, "float16", 4, ("ours, XLA", "ours"))], tmp_path)
    measured([bench_gpu._steps("plain", 64, "bfloat16", 4, ("ours, XLA", "PyTorch, CUDA graphs"))], tmp_path)
    assert fake_runners == []
    measured([bench_gpu._steps("plain", 64, "bfloat16", 4, ("ours, XLA", "PyTorch, compiled"))], tmp_path)
    assert sorted(fake_runners) == ["compiled", "ours", "ours with XLA"]  # the reference among them


def test_no_wave_is_begun_that_cannot_end(fake_runners: list[str], tmp_path: Path) -> None:
    results = measured(groups_of(("plain",), ("bfloat16",)), tmp_path, cells.PARTS["step"].seconds - 1)
    assert fake_runners == []
    assert len(results.run["left"]) == len(cells.STEPS)
    results.fail(results.run["left"].pop(), "x")
    page = gpu_table.page(tmp_path, "cuda")
    assert "- step, plain, 64, bfloat16, 4, JAX: x" in page
    assert (
        "- step, plain, 64, bfloat16, 4 (ours, XLA; ours; PyTorch, compiled; PyTorch, CUDA graphs): not reached" in page
    )


def test_what_the_time_cuts_off_is_left(
    fake_runners: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cells.PARTS, "step", dataclasses.replace(cells.PARTS["step"], seconds=0.0))
    monkeypatch.setattr(bench_gpu, "A_ROUND", 0.0)
    groups = [bench_gpu._steps("plain", 64, "bfloat16", 4, ("ours, XLA", "JAX"))]
    start = time.monotonic()
    results = measured(groups, tmp_path, 2.0)  # in which JAX hangs
    assert time.monotonic() - start < 10
    assert [cell["key"]["runner"] for cell in results.run["cells"]] == []
    assert [key["runner"] for key in results.run["left"]] == ["ours, XLA", "JAX"]


def test_a_peer_that_is_not_installed_says_so(fake_runners: list[str], tmp_path: Path) -> None:
    results = gpu.Results(tmp_path / "gpu.json", MACHINE)
    bench = cells.Bench("cpu", "avatars", sys.executable, 0.01, time.monotonic() + 1e3, tmp_path)
    options = argparse.Namespace(together=6, rounds=2, out=tmp_path, device="cuda")
    bench_gpu.measure(groups_of(("plain",), ("bfloat16",)), bench, results, options)
    assert sorted(fake_runners) == ["ours", "ours with XLA", "ours without XLA"]
    (cell,) = (cell for cell in results.run["cells"] if cell["key"]["runner"] == "JAX")
    assert cell["failed"] == "jax is not installed in the peers' environment"
    assert "jax" not in gpu._peer_versions("/no/such/python")


def test_the_plan_begins_with_what_tells_most() -> None:
    groups = bench_gpu.plan("cuda", "faces")
    first = {"part": "step", "objective": "plain", "size": 64, "precision": "bfloat16", "batch": 256}
    assert groups[0] == [{**first, "runner": name} for name in cells.STEPS]
    assert [group[0]["objective"] for group in groups[:4]] == ["plain", "vae-123", "plain", "vae-123"]
    parts = list(dict.fromkeys(group[0]["part"] for group in groups))
    assert parts == ["step", "decoder", "numerics", "run"]
    keys = [json.dumps(key) for group in groups for key in group]
    assert len(set(keys)) == len(keys)
    waves = bench_gpu.waves(groups, 6)
    assert [len(wave) for wave in waves[:4]] == [5, 5, 6, 6]
    assert all(len({key["part"] for key in wave}) == 1 for wave in waves)


def test_a_runner_that_hangs_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hangs.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(60)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker = runners.start("hangs")
    while not ((tmp_path / "child").is_file() and (tmp_path / "child").read_text()):
        time.sleep(0.05)
    with pytest.raises(runners.RunnerError, match=r"did not answer in 0\.2 s"):
        runners.ask(worker, {"terms": True}, 0.2)
    runners.stop(worker)
    child = Path("/proc") / (tmp_path / "child").read_text()
    for _ in range(50):
        if not child.exists() or "zombie" in (child / "status").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("what the runner started still runs")
