"""Training that is killed, stopped or hindered, and goes on: nothing is lost but what came after a checkpoint."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from keras_vae import PRESETS, VAE, cli, training
from keras_vae.runs import checkpoints
from keras_vae.runs.folder import checkpoints as checkpoints_of
from keras_vae.runs.keras_file import load_vae
from keras_vae.support import errors
from keras_vae.training import stages

Command = Callable[..., Any]
SMALL: dict[str, Any] = {
    "image_size": 16,
    "latent_dim": 4,
    "batch_size": 8,
    "perceptual": None,
    "network_options": {"width": 4},
    "flip": True,
    "random_crop": 2,
    "prior": "standard",
    "seed": 3,
}
OPTIONS = (
    *("--image-size", 16, "--latent-dim", 4, "--batch-size", 8, "--perceptual", "none", "--width", 4),
    *("--flip", "--random-crop", 2),
)
PLAIN = (*OPTIONS, "--prior", "standard")  # fitting a learned one takes half as long as the rest
EACH_STEP = ("--checkpoint-minutes", "1e-6")


def config(data: Path, out: Path, **changes: Any) -> training.TrainingConfig:
    return training.TrainingConfig(**{**SMALL, "data": str(data), "out": str(out), **changes})


def program(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("keras-vae")), *map(str, arguments)]


@contextmanager
def running(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command line in a process of its own, killed at the latest when the block ends."""
    process = subprocess.Popen(
        program(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 120) -> Any:
    """Waits for something to be so; None where the process ended first."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        if process.poll() is not None:
            return None
        time.sleep(0.001)
    raise TimeoutError


def weights(path: Path) -> dict[str, np.ndarray]:
    """Every array of a .keras file: the weights, the optimizer's, noise, schedules."""
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def assert_same(one: Path, other: Path) -> None:
    """To the last bit."""
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    assert len(expected) > 50
    assert [name for name in expected if not np.array_equal(expected[name], found[name])] == []


def figures(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


# Killed ---------------------------------------------------------------------------------------


def asides(folder: Path) -> list[Path]:
    """Files that are being written."""
    return list(folder.glob(".aside-*"))


def kill_at(moment: str, run: Path, process: subprocess.Popen[str], chance: random.Random) -> str:
    """Kills a training process at a moment, and returns what it was doing; "" where it had ended."""
    before = {path: path.stat().st_mtime_ns for path in checkpoints_of(run)}

    def has_made_a_step() -> bool:
        return any(before.get(path) != path.stat().st_mtime_ns for path in checkpoints_of(run) if path.exists())

    conditions: dict[str, Callable[[], Any]] = {
        "checkpoint": lambda: asides(run / "checkpoints"),
        "picture": lambda: asides(run / "samples"),
    }
    if moment in conditions:
        if not until(conditions[moment], process):
            return ""
    else:  # somewhere in the steps, their checkpoints, the validation and the pictures
        # A checkpoint may be removed while it is looked at.
        with contextlib.suppress(FileNotFoundError):
            if not until(has_made_a_step, process):
                return ""
        time.sleep(chance.uniform(0, 0.7))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return moment if process.returncode == -signal.SIGKILL else ""


def train_with_kills(data: Path, run: Path, moments: list[str], epochs: int, more: tuple[object, ...] = ()) -> int:
    """Starts a run again after each kill, until it ends. Returns how often it was killed."""
    chance = random.Random(0)
    arguments = ("train", "--data", data, "--out", run, "--epochs", epochs, *OPTIONS, "--resume", "--deterministic")
    killed = 0
    for moment in moments:
        with running(*arguments, *EACH_STEP, *more) as process:
            if not kill_at(moment, run, process, chance):
                break
            killed += 1
        if found := checkpoints.latest(run):
            checkpoints.read(found[0])
    subprocess.run(program(*arguments, *more), check=True, capture_output=True)
    return killed


@pytest.fixture(scope="module")
def uninterrupted(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    arguments = ("train", "--data", image_folder, "--out", run, "--epochs", 4, *OPTIONS, "--deterministic")
    subprocess.run(program(*arguments, "--ema", 0.9, "--kl-target", 5), check=True, capture_output=True)
    return run


@pytest.mark.slow  # one kill comes before the signal below
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    uninterrupted: Path, image_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    moments = ["checkpoint", "step", "picture"]
    assert train_with_kills(image_folder, run, moments, 4, ("--ema", 0.9, "--kl-target", 5)) == len(moments)
    assert_same(uninterrupted / "model.keras", run / "model.keras")
    assert figures(run) == figures(uninterrupted)
    left = [path for path in run.rglob("*") if path.name.startswith(".aside-")]
    assert left == []
    assert len(checkpoints_of(run)) == 3


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_nothing_lost(image_folder: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    arguments = ("train", "--data", image_folder, "--out", whole, "--epochs", 100, *OPTIONS, "--deterministic")
    subprocess.run(program(*arguments), check=True, capture_output=True)
    chance = random.Random(1)
    moments = [chance.choice(["step", "step", "checkpoint", "picture"]) for _ in range(20)]
    assert train_with_kills(image_folder, run, moments, 100) == 20
    assert_same(whole / "model.keras", run / "model.keras")
    assert figures(run) == figures(whole)


@pytest.mark.slow
def test_an_export_that_was_killed_leaves_the_run_and_the_next_export_whole(
    uninterrupted: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(uninterrupted, tmp_path / "run")

    def under_way() -> list[Path]:
        return [path for path in run.rglob(".*") if path.name != ".lock"]

    with running("export", run, "--format", "onnx") as process:
        assert until(under_way, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert_same(uninterrupted / "model.keras", run / "model.keras")
    assert not list(run.rglob("*.onnx")) or all(path.parent.name == "new" for path in run.rglob("*.onnx"))
    subprocess.run(program("export", run, "--format", "onnx"), check=True, capture_output=True)
    subprocess.run(program("verify", run), check=True, capture_output=True)


# Stopped --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(
    number: signal.Signals,
    status: int,
    uninterrupted: Path,
    image_folder: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a run that was killed before, while it wrote a checkpoint; meanwhile another process is refused."""
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)  # it would be so for good
    run = tmp_path / "run"
    arguments = ("train", "--data", image_folder, "--out", run, "--epochs", 4, *OPTIONS, "--deterministic")
    settings = (*EACH_STEP, "--ema", 0.9, "--kl-target", 5)
    with running(*arguments, *settings) as process:
        assert until(lambda: checkpoints_of(run) and asides(run / "checkpoints"), process)
    assert process.returncode == -signal.SIGKILL
    before = set(checkpoints_of(run))
    with running(*arguments, *settings, "--resume") as process:
        assert until(lambda: set(checkpoints_of(run)) - before, process)
        process.send_signal(signal.SIGSTOP)  # it has the folder, and cannot end while others try
        recorded = (run / "config.json").read_bytes()
        for more, refusal in ((("--resume",), "another process trains in"), ((), "already holds a run")):
            result = command(*arguments, *more)
            assert result.status == 2
            assert refusal in result.err
        assert (run / "config.json").read_bytes() == recorded
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == status
    last = said.splitlines()[-1]
    kept = checkpoints_of(run)[-1]
    assert re.fullmatch(rf"keras-vae: stopped at step \d+, saved in {kept}; resume with: (.*)", last), said
    again = last.partition("resume with: ")[2].split()
    assert again == ["keras-vae", "train", "--resume", "--out", str(run)]
    subprocess.run(program(*again[1:]), check=True, capture_output=True)
    assert_same(uninterrupted / "model.keras", run / "model.keras")
    assert figures(run) == figures(uninterrupted)
    assert [path for path in run.rglob("*") if path.name.startswith(".aside-")] == []


# Taken up -------------------------------------------------------------------------------------


def stopping_at(step: int) -> pytest.MonkeyPatch:
    """Has training stop after a step as if by a signal."""
    patch = pytest.MonkeyPatch()
    own = training.callbacks.Checkpoints.on_train_batch_end

    def on_train_batch_end(self: Any, batch: int, logs: Any = None) -> None:
        if self.progress.steps == step:
            self.signals.number = signal.SIGTERM
        own(self, batch, logs)

    patch.setattr(training.callbacks.Checkpoints, "on_train_batch_end", on_train_batch_end)
    return patch


@pytest.fixture(scope="module")
def stopped_once(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "stopped"
    patch = stopping_at(13)
    with pytest.raises(errors.StoppedError, match=r"step 13, saved in .*step-00000013.keras; resume with"):
        training.train(config(image_folder, run, epochs=2))
    patch.undo()
    return run


@pytest.fixture(scope="module")
def finished(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, not stopped, and begun with --resume: not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    arguments = ("train", "--data", image_folder, "--out", run, "--epochs", 2, *PLAIN, "--seed", 3, "--resume")
    assert cli.run([str(argument) for argument in arguments]) == 0
    return run


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A run that was stopped within its second epoch of ten steps."""
    return Path(shutil.copytree(stopped_once, tmp_path / "stopped"))


def test_a_run_goes_on_at_its_step_and_can_be_made_longer_at_a_lower_learning_rate(
    stopped: Path, command: Command
) -> None:
    result = command("train", "--resume", "--out", stopped, "--epochs", 3, "--learning-rate", 1e-5, "--json")
    assert result.status == 0
    assert json.loads(result.out)["steps"] == 30
    assert json.loads(result.out)["epochs"] == 3
    assert re.search(r"resuming from step 13 \(.*step-00000013.keras\); left: 1.7 of 3 epochs", result.err)
    assert "epoch 3/3  reconstruction" in result.err
    assert [line["step"] for line in figures(stopped)] == [10, 20, 30]
    assert figures(stopped)[-1]["learning_rate"] == pytest.approx(1e-5)
    assert json.loads((stopped / "config.json").read_text())["epochs"] == 3
    (stopped / "model.keras").unlink()  # as if it had been killed after its last step
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')  # and a line of it been lost
    again = command("train", "--resume", "--out", stopped, "--json")
    assert again.status == 0
    assert json.loads(again.out)["val_loss"] == json.loads(result.out)["val_loss"]
    assert (stopped / "model.keras").is_file()


@pytest.mark.slow
def test_an_epoch_that_a_limit_ended_has_the_figures_of_one_that_it_did_not(
    image_folder: Path, tmp_path: Path, command: Command
) -> None:
    common = ("train", "--data", image_folder, *OPTIONS, "--prior", "standard", "--precision", "float32")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command(*common, "--out", whole, "--steps", 20).status == 0
    assert command(*common, "--out", parts, "--steps", 13).status == 0
    assert [line["step"] for line in figures(parts)] == [10, 13]
    assert command("train", "--resume", "--out", parts, "--steps", 20).status == 0
    one, other = figures(whole), figures(parts)
    assert [line["step"] for line in other] == [10, 20]  # the epoch is not there twice
    for name in ("elbo", "kl", "reconstruction", "active_units", "val_elbo", "psnr", "val_psnr"):
        assert other[1][name] == pytest.approx(one[1][name], rel=1e-3), name


def test_a_finished_run_is_left_alone_and_the_way_on_is_named(
    finished: Path, image_folder: Path, command: Command
) -> None:
    run = finished
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for limits, further in (
        ((), "--epochs 4 trains 2 more"),
        (("--epochs", 1), "--epochs 3 trains 1 more"),
        (("--steps", 6), "--steps 26 trains 6 more"),
        (("--minutes", 1e-4), "--minutes 0."),
    ):
        result = command("train", "--resume", "--out", run, *limits)
        assert result.status == 2
        assert f"{run} has trained for " in result.err
        assert "2 epochs or 20 steps, and --" in result.err
        assert "counts from the run's beginning: nothing is left to do" in result.err
        assert further in result.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    new = command("train", "--data", image_folder, "--out", run, *OPTIONS)
    assert new.status == 2
    assert "already holds a run: continue it with --resume" in new.err


def test_what_would_make_another_run_of_it_is_refused(stopped: Path, command: Command) -> None:
    for options, name in (
        (("--batch-size", 4), "batch_size=8, not 4"),
        (("--latent-dim", 5), "latent_dim=4, not 5"),
        (("--data", stopped.parent), "data="),
        (("--preset", "vae-123"), "perceptual"),
        (("--width", 8), "network_options"),
    ):
        result = command("train", "--resume", "--out", stopped, *options)
        assert result.status == 2, options
        assert f"{stopped} was begun with {name}" in result.err
    assert checkpoints_of(stopped)[-1].name == "step-00000013.keras"


def test_a_preset_that_has_gained_settings_resumes_an_earlier_run(
    stopped: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = json.loads((stopped / "config.json").read_text())
    del settings["texture_layers"]
    (stopped / "config.json").write_text(json.dumps(settings))
    monkeypatch.setitem(PRESETS, "mine", {"batch_size": 8, "texture_layers": ("relu2_1",)})
    typed = command("train", "--resume", "--out", stopped, "--texture-layers", "relu2_1")
    assert typed.status == 2
    assert f"{stopped} was begun with texture_layers=None, not ('relu2_1',)" in typed.err
    result = command("train", "--resume", "--out", stopped, "--preset", "mine", "--steps", 14, "--json")
    assert result.status == 0
    assert json.loads(result.out)["steps"] == 14
    assert json.loads((stopped / "config.json").read_text())["texture_layers"] is None


def test_data_that_has_changed_is_refused(stopped: Path, image_folder: Path, tmp_path: Path, command: Command) -> None:
    settings = json.loads((stopped / "config.json").read_text())
    fewer = shutil.copytree(image_folder, tmp_path / "fewer")
    next(fewer.glob("*.png")).unlink()
    (stopped / "config.json").write_text(json.dumps({**settings, "data": str(fewer)}))
    result = command("train", "--resume", "--out", stopped)
    assert result.status == 2
    assert "has changed" in result.err


def test_other_images_of_the_same_names_are_refused(
    stopped: Path, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    settings = json.loads((stopped / "config.json").read_text())
    others = shutil.copytree(image_folder, tmp_path / "others")
    for path in others.rglob("*.png"):
        with Image.open(path) as image:
            ImageOps.invert(image).save(path)
    (stopped / "config.json").write_text(json.dumps({**settings, "data": str(others)}))
    result = command("train", "--resume", "--out", stopped)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"{others} has changed: its images are not those the run began with" in result.err


@pytest.mark.parametrize("damage", ["cut short", "a byte", "empty"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    stopped: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = damaged(stopped, damage)
    found = checkpoints.latest(stopped)
    assert found is not None
    assert (found[0], found[1].step) == (kept[0], 10)
    assert f"{kept[-1]} is damaged" in capsys.readouterr().err


def damaged(run: Path, damage: str) -> list[Path]:
    """Damages the last of a run's two checkpoints, and returns both."""
    kept = checkpoints_of(run)
    assert [path.name for path in kept] == ["step-00000010.keras", "step-00000013.keras"]
    content = bytearray(kept[-1].read_bytes())
    if damage == "a byte":
        content[len(content) // 2] ^= 1
    kept[-1].write_bytes({"cut short": content[: len(content) // 2], "empty": b""}.get(damage, bytes(content)))
    return kept


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    stopped: Path, finished: Path, command: Command
) -> None:
    kept = damaged(stopped, "a byte")
    result = command("train", "--resume", "--out", stopped, "--json")
    assert result.status == 0
    assert f"{kept[-1]} is damaged" in result.err
    assert "resuming from step 10" in result.err
    assert json.loads(result.out)["steps"] == 20
    assert figures(stopped) == figures(finished)


def test_resume_begins_where_there_is_nothing(finished: Path, tmp_path: Path, command: Command) -> None:
    assert (finished / "model.keras").is_file()
    missing = command("train", "--out", tmp_path / "other", "--resume")
    assert missing.status == 2
    assert "--data is missing" in missing.err


# Hindered -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def assert_kept(run: Path, result: Any, status: int = 1) -> None:
    """One line, and the last checkpoint is whole."""
    assert result.status == status
    line = result.err.splitlines()[-1]
    assert line.startswith("keras-vae: ")
    assert "Traceback" not in result.err
    found = checkpoints.latest(run)
    assert found is not None
    assert f"{found[0]} is kept; resume with: keras-vae train --resume --out {run}" in line
    assert isinstance(load_vae(found[0]), VAE)


def test_a_full_disk(small_disk: Path, image_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "SECONDS_AT_MOST", 0.0)  # pictures of each epoch
    run = small_disk / "run"
    # PLAIN: a learned prior takes 4 MB of each checkpoint.
    result = command("train", "--data", image_folder, "--out", run, "--epochs", 50, *PLAIN, *EACH_STEP)
    assert "No space left on device" in result.err
    assert_kept(run, result)
    for path in (run / "samples").glob("*.png"):
        path.unlink()
    shutil.rmtree(run / "logs")
    assert command("train", "--resume", "--out", run, "--epochs", checkpoints.latest(run)[1].step // 10).status == 0  # type: ignore[index]


def after_an_epoch(patch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    own = training.callbacks.EpochPictures.on_epoch_end

    def on_epoch_end(self: Any, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            act()
        own(self, epoch, logs)

    patch.setattr(training.callbacks.EpochPictures, "on_epoch_end", on_epoch_end)


@pytest.mark.slow
def test_a_folder_that_can_no_longer_be_written_to(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    locked = run / "checkpoints"
    if subprocess.run(["chattr", "+i", tmp_path], capture_output=True).returncode:
        pytest.skip("may not make a folder immutable")
    subprocess.run(["chattr", "-i", tmp_path], check=True)
    after_an_epoch(monkeypatch, lambda: subprocess.run(["chattr", "+i", locked], check=True) and None)
    try:
        result = command("train", "--data", image_folder, "--out", run, "--epochs", 50, *OPTIONS)
    finally:
        subprocess.run(["chattr", "-i", locked], check=True)
    assert f"cannot write {locked}" in result.err
    assert_kept(run, result)


def test_a_run_folder_that_is_removed(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    after_an_epoch(monkeypatch, lambda: shutil.rmtree(run))
    result = command("train", "--data", image_folder, "--out", run, "--epochs", 50, *OPTIONS)
    assert result.status == 1
    assert result.err.splitlines()[-1].endswith(f"{run} is gone")
    assert not run.exists()


def test_a_folder_of_images_that_turns_unreadable(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the images that are read before training."""
    monkeypatch.setattr("keras_vae.data.folders.SAMPLE", 8)
    folder, run = shutil.copytree(image_folder, tmp_path / "images"), tmp_path / "run"
    own = training.callbacks.Checkpoints.on_train_batch_end

    def on_train_batch_end(self: Any, batch: int, logs: Any = None) -> None:
        own(self, batch, logs)
        for path in folder.rglob("*.png"):
            path.write_bytes(b"no image")

    monkeypatch.setattr(training.callbacks.Checkpoints, "on_train_batch_end", on_train_batch_end)
    # `ppca` would have seen them all before the first step.
    result = command("train", "--data", folder, "--out", run, "--epochs", 50, *OPTIONS, *EACH_STEP, "--network", "dfc")
    assert "cannot be read, more than 10%" in result.err
    assert_kept(run, result, 2)


def test_records_that_are_cut_short(
    small_avatars: Any, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged TFDS set, found out by TensorFlow when it gets there."""
    folder, run = shutil.copytree(small_avatars.data_dir, tmp_path / "set"), tmp_path / "run"
    record = next(folder.glob("*train.tfrecord*"))
    content = record.read_bytes()
    record.write_bytes(content[: len(content) * 9 // 10])
    monkeypatch.setattr("keras_vae.data.pipelines.SHUFFLE_BYTES", 1)
    for network in ("dfc", "ppca"):  # that reads them before the first step
        result = command(
            "train", "--data", folder, "--out", run, "--epochs", 2, *OPTIONS, *EACH_STEP, "--network", network
        )
        assert result.status == 1
        assert re.search(rf"cannot read {folder} at step \d+: .*(truncated|corrupted) record", result.err), result.err
        if network == "dfc":
            assert_kept(run, result)
        else:
            assert f"there is no checkpoint yet; remove {run} to start again" in result.err
        shutil.rmtree(run)


def test_too_little_memory_names_batch_size_and_precision(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_step(self: VAE, data: Any) -> Any:
        return {"loss": tf.reduce_sum(tf.random.normal((2**20, 2**20)))}  # four TiB

    monkeypatch.setattr(VAE, "train_step", train_step)
    result = command("train", "--data", image_folder, "--out", tmp_path / "run", *OPTIONS, "--precision", "float32")
    assert result.status == 2
    line = result.err.splitlines()[-1]
    assert "out of memory at step 1: batch size 8 of 16x16 in float32: give a smaller --batch-size" in line


# Numbers --------------------------------------------------------------------------------------


def plain(**changes: Any) -> VAE:
    keras.utils.set_random_seed(0)
    return VAE((16, 16, 3), 4, perceptual=None, network_options={"width": 4}, **changes)


class Poisoned(keras.callbacks.Callback):
    """Has a variable of the loss become no number before a step, and notes all weights before each."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.before: list[np.ndarray] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.before = [np.array(weight) for weight in self.model.trainable_weights]
        if batch == self.step:
            self.model.beta_variable.assign(np.nan)


@pytest.mark.parametrize(
    ("policy", "jit_compile"),
    [
        ("float32", False),
        # tests/model/test_guards.py has every precision, compiled too, of a smaller network.
        pytest.param("mixed_bfloat16", False, marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", True, marks=pytest.mark.slow),
        pytest.param("float32", True, marks=pytest.mark.slow),
    ],
)
def test_a_loss_that_is_no_number_stops_training_before_the_weights_take_part(
    images: np.ndarray, policy: str, jit_compile: bool
) -> None:
    model = plain(dtype=policy)
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=jit_compile)
    poison = Poisoned(3)
    x = images[:, ::2, ::2]
    with pytest.raises(errors.NotFiniteError, match=rf"step 4: loss is nan in {policy}; the step was left out: give"):
        model.fit(np.concatenate([x] * 6), batch_size=8, epochs=1, shuffle=False, callbacks=[poison], verbose=0)
    now = [np.array(weight) for weight in model.trainable_weights]
    assert all(np.isfinite(weight).all() for weight in now)
    for before, after in zip(poison.before, now, strict=True):
        np.testing.assert_array_equal(before, after)
    assert int(model.optimizer.iterations) == 3


class InfiniteSlope(keras.layers.Layer):
    """The identity, whose gradient is infinite at zero."""

    def call(self, z: Any) -> Any:
        return z + keras.ops.sqrt(z - keras.ops.stop_gradient(z))


def test_a_gradient_that_is_no_number_is_named_and_what_batches_moved_stays_finite(images: np.ndarray) -> None:
    z = keras.Input((4,))
    x = keras.layers.Dense(16 * 16 * 3, "sigmoid")(InfiniteSlope()(z))
    decoder = keras.Model(z, keras.layers.Reshape((16, 16, 3))(x))
    image = keras.Input((16, 16, 3))
    encoder = keras.Model(
        image, keras.layers.Dense(8)(keras.layers.Flatten()(keras.layers.BatchNormalization()(image)))
    )
    model = VAE((16, 16, 3), 4, perceptual=None, encoder=encoder, decoder=decoder)
    model.compile("adam")
    before = [np.array(weight) for weight in model.trainable_weights]
    with pytest.raises(errors.NotFiniteError, match=r"step 1: the gradient is (NaN|infinite) in float32"):
        model.fit(images[:, ::2, ::2], batch_size=8, verbose=0)
    for one, other in zip(before, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(one, np.array(other))
    assert all(np.isfinite(np.array(weight)).all() for weight in model.weights)


def test_a_run_that_diverges_keeps_its_last_finite_weights(
    image_folder: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    result = command("train", "--data", image_folder, "--out", run, *OPTIONS, "--learning-rate", 1e30)
    assert result.status == 2
    line = result.err.splitlines()[-1]
    assert re.search(r"step \d+: .* is (nan|inf)", line)
    assert "give a lower learning rate than 1e+30" in line
    assert not (run / "model.keras").exists()
    assert not (run / "metrics.jsonl").exists()
    kept = load_vae(run / "last-finite.keras")
    assert all(np.isfinite(np.array(weight)).all() for weight in kept.weights)


@pytest.mark.slow
def test_float16_leaves_steps_out_but_not_for_ever(images: np.ndarray) -> None:
    """Its loss scaling halves the scale at each overflow; where that does not help, training stops."""
    model = plain(dtype="mixed_float16")
    model.compile(keras.optimizers.Adam(1e-3))
    x = np.concatenate([images[:, ::2, ::2]] * 6)
    scale = float(model.optimizer.dynamic_scale)
    model.fit(x[:96], batch_size=8, verbose=0)
    assert float(model.optimizer.dynamic_scale) <= 4 * scale
    with pytest.raises(errors.NotFiniteError, match=r"loss is nan in mixed_float16; .* or float32"):
        model.fit(x, batch_size=8, shuffle=False, callbacks=[Poisoned(3)], verbose=0)
    assert all(np.isfinite(np.array(weight)).all() for weight in model.trainable_weights)


def test_the_same_seed_gives_the_same_curve(stopped_once: Path, finished: Path) -> None:
    """So far as both went; the rest is compared where a run goes on from a checkpoint."""
    assert [line["step"] for line in figures(finished)] == [10, 20]
    assert figures(stopped_once) == figures(finished)[:1]
