"""Conditional models on the command line: trained with classes or attributes, asked for them, resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vae import Condition, cli
from keras_vae.training import prior

Command = Callable[..., Any]
SMALL = ("--image-size", 16, "--latent-dim", 4, "--batch-size", 16, "--perceptual", "none", "--width", 4)


@pytest.fixture(scope="module")
def classes(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Avatars in two subfolders."""
    folder = tmp_path_factory.mktemp("classes") / "pets"
    for number, file in enumerate(sorted(image_folder.rglob("*.png"))):
        place = folder / ("cats", "dogs")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    return folder


def trained(folder: Path, out: Path, condition: str, *more: str) -> Path:
    arguments = ("train", "--data", folder, "--out", out, "--condition", condition, "--steps", 8, *SMALL, *more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "LEAST_STEPS", 50)
        assert cli.run([str(each) for each in arguments]) == 0
    return out


@pytest.fixture(scope="module")
def run(classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(classes, tmp_path_factory.mktemp("runs") / "pets", "label")


@pytest.fixture(scope="module")
def attribute_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables") / "faces"
    shutil.copytree(image_folder, folder)
    rows = [f"{index:03d}.png,{index % 2},{int(index > 40)}" for index in range(96)]
    (folder / "attributes.csv").write_text("\n".join(["image,glasses,hat", *rows]))
    return trained(folder, tmp_path_factory.mktemp("runs") / "faces", "hat,glasses")


def size(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


def test_a_run_keeps_the_names_it_was_trained_with(run: Path, attribute_run: Path) -> None:
    assert json.loads((run / "config.json").read_text())["condition"] == "label"
    assert keras.saving.load_model(run / "model.keras").condition == Condition(("cats", "dogs"), exclusive=True)
    assert json.loads((attribute_run / "config.json").read_text())["condition"] == ["hat", "glasses"]
    vae = keras.saving.load_model(attribute_run / "model.keras")
    assert vae.condition == Condition(("hat", "glasses"))
    assert any(np.asarray(layer.kernel).any() for layer in vae.decoder.layers if layer.name.endswith("_condition"))
    assert np.asarray(vae.prior.condition).any()
    for name in ("samples.png", "reconstructions.png", "epoch-0001-samples.png"):
        assert (run / "samples" / name).is_file()


def test_samples_by_class(run: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "samples.png"
    shown = command("sample", run, "--out", out, "--count", 5)
    assert shown.status == 0
    assert shown.out.strip() == f"a row for each class of 5 samples written to {out}"
    rows = size(out)
    assert command("sample", run, "--out", out, "--count", 5, "--label", "any", "--label", "DOGS").status == 0
    assert size(out)[1] == pytest.approx(rows[1] * 2 / 3, rel=0.05)  # two rows of three
    assert command("sample", run, "--out", out, "--count", 9, "--label", "dogs").out == f"9 samples written to {out}\n"
    assert size(out)[0] == size(out)[1]
    one, other = (tmp_path / f"{name}.png" for name in ("cats", "dogs"))
    for path in (one, other):
        assert command("sample", run, "--out", path, "--label", path.stem).status == 0
    assert one.read_bytes() != other.read_bytes()
    again = command("sample", run / "model.keras", "--out", tmp_path / "again.png", "--label", "dogs")
    assert again.status == 0
    assert (tmp_path / "again.png").read_bytes() == other.read_bytes()


def test_samples_by_attributes(attribute_run: Path, tmp_path: Path, command: Command) -> None:
    pictures = {}
    for asked in ("glasses=1", "glasses=0", "glasses=1,hat=1"):
        out = tmp_path / f"{asked}.png"
        assert command("sample", attribute_run, "--out", out, "--count", 4, "--attribute", asked).status == 0
        pictures[asked] = out.read_bytes()
    assert len(set(pictures.values())) == 3
    out = tmp_path / "both.png"
    options = ("--attribute", "glasses=1", "--attribute", "Hat=1")
    shown = command("sample", attribute_run, "--out", out, "--count", 4, *options)
    assert shown.out == f"2 rows of 4 samples written to {out}\n"
    assert command("sample", attribute_run, "--out", out, "--count", 3).out.startswith("a row for each attribute of 3")


def test_held_out_images_as_of_another_class(run: Path, image_folder: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "others.png"
    plain = command("reconstruct", run, "--out", out, "--count", 4, "--json")
    two = size(out)
    asked = command("reconstruct", run, "--out", out, "--count", 4, "--label", "dogs", "--label", "cats", "--json")
    assert asked.status == 0
    assert json.loads(asked.out)["psnr"] == json.loads(plain.out)["psnr"]
    assert json.loads(asked.out)["rows"] == ["originals", "reconstructions", "dogs", "cats"]
    assert size(out)[1] == pytest.approx(2 * two[1], rel=0.05)
    file = next(image_folder.glob("*.png"))
    assert command("reconstruct", run, "--out", out, "--image", file, "--label", "dogs").status == 0


def test_labels_that_have_changed_are_refused(attribute_run: Path, tmp_path: Path, command: Command) -> None:
    run = Path(shutil.copytree(attribute_run, tmp_path / "run"))
    settings = json.loads((run / "config.json").read_text())
    folder = Path(shutil.copytree(settings["data"], tmp_path / "faces"))
    (run / "config.json").write_text(json.dumps({**settings, "data": str(folder)}))
    table = (folder / "attributes.csv").read_text()
    (folder / "attributes.csv").write_text(table.replace(",1,", ",2,").replace(",0,", ",1,").replace(",2,", ",0,"))
    refused = command("train", "--resume", "--out", run, "--steps", 10)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert f"{folder} has changed: its labels are not those the run began with" in refused.err


@pytest.mark.slow
def test_a_conditional_run_is_resumed(classes: Path, run: Path, tmp_path: Path, command: Command) -> None:
    folder, out = tmp_path / "pets", tmp_path / "run"
    shutil.copytree(classes, folder)
    trained(folder, out, "label")
    assert command("train", "--resume", "--out", out, "--steps", 9).status == 0
    refused = command("train", "--resume", "--out", out, "--steps", 10, "--condition", "all")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "was begun with condition='label', not 'all'" in refused.err
    (folder / "dogs").rename(folder / "wolves")
    refused = command("train", "--resume", "--out", out, "--steps", 10)
    assert refused.status == 2
    assert "have changed since the run began: restore them" in refused.err or "has changed" in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--condition", "cats"), "pets has classes, cats, dogs: give label, not cats"),
        (("--condition", "cats,,dogs"), "--condition 'cats,,dogs': give label, all, or names of attributes"),
        (("--condition", ""), "--condition '': give label, all, or names of attributes"),
    ],
)
def test_wrong_conditions_of_training(
    classes: Path, options: tuple[str, ...], message: str, tmp_path: Path, command: Command
) -> None:
    refused = command("train", "--data", classes, "--out", tmp_path / "run", "--steps", 2, *SMALL, *options)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert message in refused.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--label", "cat"), "no class 'cat': did you mean 'cats'? this model knows cats, dogs"),
        (("--label", "bird"), "no class 'bird': this model knows cats, dogs"),
        (("--attribute", "cats=1"), "--attribute: this model knows classes, not attributes: give --label NAME"),
    ],
)
@pytest.mark.parametrize("subcommand", ["sample", "reconstruct"])
def test_wrong_classes(
    run: Path, subcommand: str, options: tuple[str, ...], message: str, tmp_path: Path, command: Command
) -> None:
    refused = command(subcommand, run, "--out", tmp_path / "x.png", *options)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert message in refused.err
    assert not (tmp_path / "x.png").exists()


def test_a_source_without_classes(image_folder: Path, tmp_path: Path, command: Command) -> None:
    arguments = ("--out", tmp_path / "run", "--steps", 2, *SMALL, "--condition", "label")
    refused = command("train", "--data", image_folder, *arguments)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "has no attributes: give a table of them, attributes.csv, or a subfolder a class" in refused.err
