"""The command line: a run from training to verification, and one clear line for each wrong input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vae import PRESETS, VAE, __version__, cli, data, training
from keras_vae.cli import demo
from keras_vae.data import Avatars, avatars
from keras_vae.features import weight_files
from keras_vae.support import progress
from keras_vae.training import stages

Command = Callable[..., Any]
SMALL = ("--image-size", 32, "--latent-dim", 8, "--batch-size", 16, "--perceptual", "none", "--width", 4)
PLAIN = (*SMALL, "--prior", "standard")  # fitting a learned one takes half as long as the rest


@pytest.fixture(scope="module")
def run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the folder of avatars, with exports."""
    out = tmp_path_factory.mktemp("runs") / "small"
    arguments = ["train", "--data", image_folder, "--out", out, "--epochs", 3, *SMALL, "--seed", 5]
    assert cli.run([str(argument) for argument in arguments]) == 0
    assert cli.run(["export", str(out)]) == 0
    return out


class Said(NamedTuple):
    """A run that several tests look at, and what the command line said of it."""

    run: Path
    out: str
    err: str


def trained(run: Path, *arguments: object) -> Said:
    """As the fixture `command` does it, for fixtures that a module shares."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run([str(each) for each in ("train", "--out", run, *arguments)])
    assert status == 0, err.getvalue()
    return Said(run, out.getvalue(), err.getvalue())


def executable(*arguments: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("keras-vae")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


# What works -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def papers(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """A run by the paper's preset.

    It has everything but the network's weights, which cannot be downloaded everywhere, and the number of steps.
    """
    folder = tmp_path_factory.mktemp("papers")
    arguments = ("--preset", "dfc-paper", "--perceptual", "auto", "--steps", 2, "--precision", "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(folder / "keras"))  # nothing has been downloaded
        return trained(folder / "run", "--data", image_folder, *arguments, "--width", 4, "--prior", "standard")


def test_the_papers_preset_sets_what_the_paper_states(papers: Said) -> None:
    out = papers.run
    config = json.loads((out / "config.json").read_text())
    stated = {
        "perceptual_layers": "vae-123",
        "perceptual_weight": 0.5,
        "pixel_weight": 0.0,
        "beta": 1.0,
        "latent_dim": 100,
        "image_size": 64,
        "crop": 150,
        "batch_size": 64,
        "learning_rate": 5e-4,
        "learning_rate_decay": 0.5,
        "network": "dfc",
        "epochs": None,
        "perceptual": "hed-vgg16",
    }
    assert {name: config[name] for name in stated} == stated
    assert PRESETS["dfc-paper"]["epochs"] == 5
    assert PRESETS["dfc-paper"]["perceptual"] == "vgg19"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines] == pytest.approx([2.5e-4, 1.25e-4])  # one step is an epoch here
    loss, perceptual, kl = (lines[-1][name] for name in ("loss", "perceptual", "kl"))
    assert loss == pytest.approx(0.5 * perceptual + kl, rel=1e-4)


@pytest.mark.slow
def test_schedules_averages_and_networks_from_the_command_line(
    image_folder: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "run"
    arguments = ("--kl-schedule", "linear", "--kl-steps", 10, "--beta", 2, "--free-bits", 0.1, "--ema", 0.5)
    network = ("--network", "resnet", "--width", 8, "--attention", "--image-size", 28, "--perceptual", "none")
    outcome = command(
        "train", "--data", image_folder, "--out", out, "--epochs", 2, "--batch-size", 16, *arguments, *network, "--json"
    )
    assert outcome.status == 0
    figures = json.loads(outcome.out)
    assert figures["beta"] == pytest.approx(2 * (figures["steps"] - 1) / 10)
    assert figures["kl_floored"] >= 0.1 * 100
    vae = keras.saving.load_model(out / "model.keras")
    assert vae.image_shape == (28, 28, 3)
    assert vae.network_options == {"width": 8, "attention": True}
    assert vae.optimizer.use_ema


@pytest.mark.slow
def test_photo_preset_trains_exports_and_verifies(image_folder: Path, tmp_path: Path, command: Command) -> None:
    """Its network begins as PCA; Muon; a learning rate that falls to a hundredth by the last step."""
    out = tmp_path / "run"
    small = ("--steps", 12, "--width", 8, "--latent-dim", 12, "--batch-size", 16, "--perceptual", "hed-vgg16")
    outcome = command("train", "--preset", "photo", "--data", image_folder, "--out", out, *small, "--json")
    assert outcome.status == 0
    assert "adapted to" in outcome.err + outcome.out
    config = json.loads((out / "config.json").read_text())
    assert (config["network"], config["optimizer"], config["flip"]) == ("ppca", "muon", True)
    assert config["texture_layers"] == ["relu2_1", "relu3_1"]
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert 1e-5 <= last["learning_rate"] < 1e-4
    vae = keras.saving.load_model(out / "model.keras")
    assert not vae.needs_adapting
    for arguments in (("--format", "tf_saved_model"), ("--format", "onnx")):
        assert command("export", out, *arguments).status == 0
    assert command("verify", out).status == 0
    more = command("train", "--resume", "--out", out, "--steps", 16, "--json")
    assert more.status == 0
    assert json.loads(more.out)["steps"] == 16


@pytest.mark.slow
def test_a_checkpoint_is_used_with_its_averages(image_folder: Path, tmp_path: Path, command: Command) -> None:
    """Sampling, exporting and verifying all mean the averaged weights."""
    out = tmp_path / "run"
    trained = command("train", "--data", image_folder, "--out", out, "--epochs", 2, "--ema", 0.9, *SMALL)
    assert trained.status == 0
    checkpoint = sorted((out / "checkpoints").glob("*.keras"))[-1]
    assert command("export", checkpoint, "--out", tmp_path / "exported").status == 0
    assert command("verify", checkpoint, tmp_path / "exported" / "decoder.onnx").status == 0
    figures = json.loads(command("evaluate", checkpoint, "--json").out)  # it knows its run's data and crop
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert figures["elbo"] == pytest.approx(last["val_elbo"], rel=1e-3)
    vae = keras.saving.load_model(checkpoint)
    raw = vae.sample(4, seed=0).numpy()
    with vae.averaged_weights():
        assert np.abs(vae.sample(4, seed=0).numpy() - raw).max() > 1e-3


@pytest.mark.slow
def test_the_papers_preset_reads_celeb_a(celeb_a: Any, tmp_path: Path, command: Command) -> None:
    """With made-up pixels, another network's features and one step."""
    out = tmp_path / "run"
    few = ("--perceptual", "hed-vgg16", "--steps", 1, "--batch-size", 8)
    assert command("train", "--preset", "dfc-paper", "--data", "tfds:celeb_a", "--out", out, *few).status == 0
    assert command("evaluate", out, "--limit", 3, "--json").status == 0


@pytest.mark.slow
def test_images_that_are_not_square(celeb_a: Any, tmp_path: Path, command: Command) -> None:
    few = ("--perceptual", "none", "--steps", 1, "--batch-size", 4, "--latent-dim", 4, "--precision", "float32")
    assert command("train", "--data", "tfds:celeb_a", "--out", tmp_path / "run", *few).status == 0
    assert keras.saving.load_model(tmp_path / "run" / "model.keras").image_shape == (218, 178, 3)
    assert json.loads(command("evaluate", tmp_path / "run", "--limit", 3, "--json").out)["images"] == 3
    assert command("reconstruct", tmp_path / "run", "--count", 2, "--out", tmp_path / "a.png").status == 0


def test_help_answers_at_once() -> None:
    """Half a second is promised; the best of five tries stands for a machine that is not busy."""
    times: list[float] = []
    while len(times) < 5 and min(times, default=1.0) >= 0.5:
        start = time.perf_counter()
        result = executable("--help")
        times.append(time.perf_counter() - start)
        assert result.returncode == 0
    assert min(times) < 0.5
    for name in ("demo", "train", "evaluate", "sample", "reconstruct", "export", "verify"):
        assert name in result.stdout
        assert executable(name, "--help").returncode == 0


def test_version_and_no_arguments() -> None:
    assert executable("--version").stdout == f"keras-vae {__version__}\n"
    assert "Commands" in executable().stdout + executable().stderr


def test_run_folder(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        "config.json",
        "model.keras",
        "metrics.jsonl",
        "checkpoints",
        "samples",
        "logs",
        "export",
        ".lock",
    }
    config = json.loads((run / "config.json").read_text())
    assert (config["latent_dim"], config["seed"], config["perceptual"]) == (8, 5, None)
    assert Path(config["data"]).is_absolute()
    assert len(config["run_id"]) == 32
    assert config["versions"]["tensorflow"] == tf.__version__
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert records[-1]["loss"] < records[0]["loss"]
    assert {"val_loss", "val_elbo", "images_per_second", "learning_rate", "step"} <= set(records[0])


def test_pictures_of_epochs_and_at_the_end(run: Path) -> None:
    names = {path.name for path in (run / "samples").iterdir()}
    assert {"reconstructions.png", "samples.png", "epoch-0001-samples.png", "epoch-0003-reconstructions.png"} <= names
    with Image.open(run / "samples" / "reconstructions.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] > 300
    assert pixels.std() > 20


def test_tensorboard_has_scalars_and_pictures(run: Path) -> None:
    tags = set()
    for path in (run / "logs").rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert {"epoch_loss", "epoch_elbo", "epoch_kl", "reconstructions", "samples"} <= tags


def test_checkpoints_are_whole_models(run: Path) -> None:
    checkpoints = sorted((run / "checkpoints").iterdir())
    assert len(checkpoints) in (2, 3)  # of the first epoch and the last, and of the second if there was time
    vae = keras.saving.load_model(checkpoints[-1])
    assert int(vae.optimizer.iterations) == int(checkpoints[-1].stem.removeprefix("step-"))


def test_python_reads_what_the_command_wrote(run: Path, image_folder: Path) -> None:
    vae = keras.saving.load_model(run / "model.keras")
    assert isinstance(vae, VAE)
    figures = vae.evaluate(data.load(image_folder, 32, 16).test, verbose=0, return_dict=True)
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert figures["kl"] == pytest.approx(logged["val_kl"], rel=1e-3)


def test_sample_from_every_kind_of_model(run: Path, command: Command, tmp_path: Path) -> None:
    """The same seed gives the same faces, whatever they are decoded with."""
    pictures = []
    for index, model in enumerate((run, run / "model.keras", run / "export" / "1", run / "export" / "generator.onnx")):
        out = tmp_path / f"{index}.png"
        result = command("sample", model, "--out", out, "--count", 9, "--seed", 3)
        assert result.status == 0, result.err
        pictures.append(np.asarray(Image.open(out)).astype(int))
    for picture in pictures[1:]:
        assert np.abs(picture - pictures[0]).max() <= 12  # bfloat16 in Keras, float32 in the exports


def test_reconstruct(run: Path, command: Command, tmp_path: Path, faces_or_folder: Path) -> None:
    result = command("reconstruct", run, "--out", tmp_path / "own.png", "--count", 6, "--json")
    assert result.status == 0, result.err
    figures = json.loads(result.out)
    assert figures["images"] == 6
    assert 0 < figures["sharpness"] < 2
    assert figures["psnr"] > 5
    assert (tmp_path / "own.png").is_file()
    result = command("reconstruct", run / "model.keras", "--data", faces_or_folder, "--out", tmp_path / "faces.png")
    assert result.status == 0, result.err
    assert "psnr" in result.out


def test_reconstruct_takes_image_files_and_data_of_one_image(
    run: Path, image_folder: Path, command: Command, tmp_path: Path
) -> None:
    photo = next(image_folder.glob("*.png"))
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(photo, alone)
    pictures = []
    for number, options in enumerate((("--image", photo), ("--data", photo), ("--data", alone))):
        out = tmp_path / f"{number}.png"
        result = command("reconstruct", run, *options, "--out", out, "--json")
        assert result.status == 0, result.err
        assert json.loads(result.out)["images"] == 1
        pictures.append(np.asarray(Image.open(out)))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])
    two = command("reconstruct", run, "--image", photo, "--image", photo, "--out", tmp_path / "two.png", "--json")
    assert json.loads(two.out)["images"] == 2
    assert command("traverse", run, "--data", photo, "--out", tmp_path / "t.png").status == 0


@pytest.fixture
def faces_or_folder(image_folder: Path, tmp_path: Path) -> Path:
    """Other images than those trained on: the same ones, mirrored."""
    folder = tmp_path / "mirrored"
    folder.mkdir()
    for path in image_folder.glob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / path.name)
    return folder


def test_verify(run: Path, command: Command) -> None:
    result = command("verify", run, "--json")
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["passed"]
    pairs = [(pair["first"], pair["second"]) for pair in report["pairs"]]
    generators = [("keras", "tf_saved_model"), ("keras", "onnx generator")]
    assert pairs == [("keras", "tf_saved_model"), ("keras", "onnx"), *generators]
    assert [artifact["checksum"] for artifact in report["artifacts"]] == [True, True, True]
    assert all(pair["max_difference"] <= 1e-4 for pair in report["pairs"])
    assert report["latents"] >= 1001
    table = command("verify", run / "export" / "1", run / "export" / "decoder.onnx")
    assert table.status == 0
    assert "pass" in table.out


def test_verify_fails_on_another_models_decoder(run: Path, command: Command, tmp_path: Path) -> None:
    keras.utils.set_random_seed(9)
    VAE((32, 32, 3), 8, perceptual=None, network_options={"width": 4}).export(tmp_path / "other.onnx", format="onnx")
    result = command("verify", run, tmp_path / "other.onnx")
    assert result.status == 1
    assert "FAIL" in result.out


@pytest.mark.slow  # test_pretrained.py verifies them too
def test_shipped_decoders_are_whole(command: Command, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "saved_models" / "avatars"
    result = command("verify", shipped / "1", shipped / "decoder.onnx")
    assert result.status == 0, result.err
    assert command("sample", shipped / "generator.onnx", "--out", tmp_path / "a.png").status == 0


def test_export_one_format_elsewhere(command: Command, tmp_path: Path) -> None:
    VAE((16, 16, 3), 4, perceptual=None, network_options={"width": 4}).save(tmp_path / "model.keras")
    result = command("export", tmp_path / "model.keras", "--out", tmp_path / "faces", "--format", "onnx", "--json")
    assert result.status == 0, result.err
    names = ["decoder.onnx", "generator.onnx"]
    found = [Path(artifact["path"]) for artifact in json.loads(result.out)["artifacts"]]
    assert found == [tmp_path / "faces" / name for name in names]
    assert sorted(path.name for path in (tmp_path / "faces").iterdir()) == names


def test_json_is_all_there_is_on_standard_output(image_folder: Path, tmp_path: Path) -> None:
    result = executable(
        "train",
        "--data",
        image_folder,
        "--out",
        tmp_path / "run",
        "--steps",
        7,
        *PLAIN,
        "--precision",
        "float32",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["steps"] == 7
    assert figures["precision"] == "float32"
    assert {"loss", "elbo", "kl", "reconstruction", "val_loss", "psnr", "sharpness", "images_per_second"} <= set(
        figures
    )
    epochs = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    assert [line.partition("  ")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    for noise in ("oneDNN", "cuda", "absl", "Traceback"):
        assert noise not in result.stderr


@pytest.fixture(scope="module")
def steered(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """Epochs of less than a second, and a KL that is far below its target."""
    run = tmp_path_factory.mktemp("runs") / "a run"
    return trained(run, "--data", image_folder, "--epochs", 8, "--kl-target", 1000, *PLAIN)


def test_the_kl_is_steered_from_the_command_line(steered: Said) -> None:
    last = json.loads((steered.run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["beta"] < 1  # far below its target the KL grows cheaper


def test_a_target_that_is_not_reached_is_said(steered: Said) -> None:
    assert "nats, not 1000: train longer" in steered.err


def test_progress_is_few_lines_that_fit_and_the_end_says_what_is_next(steered: Said) -> None:
    """The first epoch and the last have a line."""
    out, result = steered.run, steered
    epochs = [line for line in result.out.splitlines() if line.startswith("epoch ")]
    assert [line.partition("  ")[0] for line in epochs] == ["epoch 1/8", "epoch 8/8"]
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    found = re.search(r"reconstruction ([\d.]+) dB \(held out ([\d.]+)\)  KL (\d+) nats", epochs[-1])
    assert found is not None
    # A calibrated Gaussian's nats are its error's: D/2 (log(2 pi error) + 1).
    error = np.exp(2 * last["reconstruction"] / (32 * 32 * 3) - 1) / (2 * np.pi)
    assert float(found[1]) == pytest.approx(-10 * np.log10(error), abs=0.06)
    assert abs(float(found[2]) - float(found[1])) < 3
    assert float(found[3]) == pytest.approx(last["kl"], abs=0.6)
    assert all(len(line) <= 80 for line in epochs)
    assert "images are few to train on" in result.err
    assert "overfitting" not in result.err
    commands = [line.partition("keras-vae ")[2] for line in result.out.splitlines()[-3:]]
    assert [shlex.split(each) for each in commands] == [
        ["evaluate", str(out)],
        ["sample", str(out)],
        ["export", str(out)],
    ]
    for name in ("reconstructions.png", "samples.png"):
        assert f"samples/{name}" in result.out
        assert (out / "samples" / name).is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.slow
def test_progress_is_redrawn_in_a_terminal(image_folder: Path, tmp_path: Path) -> None:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    arguments = ["train", "--data", image_folder, "--out", tmp_path / "run", "--minutes", 0.25, *SMALL]
    command = [str(Path(sys.executable).with_name("keras-vae")), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # how a terminal ends whose other side is gone
        while part := os.read(ours, 4096):
            said += part
    os.close(ours)
    assert process.wait() == 0
    drawn = [each.strip() for line in said.decode().splitlines() for each in line.split("\r") if " left" in each]
    assert len(drawn) > 2
    line = re.compile(r"epoch \d+  (\d+%  )?reconstruction [\d.]+ dB  KL [\d.]+ nats")
    assert [each for each in drawn if not line.match(each)] == []
    assert all(len(each) <= 80 for each in drawn)
    assert said.count(b"\n") < 60  # the table and a line now and then


@pytest.mark.slow
def test_overfitting_is_said(
    images: np.ndarray, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out images that training can tell nothing about: the others' negatives."""
    np.savez(tmp_path / "images.npz", x_train=images, x_test=1 - images)
    monkeypatch.setattr(stages, "SECONDS_AT_MOST", 0.0)  # each epoch is validated
    options = ("--epochs", 16, "--seed", 2, "--network", "dfc", *SMALL)  # `ppca` tells something about them
    result = command("train", "--data", tmp_path / "images.npz", "--out", tmp_path / "run", *options)
    assert result.status == 0
    assert re.search(r"overfitting: the ELBO is -?[\d,]+ nats on training images and -?[\d,]+ on held-out", result.err)
    assert re.search(r"What helps is more images, --flip, fewer minutes: epoch \d+ of 16 was best", result.err)


def test_the_feature_network_at_hand_is_taken_and_said(
    papers: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "features: hed-vgg16 (it is installed; vgg19 would be downloaded)" in papers.out
    assert json.loads((papers.run / "config.json").read_text())["perceptual"] == "hed-vgg16"
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(weight_files, "hed", lambda: None)
    assert weight_files.best_at_hand()[0] == "vgg19"  # to be downloaded
    monkeypatch.undo()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    weight_files.vgg("vgg19").parent.mkdir(parents=True)
    weight_files.vgg("vgg19").touch()
    assert weight_files.best_at_hand() == ("vgg19", "it has been downloaded")


@pytest.mark.slow
def test_limits_and_seeds(image_folder: Path, command: Command, tmp_path: Path) -> None:
    losses = []
    for index, seed in enumerate((1, 1, 2)):
        arguments = ("--steps", 6, "--seed", seed, "--precision", "float32", "--json")
        result = command("train", "--data", image_folder, "--out", tmp_path / f"{index}", *SMALL, *arguments)
        losses.append(json.loads(result.out)["loss"])
    assert losses[0] == losses[1] != losses[2]
    start = time.perf_counter()
    result = command("train", "--data", image_folder, "--out", tmp_path / "m", *SMALL, "--minutes", 0.1, "--json")
    assert json.loads(result.out)["minutes"] == pytest.approx(0.1, abs=0.05)
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize("smaller", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_demo(
    small_avatars: Avatars, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smaller: bool
) -> None:
    """The whole of it, with few avatars and seconds of training; a smaller network but where it is slow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(avatars, "builder_for", lambda size: small_avatars)
    if smaller:
        changed = {"image_size": 32, "latent_dim": 8, "network_options": {"width": 4}, "perceptual": None}
        monkeypatch.setattr(demo, "TrainingConfig", lambda **own: training.TrainingConfig(**{**own, **changed}))
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "config.json").write_text("{}")  # an earlier one, which is left alone
    result = command("demo", "--minutes", 0.02 if smaller else 0.05, "--json")
    assert result.status == 0, result.err
    figures = json.loads(result.out)
    assert figures["model"] == "runs/demo-2/model.keras"
    for name in ("model", "saved_model", "decoder", "generator", "reconstructions", "samples"):
        assert Path(figures[name]).exists()
    assert figures["largest_difference"] <= 1e-4
    assert figures["peak_memory_gib"] > 0.1


def test_progress_without_a_terminal_is_lines(capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.1)
    with progress.bar(20, "working", "images") as bar:
        for _ in range(20):
            time.sleep(0.02)
            bar.update(1)
    lines = capfd.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 10
    assert all(line.startswith("working") for line in lines)


# What is wrong ----------------------------------------------------------------------------------


@pytest.fixture
def bad_inputs(run: Path, tmp_path: Path) -> Path:
    for name in ("empty", "texts", "taken"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    (tmp_path / "taken" / "letter.txt").write_text("dear")
    (tmp_path / "broken.keras").write_text("no model")
    (tmp_path / "cut.keras").write_bytes((run / "model.keras").read_bytes()[:9999])
    shutil.copy(run / "model.keras", tmp_path / "alone.keras")
    (tmp_path / "picture.png").write_text("no model")
    (tmp_path / "fake.onnx").write_text("no model")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    return tmp_path


TRAIN = ("train", "--data", "{folder}", "--out", "{here}/out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--data", "nowhere", "--out", "{here}/out"), "unknown data source 'nowhere'"),
        (("train", "--data", "tfds:celeba", "--out", "{here}/out"), "did you mean celeb_a"),
        (("train", "--data", "tfds:celeb_a", "--out", "{here}/out"), "run `tfds build celeb_a`"),
        (("train", "--data", "{here}/empty", "--out", "{here}/out"), "holds no images"),
        (("train", "--data", "{here}/texts", "--out", "{here}/out"), "holds no images"),
        (("train", "--data", "{here}/picture.png", "--out", "{here}/out"), "is one image: give a folder of images"),
        (("reconstruct", "{run}", "--image", "{here}/none.png", "--out", "{here}/a.png"), "no image at"),
        (("reconstruct", "{run}", "--image", "{here}/picture.png", "--out", "{here}/a.png"), "cannot read the image"),
        (("reconstruct", "{run}", "--image", "{here}/picture.png", "--data", "{here}"), "give one of them"),
        ((*TRAIN, "--network", "unet"), "choose one of dfc"),
        ((*TRAIN, "--perceptual", "alexnet"), "vgg16, vgg19, hed-vgg16"),
        ((*TRAIN, "--perceptual", "hed-vgg16", "--perceptual-layers", "relu9_1"), "unknown layer 'relu9_1'"),
        (
            (*TRAIN, "--perceptual", "hed-vgg16", "--perceptual-layers", "vae-9"),
            "vae-123, vae-345, vae-1234, vae-12345",
        ),
        ((*TRAIN, "--image-size", 15), "16 pixels a side and more"),
        ((*TRAIN, "--image-size", -1), "16 pixels a side and more"),
        ((*TRAIN, "--network", "resnet", "--width", 20), "multiples of 8"),
        ((*TRAIN, "--attention"), "no option 'attention'"),
        ((*TRAIN, "--preset", "best"), "unknown preset 'best': choose one of default, plain"),
        ((*TRAIN, "--perceptual-weight", "auto"), "'calibrated' or 'balanced'"),
        ((*TRAIN, "--perceptual", "hed-vgg16", "--perceptual-weight", "1,2"), "2 numbers for 3 layers"),
        ((*TRAIN, "--perceptual", "none", "--pixel-weight", 0), "nothing says"),
        ((*TRAIN, "--kl-schedule", "steep"), "constant, linear, cosine, cyclical"),
        ((*TRAIN, "--kl-schedule", "linear", "--kl-steps", 0), "kl_steps=0"),
        ((*TRAIN, "--kl-schedule", "linear", "--kl-target", 50), "both set beta"),
        ((*TRAIN, "--kl-steps", 50), "add --kl-schedule linear"),
        ((*TRAIN, "--kl-target", 50, "--free-bits", 0.5), "100 latents leave 50 uncharged"),
        ((*TRAIN, "--preset", "plain", "--perceptual-layers", "vae-345"), "--perceptual-layers has no feature network"),
        ((*TRAIN, "--perceptual", "none", "--perceptual-weight", 2), "--perceptual-weight has no feature network"),
        ((*TRAIN, "--preset", "plain", "--texture-layers", "relu2_1"), "--texture-layers has no feature network"),
        ((*TRAIN, "--perceptual", "hed-vgg16", "--texture-layers", "relu9_1"), "unknown layer 'relu9_1'"),
        ((*TRAIN, "--perceptual", "hed-vgg16", "--texture-layers", ""), "texture_layers='': a name is empty"),
        (
            (*TRAIN, "--preset", "photo", "--perceptual", "hed-vgg16", "--perceptual-weight", "1,1,1"),
            "perceptual_weight has 3 numbers for 3 layers and 2 texture layers",
        ),
        ((*TRAIN, "--kl-target", 50, "--beta", 0), "give a positive beta"),
        ((*TRAIN, "--free-bits", -1), "free_bits=-1"),
        ((*TRAIN, "--ema", 1), "ema=1.0"),
        ((*TRAIN, "--crop", 0), "crop=0"),
        ((*TRAIN, "--learning-rate-decay", 0), "learning_rate_decay=0"),
        ((*TRAIN, "--learning-rate-schedule", "linear"), "choose one of constant, cosine"),
        (
            (*TRAIN, "--learning-rate-schedule", "cosine", "--learning-rate-decay", 0.5),
            "both set the learning rate: give one",
        ),
        ((*TRAIN, "--optimizer", "sgd"), "choose one of adam, muon"),
        ((*TRAIN, "--latent-dim", 0), "at least 1 latent"),
        ((*TRAIN, "--beta", -1), "beta=-1.0"),
        ((*TRAIN, "--perceptual-weight", -1), "perceptual_weight=-1.0"),
        ((*TRAIN, "--perceptual", "none", "--batch-size", 1000), "batch size 1000 is larger than the"),
        ((*TRAIN, "--batch-size", 0, "--perceptual", "none"), "whole number from 1 on"),
        ((*TRAIN, "--epochs", 0), "epochs=0"),
        ((*TRAIN, "--minutes", "nan"), "minutes=nan"),
        ((*TRAIN, "--learning-rate", 0), "learning_rate=0.0"),
        ((*TRAIN, "--precision", "float8"), "mixed_bfloat16"),
        ((*TRAIN, "--likelihood", "poisson"), "gaussian, gaussian-calibrated, bernoulli"),
        ((*TRAIN, "--seed", -1), "seed"),
        (("train", "--data", "{folder}", "--out", "{here}/taken"), "is not a run"),
        (("train", "--data", "{folder}", "--out", "{here}/picture.png"), "is not a run"),
        (("train", "--data", "{folder}", "--out", "{here}/picture.png/run"), "is not a folder"),
        (("train", "--data", "{folder}", "--out", "{run}"), "already holds a run: continue it with --resume"),
        (("train", "--data", "{folder}"), "--out"),
        ((*TRAIN, "--colour", "red"), "--colour"),
        (("train", "--data", "{folder}", "--out", "{folder}/run"), "lies in the data folder"),
        (("train", "--data", "{folder}", "--out", "/proc/x", *SMALL), "/proc/x"),
        (("sample", "{here}/cut.keras"), "damaged"),
        (("verify", "{run}", "{shipped}"), "decodes 100 latents"),
        (("sample", "{here}/nothing"), "no model at"),
        (("sample", "{here}/empty"), "is not a model"),
        (("sample", "{here}/broken.keras"), "cannot read"),
        (("sample", "{here}/other.keras"), "not a keras_vae.VAE"),
        (("sample", "{here}/picture.png"), "is not a model"),
        (("sample", "{run}", "--count", 0), "count"),
        (("sample", "{run}", "--out", "{here}/none/a.png"), "does not exist"),
        (("sample", "{run}", "--out", "{here}/a.xyz"), ".png"),
        (("reconstruct", "{run}/export/decoder.onnx"), "decoder alone"),
        (("export", "{run}/export/decoder.onnx"), "is exported already"),
        (("sample", "{run}", "--count", 100000), "count"),
        (("sample", "{run}", "--out", "/proc/a.png"), "cannot be written to"),
        (("sample", "{here}/fake.onnx"), "not an ONNX model"),
        (("reconstruct", "{here}/alone.keras", "--out", "{here}/a.png"), "give --data"),
        (("export", "{run}", "--format", "coreml"), "tf_saved_model, onnx"),
        (("export", "{run}", "--out", "{here}/picture.png"), "is not a folder"),
        (("export", "{run}/model.keras"), "give --out"),
        (("verify", "{run}/model.keras"), "nothing to compare"),
        (("verify", "{run}", "{here}/nothing.onnx"), "no model at"),
        (("verify", "{run}/model.keras", "{run}/model.keras"), "given twice"),
        (("demo", "--minutes", 0), "minutes=0"),
        (("fly",), "fly"),
    ],
)
def test_bad_input_gets_one_line(
    run: Path, image_folder: Path, bad_inputs: Path, command: Command, arguments: tuple[object, ...], message: str
) -> None:
    before = sorted(bad_inputs.rglob("*"))
    shipped = Path(__file__).parents[2] / "saved_models" / "avatars" / "decoder.onnx"
    places = {"here": bad_inputs, "run": run, "folder": image_folder, "shipped": shipped}
    litter = sorted(Path(tempfile.gettempdir()).glob("tmp*tfds"))
    start = time.perf_counter()
    result = command(*(str(argument).format(**places) for argument in arguments))
    assert time.perf_counter() - start < 10
    assert result.status == 2
    (line,) = [line for line in result.err.splitlines() if not line.startswith("E0000")]  # TensorFlow, of GPUs
    assert message in line
    assert "Traceback" not in result.err
    assert sorted(bad_inputs.rglob("*")) == before
    assert sorted(Path(tempfile.gettempdir()).glob("tmp*tfds")) == litter


def test_verify_of_other_sizes_is_refused(run: Path, command: Command, tmp_path: Path) -> None:
    VAE((16, 16, 3), 8, perceptual=None, network_options={"width": 4}).export(tmp_path / "small.onnx", format="onnx")
    result = command("verify", run, tmp_path / "small.onnx")
    assert result.status == 2
    assert "keras 32x32x3, onnx 16x16x3" in result.err


def test_another_backend_gets_one_line(run: Path) -> None:
    result = executable("sample", run, env={**os.environ, "KERAS_BACKEND": "jax"})
    assert result.returncode == 2
    assert (
        result.stderr == "keras-vae: KERAS_BACKEND is 'jax', and keras-vae runs on TensorFlow: set it to tensorflow\n"
    )


def test_a_run_that_did_not_end_is_named(run: Path, command: Command, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(run / "config.json", half)
    result = command("sample", half)
    assert result.status == 2
    again = f"resume it with `keras-vae train --resume --out {half}`"
    assert f"did not finish: {again}" in result.err
    shutil.copytree(run / "checkpoints", half / "checkpoints")
    result = command("sample", half)
    assert f"{again}, or use " in result.err
    assert command("sample", result.err.split("or use ")[1].strip(), "--out", tmp_path / "a.png").status == 0


def test_what_nobody_foresaw_is_one_line_and_exit_1(
    command: Command, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("the disk\nis on fire")

    monkeypatch.setattr(training, "train", fail)
    monkeypatch.setattr(demo, "train", fail)
    result = command("train", "--data", image_folder, "--out", tmp_path / "x")
    assert result.status == 1
    assert result.err.startswith("keras-vae: RuntimeError: the disk is on fire")
