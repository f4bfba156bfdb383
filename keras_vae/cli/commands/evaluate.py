"""`keras-vae evaluate`, `score`, `attributes`, `map` and `compare`: measure models, and images by them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_vae.cli import printing
from keras_vae.cli.late_imports import with_tensorflow
from keras_vae.cli.options import (
    JsonOption,
    PictureOption,
    PriorOption,
    RunDataOption,
    SeedOption,
    WholeModelArgument,
    check_exists,
    path,
)


def evaluate(
    model: WholeModelArgument,
    data: RunDataOption = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=path, help="Folder for evaluation.json and report.html; by default the run's own."),
    ] = None,
    importance_samples: Annotated[
        int | None, typer.Option(help="Also compute the importance-weighted bound, with this many draws per image.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many held-out images; by default all.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per batch; by default the run's, or 64.")] = None,
    features: Annotated[
        str,
        typer.Option(help="Network for distances, such as efficientnet-lite0, inception or hed-vgg16, or none."),
    ] = "efficientnet-lite0",
    feature_weights: Annotated[
        Path | None, typer.Option(parser=path, help="File with that network's weights, instead of a download.")
    ] = None,
    prior: PriorOption = "learned",
    samples: Annotated[
        int | None, typer.Option(help="Samples to measure; by default as many as held-out images.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on held-out images.

    The ELBO and its parts in nats per image, as training reports them; how close and how sharp reconstructions are; how
    far they and samples are from real images in a feature network; how the latents are distributed. Writes report.html,
    with pictures.
    """
    with printing.results(as_json, printing.evaluation) as show:
        evaluating = with_tensorflow("keras_vae.evaluation.evaluating")
        weights = None if feature_weights is None else str(feature_weights)
        options = evaluating.Options(
            data, out, importance_samples, limit, batch_size, features, weights, prior, samples, seed
        )
        show(evaluating.evaluate(model, options))


def score(
    model: WholeModelArgument,
    data: RunDataOption = None,
    usual: Annotated[
        str | None,
        typer.Option(help="Images whose held-out ones the others are ranked among; by default the run's own."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, help="Folder to write; by default the run's scores/.")
    ] = None,
    flag: Annotated[
        float | None, typer.Option(help="Flag images from this rank on; by default 0.99, if there are images for it.")
    ] = None,
    unusual: Annotated[
        list[str] | None,
        typer.Option(help="Attribute or class of unusual images, to measure the scores by; can be repeated."),
    ] = None,
    normal: Annotated[
        list[str] | None,
        typer.Option(help="Attribute or class of normal images, all others being unusual; can be repeated."),
    ] = None,
    draws: Annotated[int, typer.Option(help="Draws per image for the bound on its likelihood; 0 leaves it out.")] = 16,
    features: Annotated[
        str, typer.Option(help="Network for feature distances, such as efficientnet-lite0, or none.")
    ] = "efficientnet-lite0",
    limit: Annotated[int | None, typer.Option(min=1, help="Score at most this many images; by default all.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Find unusual images.

    Scores each image, ranks it among images that the model was not trained on, and flags those beyond nearly all of
    them. Writes scores.csv, all images with the most unusual first, and scores.html, with pictures of where it shows.
    """
    check_exists(model, whole=True)
    with printing.results(as_json, printing.scores) as show:
        found = with_tensorflow("keras_vae.evaluation.unusual")
        options = found.Options(data, usual, out, flag, unusual or (), normal or (), draws, features, limit, seed)
        show(found.score(model, options))


def attributes(
    model: WholeModelArgument,
    data: RunDataOption = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, help="Folder to write; by default the run's attributes/.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Predict attributes from latents, and find attribute vectors.

    How well linear classifiers predict each attribute of held-out images, how the attribute vectors correlate, and
    whether single latents stand for single attributes. The vectors are saved for `edit`.
    """
    check_exists(model, whole=True)
    with printing.results(as_json, printing.attributes) as show:
        show(with_tensorflow("keras_vae.evaluation.latent_space").attributes(model, data, out, seed))


def map(
    model: WholeModelArgument,
    data: RunDataOption = None,
    out: PictureOption = Path("map.png"),
    count: Annotated[int, typer.Option(help="Held-out images to show.")] = 600,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Draw a map of the latent space: thumbnails laid out by t-SNE."""
    check_exists(model, whole=True)
    with printing.results(as_json) as show:
        show(with_tensorflow("keras_vae.evaluation.latent_space").draw_map(model, data, out, count, seed))


def compare(
    runs: Annotated[list[Path], typer.Argument(parser=path, metavar="RUN...", help="Run folders.")],
    data: Annotated[
        str | None, typer.Option(help="Images, as for train; by default those the first run was trained on.")
    ] = None,
    out: PictureOption = Path("comparison.png"),
    count: Annotated[int, typer.Option(help="Images per row.")] = 12,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: differing settings, figures side by side, pictures of the same images."""
    for run in runs:
        check_exists(run, whole=True)
    with printing.results(as_json, printing.comparison) as show:
        show(with_tensorflow("keras_vae.evaluation.comparing").compare(runs, data, out, count, seed))
