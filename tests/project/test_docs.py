"""README and docs: their Python runs as it stands, on few small images; commands, names, links and targets exist."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import pkgutil
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import typer
from browser import few_draws
from pages import PAGES, ROOT, blocks, commands, inline, name

import keras_vae
from keras_vae import cli
from keras_vae.cli.app import app
from keras_vae.data import loading
from keras_vae.latents.directions import AttributeVectors

# What the Python of other pages needs is not there: a server, a C program.
EXECUTED = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs") and blocks(page, "python")]
# Their commands run too, on a run that is there; those of others train, or serve.
RUN = [ROOT / "docs" / "data.md", ROOT / "docs" / "export.md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=name)


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 latents and 32x32 images."""
    out = tmp_path_factory.mktemp("runs") / "faces"
    options = ("--image-size", 32, "--latent-dim", 8, "--batch-size", 16, "--perceptual", "none", "--steps", 2)
    options = (*options, "--width", 4, "--prior", "standard")
    assert cli.run([str(each) for each in ("train", "--data", image_folder, "--out", out, *options)]) == 0
    return out


@pytest.fixture
def workplace(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which pages are followed: `faces` and `photos` are 96 avatars.

    What takes long is short: networks are narrow, batches small, training is two steps that are not traced, fitting a
    prior too, and exports are compared on few draws. Other tests look at all that.
    """
    shutil.copytree(image_folder, tmp_path / "faces")
    shutil.copytree(image_folder, tmp_path / "photos")
    for number, file in enumerate(itertools.islice(sorted(image_folder.rglob("*.png")), 32)):
        folder = tmp_path / "classes" / ("cats", "dogs")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder)
    monkeypatch.chdir(tmp_path)

    load, make, fit, fit_prior = loading.load, keras_vae.VAE.__init__, keras_vae.VAE.fit, keras_vae.VAE.fit_prior

    def from_folder(source: Any, image_size: int | None = None, batch_size: int = 64, *args: Any, **kwargs: Any) -> Any:
        if isinstance(source, str) and source == "avatars":
            source = image_folder  # 18,000 take minutes to draw
        return load(source, image_size, min(batch_size, 16), *args, **kwargs)

    def narrow(vae: Any, *args: Any, **kwargs: Any) -> None:
        if "encoder" not in kwargs:
            kwargs.setdefault("network_options", {"width": 4})
        make(vae, *args, **kwargs)

    def two_steps(vae: Any, x: Any, **kwargs: Any) -> Any:
        # A strategy with replicas needs steps that are traced.
        vae.run_eagerly = isinstance(vae.distribute_strategy, type(tf.distribute.get_strategy()))
        return fit(vae, x, **{**kwargs, "epochs": 1, "steps_per_epoch": 2, "verbose": 0})

    def prior_of_two_steps(vae: Any, images: Any) -> None:
        tf.config.run_functions_eagerly(True)
        try:
            fit_prior(vae, images, steps=2)
        finally:
            tf.config.run_functions_eagerly(False)

    monkeypatch.setattr(loading, "load", from_folder)
    monkeypatch.setattr(keras_vae.VAE, "__init__", narrow)
    monkeypatch.setattr(keras_vae.VAE, "fit", two_steps)
    monkeypatch.setattr(keras_vae.VAE, "fit_prior", prior_of_two_steps)
    with few_draws():
        yield tmp_path


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", EXECUTED, ids=name)
def test_python_of_a_page_runs(page: Path, workplace: Path, deployed: Any) -> None:
    if page.name == "evaluation.md":  # what it says is there already
        shutil.copy(deployed.onnx, workplace / "decoder.onnx")
        vectors = np.ones((1, 8), np.float32)
        AttributeVectors(("Smiling",), vectors, vectors).save(workplace / "vectors.npz")
    code = "\n".join(blocks(page, "python"))
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, name(page), "exec"), names)
    if "images" in names:
        images = keras.ops.convert_to_numpy(names["images"])
        assert images.dtype == np.float32
        assert images.min() >= 0
        assert images.max() <= 1


@each_page
def test_python_of_a_page_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, name(page), "exec")


@pytest.mark.parametrize("page", RUN, ids=name)
def test_commands_of_a_page_run(page: Path, workplace: Path, run: Path, command: Callable[..., Any]) -> None:
    shutil.copytree(run, workplace / "runs" / "faces")
    done = 0
    for arguments in commands(page):
        if {"all", "int8", "--encoder"} & set(arguments):
            continue  # they take long, and `test_deployment.py` runs them
        if arguments[:2] == ["data", "prepare"]:
            continue  # the same, and `test_tfds_sets.py` runs it
        result = command(*arguments)
        assert result.status == 0, (arguments, result.err)
        done += 1
    assert done >= 3


@each_page
def test_commands_of_a_page_exist(page: Path) -> None:
    """They parse: no option is unknown, none has a value it does not take, nothing that is needed is missing."""
    for arguments in commands(page):
        _parsed(_command(), "keras-vae", arguments)
    for text in inline(page):
        if text.startswith("keras-vae ") and "..." not in text:
            _check_mention(text.split()[1:], text)


@functools.cache
def _command() -> Any:
    return typer.main.get_command(app)


def _parsed(group: Any, called: str, arguments: list[str]) -> None:
    context = group.make_context(called, list(arguments), resilient_parsing=False)
    if hasattr(group, "commands"):
        rest = [*context._protected_args, *context.args]
        assert rest, arguments
        if rest[0].startswith("-"):
            return
        assert rest[0] in group.commands, arguments
        _parsed(group.commands[rest[0]], rest[0], rest[1:])


def _check_mention(words: list[str], text: str) -> None:
    """Something like `keras-vae export --encoder`: the command and its options are there."""
    command = _command()
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        assert words[0] in command.commands, text
        command, words = command.commands[words[0]], words[1:]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= options, text


def _all_options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for below in getattr(command, "commands", {}).values():
        yield from _all_options(below)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent in (ROOT, ROOT / "docs")], ids=name)
def test_names_of_a_page_exist(page: Path) -> None:
    options = set(_all_options(_command()))
    for text in inline(page):
        if text.startswith("--"):
            assert text.split()[0].split("=")[0] in options, text
        found = re.match(r"(keras_vae(?:\.\w+)+)", text)
        if found:
            pkgutil.resolve_name(found[1])
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.MULTILINE):
        assert target in targets, target
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"(?:keras-vae|\.)\[(\w+)\]", text):
        assert extra in extras, extra
    for module in re.findall(r"python -m ((?:benchmarks|export|keras_vae)[\w.]*)", text):
        assert importlib.util.find_spec(module) is not None, module
    for file in re.findall(r"`((?:keras_vae|export|tests|docs|benchmarks|saved_models)/[\w/.-]*)`", text):
        assert (ROOT / file.replace("keras_vae/kits", "export")).exists(), (
            file
        )  # of a wheel, where they are in the package


@each_page
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, link


def test_docs_name_every_choice() -> None:
    """A table that lacks a new network or format would be stale."""
    from keras_vae import networks
    from keras_vae.export.formats import FORMATS
    from keras_vae.features import perceptual
    from keras_vae.model import distributions
    from keras_vae.training import KL_SCHEDULES

    text = (ROOT / "docs" / "objectives.md").read_text()
    choices = (networks.FAMILIES, distributions.LIKELIHOODS, perceptual.NETWORKS, perceptual.LAYER_PRESETS)
    for choice in itertools.chain(*choices, KL_SCHEDULES, keras_vae.OBJECTIVES, keras_vae.schedules.__dict__):
        if choice in keras_vae.schedules.__dict__ and not _is_schedule(choice):
            continue
        assert f"`{choice}" in text, choice
    exported = (ROOT / "docs" / "export.md").read_text()
    for each in FORMATS.values():
        assert f"| `{each.name}` |" in exported


def _is_schedule(name: str) -> bool:
    found = getattr(keras_vae.schedules, name)
    return (
        isinstance(found, type)
        and issubclass(found, keras.callbacks.Callback)
        and name not in ("KLWeight", "KLSchedule")
    )
