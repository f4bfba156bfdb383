"""TensorFlow Datasets builders: found by name or folder, and their sets prepared where that can be done."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import absl.logging

from keras_vae.support import hosts
from keras_vae.support.errors import InputError

# Debian's package dataset-fashion-mnist holds the files that TFDS downloads, without the name and time in their heads.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_TIMES = {
    "train-images-idx3-ubyte": 1504176606,
    "train-labels-idx1-ubyte": 1504176606,
    "t10k-images-idx3-ubyte": 1504176627,
    "t10k-labels-idx1-ubyte": 1504176627,
}


@dataclass(frozen=True)
class Name:
    """What follows `tfds:`, as NAME[/CONFIG][:VERSION][:SPLIT]."""

    builder: str
    split: str | None

    @classmethod
    def parse(cls, text: str) -> Name:
        """Takes a name apart.

        Raises:
            InputError: it is empty.
        """
        builder, *rest = text.split(":", 1)
        if not builder:
            raise InputError("tfds: names no set: give tfds:NAME, as in tfds:mnist")
        if rest and (version := re.fullmatch(r"(\d+\.[\d*]+\.[\d*]+)(?::(.*))?", rest[0])):
            return cls(f"{builder}:{version[1]}", version[2] or None)
        return cls(builder, rest[0] if rest and rest[0] else None)


def find(name: str) -> Any:
    """The builder of a set by NAME[/CONFIG][:VERSION], prepared or not.

    Raises:
        InputError: there is none of that name.
    """
    import tensorflow_datasets as tfds

    try:
        with tidy():
            return _described(tfds.builder(name))
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(
            re.split("[/:]", name)[0], tfds.list_builders(with_community_datasets=False), 3
        )
        hint = f"did you mean {' or '.join(near)}?" if near else "`tfds.list_builders()` names those there are"
        raise InputError(f"unknown TFDS set {name!r}: {hint}") from error
    except (ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"tfds:{name}: {' '.join(str(error).split())[:300]}") from error


def from_folder(folder: Path) -> Any:
    """The builder of a prepared set in a folder of its own.

    Raises:
        InputError: it is damaged.
    """
    import tensorflow_datasets as tfds

    try:
        with tidy():
            return tfds.builder_from_directory(folder)
    except Exception as error:  # whatever parsing a damaged description raises
        raise InputError(f"{folder} is a damaged TFDS set: {str(error).splitlines()[0]}") from error


def is_prepared(builder: Any) -> bool:
    """Whether a set lies ready in the data folder."""
    # TFDS warns of a folder that does not exist as of a damaged one.
    return builder.data_path.exists() and builder.is_prepared()


def check(builder: Any) -> None:
    """Refuses a set that is neither prepared nor can be: TFDS itself would try for minutes to reach a silent host.

    Raises:
        InputError: its files cannot be had.
    """
    if is_prepared(builder) or _local_files(builder) is not None:
        return
    where = (
        f"run `tfds build {builder.name}` where there is a network, or set TFDS_DATA_DIR to the folder that holds it"
    )
    missing = f"tfds:{builder.name} is not prepared under {builder.data_path.parent}"
    if not callable(getattr(builder, "_generate_examples", None)):
        raise InputError(f"{missing}: {where}")
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        raise InputError(
            f"{missing}, and its files must be fetched by hand (see {builder.info.homepage}): then {where}"
        )
    silent = _silent_hosts(builder)
    if silent:
        raise InputError(f"{missing}, and {', '.join(silent)} cannot be reached: {where}")


def prepare(builder: Any) -> None:
    """Downloads and writes a set, showing progress; does nothing where that is done.

    Raises:
        InputError: its files cannot be had, or the data folder cannot be written to.
    """
    import tensorflow_datasets as tfds

    if is_prepared(builder):
        return
    check(builder)
    print(f"preparing tfds:{builder.name}, once, into {builder.data_path}")
    try:
        with _as_downloaded(_local_files(builder)) as manual_dir:
            config = tfds.download.DownloadConfig(manual_dir=manual_dir)
            with quiet(progress=builder.name != "avatars"):  # that builder shows its own
                builder.download_and_prepare(download_config=config)
    except OSError as error:
        raise InputError(
            f"cannot prepare tfds:{builder.name} in {builder.data_path}: {error.strerror or error}; set TFDS_DATA_DIR "
            "to a folder that can be written to"
        ) from error
    except (tfds.download.DownloadError, tfds.download.NonMatchingChecksumError) as error:
        raise InputError(
            f"cannot download tfds:{builder.name}: {str(error).splitlines()[0]}; try again later"
        ) from error


def _silent_hosts(builder: Any) -> list[str]:
    """Hosts of the set's files that do not answer."""
    by_host = {url.split("/")[2]: url for url in builder.url_infos or () if url.startswith("http")}
    failures = hosts.silent(by_host.values())
    return sorted(host for host, url in by_host.items() if url in failures)


def _local_files(builder: Any) -> Path | None:
    if builder.name == "fashion_mnist" and DEBIAN_FASHION_MNIST.is_dir():
        return DEBIAN_FASHION_MNIST
    return None


@contextlib.contextmanager
def _as_downloaded(folder: Path | None) -> Iterator[str | None]:
    """Debian's files of Fashion-MNIST as TFDS's checksums know them: with the original's name and time in each head."""
    if folder is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as rebuilt:
        for name, time in FASHION_MNIST_TIMES.items():
            packed = (folder / f"{name}.gz").read_bytes()
            head = b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + packed[8:10] + name.encode() + b"\0"
            (Path(rebuilt) / f"{name}.gz").write_bytes(head + packed[10:])
        yield rebuilt


def _described(builder: Any) -> Any:
    builder.info  # noqa: B018 (made at the first look)
    return builder


@contextlib.contextmanager
def quiet(progress: bool = True) -> Iterator[None]:
    """Without TFDS's banners, and without its progress bars where they cannot be redrawn or are not wanted."""
    import tensorflow_datasets as tfds

    tfds.display_progress_bar(progress and sys.stderr.isatty())
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(True)
        absl.logging.set_verbosity(verbosity)


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """Takes away the empty temporary folder that TFDS leaves behind for each builder it describes."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before
