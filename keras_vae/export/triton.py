"""A model of Triton Inference Server's repository, made from an exported ONNX file: no Triton needed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from keras_vae.export import seal
from keras_vae.export.conditional import condition_of
from keras_vae.export.errors import ExportError
from keras_vae.export.files import aside
from keras_vae.export.formats import CONDITION, LATENTS, NOISE, TAKEN
from keras_vae.support.files import replace

CONFIG = "config.pbtxt"
MODEL = "model.onnx"  # what Triton's onnxruntime backend looks for in a version's folder
HEADER = "# Written by keras-vae from the ONNX file in the folder 1: made anew with it, not edited.\n"
TYPES = {"FLOAT": "TYPE_FP32", "UINT8": "TYPE_UINT8"}  # of images: ONNX's names and Triton's
MAX_BATCH_SIZE = 64
# Batches leave as soon as they have one of these sizes. On two cores onnxruntime decodes 64x64 images at 97 % of its
# best rate in batches of 8, at 62 % one by one.
PREFERRED_BATCH_SIZES = (8, 16, 32, 64)
MAX_QUEUE_DELAY = 1000  # microseconds that an image waits for others: about what decoding it takes

# The part of Triton's model_config.proto that is written and checked here; other fields are ignored.
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "ModelConfig": [
        ("name", 1, "string"),
        ("platform", 2, "string"),
        ("version_policy", 3, "ModelVersionPolicy"),
        ("max_batch_size", 4, "int32"),
        ("input", 5, "repeated ModelInput"),
        ("output", 6, "repeated ModelOutput"),
        ("instance_group", 7, "repeated ModelInstanceGroup"),
        ("dynamic_batching", 11, "ModelDynamicBatching"),
        ("parameters", 14, "repeated Parameter"),
        ("backend", 17, "string"),
    ],
    "ModelInput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("dims", 4, "repeated int64")],
    "ModelOutput": [("name", 1, "string"), ("data_type", 2, "DataType"), ("dims", 3, "repeated int64")],
    "ModelVersionPolicy": [("latest", 1, "Latest")],
    "Latest": [("num_versions", 1, "uint32")],
    "ModelInstanceGroup": [("count", 2, "int32"), ("kind", 4, "Kind")],
    "ModelDynamicBatching": [
        ("preferred_batch_size", 1, "repeated int32"),
        ("max_queue_delay_microseconds", 2, "uint64"),
    ],
    "Parameter": [("key", 1, "string"), ("value", 2, "ModelParameter")],
    "ModelParameter": [("string_value", 1, "string")],
}
_ENUMS = {
    "DataType": [
        *("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8"),
        *("TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16"),
    ],
    "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"],
}
_SCALARS = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
    "uint64": descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
}


class _Model(NamedTuple):
    """What an ONNX file says about itself."""

    kind: str  # decoder or generator
    inputs: dict[str, tuple[int, ...]]  # shapes of rows by name
    image_shape: tuple[int, ...]
    image_type: str  # as Triton calls it
    metadata: dict[str, str]


def write(onnx_path: str | os.PathLike[str], repository: str | os.PathLike[str], name: str | None = None) -> Path:
    """Writes `config.pbtxt` and the folder `1` with the ONNX file, for `tritonserver --model-repository`.

    The model takes `z`, or `noise` if it is a generator, FP32 [batch, latent_dim], if conditional `condition` too, FP32
    [batch, names]. It returns `image`, FP32 or UINT8 [batch, height, width, channels], as the file does. Triton
    combines requests into batches, and decides itself whether it runs on GPUs. What an earlier call wrote under the
    same name is replaced; anything else is not.

    Args:
        onnx_path: an exported decoder or generator.
        repository: the folder of the models, made if it does not exist.
        name: of the model, and of its folder; by default "decoder" or "generator", whichever the file is.

    Returns:
        The model's folder.

    Raises:
        ExportError: the file is neither or damaged, the name cannot be a folder's, or what is there is not ours.
    """
    path, repository = Path(onnx_path), Path(repository)
    model = _read(path)
    name = model.kind if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ExportError(f"name={name!r}: give a name of letters, digits, _, . and -")
    config = _config(name, model)
    folder = repository / name
    _check_replaceable(folder)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with aside(folder, _beside(repository)) as new:
            (new / "1").mkdir(parents=True)
            shutil.copyfile(path, new / "1" / MODEL)
            (new / CONFIG).write_text(HEADER + text_format.MessageToString(config))
            check(new)
            replace(new, folder)
    except OSError as error:
        raise ExportError(f"cannot write {folder} ({error.strerror}): choose another repository") from error
    return folder


def check(folder: str | os.PathLike[str]) -> None:
    """Compares a model's configuration with the ONNX file of its highest version, which Triton serves.

    Args:
        folder: the model's folder, as `write` returned it.

    Raises:
        ExportError: they differ, and the message names the field; or one is missing or cannot be read.
    """
    folder = Path(folder)
    config_path = folder / CONFIG
    found = _ModelConfig()
    try:
        text_format.Parse(config_path.read_text(), found, allow_unknown_field=True)
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(
            f"no configuration at {config_path}: write the model with keras_vae.export.triton.write"
        ) from error
    except text_format.ParseError as error:
        raise ExportError(f"{config_path} is not a configuration of Triton: {' '.join(str(error).split())}") from error
    versions = [int(each.name) for each in folder.iterdir() if each.name.isdecimal() and each.is_dir()]
    if not versions:
        raise ExportError(f"{folder} has no version: write the model with keras_vae.export.triton.write")
    model = _read(folder / str(max(versions)) / MODEL)
    wanted = _config(folder.name, model)

    def compare(field: str, value: Any, expected: Any) -> None:
        if value != expected:
            raise ExportError(f"{config_path}: {field} is {value!r} and should be {expected!r}: write the model again")

    compare("name", found.name, wanted.name)
    compare("backend", found.backend, wanted.backend)
    for field in ("input", "output"):
        entries, expected = getattr(found, field), getattr(wanted, field)
        compare(f"the number of {field}s", len(entries), len(expected))
        for one, other in zip(entries, expected, strict=True):
            compare(f"{field}.name", one.name, other.name)
            compare(f"{field}.data_type", _data_type(one), _data_type(other))
            compare(f"{field}.dims", list(one.dims), list(other.dims))
    if found.max_batch_size < 1:
        raise ExportError(
            f"{config_path}: max_batch_size is {found.max_batch_size}, which takes the batch from "
            f"{', '.join(model.inputs)} and image: give 1 or more"
        )
    too_large = [size for size in found.dynamic_batching.preferred_batch_size if size > found.max_batch_size]
    compare("dynamic_batching.preferred_batch_size beyond max_batch_size", too_large, [])
    parameters = {entry.key: entry.value.string_value for entry in found.parameters}
    for key, value in model.metadata.items():
        compare(f"parameters.{key}", parameters.get(key), value)


def _config(name: str, model: _Model) -> Any:
    config = _ModelConfig(name=name, backend="onnxruntime", max_batch_size=MAX_BATCH_SIZE)
    config.version_policy.latest.num_versions = 1
    for given, row in model.inputs.items():
        config.input.add(name=given, data_type="TYPE_FP32", dims=row)
    config.output.add(name="image", data_type=model.image_type, dims=model.image_shape)
    config.dynamic_batching.preferred_batch_size.extend(PREFERRED_BATCH_SIZES)
    config.dynamic_batching.max_queue_delay_microseconds = MAX_QUEUE_DELAY
    config.instance_group.add(count=1, kind="KIND_AUTO")  # one on each GPU, or one on the CPU
    for key, value in sorted(model.metadata.items()):
        config.parameters.add(key=key).value.string_value = value
    return config


def _read(path: Path) -> _Model:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExportError(f"no ONNX file at {path}") from error
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's DecodeError, which its two implementations define each for itself
        raise ExportError(f"{path} is not an ONNX model: export it again") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    weights = {each.name for each in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    outputs = list(model.graph.output)
    given, made = ([value.name for value in values] for values in (inputs, outputs))
    if tuple(given) not in TAKEN or made != ["image"]:
        names = (*given, *made)
        raise ExportError(
            f"{path} is neither decoder nor generator: it has {', '.join(names) or 'nothing'} where a decoder has "
            f"{LATENTS} and image, and a generator {NOISE} and image"
        )
    seal.check_onnx(content, metadata, path)
    seal.check_version(metadata, path)
    rows = {value.name: _row(value, 2, path)[0] for value in inputs}
    condition_of(metadata, rows.get(CONDITION, ()), path)
    image_shape, image_type = _row(outputs[0], 4, path, tuple(TYPES))
    return _Model("generator" if NOISE in rows else "decoder", rows, image_shape, image_type, metadata)


def _row(value: Any, rank: int, path: Path, types: Sequence[str] = ("FLOAT",)) -> tuple[tuple[int, ...], str]:
    """The shape of one row of a tensor of one of these types, whose batch is free, and its type as Triton calls it."""
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    type_name = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if type_name not in types or len(dims) != rank or None in dims[1:]:
        raise ExportError(
            f"{path} is not a model of ours: its {value.name} is {type_name} {dims} where there should be "
            f"{' or '.join(types)} of {rank} axes, all but the first of known sizes"
        )
    if dims[0] is not None:
        raise ExportError(f"{path}: the batch of {value.name} is fixed at {dims[0]}: export it with a free batch")
    return tuple(dim for dim in dims[1:] if dim is not None), TYPES[type_name]


def _check_replaceable(folder: Path) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    others = {each.relative_to(folder).as_posix() for each in folder.rglob("*")} - {CONFIG, "1", f"1/{MODEL}"}
    try:
        is_ours = not others and (folder / CONFIG).read_text().startswith(HEADER)
    except (OSError, UnicodeDecodeError):
        is_ours = False
    if not is_ours:
        raise ExportError(f"{folder} exists and keras-vae did not write it: choose another name, or remove it first")


def _beside(repository: Path) -> Path:
    """A folder on the same disk: if possible not in the repository, where Triton takes every folder for a model."""
    beside = repository.absolute().parent
    on_the_same_disk = beside.stat().st_dev == repository.stat().st_dev
    return beside if on_the_same_disk and os.access(beside, os.W_OK) else repository


def _data_type(entry: Any) -> str:
    return _ENUMS["DataType"][entry.data_type]


def _model_config_class() -> Any:
    """The protocol buffer class of `_MESSAGES`, kept apart from others of the same name."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto2")
    for enum, values in _ENUMS.items():
        added = file.enum_type.add(name=enum)
        for number, value in enumerate(values):
            added.value.add(name=value, number=number)
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind in fields:
            repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
            field = described.field.add(name=name, number=number)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = field.TYPE_ENUM if kind in _ENUMS else field.TYPE_MESSAGE
                field.type_name = f".inference.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


_ModelConfig = _model_config_class()
