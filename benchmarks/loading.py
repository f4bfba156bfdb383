"""How fast images come in: a folder of JPEG files, the set built of it, and PyTorch's DataLoader on the same files.

    python -m benchmarks.loading --folder FOLDER

runs ours and the peer in turn, several rounds, and writes benchmarks/results/loading.json. Rates are images/s at 64x64
in batches of 64. A first epoch includes the listing of the folder. Feeding is what a training step takes longer with
images from the folder than with one batch again and again; the steps of both are made in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from keras_vae import OBJECTIVES, VAE, __version__, data
from keras_vae.support import precision
from keras_vae.support.files import write_json

RESULTS = Path(__file__).parent / "results"
SIZE, BATCH = 64, 64
FILES = 100_000
NAMES = 10_000_000
LISTING = """
import json, re, sys, time
from pathlib import Path
from keras_vae.data.image_files import Listing
def peak():  # not getrusage's, which begins at what the calling process took
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, start = peak(), time.perf_counter()
count = int(sys.argv[1])
listing = Listing(f"images/{index % 1000:03d}/{index:08d}.jpg" for index in range(count))
print(json.dumps({"names": count, "seconds": time.perf_counter() - start, "peak_mib": peak() - before}))
"""


class Photos(Dataset):
    """The peer's images: the same files, decoded and resized by the same library, as torch users do."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (SIZE, SIZE), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def rate(batches: Iterable[Any], start: float | None = None) -> float:
    """Images/s of one time through."""
    start = time.perf_counter() if start is None else start
    count = sum(len(batch) for batch in batches)
    return count / (time.perf_counter() - start)


def ours(source: Path | str) -> tuple[float, float]:
    """Images/s of the first epoch, with the loading, and of a later one."""
    start = time.perf_counter()
    loaded = data.load(source, SIZE, BATCH)
    # Held-out images are read while loading: count them with the first epoch's.
    count = sum(len(batch) for batch in loaded.train) + sum(len(batch) for batch in loaded.test)
    first = count / (time.perf_counter() - start)
    return first, statistics.median(rate(loaded.train) for _ in range(3))


def peer(folder: Path) -> tuple[float, float]:
    """The same of a DataLoader with a worker a core."""
    start = time.perf_counter()
    loader = DataLoader(Photos(folder), BATCH, shuffle=True, num_workers=os.cpu_count() or 1, persistent_workers=True)
    return rate(loader, start), rate(loader)


def feeding(source: Path, settings: dict[str, Any], rounds: int, fresh: bool) -> list[float]:
    """Time of training steps fed from a folder over that of steps fed the same batch, one ratio a round."""
    policy, _ = precision.choose()
    vae = VAE((SIZE, SIZE, 3), 100, seed=0, dtype=policy, **settings)
    vae.compile()
    vae.make_train_function()
    step: Callable[[Any], Any] = vae.train_function
    loaded = data.load(source, SIZE, BATCH)
    if not fresh:
        rate(loaded.train)
    one = iter(tf.data.Dataset.from_tensors(next(iter(loaded.train))).repeat())
    many = iter(loaded.train.repeat())
    for iterator in (one, many) * 3:
        step(iterator)

    def seconds(iterator: Any) -> float:
        start = time.perf_counter()
        for _ in range(10):
            step(iterator)
        return time.perf_counter() - start

    return [seconds(many) / seconds(one) for _ in range(rounds)]


def start_up(folder: Path) -> float:
    """Seconds until a folder of 100,000 files is ready."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        files = sorted(folder.rglob("*.jpg"))
        for index in range(FILES):
            part = Path(made) / f"{index % 100:02d}"
            part.mkdir(exist_ok=True)
            os.link(files[index % len(files)], part / f"{index:06d}.jpg")
        start = time.perf_counter()
        loaded = data.load(made, SIZE, BATCH)
        seconds = time.perf_counter() - start
        assert loaded.train_size + loaded.test_size == FILES
        return seconds


def spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a folder of .jpg images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for loading.json")
    arguments = parser.parse_args()
    folder = arguments.folder

    rates: dict[str, list[float]] = {
        f"{who}, {epoch} epoch": [] for who in ("folder", "built set", "DataLoader") for epoch in ("first", "later")
    }
    with tempfile.TemporaryDirectory() as sets:
        built = data.build(folder, name="photos", data_dir=sets, image_size=SIZE, attributes=False)
        for number in range(arguments.rounds):
            for who, run in (
                ("folder", lambda: ours(folder)),
                ("DataLoader", lambda: peer(folder)),
                ("built set", lambda: ours(built["folder"])),
            ):
                first, later = run()
                rates[f"{who}, first epoch"].append(first)
                rates[f"{who}, later epoch"].append(later)
                print(f"round {number + 1}, {who}: {first:,.0f} and {later:,.0f} images/s", flush=True)
    default = {"perceptual": "hed-vgg16", **OBJECTIVES["default"]}
    steps = {
        f"{objective}, {epoch} epoch": feeding(folder, settings, 4 * arguments.rounds, epoch == "first")
        for objective, settings in (("default", default), ("plain", OBJECTIVES["plain"]))
        for epoch in ("first", "later")
    }
    listing = subprocess.run([sys.executable, "-c", LISTING, str(NAMES)], capture_output=True, text=True, check=True)
    record = {
        "images": len(Photos(folder)),
        "cores": os.cpu_count(),
        "versions": {
            "keras_vae": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("tensorflow", "pillow", "torch")},
        },
        "images_per_second": {name: spread(values) for name, values in rates.items()},
        "ratio_to_dataloader": {
            f"{who}, {epoch} epoch": spread(
                one / other
                for one, other in zip(rates[f"{who}, {epoch} epoch"], rates[f"DataLoader, {epoch} epoch"], strict=True)
            )
            for who in ("folder", "built set")
            for epoch in ("first", "later")
        },
        "step_time_over_unfed": {name: spread(values) for name, values in steps.items()},
        "start_up_seconds_100000_files": spread(start_up(folder) for _ in range(3)),
        "listing": json.loads(listing.stdout),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "loading.json", record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
