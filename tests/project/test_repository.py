"""The files that services and tools read: they parse, and say what pyproject.toml says."""

from __future__ import annotations

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import keras_vae

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def parsed(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {found.name: found for found in map(Requirement, lines)}


def test_the_workflow_tests_the_supported_versions_of_python() -> None:
    prefix = "Programming Language :: Python :: "
    supported = [line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(f"{prefix}3.")]
    jobs = parsed(".github/workflows/ci.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == supported
    assert jobs["lint"]["container"] == f"python:{supported[0]}-bookworm"
    assert all(0 < job["timeout-minutes"] <= 90 for job in jobs.values())


def test_the_workflow_runs_the_makefiles_targets_with_cis_packages() -> None:
    jobs = parsed(".github/workflows/ci.yml")["jobs"]
    commands = " ".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    targets = re.findall(r"\bmake (\S+)", commands)
    assert targets == ["lint", "test"]
    assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in targets)
    missing = re.findall(r"missing\+=\(([^)]+)\)", (ROOT / ".ci" / "run").read_text())
    wanted = " ".join(missing).split()
    assert wanted
    assert f"apt-get install -y -qq {' '.join(wanted)}" in commands


def test_hooks_are_of_the_versions_that_lint_takes() -> None:
    repositories = {each["repo"]: each for each in parsed(".pre-commit-config.yaml")["repos"]}
    ruff = repositories["https://github.com/astral-sh/ruff-pre-commit"]
    dev = requirements(PROJECT["optional-dependencies"]["dev"])
    assert ruff["rev"].removeprefix("v") in dev["ruff"].specifier
    hooks = {hook["id"] for each in repositories.values() for hook in each["hooks"]}
    assert {"ruff-format", "ruff-check", "mypy", "end-of-file-fixer", "check-added-large-files"} <= hooks


def test_the_citation_is_of_this_version() -> None:
    citation = parsed("CITATION.cff")
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == keras_vae.__version__
    assert f"## [{citation['version']}] - {citation['date-released']}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert (citation["authors"], citation["license"]) == (PROJECT["authors"], PROJECT["license"])
    papers = [identifier["value"] for paper in citation["references"] for identifier in paper["identifiers"]]
    assert papers == ["arXiv:1312.6114", "arXiv:1610.00291"]


def test_the_image_has_the_libraries_of_the_gpu_extra() -> None:
    text = (ROOT / "Dockerfile").read_text()
    pinned = requirements(re.findall(r'"([a-z-]+(?:\[[a-z-]+\])?>=[^"]+)"', text))
    extra = requirements(PROJECT["optional-dependencies"]["gpu"])
    assert set(pinned) == {"tensorflow", "onnxruntime-gpu"}
    for name, found in pinned.items():
        assert (found.specifier, found.extras) == (extra[name].specifier, extra[name].extras)
    assert re.search(r"^FROM nvidia/cuda:12\.", text, re.MULTILINE)
    assert '"/src[demo,gpu]"' in text
    entry = re.search(r"^ENTRYPOINT \[\"(.+)\"\]$", text, re.MULTILINE)
    assert entry is not None
    assert entry[1] in PROJECT["scripts"]
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users[-1:] not in ([], ["root"])


def test_the_image_gets_what_it_copies() -> None:
    copies = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = [source for line in copies for source in line.split()]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(sources) == sorted(kept)
    build = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert {*build, "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]} == set(sources)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issues_ask_what_it_runs_on(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    identifiers = [field["id"] for field in form["body"]]
    assert len(identifiers) == len(set(identifiers))
    (doctor,) = (field for field in form["body"] if field["id"] == "doctor")
    assert "`keras-vae doctor`" in doctor["attributes"]["label"]


def test_git_holds_every_module() -> None:
    """A pattern in .gitignore once hid modules: they worked where they were written, and nowhere else."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout: an sdist")
    modules = [str(path.relative_to(ROOT)) for top in ("keras_vae", "tests") for path in (ROOT / top).rglob("*.py")]
    found = subprocess.run(
        ["git", "-c", "safe.directory=*", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT,
        input="\n".join(modules),
        capture_output=True,
        text=True,
    )
    ignored = [name for name in found.stdout.split() if not fnmatch(name, "*/__pycache__/*")]
    assert ignored == []
    assert found.returncode in (0, 1), found.stderr
