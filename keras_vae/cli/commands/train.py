"""`keras-vae train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from keras_vae.cli import printing
from keras_vae.cli.loading import with_tensorflow
from keras_vae.cli.options import CropOption, JsonOption, SeedOption, StrictOption, path, typed
from keras_vae.model.presets import DEFAULT_LAYERS, DEFAULT_PERCEPTUAL_WEIGHT, PRESETS
from keras_vae.runs.folder import is_run
from keras_vae.support.errors import InputError


def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option(parser=path, metavar="PATH", help="Run folder to make, or to go on with.")],
    data: Annotated[
        str | None,
        typer.Option(help="'avatars', 'tfds:NAME[/CONFIG][:SPLIT]', a folder of images, or an .npy or .npz file."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Settings by name, which other options override: {', '.join(PRESETS)}.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs in all, resumed or not; 5 where no limit is given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps at most, in all.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Minutes of training at most, in all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 64,
    image_size: Annotated[int | None, typer.Option(help="Pixels a side; 64, or the set's own size.")] = None,
    crop: CropOption = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror half of the training images.")] = False,
    random_crop: Annotated[int, typer.Option(help="Move training images by up to so many pixels, edges mirrored.")] = 0,
    strict: StrictOption = False,
    latent_dim: Annotated[int, typer.Option(help="Number of latents.")] = 100,
    network: Annotated[str, typer.Option(help="Encoder and decoder family, such as dfc or resnet.")] = "dfc",
    network_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An option of the network, such as blocks=2; may come several times."),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the network's first layer; 32.")] = None,
    attention: Annotated[bool, typer.Option(help="Self-attention at the lowest resolution (resnet).")] = False,
    perceptual: Annotated[
        str,
        typer.Option(
            help="Feature network: vgg19, vgg16 (downloaded), hed-vgg16 (offline), none, or auto: what is at hand."
        ),
    ] = "auto",
    perceptual_layers: Annotated[
        str, typer.Option(help="vae-123, vae-1234, vae-345, vae-12345, or layer names such as relu1_2,relu3_1.")
    ] = DEFAULT_LAYERS,
    perceptual_weight: Annotated[
        str,
        typer.Option(help="Weight of the perceptual term: a number, one a layer (1,0.5,2), calibrated or balanced."),
    ] = DEFAULT_PERCEPTUAL_WEIGHT,
    pixel_weight: Annotated[float, typer.Option(help="Factor of the pixels' likelihood; the paper's is 0.")] = 1.0,
    likelihood: Annotated[
        str,
        typer.Option(help="Of pixels, such as gaussian-calibrated, gaussian, bernoulli or discretized-logistic."),
    ] = "gaussian-calibrated",
    beta: Annotated[float, typer.Option(help="Factor of the KL in the loss; with --kl-target the first one.")] = 1.0,
    kl_schedule: Annotated[
        str, typer.Option(help="How beta rises: constant, linear, cosine or cyclical.")
    ] = "constant",
    kl_steps: Annotated[int, typer.Option(help="Steps of the schedule.")] = 1000,
    kl_target: Annotated[float | None, typer.Option(help="Nats to steer the KL to, instead of a schedule.")] = None,
    free_bits: Annotated[float, typer.Option(help="Nats each latent may carry uncharged.")] = 0.0,
    learning_rate: Annotated[float, typer.Option(help="Adam's learning rate.")] = 5e-4,
    learning_rate_decay: Annotated[float, typer.Option(help="Its factor after each epoch.")] = 1.0,
    prior: Annotated[
        str, typer.Option(help="learned, fitted to the codes of training images in the end, or standard.")
    ] = "learned",
    ema: Annotated[
        float | None, typer.Option(help="Momentum of averaged weights, such as 0.999, to evaluate and export.")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, float32, mixed_float16 or mixed_bfloat16.")] = "auto",
    strategy: Annotated[
        str, typer.Option(help="Devices: auto, none (one), mirrored (all GPUs here) or multi-worker (TF_CONFIG's).")
    ] = "auto",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits each time, where that can be slower.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, if there is one, with its settings; limits stay those of the whole run.",
        ),
    ] = False,
    checkpoint_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints; one ends each epoch.")] = 5.0,
    checkpoints_kept: Annotated[int, typer.Option(help="Checkpoints to keep, the last ones.")] = 3,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a VAE and write its run folder."""
    options = _network_options(network_option or [])
    if width is not None:
        options["width"] = width
    if attention:
        options["attention"] = True
    settings: dict[str, Any] = {
        "epochs": epochs,
        "steps": steps,
        "minutes": minutes,
        "batch_size": batch_size,
        "image_size": image_size,
        "crop": crop,
        "flip": flip,
        "random_crop": random_crop,
        "strict": strict,
        "latent_dim": latent_dim,
        "network": network,
        "perceptual": None if perceptual == "none" else perceptual,
        "perceptual_layers": _layers(perceptual_layers),
        "perceptual_weight": _weights(perceptual_weight),
        "pixel_weight": pixel_weight,
        "likelihood": likelihood,
        "beta": beta,
        "kl_schedule": kl_schedule,
        "kl_steps": kl_steps,
        "kl_target": kl_target,
        "free_bits": free_bits,
        "learning_rate": learning_rate,
        "learning_rate_decay": learning_rate_decay,
        "prior": prior,
        "ema": ema,
        "precision": precision,
        "strategy": strategy,
        "deterministic": deterministic,
        "checkpoint_minutes": checkpoint_minutes,
        "checkpoints_kept": checkpoints_kept,
        "seed": seed,
    }
    given = {name for name in settings if typed(context, name)}
    if preset is not None:
        if preset not in PRESETS:
            raise InputError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
        # Who bounds the run in another way does not want the preset's epochs.
        bounded = {"epochs"} if given & {"steps", "minutes"} else set()
        preset_only = {name: value for name, value in PRESETS[preset].items() if name not in given | bounded}
        settings |= preset_only
        given |= set(preset_only)
    continues = resume and is_run(out)
    if not continues:
        if data is None:
            raise InputError(
                f"{f'no run in {out} to resume, and ' if resume else ''}--data is missing: give 'avatars', tfds:NAME, "
                "a folder of images, or an .npy or .npz file"
            )
        _refuse_idle(context, settings)
    with printing.results(as_json, printing.training) as show:
        training = with_tensorflow("keras_vae.training")
        if continues:
            changes = {name: settings[name] for name in settings if name in given}
            changes |= {"network_options": options} if options else {}
            changes |= {"data": data} if data is not None else {}
            config = training.continued(out, changes)
        else:
            config = training.TrainingConfig(
                data=data, out=str(out), network_options=options, resume=resume, **settings
            )
        show(training.train(config))


def _refuse_idle(context: typer.Context, settings: dict[str, Any]) -> None:
    """Refuses options that were typed and, with the others, change nothing.

    Raises:
        InputError: it names the option and what it waits for.
    """
    if typed(context, "kl_steps") and settings["kl_schedule"] == "constant":
        raise InputError("--kl-steps has no schedule to last: add --kl-schedule linear, cosine or cyclical")
    for name in ("perceptual_layers", "perceptual_weight"):
        if typed(context, name) and settings["perceptual"] is None:
            option = "--" + name.replace("_", "-")
            raise InputError(f"{option} has no feature network: add --perceptual hed-vgg16, say, or leave it out")


def _network_options(given: list[str]) -> dict[str, Any]:
    """Options of a network from NAME=VALUE: whole numbers, true and false; the family judges the rest."""
    options: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not (name and equals and value):
            raise InputError(f"--network-option {each!r}: give NAME=VALUE, such as blocks=2")
        words = {"true": True, "false": False}
        options[name] = words.get(value.lower(), int(value) if value.isdecimal() else value)
    return options


def _layers(given: str) -> str | tuple[str, ...]:
    several = "," in given or given.startswith("relu")  # else a preset's name, or that of one layer
    return tuple(name.strip() for name in given.split(",")) if several else given


def _weights(given: str) -> float | tuple[float, ...] | str:
    try:
        numbers = tuple(float(part) for part in given.split(","))
    except ValueError:
        return given  # a name, or a mistake that the library words
    return numbers[0] if len(numbers) == 1 else numbers
