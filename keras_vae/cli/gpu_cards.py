"""NVIDIA cards, as the driver sees them.

    python keras_vae/cli/gpu_cards.py    # lists them; without one, says so in one line and exits with 2

Takes nothing but Python's standard library: it runs before anything is installed, and when what is installed is
broken.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
# Of CUDA's driver API: attributes for cuDeviceGetAttribute, and errors of cuInit.
MAJOR, MINOR = 75, 76
REASONS = {
    100: "the NVIDIA driver finds no card (is CUDA_VISIBLE_DEVICES set?)",
    803: "the NVIDIA driver's library and its kernel module have different versions: restart the machine",
    999: "the NVIDIA driver does not start: look at nvidia-smi and dmesg",
}


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        name: the driver's name for it, such as "NVIDIA H100 80GB HBM3".
        capability: compute capability, major and minor.
        memory_mib: its total memory.
    """

    name: str
    capability: tuple[int, int]
    memory_mib: int


@dataclass(frozen=True)
class Cards:
    """What the driver sees.

    Attributes:
        cards: the cards that CUDA_VISIBLE_DEVICES leaves, in CUDA's order.
        driver: version of the driver; empty if unknown.
        cuda: the newest CUDA that the driver supports, such as "12.8"; empty without a driver.
        problem: why there are no cards, in words; empty if there are some.
    """

    cards: tuple[Card, ...] = ()
    driver: str = ""
    cuda: str = ""
    problem: str = ""


def find() -> Cards:
    """The cards of this machine. Starting the driver can take seconds; no memory is taken on a card."""
    try:
        cuda = ctypes.CDLL(LIBRARY)
    except OSError:
        return Cards(problem=f"no NVIDIA driver is installed ({LIBRARY} cannot be loaded)")
    number = ctypes.c_int()
    newest = (
        f"{number.value // 1000}.{number.value % 1000 // 10}" if not _called(cuda, "cuDriverGetVersion", number) else ""
    )
    driver = _driver_version()
    status = cuda.cuInit(0) or _called(cuda, "cuDeviceGetCount", number)
    if status or not number.value:
        problem = REASONS.get(status or 100, f"the NVIDIA driver does not start (CUDA error {status})")
        return Cards(driver=driver, cuda=newest, problem=problem)
    return Cards(tuple(_card(cuda, index) for index in range(number.value)), driver, newest)


def _called(cuda: Any, function: str, into: Any, *arguments: Any) -> int:
    """Calls a driver function that writes to its first argument; returns its status, 0 for success."""
    return int(getattr(cuda, function)(ctypes.byref(into), *arguments))


def _card(cuda: Any, index: int) -> Card:
    device, memory, major, minor = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    _called(cuda, "cuDeviceGet", device, index)
    cuda.cuDeviceGetName(name, len(name), device)
    _called(cuda, "cuDeviceTotalMem_v2", memory, device)
    _called(cuda, "cuDeviceGetAttribute", major, MAJOR, device)
    _called(cuda, "cuDeviceGetAttribute", minor, MINOR, device)
    return Card(name.value.decode(errors="replace"), (major.value, minor.value), memory.value >> 20)


def _driver_version() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"\s(\d{3,}\.\d+(?:\.\d+)?)\s", DRIVER_VERSION.read_text())
        return found[1] if found else ""
    return ""


def require() -> Cards:
    """The cards of this machine, for benchmarks that need one.

    Raises:
        SystemExit: there is none. A line on standard error has said so, and the status is 2.
    """
    found = find()
    if found.problem:
        print(f"no GPU to measure here: {found.problem}; nothing was run, and nothing was written", file=sys.stderr)
        raise SystemExit(2)
    return found


def main() -> None:
    found = require()
    for card in found.cards:
        capability, driver = ".".join(map(str, card.capability)), found.driver or "unknown"
        print(f"{card.name}, compute capability {capability}, {card.memory_mib} MiB; driver {driver}")


if __name__ == "__main__":
    main()
