"""The `keras-vae` command: parses, calls, prints. What it does is done elsewhere.

TensorFlow is imported by the commands that need it, when they run: `--help` must not wait for it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from keras_vae._version import __version__
from keras_vae.export.formats import FORMATS, PRECISIONS, kinds
from keras_vae.model.presets import DEFAULT_LAYERS, DEFAULT_PERCEPTUAL_WEIGHT, PRESETS
from keras_vae.support.backend import LOG_LEVEL, load_tensorflow
from keras_vae.support.errors import InputError, RunError, StoppedError

app = typer.Typer(
    name="keras-vae",
    help="Train variational autoencoders that make sharp images, and ship their decoders.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _path(given: str) -> Path:
    """A path of the command line; an empty one, of a shell variable that is not set, is no name for this folder."""
    if not given:
        raise InputError("a path is empty: give one (. is the current folder)")
    return Path(given)


def _model(given: str) -> Path:
    """Any MODEL: a path, or the name of a pretrained one."""
    from keras_vae.runs import pretrained  # not for --help

    return pretrained.resolve(_path(given), whole=False)


def _vae(given: str) -> Path:
    """A MODEL with its encoder: a path, or the name of a pretrained one."""
    from keras_vae.runs import pretrained  # not for --help

    return pretrained.resolve(_path(given), whole=True)


ANY_MODEL = f"Run folder, .keras file, {kinds()}, or name of a pretrained model."
ModelArgument = Annotated[Path, typer.Argument(parser=_model, metavar="MODEL", help=ANY_MODEL)]
# Where a decoder will do, but images to start from take the encoder.
StartArgument = Annotated[Path, typer.Argument(parser=_vae, metavar="MODEL", help=ANY_MODEL)]
DataOption = Annotated[
    str, typer.Option(help="'avatars', 'tfds:NAME[/CONFIG][:SPLIT]', a folder of images, or an .npy or .npz file.")
]
CropOption = Annotated[int | None, typer.Option(help="Pixels a side of the centred square to cut out first.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Refuse a folder of which any image would be skipped.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Figures as JSON on standard output.")]
SeedOption = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same result.")]
PriorOption = Annotated[
    str, typer.Option(help="Where latents are drawn from: learned (the model's own), or standard (a standard normal).")
]
RunsDataOption = Annotated[str | None, typer.Option("--data", help="As for train; by default what the run trained on.")]
ImageOption = Annotated[
    list[Path] | None, typer.Option(parser=_path, help="An image file to start from; may come several times.")
]
CodesOption = Annotated[
    Path | None, typer.Option(parser=_path, help="An .npy file of latents to start from, (count, latents).")
]
VectorsOption = Annotated[
    Path | None, typer.Option(parser=_path, help="Attribute vectors; a run's own, or those beside the decoder.")
]
VAEArgument = Annotated[
    Path,
    typer.Argument(parser=_vae, metavar="MODEL", help="Run folder, .keras file, or name of a pretrained model."),
]
DEFAULT_FORMATS = "tf_saved_model,onnx"


def _every_format() -> tuple[str, ...]:
    return (*FORMATS, "triton")


def main() -> None:
    """Runs the command line. Exit status: 0 done, 2 wrong use or bad input, 1 anything else."""
    signal.signal(signal.SIGTERM, _terminated)  # training has its own way to stop
    sys.exit(run(sys.argv[1:]))


def _terminated(number: int, frame: object) -> None:
    # As an exception: temporary files are removed on its way.
    raise StoppedError("stopped", number)


def run(arguments: list[str]) -> int:
    """Runs a command line in this process and returns its exit status."""
    from keras_vae.export.errors import ExportError, VerificationError

    try:
        return int(app(arguments, prog_name="keras-vae", standalone_mode=False) or 0)
    except (InputError, ExportError) as error:
        return _fail(error, 2)
    except (VerificationError, RunError) as error:
        return _fail(error, 1)
    except StoppedError as error:
        return _fail(error, 128 + error.signal)
    except typer.TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "keras-vae")
        return _fail(f"{error.format_message()} (see {command} --help)", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):  # what was being written is not put in place
        return _fail("interrupted", 130)
    except Exception as error:
        if os.environ.get("KERAS_VAE_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {error} (KERAS_VAE_TRACEBACK=1 shows where)", 1)


def _fail(message: object, status: int) -> int:
    print("keras-vae: " + " ".join(str(message).split()), file=sys.stderr)
    return status


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"keras-vae {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Run folder; by default the next free runs/demo...")] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training.")] = 5.0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """From nothing to a verified decoder.

    Draws avatars, trains on them, exports the decoder, verifies it, and shows what was made and measured.
    """
    with _reporting(as_json) as report:
        report(_library("keras_vae.cli.demo").run(out, minutes, seed))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Say what this machine has, and what of it works.

    Devices, precision, XLA, cuDNN, onnxruntime's providers, weights and data at hand; downloads nothing. Exit status 1
    where something does not work that should.
    """
    from keras_vae.cli import doctor  # TensorFlow, which may be broken, is not loaded into this process

    with _reporting(as_json, _print_doctor) as report:
        found = doctor.examine()
        report(found)
    if found["problems"]:
        raise typer.Exit(1)


@app.command()
def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option(parser=_path, metavar="PATH", help="Run folder to make, or to go on with.")],
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
    given = {name for name in settings if _typed(context, name)}
    if preset is not None:
        if preset not in PRESETS:
            raise InputError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}")
        # Who bounds the run in another way does not want the preset's epochs.
        bounded = {"epochs"} if given & {"steps", "minutes"} else set()
        preset_only = {name: value for name, value in PRESETS[preset].items() if name not in given | bounded}
        settings |= preset_only
        given |= set(preset_only)
    continues = resume and _is_run(out)
    if not continues:
        if data is None:
            raise InputError(
                f"{f'no run in {out} to resume, and ' if resume else ''}--data is missing: give 'avatars', tfds:NAME, "
                "a folder of images, or an .npy or .npz file"
            )
        _refuse_idle(context, settings)
    with _reporting(as_json, _print_training) as report:
        training = _library("keras_vae.training")
        if continues:
            changes = {name: settings[name] for name in settings if name in given}
            changes |= {"network_options": options} if options else {}
            changes |= {"data": data} if data is not None else {}
            config = training.continued(out, changes)
        else:
            config = training.TrainingConfig(
                data=data, out=str(out), network_options=options, resume=resume, **settings
            )
        report(training.train(config))


data_app = typer.Typer(
    name="data",
    help="Look at images, prepare TFDS sets, and build one of a folder.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(data_app)


@data_app.command("info")
def data_info(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="What --data takes.")],
    out: Annotated[Path, typer.Option(help="Picture of some images to write.")] = Path("images.png"),
    image_size: Annotated[int | None, typer.Option(help="Pixels a side; 64, or the set's own size.")] = None,
    crop: CropOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Images to read at most.")] = 10_000,
    as_json: JsonOption = False,
) -> None:
    """Show what a source of images holds.

    Counts, sizes, each attribute's share, what cannot be read and why, and a picture grid.
    """
    with _reporting(as_json) as report:
        report(_library("keras_vae.data.describing").describe(source, out, image_size, crop, limit))


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A TFDS set, as NAME[/CONFIG].")],
    as_json: JsonOption = False,
) -> None:
    """Download and prepare a TFDS set.

    Does what training would do at its first use, and says where the set lies.
    """
    with _reporting(as_json) as report:
        report(_library("keras_vae.data.describing").prepare(name))


@data_app.command("build")
def data_build(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of images.")],
    name: Annotated[str | None, typer.Option(help="Of the set; the folder's name.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where sets are kept; TFDS_DATA_DIR or TFDS's own.")] = None,
    image_size: Annotated[int, typer.Option(help="Pixels a side.")] = 64,
    crop: CropOption = None,
    attributes: Annotated[bool, typer.Option(help="Keep attributes, where there are any.")] = True,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a TFDS set of a folder.

    Decodes, crops and resizes each image once, into shards that load at full speed. What is printed as the set is
    what --data takes.
    """
    with _reporting(as_json) as report:
        build = _library("keras_vae.data.building").build
        report(build(folder, name, data_dir, image_size, crop, attributes, strict))


@app.command()
def evaluate(
    model: VAEArgument,
    data: RunsDataOption = None,
    out: Annotated[
        Path | None, typer.Option(parser=_path, help="Folder for evaluation.json and report.html; a run's own.")
    ] = None,
    importance_samples: Annotated[
        int | None, typer.Option(help="Also the importance-weighted bound, with so many draws an image.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Held-out images to take at most; all.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at a time; the run's own, or 64.")] = None,
    features: Annotated[
        str,
        typer.Option(help="Network of the distances, such as efficientnet-lite0, inception or hed-vgg16, or none."),
    ] = "efficientnet-lite0",
    feature_weights: Annotated[
        Path | None, typer.Option(parser=_path, help="Its weights' file, to use instead of a download.")
    ] = None,
    prior: PriorOption = "learned",
    samples: Annotated[int | None, typer.Option(help="Samples to measure; as many as held-out images.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on held-out images.

    The ELBO and its parts in nats per image, as training reports them; how close and sharp reconstructions are; how far
    they and samples are from real images in a feature network; how the latents lie. Writes report.html, with pictures.
    """
    with _reporting(as_json, _print_evaluation) as report:
        evaluating = _library("keras_vae.evaluation.evaluating")
        weights = None if feature_weights is None else str(feature_weights)
        options = evaluating.Options(
            data, out, importance_samples, limit, batch_size, features, weights, prior, samples, seed
        )
        report(evaluating.evaluate(model, options))


@app.command()
def sample(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("samples.png"),
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Number of images.")] = 64,
    prior: PriorOption = "learned",
    temperature: Annotated[
        float, typer.Option(help="Of the noise; below 1 images are more alike, and more like the mean.")
    ] = 1.0,
    seed: SeedOption = 0,
) -> None:
    """Write a picture grid of new images.

    Draws noise, which the prior maps to latents and the decoder to images. The same seed gives the same images from
    every kind of MODEL.
    """
    _check_exists(model, whole=False)
    _light(model, "keras_vae.cli.sampling").sample(model, out, count, seed, prior, temperature)
    print(f"{count} sample{'s' if count > 1 else ''} written to {out}")


@app.command()
def reconstruct(
    model: VAEArgument,
    image: Annotated[
        list[Path] | None,
        typer.Option(parser=_path, help="An image file; may come several times. Else held-out images."),
    ] = None,
    data: RunsDataOption = None,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("reconstructions.png"),
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Number of held-out images.")] = 24,
    as_json: JsonOption = False,
) -> None:
    """Write images above their reconstructions.

    Takes image files or held-out images, and measures how close and how sharp their reconstructions are.
    """
    _check_exists(model, whole=True)
    with _reporting(as_json) as report:
        report(_library("keras_vae.evaluation.reconstructing").reconstruct(model, data, out, count, image or ()))


@app.command()
def interpolate(
    model: StartArgument,
    image: ImageOption = None,
    codes: CodesOption = None,
    data: RunsDataOption = None,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("interpolation.png"),
    count: Annotated[int, typer.Option(help="Rows, where neither images nor codes are given.")] = 6,
    steps: Annotated[int, typer.Option(help="Images of a way, both ends included.")] = 10,
    method: Annotated[str, typer.Option(help="linear or spherical.")] = "spherical",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write ways from image to image.

    Goes through the latent space between image files, codes, or pairs of held-out images; with an exported decoder
    between codes or draws from the prior.
    """
    _check_exists(model, whole=False)
    with _reporting(as_json) as report:
        exploring = _light(model, "keras_vae.latents.walks")
        start = exploring.Start(image or (), codes, data, count, seed)
        report(exploring.interpolate(model, start, steps, method, out))


@app.command()
def edit(
    model: StartArgument,
    attribute: Annotated[
        list[str], typer.Option(help="To add; may come several times, with - before it to take away.")
    ],
    strength: Annotated[
        str, typer.Option(help="Multiples of the attribute's vector: a range such as -2..2, or numbers with commas.")
    ] = "-2..2",
    steps: Annotated[int, typer.Option(min=2, max=100, help="Images of a range.")] = 5,
    image: ImageOption = None,
    codes: CodesOption = None,
    data: RunsDataOption = None,
    vectors: VectorsOption = None,
    direction: Annotated[
        str, typer.Option(help="mean (of images with it, minus without) or linear (a classifier's normal).")
    ] = "mean",
    together: Annotated[bool, typer.Option("--together", help="All attributes at once, not a row for each.")] = False,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("edit.png"),
    count: Annotated[int, typer.Option(help="Rows, where neither images nor codes are given.")] = 6,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write images with attributes added and taken away.

    Edits image files, codes or held-out images along attribute vectors, which a run finds once and keeps; with an
    exported decoder codes or draws from the prior.
    """
    _check_exists(model, whole=False)
    with _reporting(as_json) as report:
        exploring = _light(model, "keras_vae.latents.walks")
        strengths = exploring.parse_numbers(strength, "--strength", steps)
        start = exploring.Start(image or (), codes, data, count, seed)
        report(exploring.edit(model, attribute, strengths, start, out, vectors, direction, together))


@app.command()
def traverse(
    model: StartArgument,
    image: Annotated[Path | None, typer.Option(parser=_path, help="An image file; the first held-out image.")] = None,
    codes: CodesOption = None,
    data: RunsDataOption = None,
    latents: Annotated[int, typer.Option(help="How many, in falling order of their KL.")] = 10,
    values: Annotated[str, typer.Option(help="For each: a range such as -3..3, or numbers with commas.")] = "-3..3",
    steps: Annotated[int, typer.Option(min=2, max=100, help="Images of a range.")] = 7,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("traversals.png"),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write what single latents do.

    One image, with each of the strongest latents going through values, a row each.
    """
    _check_exists(model, whole=False)
    with _reporting(as_json) as report:
        exploring = _light(model, "keras_vae.latents.walks")
        start = exploring.Start((image,) if image else (), codes, data, 1, seed)
        report(exploring.traverse(model, start, latents, exploring.parse_numbers(values, "--values", steps), out))


@app.command()
def attributes(
    model: VAEArgument,
    data: RunsDataOption = None,
    out: Annotated[Path | None, typer.Option(parser=_path, help="Folder to write; a run's own attributes/.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Tell attributes from latents, and find their vectors.

    How well linear classifiers tell each attribute of held-out images, how the attributes' vectors correlate, whether
    single latents stand for single attributes; the vectors, for `edit`.
    """
    _check_exists(model, whole=True)
    with _reporting(as_json, _print_attributes) as report:
        report(_library("keras_vae.evaluation.latent_space").attributes(model, data, out, seed))


@app.command("map")
def draw_map(
    model: VAEArgument,
    data: RunsDataOption = None,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("map.png"),
    count: Annotated[int, typer.Option(help="Held-out images to show.")] = 600,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a map of the latent space: thumbnails laid out by t-SNE."""
    _check_exists(model, whole=True)
    with _reporting(as_json) as report:
        report(_library("keras_vae.evaluation.latent_space").draw_map(model, data, out, count, seed))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(parser=_path, metavar="RUN...", help="Run folders.")],
    data: Annotated[str | None, typer.Option(help="As for train; by default what the first run trained on.")] = None,
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("comparison.png"),
    count: Annotated[int, typer.Option(help="Images in a row.")] = 12,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: settings that differ, figures side by side, pictures of the same images."""
    for run in runs:
        _check_exists(run, whole=True)
    with _reporting(as_json, _print_comparison) as report:
        report(_library("keras_vae.evaluation.comparing").compare(runs, data, out, count, seed))


@app.command()
def explore(
    model: Annotated[
        Path | None,
        typer.Argument(
            parser=_vae,
            metavar="MODEL",
            help="Run folder, .keras file, or name of a pretrained model; avatars.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=_path, help="Folder to write, instead of serving the page.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="To serve on, on this machine; 0 takes a free one.")
    ] = 8000,
    runtime: Annotated[
        Path | None, typer.Option(parser=_path, help="Folder of onnxruntime-web's files, as npm installs them.")
    ] = None,
    data: RunsDataOption = None,
    title: Annotated[str, typer.Option(help="Of the page; the model's name.")] = "",
) -> None:
    """Play with a model on a page in the browser.

    Sliders for latents and attributes, samples to pick from and to morph between, pictures to start from. The page
    computes in the browser: a folder written with --out works from any web server.
    """
    model = model or _vae("avatars")
    _check_exists(model, whole=True)
    _library("keras_vae.cli.explorer").explore(model, out, port, runtime, data, title)


@app.command()
def export(
    context: typer.Context,
    model: VAEArgument,
    out: Annotated[
        Path | None, typer.Option(parser=_path, help="Folder for the artifacts; a run's own export/.")
    ] = None,
    format: Annotated[
        str, typer.Option(help=f"One or several of {', '.join(_every_format())}, with commas, or all.")
    ] = DEFAULT_FORMATS,
    precision: Annotated[
        str, typer.Option(help="float32, or a smaller ONNX file: float16, or int8, calibrated on training images.")
    ] = "float32",
    data: Annotated[str | None, typer.Option(help="Images for int8; by default what the run trained on.")] = None,
    encoder: Annotated[
        bool, typer.Option("--encoder", help="Also encode: a signature of the SavedModel, and encoder.onnx.")
    ] = False,
    version: Annotated[int, typer.Option(min=0, help="Of the SavedModel: TF Serving serves the highest.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Export decoder (latents to images) and generator (noise to images), to run without Keras.

    Each is proven equal to the Keras decoder before it takes its place; those of lower precision, near.
    """
    formats = tuple(name.strip() for name in format.split(","))
    unknown = [name for name in formats if name not in (*_every_format(), "all")]
    if unknown:
        raise InputError(f"unknown export format {unknown[0]!r}: choose of all, {', '.join(_every_format())}")
    if "all" in formats:
        formats = _every_format()
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    if precision != "float32" and not _typed(context, "format"):
        formats = tuple(name for name in formats if precision in FORMATS[name].precisions)
    if data is not None and precision != "int8":
        raise InputError("--data is what int8 is calibrated on: add --precision int8, or leave it out")
    _check_exists(model, whole=True)
    with _reporting(as_json, _print_export) as report:
        report(_library("keras_vae.cli.deployment").export(model, out, formats, precision, data, encoder, version))


@app.command()
def verify(
    model: ModelArgument,
    artifacts: Annotated[
        list[Path] | None, typer.Argument(metavar="[ARTIFACT]...", help="Exported decoders; by default the run's own.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare decoders on the same latents.

    Compares exported decoders with the Keras one, and with what was exported; exit status 1 where they differ.
    """
    for path in (model, *(artifacts or [])):
        _check_exists(path, whole=False)
    with _reporting(as_json, _print_verify) as report:
        result = _library("keras_vae.cli.deployment").verify(model, artifacts or [])
        report(result)
    if not result["passed"]:
        raise typer.Exit(1)


# Helpers -----------------------------------------------------------------------------------------


def _is_run(folder: Path) -> bool:
    from keras_vae.runs.folder import is_run  # not for --help

    return is_run(folder)


def _check_exists(model: Path, whole: bool) -> None:
    from keras_vae.runs.opening import check_exists  # not for --help

    check_exists(model, whole)


def _light(model: Path, name: str) -> Any:
    """A module, with TensorFlow where the model takes it: an .onnx file does not, and is done before it is imported."""
    return importlib.import_module(name) if model.suffix == ".onnx" else _library(name)


def _typed(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_idle(context: typer.Context, settings: dict[str, Any]) -> None:
    """Refuses options that were typed and, with the others, change nothing.

    Raises:
        InputError: it names the option and what it waits for.
    """
    if _typed(context, "kl_steps") and settings["kl_schedule"] == "constant":
        raise InputError("--kl-steps has no schedule to last: add --kl-schedule linear, cosine or cyclical")
    for name in ("perceptual_layers", "perceptual_weight"):
        if _typed(context, name) and settings["perceptual"] is None:
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


def _library(name: str) -> Any:
    """Imports a module that needs TensorFlow, keeping TensorFlow's greetings off the terminal.

    Raises:
        InputError: Keras is set to another backend.
    """
    os.environ.setdefault(LOG_LEVEL, "2")
    load_tensorflow()
    return importlib.import_module(name)


@contextlib.contextmanager
def _reporting(as_json: bool, printer: Any = None) -> Iterator[Any]:
    """Yields the function that reports figures: as JSON alone on standard output, or in words."""
    if not as_json:
        yield printer or _print_figures
        return
    figures: list[dict[str, Any]] = []
    with contextlib.redirect_stdout(sys.stderr):
        yield figures.append
    for found in figures:
        for note in found.get("notes", ()):
            print(note, file=sys.stderr)
        print(json.dumps({name: _json_value(value) for name, value in found.items()}, indent=2))


def _json_value(value: Any) -> Any:
    """JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {name: _json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print_figures(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, title=figures.get("title"), title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # paths are for copying: never cut short
    for name, value in figures.items():
        if name != "title":
            table.add_row(name.replace("_", " "), _shown(value))
    Console().print(table)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "\n".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return "\n".join(f"{name}  {_shown(each)}" for name, each in value.items()) or "none"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if 100 <= abs(value) < 1e7 else f"{value:.4g}"  # nats count, of thousands too


def _print_training(figures: dict[str, Any]) -> None:
    from keras_vae import training

    _print_figures(figures)
    if "pictures" in figures:  # of several workers, the chief's
        print("next:  " + "\n       ".join(training.next_commands(figures)))


def _print_evaluation(figures: dict[str, Any]) -> None:
    from rich.table import Table

    from keras_vae.evaluation import report

    for title, rows in report.tables(figures).items():
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right", no_wrap=True)
        table.add_column()
        for row in rows:
            table.add_row(*row)
        _console().print(table)
    if "features" in figures:
        print(f"Distances, precision and recall are taken in {figures['features']}.")
    for note in figures["notes"]:
        print(f"Note: {note}.")
    if "report" in figures:
        print(f"Written: {figures['figures']}\n         {figures['report']}, with pictures")


def _print_doctor(found: dict[str, Any]) -> None:
    from rich.table import Table

    from keras_vae.cli import doctor

    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, words in doctor.rows(found):
        table.add_row(name, words)
    _console().print(table)


def _print_attributes(figures: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("attribute", "share", "accuracy", "majority", "balanced", "AUC", "images with, without")
    for each in sorted(figures["predictions"], key=lambda each: -each["balanced_accuracy"]):
        shares = (f"{each[name]:.3f}" for name in ("share", "accuracy", "majority", "balanced_accuracy", "auc"))
        table.add_row(each["name"], *shares, f"{each['with_it']}, {each['without_it']}")
    _console().print(table)
    _print_figures({name: value for name, value in figures.items() if name != "predictions"})


def _print_comparison(figures: dict[str, Any]) -> None:
    from rich.table import Table

    for title in ("settings", "figures"):
        names = list(dict.fromkeys(name for values in figures[title].values() for name in values))
        table = Table(title, *names)
        for key, values in figures[title].items():
            table.add_row(key, *(_shown(values.get(name, "")) for name in names))
        _console().print(table)
    print(f"pictures of the same images: {figures['picture']}")


def _console() -> Any:
    from rich.console import Console

    # In a file or a pipe no name is cut to a terminal's width.
    return Console() if sys.stdout.isatty() else Console(width=200)


def _print_export(figures: dict[str, Any]) -> None:
    for artifact in figures["artifacts"]:
        equal = (
            f"equal to Keras within {artifact['max_difference']:.2g}"
            if artifact["precision"] == "float32"
            else f"{artifact['precision']}, {artifact['psnr']:.1f} dB from Keras"
        )
        print(f"{artifact['path']}: {artifact['part']}, {equal}, {artifact['bytes'] / 1e6:.2f} MB")
    for path in figures["beside"]:
        print(f"{path}: beside it, for these weights")


def _print_verify(report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("pair", "largest", "mean", "at ±50", "PSNR, dB", "result")
    table.title = f"differences over {report['latents']} latents"
    for pair in report["pairs"]:
        differences = (
            "none" if pair[name] == 0 else "not finite" if pair[name] is None else f"{pair[name]:.1e}"
            for name in ("max_difference", "mean_difference", "far_difference")
        )
        psnr = "" if pair["psnr"] is None else f"{pair['psnr']:.1f}"
        passed = "pass" if pair["passed"] else f"FAIL ({pair['error'] or pair['demanded']})"
        table.add_row(f"{pair['first']} / {pair['second']}", *differences, psnr, passed)
    console = _console()
    console.print(table)
    table = Table("artifact", "MB", "checksum", "result")
    table.columns[0].overflow = table.columns[3].overflow = "fold"
    for artifact in report["artifacts"]:
        checksum = {True: "right", False: "", None: "none"}[artifact["checksum"]]
        result = "pass"
        if artifact["problem"] is not None:
            result = f"FAIL: {artifact['problem']}"
        elif artifact["skipped"] is not None:
            checksum, result = "", f"skipped: {artifact['skipped']}"
        table.add_row(artifact["path"], f"{artifact['bytes'] / 1e6:.2f}", checksum, result)
    console.print(table)


if __name__ == "__main__":
    main()
