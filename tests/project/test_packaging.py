"""What a user installs: the wheel and the sdist, and both in environments with nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_vae

ROOT = Path(__file__).resolve().parents[2]
AVATARS = ROOT / "saved_models" / "avatars"
MODELS = [path for path in (ROOT / "saved_models").iterdir() if path.is_dir() and path.name[0] not in "._"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of this tree."""
    return _built(tmp_path_factory.mktemp("wheel"), "--wheel")[0]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _built(tmp_path_factory.mktemp("sdist"), "--sdist")[0]


def _built(out: Path, kind: str, source: Path = ROOT) -> list[Path]:
    subprocess.run([sys.executable, "-m", "build", kind, "--outdir", out, source], check=True, capture_output=True)
    return sorted(out.iterdir())


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


def test_wheel_holds_the_packages_and_the_models(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        text = file.read(metadata).decode()
    assert {top for top in {name.split("/")[0] for name in names} if not top.endswith(".dist-info")} == {"keras_vae"}
    assert {
        "keras_vae/py.typed",
        "keras_vae/evaluation/report.html.j2",
        "keras_vae/kits/serving/compose.yaml",
        "keras_vae/kits/web/explore.html",
    } <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert f"\nVersion: {keras_vae.__version__}\n" in text
    for path in MODELS:
        for below in path.rglob("*"):
            assert below.is_dir() or f"keras_vae/{below.relative_to(ROOT).as_posix()}" in names, below
    assert not [name for name in names if name.endswith(("make.py", ".DS_Store")) or "/__pycache__/" in name]
    assert wheel.stat().st_size < 70 * 2**20  # PyPI takes 100


def test_sdist_makes_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = (path for path in tmp_path.iterdir())
    for name in ("docs/export.md", "docs/tutorial.py", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile"):
        assert (tree / name).is_file(), name
    for name in ("tests/conftest.py", "benchmarks/results/train_step.md", "kubernetes/tfjob.yaml", ".ci/run"):
        assert (tree / name).is_file(), name
    for name in (".github/workflows/ci.yml", ".pre-commit-config.yaml", "CITATION.cff", "Dockerfile", ".dockerignore"):
        assert (tree / name).is_file(), name
    (again,) = _built(tmp_path / "again", "--wheel", tree)
    assert again.name == wheel.name
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {each.filename: each.CRC for each in one.infolist()} == {
            each.filename: each.CRC for each in other.infolist()
        }


def test_changelog_has_the_version() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    released = [line for line in lines if line.startswith("## [") and "Unreleased" not in line]
    assert re.fullmatch(rf"## \[{re.escape(keras_vae.__version__)}\] - \d{{4}}-\d\d-\d\d", released[0])


class Environment:
    """An empty environment with the package in it; commands run in an empty folder, and find no network."""

    def __init__(self, package: Path, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=True)
        self.binaries, self.folder = folder / "venv" / "bin", folder / "work"
        self.folder.mkdir()
        subprocess.run([self.binaries / "python", "-m", "pip", "install", "-q", package], check=True)

    def run(self, name: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        proxies = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "HTTP", "HTTPS")}
        home = {"HOME": str(self.folder), "KERAS_HOME": str(self.folder / ".keras")}
        environment = {**os.environ, **proxies, **home}
        environment.pop("PYTHONPATH", None)
        command = [str(self.binaries / name), *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, check=check, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(request.getfixturevalue(request.param), tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
@pytest.mark.skipif(not (AVATARS / "model.keras").is_file(), reason="saved_models/avatars/model.keras is not made yet")
def test_one_line_gives_an_image_in_an_empty_environment(environment: Environment) -> None:
    line = (
        "import keras_vae; from keras_vae.export.runtime import to_png; "
        "open('face.png', 'wb').write(to_png(keras_vae.from_pretrained('avatars').sample(1, seed=0)[0]))"
    )
    environment.run("python", "-c", line)
    environment.run("keras-vae", "sample", "avatars", "--count", 4, "--seed", 0, "--out", "samples.png")
    for name, least in (("face.png", 64), ("samples.png", 2 * 64)):
        image = np.asarray(Image.open(environment.folder / name))
        assert image.shape[1] >= least
        assert image.std() > 20  # a face, not one grey


@pytest.mark.slow
def test_it_works_in_an_empty_environment(environment: Environment) -> None:
    run, folder = environment.run, environment.folder
    assert run("keras-vae", "--version").stdout == f"keras-vae {keras_vae.__version__}\n"
    run("python", "-c", "import keras_vae; keras_vae.VAE((32, 32, 3), 4, perceptual=None).save('vae.keras')")
    run("keras-vae", "export", "vae.keras", "--out", "exported")
    exported = ("exported/1", "exported/decoder.onnx", "exported/generator.onnx")
    assert "pass" in run("keras-vae", "verify", "vae.keras", *exported).stdout
    run("keras-vae", "sample", "exported/generator.onnx", "--out", "samples.png")
    assert (folder / "samples.png").stat().st_size > 1000
    missing = run("keras-vae", "train", "--data", "avatars", "--out", "run", check=False)
    assert missing.returncode == 2
    assert "pip install 'keras-vae[demo]'" in missing.stderr


SCRIPT = """
import sys
import keras
import keras_vae
from keras_vae.export import runtime

vae = keras_vae.VAE((16, 16, 3), 2, perceptual=None, network_options={"width": 4})
vae.export("generator.onnx", format="onnx", part="generator")
print(runtime.Generator("generator.onnx").sample(2, seed=0).shape)
"""


@pytest.mark.parametrize("package", [False, True], ids=["script", "beside a package export"])
def test_a_users_own_names_break_nothing(package: bool, tmp_path: Path) -> None:
    """A script called export.py, beside modules named as ours are."""
    for name in ("data", "metrics", "models", "training", "networks", "callbacks"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user\\'s {name}.py was imported')\n")
    script = tmp_path / ("make.py" if package else "export.py")
    script.write_text(SCRIPT)
    if package:
        (tmp_path / "export").mkdir()
        (tmp_path / "export" / "__init__.py").write_text("raise SystemExit('the user\\'s export was imported')\n")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["(2, 16, 16, 3)"], done.stderr[-2000:]


def test_the_runtime_needs_numpy_and_onnxruntime_alone(tmp_path: Path) -> None:
    """Seen in a folder of packages that holds these, with what they import, and the package."""
    import numpy
    import onnxruntime

    site = tmp_path / "site"
    site.mkdir()
    for module in (numpy, onnxruntime, keras_vae):
        folder = Path(str(module.__file__)).parent
        (site / folder.name).symlink_to(folder)
        for libraries in (folder.with_name(f"{folder.name}.libs"),):
            if libraries.is_dir():
                (site / libraries.name).symlink_to(libraries)
    code = (
        f"import sys; sys.path.append({str(site)!r}); from keras_vae.export import runtime; "
        f"print(runtime.Generator({str(AVATARS / 'generator.onnx')!r}).sample(2, seed=0).shape)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(2, 64, 64, 3)\n", done.stderr[-2000:]
