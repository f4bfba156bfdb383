"""The run folder during training: made, locked against other processes, and the configuration written into it."""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock

from keras_vae import data
from keras_vae._version import __version__
from keras_vae.runs.folder import CHECKPOINT_FOLDER, CONFIG_FILE, is_run, read_config
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_parent, write_aside
from keras_vae.training.config import TrainingConfig, absolute

LOCK_FILE = ".lock"


def check_folder(out: Path) -> None:
    """Refuses a run folder that is taken or cannot be made.

    Raises:
        InputError: it is refused.
    """
    if is_run(out):
        raise InputError(f"{out} already holds a run: continue it with --resume, or give another --out")
    if out.exists() and (not out.is_dir() or any(path.name != LOCK_FILE for path in out.iterdir())):
        raise InputError(f"{out} exists and is not a run: give a new or an empty folder")
    check_parent(out)


@contextmanager
def made(out: Path) -> Iterator[None]:
    """Makes the run folder, and holds it for the block."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the run folder {out}: {error.strerror}; give another") from error
    with held(out):
        check_folder(out)  # another process may have come first
        yield


@contextmanager
def held(out: Path) -> Iterator[None]:
    """A block in which no other process can train in the folder; the system releases the lock of one that is killed."""
    lock = filelock.FileLock(out / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(f"another process trains in {out}: wait for its end, or give another --out") from error
    except OSError as error:
        raise InputError(f"{out} cannot be written to: {error.strerror}; fix that, or give another --out") from error
    try:
        yield
    finally:
        lock.release()


def write_config(config: TrainingConfig, policy: str, images: data.ImageData, held_out: Mapping[str, Any]) -> None:
    """Writes `config.json` and makes the subfolders of a run; a resumed run keeps its `run_id`.

    Args:
        config: of the run.
        policy: the model's dtype policy.
        images: its data.
        held_out: by what a resumed run recognizes its data; what the run began with is kept.

    Raises:
        InputError: the folder cannot be written to.
    """
    out = Path(config.out)
    packages = ("tensorflow", "keras", "numpy")
    before = read_config(out) if is_run(out) else {}
    record = {
        "run_id": before.get("run_id") or uuid.uuid4().hex,
        "keras_vae_version": __version__,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "policy": policy,
        "train_images": images.train_size,
        "test_images": images.test_size,
        "held_out": before.get("held_out") or dict(held_out),
        **asdict(config),
        "data": absolute(config.data),  # later commands may run from elsewhere
    }
    del record["resume"]
    try:
        for part in (CHECKPOINT_FOLDER, "samples", "logs"):
            (out / part).mkdir(exist_ok=True)
        with write_aside(out / CONFIG_FILE) as aside:
            aside.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to the run folder {out}: {error.strerror}; give another") from error
