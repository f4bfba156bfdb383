"""A model repository for Triton: its configuration says what the ONNX file says, and replaces only its own kind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format

from keras_vae.export import triton
from keras_vae.export.errors import ExportError

README = Path(__file__).resolve().parents[2] / "export" / "serving" / "README.md"


@pytest.fixture
def model(deployed: Any, tmp_path: Path) -> Path:
    """The folder of a model in a repository."""
    return triton.write(deployed.onnx, tmp_path / "repository")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_configuration_is_tritons_and_says_what_the_file_says(model: Path, deployed: Any) -> None:
    from tritonclient.grpc import model_config_pb2  # Triton's own description of the format

    config = text_format.Parse((model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("decoder", "onnxruntime", 64)
    (z,), (image,) = config.input, config.output
    assert (z.name, z.data_type, list(z.dims)) == ("z", model_config_pb2.TYPE_FP32, [8])
    assert (image.name, image.data_type, list(image.dims)) == ("image", model_config_pb2.TYPE_FP32, [32, 32, 3])
    assert config.version_policy.latest.num_versions == 1
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    preferred = list(config.dynamic_batching.preferred_batch_size)
    assert preferred == sorted(preferred)
    assert preferred[-1] <= config.max_batch_size
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_AUTO, 1)
    metadata = {entry.key: entry.value for entry in onnx.load(deployed.onnx).metadata_props}
    assert {key: value.string_value for key, value in config.parameters.items()} == metadata
    assert json.loads(metadata["image_shape"]) == list(image.dims)


def test_the_file_in_the_repository_decodes(model: Path, deployed: Any) -> None:
    assert sorted(files(model)) == ["1/model.onnx", "config.pbtxt"]
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (images,) = session.run(["image"], {"z": deployed.z})
    np.testing.assert_allclose(images, deployed.images, atol=1e-5)
    triton.check(model)


def test_images_from_0_to_255(deployed_uint8: Any, tmp_path: Path) -> None:
    for file in (deployed_uint8.onnx, deployed_uint8.generator):
        config = triton.write(file, tmp_path) / "config.pbtxt"
        assert config.read_text().count("TYPE_UINT8") == 1
        triton.check(config.parent)
        config.write_text(config.read_text().replace("TYPE_UINT8", "TYPE_FP32"))
        with pytest.raises(ExportError, match=r"output\.data_type is 'TYPE_FP32' and should be 'TYPE_UINT8'"):
            triton.check(config.parent)


def test_a_generator_is_a_model_of_its_own(model: Path, deployed: Any) -> None:
    generator = triton.write(deployed.generator, model.parent)
    assert generator.name == "generator"
    assert sorted(path.name for path in model.parent.iterdir()) == ["decoder", "generator"]
    session = onnxruntime.InferenceSession(generator / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (images,) = session.run(["image"], {"noise": deployed.noise})
    np.testing.assert_allclose(images, deployed.generated, atol=1e-5)
    for folder in (model, generator):
        triton.check(folder)
    named = triton.write(deployed.generator, model.parent, name="faces")
    assert 'name: "faces"' in (named / "config.pbtxt").read_text()
    for name in ("decoder", "generator"):  # the other's configuration
        other = model.parent / ({"decoder", "generator"} - {name}).pop() / "config.pbtxt"
        (named / "config.pbtxt").write_text(
            other.read_text().replace(f'name: "{other.parent.name}"', 'name: "faces"', 1)
        )
        (named / "1" / "model.onnx").write_bytes((model.parent / name / "1" / "model.onnx").read_bytes())
        wanted, found = ("z", "noise") if name == "decoder" else ("noise", "z")
        with pytest.raises(ExportError, match=f"input.name is '{found}' and should be '{wanted}'"):
            triton.check(named)


def test_the_schema_here_is_part_of_tritons(model: Path) -> None:
    """Fields of the same names have the same numbers and types in Triton's own description."""
    from tritonclient.grpc import model_config_pb2

    def compare(ours: Any, theirs: Any) -> None:
        for field in ours.fields:
            other = theirs.fields_by_name[field.name]
            if other.message_type is not None and other.message_type.GetOptions().map_entry:
                continue  # the same as repeated key and value
            assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)
            if field.enum_type is not None:
                values = {value.name: value.number for value in other.enum_type.values}
                assert {value.name: value.number for value in field.enum_type.values} == values
            if field.message_type is not None:
                compare(field.message_type, other.message_type)

    compare(triton._ModelConfig.DESCRIPTOR, model_config_pb2.ModelConfig.DESCRIPTOR)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name: "decoder"', 'name: "faces"', "name is 'faces' and should be 'decoder'"),
        ('backend: "onnxruntime"', 'backend: "python"', "backend is 'python'"),
        ('name: "z"', 'name: "latents"', "input.name is 'latents' and should be 'z'"),
        (
            "TYPE_FP32\n  dims: 8\n",
            "TYPE_FP16\n  dims: 8\n",
            "input.data_type is 'TYPE_FP16' and should be 'TYPE_FP32'",
        ),
        ("dims: 8\n", "dims: 9\n", r"input.dims is \[9\] and should be \[8\]"),
        ("dims: 8\n", "", r"input.dims is \[\]"),
        ('name: "image"', 'name: "images"', "output.name is 'images'"),
        ("dims: 32\n  dims: 32\n  dims: 3\n", "dims: [3, 32, 32]\n", r"output.dims is \[3, 32, 32\]"),
        ('  name: "image"\n  data_type: TYPE_FP32', '  name: "image"\n  data_type: TYPE_UINT8', "output.data_type"),
        ("output {", 'output { name: "z" data_type: TYPE_FP32 dims: 8 }\noutput {', "the number of outputs is 2"),
        ("max_batch_size: 64", "max_batch_size: 0", "max_batch_size is 0.*give 1 or more"),
        ("max_batch_size: 64", "max_batch_size: 32", r"preferred_batch_size beyond max_batch_size is \[64\]"),
        ('string_value: "8"', 'string_value: "9"', "parameters.latent_dim is '9' and should be '8'"),
        ('key: "run_id"', 'key: "run"', "parameters.run_id is None and should be 'abc'"),
        ("max_batch_size: 64", "max_batch_size: many", r"is not a configuration of Triton: .*max_batch_size: many"),
        ("TYPE_FP32", "TYPE_FLOAT", "is not a configuration of Triton"),
    ],
)
def test_each_wrong_field_is_found(model: Path, old: str, new: str, message: str) -> None:
    config = model / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new, 1))
    with pytest.raises(ExportError, match=message) as refused:
        triton.check(model)
    assert "\n" not in str(refused.value)


def test_fields_that_others_add_are_left_to_triton(model: Path) -> None:
    config = model / "config.pbtxt"
    config.write_text(
        config.read_text() + 'model_warmup { name: "one" batch_size: 1 }\noptimization { priority: PRIORITY_MAX }\n'
    )
    triton.check(model)


def test_missing_parts_are_named(model: Path) -> None:
    (model / "1" / "model.onnx").unlink()
    with pytest.raises(ExportError, match=r"no ONNX file at .*1.model.onnx"):
        triton.check(model)
    (model / "1").rmdir()
    with pytest.raises(ExportError, match="has no version"):
        triton.check(model)
    (model / "config.pbtxt").unlink()
    with pytest.raises(ExportError, match=r"no configuration at .*config.pbtxt"):
        triton.check(model)


def test_writing_again_replaces_what_was_written(model: Path, deployed: Any) -> None:
    before = files(model)
    (model / "1" / "model.onnx").write_bytes(b"damaged")
    assert triton.write(deployed.onnx, model.parent) == model
    assert files(model) == before
    assert triton.write(deployed.onnx, model.parent, name="faces.v2").name == "faces.v2"
    assert sorted(path.name for path in model.parent.iterdir()) == ["decoder", "faces.v2"]
    assert [path.name for path in model.parent.parent.iterdir()] == ["repository"]  # nothing is left beside it


def test_what_is_something_else_stays(deployed: Any, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for name, file in [("mine", "config.pbtxt"), ("empty", None), ("text", "letter.txt")]:
        (repository / name).mkdir(parents=True)
        if file is not None:
            (repository / name / file).write_text("dear")
    (repository / "file").write_text("dear")
    (triton.write(deployed.onnx, repository, "more") / "2").mkdir()
    before = files(tmp_path)
    for name in ("mine", "empty", "text", "file", "more"):
        with pytest.raises(ExportError, match=r"keras-vae did not write it"):
            triton.write(deployed.onnx, repository, name)
    for name in ("", "..", "a/b", ".hidden", "a b"):
        with pytest.raises(ExportError, match="give a name of letters"):
            triton.write(deployed.onnx, repository, name)
    with pytest.raises(ExportError, match=r"cannot write .*file"):
        triton.write(deployed.onnx, repository / "file")
    assert files(tmp_path) == before


def test_a_write_that_fails_leaves_what_was_there(model: Path, deployed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(model.parent.parent)
    write_text = Path.write_text

    def fail(self: Path, text: str) -> int:
        write_text(self, text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(ExportError, match=r"cannot write .*No space left on device"):
        triton.write(deployed.onnx, model.parent)
    assert files(model.parent.parent) == before


def reshaped(path: Path, out: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(path)
    change(model)
    del model.metadata_props[:]  # among them the checksum
    out.write_bytes(model.SerializeToString())
    return out


def dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def test_onnx_files_that_are_no_decoder(deployed: Any, tmp_path: Path) -> None:
    content = deployed.onnx.read_bytes()
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "empty.onnx").write_bytes(b"")
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    (tmp_path / "damaged.onnx").write_bytes(damaged)

    def names(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = "x"

    def type_(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT8

    def rank(model: onnx.ModelProto) -> None:
        del dims(model.graph.output[0])[3]

    def free(model: onnx.ModelProto) -> None:
        dims(model.graph.output[0])[1].dim_param = "height"

    def fixed(model: onnx.ModelProto) -> None:
        dims(model.graph.input[0])[0].dim_value = 5

    for change in (names, type_, rank, free, fixed):
        reshaped(deployed.onnx, tmp_path / f"{change.__name__}.onnx", change)
    for name, message in [
        ("none", "no ONNX file at"),
        ("text", "is not an ONNX model"),
        ("empty", "it has nothing where a decoder has z and image, and a generator noise and image"),
        ("damaged", "checksum differs|is not an ONNX model"),
        ("names", "it has x, image where a decoder has z and image"),
        ("type_", r"its image is INT8 \[None, 32, 32, 3\]"),
        ("rank", r"its image is FLOAT \[None, 32, 32\]"),
        ("free", r"its image is FLOAT \[None, None, 32, 3\]"),
        ("fixed", "the batch of z is fixed at 5"),
    ]:
        with pytest.raises(ExportError, match=message) as refused:
            triton.write(tmp_path / f"{name}.onnx", tmp_path / "repository")
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "repository").exists()


def test_the_readmes_python_runs(deployed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "triton" in block]
    for name, file in (("decoder", deployed.onnx), ("generator", deployed.generator)):
        code = code.replace(f"runs/faces/export/{name}.onnx", str(file))
    exec(compile(code, "README.md", "exec"), {})
    for name in ("decoder", "generator"):
        triton.check(f"repository/{name}")
