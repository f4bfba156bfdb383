"""SHA-256 sums that travel inside artifacts, beside their metadata: a damaged copy is told from what was exported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_vae.export.errors import ExportError

# What an artifact of this number holds and is called; a later number may mean something else.
FORMAT_VERSION = 1

# An ONNX file ends in its own sum, as one more entry of its metadata: ModelProto's field 14, key and value.
_ENTRY = b"\x72\x4a\x0a\x06sha256\x12\x40"
_ENTRY_LENGTH = len(_ENTRY) + 64


def digest(content: bytes | Path) -> str:
    """The SHA-256 of bytes, or of a file, in hexadecimal."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(content).hexdigest()


def seal_onnx(content: bytes) -> bytes:
    """A serialized ONNX model with the sum of its bytes appended, in its metadata as `sha256`."""
    return content + _ENTRY + digest(content).encode()


def check_onnx(content: bytes, metadata: Mapping[str, str], path: Path) -> None:
    """Compares a file with the sum in it, where it has one.

    Raises:
        ExportError: they differ.
    """
    recorded = metadata.get("sha256")
    if recorded is not None and digest(content[:-_ENTRY_LENGTH]) != recorded:
        raise ExportError(f"{path} is not what was exported (its checksum differs): copy it or export it again")


def manifest(metadata: Mapping[str, str], files: Mapping[str, str]) -> str:
    """Metadata and the sums of files, by name, as JSON."""
    return json.dumps({"metadata": dict(metadata), "sha256": dict(files)}, indent=2, sort_keys=True)


def check_manifest(text: str | bytes, files: Mapping[str, str | None], path: Path) -> dict[str, str]:
    """Compares files with a manifest.

    Args:
        text: what `manifest` wrote.
        files: the sums of the files found, by name; None for one that is missing.
        path: the artifact, for messages.

    Returns:
        The metadata.

    Raises:
        ExportError: the manifest cannot be read, or a file is missing or differs.
    """
    try:
        content: dict[str, Any] = json.loads(text)
        metadata, recorded = dict(content["metadata"]), dict(content["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"the manifest of {path} is damaged: copy it or export it again") from error
    for name, wanted in recorded.items():
        if files.get(name) is None:
            raise ExportError(f"{path} lacks its file {name}: copy it whole or export it again")
        if files[name] != wanted:
            raise ExportError(
                f"{name} of {path} is not what was exported (its checksum differs): copy it or export it again"
            )
    return {str(name): str(value) for name, value in metadata.items()}


def check_version(metadata: Mapping[str, str], path: Path) -> None:
    """Refuses artifacts that a later keras-vae wrote in a way this one does not know.

    Raises:
        ExportError: it is one.
    """
    found = metadata.get("format_version", str(FORMAT_VERSION))
    if found != str(FORMAT_VERSION):
        raise ExportError(
            f"{path} is of format version {found}, written by keras-vae {metadata.get('keras_vae_version', '?')}; this "
            f"one reads version {FORMAT_VERSION}: update keras-vae, or export it again"
        )
