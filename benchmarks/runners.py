"""Runners in processes of their own, which work in turn: what the benchmarks that compare frameworks share."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any


class RunnerError(SystemExit):
    """A runner failed, for the reason in the message. What does not catch it ends with that line."""


class Runner(subprocess.Popen[str]):
    """A process of its own; `log` keeps what it prints to standard error: noise, until it ends too early."""

    log: IO[str]


def start(module: str, *arguments: str, python: str = sys.executable, **environment: str) -> Runner:
    """Starts `python -m module --work ...`, which answers requests by `serve`; `python`, of another environment too."""
    log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (open as long as the runner lives)
    runner = Runner(
        [python, "-m", module, "--work", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )
    runner.log = log
    return runner


def ask(worker: Runner, request: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
    """A runner's answer to a request.

    Args:
        seconds: how long to wait for it; the runner is killed then.

    Raises:
        RunnerError: the runner failed at it, has ended, or took too long.
    """
    assert worker.stdin is not None
    assert worker.stdout is not None
    late = threading.Event()

    def give_up() -> None:
        late.set()
        _kill(worker)

    timer = threading.Timer(seconds or threading.TIMEOUT_MAX, give_up)
    timer.daemon = True
    timer.start()
    try:
        print(json.dumps(request), file=worker.stdin, flush=True)
        line = worker.stdout.readline()
    except BrokenPipeError:
        line = ""
    finally:
        timer.cancel()
    if late.is_set():
        worker.wait()
        raise RunnerError(f"a runner did not answer in {seconds:g} s")
    if not line:
        status = worker.wait()
        worker.log.seek(0)
        said = worker.log.read().strip().splitlines() or ["it said nothing"]
        raise RunnerError(f"a runner ended with status {status}: {said[-1][:400]}")
    answer = json.loads(line)
    if "error" in answer:
        raise RunnerError(answer["error"])
    return answer


def end(worker: Runner) -> dict[str, Any]:
    """Ends a runner, and returns `peak_mib`, the most memory that was resident in it."""
    answer = ask(worker, {"end": True})
    worker.wait()
    return answer


def serve(make: Callable[[], Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """A runner's process: answers each request on standard input by a line of JSON on standard output.

    With each answer it says `peak_mib`, the most memory that was resident in it so far; where it fails, `error`.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    said: dict[str, Any] = {}
    try:
        run = make()  # before it is asked: processes get ready side by side
    except (Exception, SystemExit) as error:
        said = _line(error)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = said or ({} if request.get("end") or request.get("peak") else run(request))
        except (Exception, SystemExit) as error:  # a framework's, out of memory for one: a line is all that is needed
            answer = _line(error)
        answer["peak_mib"] = peak_mib()
        print(json.dumps(answer), file=answers, flush=True)
        if request.get("end"):
            return


def _line(error: BaseException) -> dict[str, Any]:
    return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


def stop(worker: Runner) -> None:
    """Ends a runner that may have failed, and waits until the device's memory is free again."""
    _kill(worker)
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def _kill(worker: Runner) -> None:
    """Kills a runner with the processes it started: compilers, and a command it waits for."""
    if worker.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)


def peak_mib() -> float:
    """Most memory that was resident in this process, by the kernel's account; getrusage's begins at its parent's."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.is_file() else None
    if found:
        return int(found[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def machine() -> str:
    """What a benchmark on the CPU ran on."""
    return f"{os.cpu_count()} cores, {device_name('cpu')}"


def rows(figures: Mapping[str, Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]) -> list[str]:
    """Figures as the lines of a Markdown table, a row for each case; of columns by key, heads and formats."""
    lines = ["| | " + " | ".join(head for head, _ in columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, found in figures.items():
        cells = [form.format(found[key]) if key in found else "" for key, (_, form) in columns.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def picture(name: str) -> str:
    """The file with a case's pictures."""
    return f"{name.replace(', ', '-').replace(' ', '-')}.png"


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
    """What a device, "cpu" or "cuda", calls itself.

    Raises:
        SystemExit: there is no GPU.
    """
    if device == "cuda":
        from keras_vae.cli import gpu_cards  # not above: a peer's environment has none of what it needs

        return gpu_cards.require().cards[0].name
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
