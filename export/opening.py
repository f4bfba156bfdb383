"""Opens exported decoders of any format, with no more imports than its own takes."""

from __future__ import annotations

from pathlib import Path

from export.errors import ExportError
from export.formats import Opened, format_of


def open_artifact(path: Path) -> Opened:
    """Opens an exported decoder, to run on the CPU in the precision it was exported in.

    Raises:
        ExportError: it is missing, damaged, changed since it was exported, or no decoder; or what it runs on is not
            installed.
    """
    format = format_of(path)
    if format == "tf_saved_model":
        from export import saved_model as module
    elif format == "onnx":
        from export import runtime as module  # type: ignore[no-redef]
    elif format == "litert":
        from export import litert as module  # type: ignore[no-redef]
    elif format == "openvino":
        from export import openvino as module  # type: ignore[no-redef]
    else:
        raise ExportError(f"{path} is no exported decoder: give a SavedModel folder or an .onnx, .tflite or .xml file")
    return module.open_decoder(path)
