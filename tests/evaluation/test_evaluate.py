"""`keras-vae evaluate` and the commands that use the latent space, on a small run of avatars with attributes."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vae import cli, data
from keras_vae.evaluation import evaluating, fidelity, latent_space
from keras_vae.latents import walks
from keras_vae.latents.directions import AttributeVectors
from keras_vae.model import encoding, flow_matching, priors
from keras_vae.runs.opening import open_model

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def labelled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 avatars of 32x32 in files, with their attributes in a table; one attribute no avatar has."""
    from keras_vae.data import avatar_drawing

    folder = tmp_path_factory.mktemp("labelled") / "images"
    folder.mkdir()
    drawn = avatar_drawing.draw_many(3, "train", range(600), 32)
    names = [name for name in drawn[0].attributes if name != "bald"]
    lines = [",".join(["image", *names, "antennae"])]
    for index, each in enumerate(drawn):
        Image.fromarray(each.image).save(folder / f"{index:03d}.png")
        lines.append(",".join([f"{index:03d}.png", *(str(each.attributes[name]) for name in names), "0"]))
    (folder.parent / "attributes.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(labelled_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "small"
    arguments = ["train", "--data", labelled_folder, "--out", out, "--epochs", 6, "--image-size", 32, "--latent-dim", 8]
    arguments += ["--network", "dfc"]
    assert (
        cli.run(
            [str(each) for each in (*arguments, "--batch-size", 32, "--perceptual", "none", "--learning-rate", 2e-3)]
        )
        == 0
    )
    return out


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder of the run, with its vectors beside it."""
    walks.edit(run, ["hat"], (0.0,), walks.Start(count=1), tmp_path_factory.mktemp("edits") / "a.png")
    out = tmp_path_factory.mktemp("exported")
    assert cli.run(["export", str(run), "--out", str(out), "--format", "onnx"]) == 0
    assert (out / "vectors.npz").is_file()
    return out / "decoder.onnx"


@pytest.fixture(scope="module")
def evaluated(run: Path) -> dict[str, Any]:
    return evaluating.evaluate(run, evaluating.Options())


def held_out(labelled_folder: Path) -> np.ndarray:
    return np.concatenate(list(data.load(labelled_folder, 32, 1).test.as_numpy_iterator()))


# Evaluate -----------------------------------------------------------------------------------------


def test_figures_of_reconstructions_are_those_of_the_model(
    run: Path, evaluated: dict[str, Any], labelled_folder: Path
) -> None:
    vae = open_model(run).whole("testing")
    images = held_out(labelled_folder)
    made = vae.predict(images, verbose=0)
    found = evaluated["reconstructions"]
    assert evaluated["images"] == len(images)
    assert found["psnr"] == pytest.approx(fidelity.psnr(images, made), rel=1e-4)
    assert found["mean_squared_error"] == pytest.approx(np.square(images - made).mean(), rel=1e-3)
    assert found["ssim"] == pytest.approx(fidelity.ssim(images, made).mean(), rel=1e-3)
    assert found["sharpness"] == pytest.approx(fidelity.sharpness_ratio(images, made), rel=1e-3)
    assert (found["ms_ssim_scales"], 0 < found["feature_distance"] < 2) == (2, True)
    assert evaluated["elbo"] == pytest.approx(-evaluated["reconstruction"] - evaluated["kl"], rel=1e-4)
    bits = (-evaluated["elbo"] / 3072 + np.log(255)) / np.log(2)
    assert evaluated["density_bits_per_dim"] == pytest.approx(bits, rel=1e-5)
    assert "bits_per_dim" not in evaluated  # a density's are no bound


def test_what_cannot_be_measured_is_said_with_the_least_number(evaluated: dict[str, Any]) -> None:
    notes = " ".join(evaluated["notes"])
    assert "features of 320 channels need 321 images of each set" in notes
    assert "frechet_distance" not in evaluated["samples"]
    assert evaluated["samples"]["prior"] == "learned"
    assert evaluated["elbo_learned_prior"] > evaluated["elbo"]
    assert evaluated["samples"]["nearest_code"] > 0
    assert evaluated["samples"]["nearest_code_of_held_out"] > 0
    assert 0 <= evaluated["samples"]["precision"] <= 1
    assert evaluated["training_images"]["kernel_distance"] < evaluated["samples"]["kernel_distance"]


@pytest.mark.slow
def test_enough_samples_and_images_have_a_frechet_distance(run: Path, labelled_folder: Path, tmp_path: Path) -> None:
    """All images in a set of which most are held out: an .npz file says so itself."""
    images = np.round(255 * np.concatenate([held_out(labelled_folder)] * 6)).astype(np.uint8)
    np.savez(tmp_path / "set.npz", x_train=images[:330], x_test=images[:330])
    # After so few steps, samples of the learned prior are nearer than reconstructions.
    options = evaluating.Options(str(tmp_path / "set.npz"), tmp_path / "out", prior="standard")
    found = evaluating.evaluate(run, options)
    assert found["training_images"]["frechet_distance"] == pytest.approx(0.0, abs=1e-3)
    assert 0 < found["reconstructions"]["frechet_distance"] < found["samples"]["frechet_distance"]
    assert found["notes"] == []


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_report_holds_its_pictures_and_asks_nothing_of_others(run: Path, evaluated: dict[str, Any]) -> None:
    text = Path(evaluated["report"]).read_text()
    page = Page()
    page.feed(text)
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r"base64,[^\"]+", "", text))
    for label in ("ELBO", "SSIM", "Kernel distance".lower(), "KL of the aggregate posterior"):
        assert label in text
    written = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert written["reconstructions"]["psnr"] == pytest.approx(evaluated["reconstructions"]["psnr"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report(run: Path, tmp_path: Path) -> None:
    pages = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        evaluating.evaluate(run, evaluating.Options(out=out, limit=20, features="none", samples=20, seed=seed))
        pages.append([(out / name).read_bytes() for name in ("evaluation.json", "report.html")])
    assert pages[0] == pages[1]
    assert pages[0] != pages[2]


def test_evaluate_by_command(run: Path, labelled_folder: Path, tmp_path: Path, command: Command) -> None:
    arguments = (
        "--limit",
        16,
        "--prior",
        "standard",
        "--samples",
        24,
        "--importance-samples",
        4,
        "--out",
        tmp_path / "e",
    )
    outcome = command("evaluate", run, "--json", *arguments)
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["images"], found["samples"]["prior"], found["samples"]["count"]) == (16, "standard", 24)
    assert "elbo_learned_prior" not in found
    assert found["importance_weighted_bound"] > found["elbo"] - 5
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["evaluation.json", "report.html"]
    table = command("evaluate", run, "--limit", 8, "--out", tmp_path / "e")
    assert table.status == 0
    for words in ("Reconstructions", "PSNR", "precision", "1 is best", "Training images", str(tmp_path / "e")):
        assert words in table.out
    assert (table.out + table.err).count("features of 320 channels need 321 images of each set") == 3


def test_images_of_another_size_are_resized_and_it_is_said(run: Path, tmp_path: Path, command: Command) -> None:
    np.save(tmp_path / "large.npy", np.random.default_rng(0).integers(0, 255, (40, 50, 60, 3), np.uint8))
    arguments = ("--data", tmp_path / "large.npy", "--features", "none", "--out", tmp_path / "e")
    outcome = command("evaluate", run, *arguments)
    assert outcome.status == 0
    assert "50x60: cropped and resized to 32x32" in outcome.err


def test_memory_does_not_grow_with_the_number_of_images(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of images is bounded, whatever their number."""
    monkeypatch.setattr(evaluating, "KEPT", 16)
    monkeypatch.setattr(evaluating.posterior, "IMAGES", 12)
    kept: list[int] = []
    update = evaluating.Reservoir.update

    def watched(self: Any, *columns: np.ndarray) -> None:
        update(self, *columns)
        kept.append(len(self))

    monkeypatch.setattr(evaluating.Reservoir, "update", watched)
    found = evaluating.evaluate(run, evaluating.Options(out=tmp_path / "e", prior="standard"))
    assert found["images"] > 40
    assert max(kept) == 16
    assert found["posterior"]["images"] == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--features", "alexnet"), "unknown feature network 'alexnet'"),
        (("--prior", "flow"), "unknown prior 'flow': choose learned or standard"),
        (("--features", "none", "--feature-weights", "w.pth"), "no network to be of"),
        (("--data", ""), "the source is empty"),
        (("--samples", 0), "--samples 0: give a whole number from 1 on"),
        (("--limit", -1), "--limit -1"),
        (("--data", "nowhere"), "nowhere"),
        (("--out", "FILE"), "is a file: name a folder"),
        (("--out", "IMAGES"), "whose images it would join"),
        (("--feature-weights", "FILE"), "cannot read the weights of 'efficientnet-lite0'"),
    ],
)
def test_bad_options(
    options: tuple[object, ...], message: str, run: Path, labelled_folder: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "file").write_text("nothing")
    places = {"FILE": tmp_path / "file", "IMAGES": labelled_folder / "out"}
    outcome = command("evaluate", run, *(places.get(str(each), each) for each in options))
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err.splitlines()[-1]


# Attributes, and edits ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attributes(run: Path) -> dict[str, Any]:
    return latent_space.attributes(run, None, None)


def test_attributes_are_told_from_latents(run: Path, attributes: dict[str, Any]) -> None:
    found = {each["name"]: each for each in attributes["predictions"]}
    assert "antennae" in attributes["left_out"]
    # Of 18 images with a hat and 39 without: over seeds the area is 0.87 to 0.91, the accuracy 0.72 to 0.84.
    assert found["hat"]["auc"] > 0.8
    assert found["hat"]["balanced_accuracy"] > 0.6
    assert attributes["balanced_accuracy"] > 0.6
    assert 0 <= attributes["mutual_information_gap"] <= 1
    for name in ("predictions", "vector_correlation", "label_correlation"):
        assert Image.open(run / "attributes" / f"{name}.png").width > 300
    written = json.loads((run / "attributes" / "attributes.json").read_text())
    size = len(written["correlation"]["names"])
    assert np.shape(written["correlation"]["vectors"]) == (size, size)


def test_attributes_by_command(run: Path, tmp_path: Path, command: Command) -> None:
    outcome = command("attributes", run / "model.keras", "--out", tmp_path / "a")
    assert outcome.status == 0, outcome.err
    assert "balanced" in outcome.out
    assert AttributeVectors.load(tmp_path / "a" / "vectors.npz").latent_dim == 8


def test_an_edit_moves_the_image_along_the_vector(run: Path, labelled_folder: Path, tmp_path: Path) -> None:
    """A hat put on brings latents nearer to those of images with a hat, as the model itself encodes them."""
    start = walks.Start(count=3)
    found = walks.edit(run, ["hat"], (-1.0, 0.0, 1.0), start, tmp_path / "edit.png")
    assert (found["rows"], found["strengths"]) == (3, [-1.0, 0.0, 1.0])
    model = open_model(run)
    vector = AttributeVectors.load(run / "vectors.npz").direction("hat")
    z = np.asarray(model.whole("testing").encode(held_out(labelled_folder)).mode())
    moved = np.asarray(model.whole("testing").encode(model.decode(z + vector)).mode())
    assert ((moved - z) @ vector > 0).mean() > 0.9
    picture = Image.open(tmp_path / "edit.png")
    assert picture.width > 4 * 32


def test_edit_by_command_with_photos_and_arithmetic(
    run: Path, labelled_folder: Path, tmp_path: Path, command: Command
) -> None:
    photo = labelled_folder / "005.png"
    options = ("--attribute", "hat", "--attribute", "-smiling", "--together", "--strength", "-2..2", "--image", photo)
    outcome = command("edit", run, *options, "--direction", "linear", "--out", tmp_path / "e.png", "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["rows"], found["strengths"], found["direction"]) == (1, [-2, -1, 0, 1, 2], "linear")
    assert Image.open(tmp_path / "e.png").height > 32


def test_an_exported_decoder_is_edited_with_saved_vectors(
    run: Path, exported: Path, tmp_path: Path, command: Command
) -> None:
    decoder = Path(shutil.copytree(exported.parent, tmp_path / "exported")) / exported.name
    np.save(tmp_path / "codes.npy", np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32))
    pictures = []
    for model in (run, decoder):
        arguments = ("--attribute", "hat", "--strength", "0,1.5", "--codes", tmp_path / "codes.npy")
        outcome = command("edit", model, *arguments, "--out", tmp_path / "e.png", "--json")
        assert outcome.status == 0, outcome.err
        assert json.loads(outcome.out)["strengths"] == [0, 1.5]
        pictures.append(np.asarray(Image.open(tmp_path / "e.png"), int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 4
    drawn = command("edit", decoder, "--attribute", "hat", "--count", 2, "--out", tmp_path / "e.png")
    assert drawn.status == 0
    (tmp_path / "exported" / "vectors.npz").unlink()
    missing = command("edit", decoder, "--attribute", "hat", "--out", tmp_path / "e.png")
    assert (missing.status, "give --vectors" in missing.err) == (2, True)


def test_interpolations(run: Path, exported: Path, labelled_folder: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "i.png"
    photos = [item for name in ("001.png", "002.png", "003.png") for item in ("--image", labelled_folder / name)]
    for options, rows in ((("--count", 3), 3), (photos, 2), (("--method", "linear", "--steps", 4), 6)):
        outcome = command("interpolate", run, *options, "--out", out, "--json")
        assert outcome.status == 0, outcome.err
        assert json.loads(outcome.out)["rows"] == rows
    np.save(tmp_path / "codes.npy", np.eye(8)[:3])
    for options in (("--codes", tmp_path / "codes.npy"), ("--count", 2, "--seed", 4)):
        assert json.loads(command("interpolate", exported, *options, "--out", out, "--json").out)["rows"] == 2


def test_traversals_and_maps(run: Path, tmp_path: Path, command: Command) -> None:
    outcome = command("traverse", run, "--latents", 3, "--values", "-2..2", "--out", tmp_path / "t.png", "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["latents"] == [0, 1, 2]  # the widest directions of the learned prior
    standard = open_model(run).whole("testing")
    standard.set_prior(priors.StandardNormal(standard.latent_dim))
    standard.save(tmp_path / "standard.keras")
    data_options = ("--data", open_model(run).config["data"])
    options = ("--latents", 3, "--values", "-2..2", "--out", tmp_path / "t.png", "--json", *data_options)
    outcome = command("traverse", tmp_path / "standard.keras", *options)
    assert outcome.status == 0, outcome.err
    kl = list(json.loads(outcome.out)["kl"].values())
    assert len(kl) == 3
    assert kl == sorted(kl, reverse=True)
    outcome = command("map", run, "--count", 40, "--out", tmp_path / "m.png", "--json")
    assert outcome.status == 0, outcome.err
    assert 0.5 < json.loads(outcome.out)["trustworthiness"] <= 1
    assert Image.open(tmp_path / "m.png").size[0] > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("edit", "RUN", "--attribute", "smilling"), "no attribute 'smilling': did you mean smiling?"),
        (("edit", "RUN", "--attribute", "antennae"), "attribute 'antennae' has images of one class only"),
        (("edit", "RUN", "--attribute", "hat", "--strength", "much"), "--strength 'much': give a range such as -2..2"),
        (("edit", "RUN", "--attribute", "hat", "--strength", "0..inf"), "give a range"),
        (("edit", "RUN", "--attribute", "hat", "--strength", "nan"), "--strength has numbers that are not finite"),
        (("edit", "RUN", "--attribute", "hat", "--attribute", "hat"), "given twice"),
        (("traverse", "RUN", "--values", "1e400"), "--values has numbers that are not finite"),
        (("edit", "RUN", "--attribute", "hat", "--direction", "up"), "choose mean or linear"),
        (("edit", "RUN", "--attribute", "hat", "--image", "none.png"), "no image at none.png"),
        (("edit", "RUN", "--attribute", "hat", "--image", "FILE"), "cannot read the image"),
        (("edit", "RUN", "--attribute", "hat", "--vectors", "FILE"), "damaged, or holds no attribute vectors"),
        (("edit", "RUN", "--attribute", "hat", "--out", "e.txt"), "ends in .png"),
        (("edit", "RUN"), "Missing option '--attribute'"),
        (("edit", "RUN", "--attribute", "hat", "--count", 0), "--count 0: give 1 to 200"),
        (("attributes", "PLAIN"), "no attributes"),
        (("interpolate", "RUN", "--image", "PHOTO"), "give --image twice"),
        (("interpolate", "RUN", "--steps", 1), "--steps 1: give 2 to 100"),
        (("interpolate", "RUN", "--method", "bent"), "choose linear or spherical"),
        (("interpolate", "RUN", "--codes", "FILE"), "is not an array that NumPy can read"),
        (("interpolate", "RUN", "--codes", "WIDE"), "takes (batch, 8)"),
        (("interpolate", "RUN", "--codes", "none.npy"), "no codes at none.npy"),
        (("interpolate", "nowhere"), "no model at nowhere"),
        (("traverse", "RUN", "--latents", 0), "--latents 0"),
        (("map", "RUN", "--count", 3), "a map takes 10 to 5000 images"),
        (("compare", "RUN"), "there is one run"),
        (("compare", "RUN", "RUN"), "given twice"),
        (("compare", "RUN", "FOLDER"), "is not a run"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: tuple[object, ...],
    message: str,
    run: Path,
    labelled_folder: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.npz").write_text("nothing")
    np.save("wide.npy", np.zeros((3, 9)))
    Path("folder").mkdir()
    places: dict[object, object] = {
        "RUN": run,
        "FILE": "file.npz",
        "WIDE": "wide.npy",
        "FOLDER": "folder",
        "PHOTO": labelled_folder / "001.png",
    }
    if "PLAIN" in arguments:
        np.save("plain.npy", np.zeros((60, 32, 32, 3), np.uint8))
        arguments = ("attributes", run, "--data", "plain.npy", "--out", "a")
    outcome = command(*(places.get(each, each) for each in arguments))
    assert (outcome.status, outcome.out) == (2, "")
    assert message in outcome.err.splitlines()[-1]


# Comparison ---------------------------------------------------------------------------------------


def test_compare_shows_what_differs(run: Path, labelled_folder: Path, tmp_path: Path, command: Command) -> None:
    other = tmp_path / "other"
    arguments = ("--data", labelled_folder, "--out", other, "--steps", 1, "--image-size", 16, "--latent-dim", 4)
    arguments += ("--network", "dfc", "--network-option", "width=4", "--prior", "standard")
    arguments += ("--learning-rate", 1e-7)  # so that it stays worse
    assert command("train", *arguments, "--batch-size", 32, "--perceptual", "none").status == 0
    outcome = command("compare", run, other, "--out", tmp_path / "c.png", "--count", 5, "--json")
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["settings"]["latent_dim"] == {"small": 8, "other": 4}
    assert "likelihood" not in found["settings"]
    assert "run_id" not in found["settings"]
    assert found["figures"]["PSNR of these 5, dB"]["small"] > found["figures"]["PSNR of these 5, dB"]["other"]
    assert "other has not been evaluated" in outcome.err
    assert Image.open(tmp_path / "c.png").height > 5 * 32
    assert "latent_dim" in command("compare", run, other, "--out", tmp_path / "c.png").out
    for model, limit in ((run, 20), (other, 30)):
        assert command("evaluate", model, "--features", "none", "--limit", limit).status == 0
    outcome = command("compare", run, other, "--out", tmp_path / "c.png")
    assert "their figures do not compare" in outcome.err


def test_python_can_do_all_of_it(run: Path) -> None:
    """Without the command line: a model, its latents, and what is fitted to them."""
    vae = keras.saving.load_model(run / "model.keras")
    images = data.load(str(open_model(run).config["data"]), 32, 32, attributes=True)
    encoded = encoding.encode(vae, images.test.as_numpy_iterator(), images.attribute_names)
    vae.set_prior(flow_matching.fit(encoded.mean, encoded.log_var, steps=2))
    assert vae.sample(3, 0).shape == (3, 32, 32, 3)
