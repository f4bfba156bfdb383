"""Runners in processes of their own, which work in turn: what the benchmarks that compare frameworks share."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def start(module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts `python -m module --work ...`, which answers requests by `serve`."""
    return subprocess.Popen(
        [sys.executable, "-m", module, "--work", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )


def ask(worker: subprocess.Popen[str], request: dict[str, Any]) -> dict[str, Any]:
    """A runner's answer to a request; ends the benchmark where the runner has ended."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(json.dumps(request), file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit(f"a runner ended: {' '.join(map(str, worker.args))}")  # type: ignore[arg-type]
    return json.loads(answer)


def end(worker: subprocess.Popen[str]) -> dict[str, Any]:
    """Ends a runner, and returns `peak_mib`, the most memory that was resident in it."""
    answer = ask(worker, {"end": True})
    worker.wait()
    return answer


def serve(make: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """A runner's process: answers each request on standard input by a line of JSON on standard output.

    With each answer it says `peak_mib`, the most memory that was resident in it so far.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    run = make()
    for line in sys.stdin:
        request = json.loads(line)
        answer = {} if request.get("end") or request.get("peak") else run(request)
        answer["peak_mib"] = peak_mib()
        print(json.dumps(answer), file=answers, flush=True)
        if request.get("end"):
            return


def peak_mib() -> float:
    """Most memory that was resident in this process, by the kernel's account; getrusage's begins at its parent's."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.is_file() else None
    if found:
        return int(found[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    """What a device, "cpu" or "cuda", calls itself."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
