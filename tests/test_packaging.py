"""What a user installs: the built wheel, in an environment with nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT], check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_exactly_one_onnxruntime_on_every_platform() -> None:
    """The two distributions share a folder; the markers must never ask for both, or for none."""
    from packaging.markers import default_environment
    from packaging.requirements import Requirement

    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    runtimes = [Requirement(line) for line in lines if line.startswith("onnxruntime")]
    for system, machine, expected in [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("win32", "ARM64", "onnxruntime"),
    ]:
        environment = {**default_environment(), "sys_platform": system, "platform_machine": machine}
        chosen = [runtime.name for runtime in runtimes if runtime.marker and runtime.marker.evaluate(environment)]
        assert chosen == [expected]


def test_the_gpu_extra_is_of_one_cuda_generation() -> None:
    """TensorFlow 2.21 is built for CUDA 12, onnxruntime-gpu from 1.27 on for CUDA 13; PyTorch chooses for itself."""
    from packaging.requirements import Requirement

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    gpu = {requirement.name: requirement for requirement in map(Requirement, extras["gpu"])}
    assert gpu["tensorflow"].extras == {"and-cuda"}
    assert "1.26.0" in gpu["onnxruntime-gpu"].specifier
    assert "1.27.0" not in gpu["onnxruntime-gpu"].specifier
    assert "torch" not in gpu
    assert [Requirement(line).name for line in extras["peer"]] == ["torch"]


def test_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        tops = {name.split("/")[0] for name in file.namelist()}
        assert "keras_vae/py.typed" in file.namelist()
    assert {top for top in tops if not top.endswith(".dist-info")} == {"keras_vae", "export"}


@pytest.mark.slow
def test_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    subprocess.run([binaries / "python", "-m", "pip", "install", "-q", wheel], check=True)

    def run(*command: object) -> str:
        arguments = [str(part) for part in command]
        return subprocess.run(arguments, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert run(binaries / "keras-vae", "--version").startswith("keras-vae ")
    script = """
import numpy as np, keras_vae
keras_vae.VAE((32, 32, 3), 4, perceptual=None).save("vae.keras")
"""
    run(binaries / "python", "-c", script)
    run(binaries / "keras-vae", "export", "vae.keras", "--out", "exported")
    assert "pass" in run(binaries / "keras-vae", "verify", "vae.keras", "exported/1", "exported/decoder.onnx")
    run(binaries / "keras-vae", "sample", "exported/decoder.onnx", "--out", "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 1000
    missing = subprocess.run(
        [binaries / "keras-vae", "train", "--data", "avatars", "--out", "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 2
    assert "pip install 'keras-vae[demo]'" in missing.stderr
