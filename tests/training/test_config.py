"""The options of training: declared once, for Python, for the command line and for `config.json`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, fields

import pytest
import typer

from keras_vae import PRESETS, InputError
from keras_vae.cli.app import app
from keras_vae.training import TrainingConfig
from keras_vae.training.checks import check

# What runs have recorded since the first version, and are resumed from.
RECORDED = """
    data out epochs steps minutes batch_size image_size crop flip random_crop strict latent_dim network network_options
    perceptual perceptual_layers perceptual_weight pixel_weight likelihood beta kl_schedule kl_steps kl_target free_bits
    learning_rate learning_rate_decay prior ema precision strategy deterministic seed resume checkpoint_minutes
    checkpoints_kept
"""
# What runs of earlier versions have not recorded.
SINCE = {"jit", "optimizer", "learning_rate_schedule", "condition", "texture_layers"}


def test_the_record_is_flat_and_has_the_names_it_always_had() -> None:
    assert sorted(asdict(TrainingConfig(data="avatars", out="run"))) == sorted({*RECORDED.split(), *SINCE})
    for settings in PRESETS.values():
        TrainingConfig(data="avatars", out="run", **settings)


def test_each_option_is_on_the_command_line_with_its_default_and_help() -> None:
    parameters = {each.name: each for each in typer.main.get_command(app).commands["train"].params}
    for each in fields(TrainingConfig):
        parameter = parameters.pop(each.name)
        flag, *off = each.metadata.get("flag", "--" + each.name.replace("_", "-")).split("/")
        assert (parameter.opts, parameter.secondary_opts) == ([flag], off)
        assert parameter.help
        assert parameter.required == (each.name == "out")
        if not parameter.required and each.name not in ("data", "network_options"):
            assert each.metadata["parse"](parameter.default) == each.default
    assert sorted(parameters) == ["as_json", "attention", "preset", "width"]


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("texture_layers", "none", None),
        ("texture_layers", "relu2_1,relu3_1", ("relu2_1", "relu3_1")),
        ("texture_layers", "relu2_1", ("relu2_1",)),
        ("texture_layers", "vae-123", "vae-123"),
        ("condition", "label", "label"),
        ("condition", "glasses, hat", ("glasses", "hat")),
        ("condition", '"Hair, blond",hat', ("Hair, blond", "hat")),
    ],
)
def test_what_is_typed_with_commas(name: str, typed: str, value: object) -> None:
    (parse,) = (each.metadata["parse"] for each in fields(TrainingConfig) if each.name == name)
    assert parse(typed) == value


def test_help_has_panels_and_takes_no_tensorflow() -> None:
    script = """
import sys
for name in ("tensorflow", "keras", "numpy"):
    sys.modules[name] = None  # importing it fails
from keras_vae import cli
assert cli.run(["train", "--help"]) == 0
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    titles = [line for line in ended.stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Data:", "Model:", "Optimizer:", "Run:", "Options:"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("minutes", float("inf"), "give a number above 0"),
        ("beta", float("nan"), "give a number of at least 0"),
        ("checkpoints_kept", 0, "give a whole number from 1 on"),
        ("seed", 2**32, "from 0 to 4294967295"),
        ("prior", "flow", "choose learned or standard"),
        ("precision", "float8", "choose one of auto, float32"),
        ("jit", "yes", "give auto, on, off"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=rf"{name}.*{message}"):
        check(TrainingConfig(**{"data": "avatars", "out": "run", name: value}), None)  # type: ignore[arg-type]
