"""What happens between training steps: how often, for how long, and what the run folder says of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from keras_vae.training import stages

TINY = (
    *("--batch-size", 32, "--perceptual", "none", "--latent-dim", 4, "--width", 4, "--image-size", 16),
    *("--prior", "standard"),
)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def epochs(clock: Clock, count: int, seconds: float, cost: float, **options: Any) -> tuple[list[int], stages.Stages]:
    """Which epochs end with validation, of a run of so many, where each takes some seconds and validation others."""
    found = stages.Stages(**options)
    model = SimpleNamespace(stop_training=False, distribute_strategy=tf.distribute.get_strategy())
    found.set_model(model)
    found.progress = SimpleNamespace(device_is_done=lambda: None)  # type: ignore[assignment]
    due = []
    for epoch in range(1, count + 1):
        clock.now += seconds
        model.stop_training = epoch == count
        found.on_epoch_end(epoch)
        if found.due:
            due.append(epoch)
            with found.timed("validation"):
                clock.now += cost
    return due, found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stages, "time", clock)
    return clock


@pytest.mark.parametrize(("seconds", "cost"), [(0.5, 1.2), (2.0, 2.9), (0.05, 0.1)])
def test_short_epochs_end_with_it_within_a_share_of_the_time(clock: Clock, seconds: float, cost: float) -> None:
    due, found = epochs(clock, 1000, seconds, cost)
    assert due[0] == 1
    assert due[-1] == 1000
    total = 1000 * seconds + found.between_steps
    assert 0.03 * total < found.between_steps <= 0.05 * total + 2 * cost  # the first and the last come in any case
    assert max(b - a for a, b in itertools.pairwise(due)) * seconds < 61


def test_long_epochs_each_end_with_it(clock: Clock) -> None:
    assert epochs(clock, 5, 60.0, 20.0)[0] == [1, 2, 3, 4, 5]
    assert epochs(clock, 5, 1.0, 20.0, always=True)[0] == [1, 2, 3, 4, 5]


def test_a_run_of_short_epochs(image_folder: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    result = command("train", "--data", image_folder, "--out", run, "--epochs", 40, "--json", *TINY)
    assert result.status == 0, result.err
    assert "XLA: off (no GPU)" in result.err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 41))
    validated = [line["epoch"] for line in lines if "val_elbo" in line]
    assert {1, 40} <= set(validated)
    assert len(validated) < 40
    pictured = {int(path.stem.split("-")[1]) for path in (run / "samples").glob("epoch-*-samples.png")}
    assert pictured == set(validated)
    seconds = lines[-1]["seconds_by_stage"]
    assert {"data", "model", "first step", "steps", "validation", "pictures", "checkpoints"} <= set(seconds)
    assert seconds["steps"] > lines[0]["seconds_by_stage"]["steps"]
    assert sum(seconds[stage] for stage in ("first step", "steps", *stages.BETWEEN)) <= lines[-1]["seconds"] + 5
    assert json.loads(result.out)["val_elbo"] == pytest.approx(lines[-1]["val_elbo"])


@pytest.mark.slow
def test_what_xla_compiles_is_asked_for_and_said(
    image_folder: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    options = ("train", "--data", image_folder, "--out", tmp_path / "run", "--steps", 2, *TINY)
    assert "jit='yes': give auto, on, off" in command(*options, "--jit", "yes").err
    result = command(*options, "--jit", "on")
    assert (result.status, "XLA: on (as asked)" in result.out + result.err) == (0, True)
