"""`keras-vae sample`, `reconstruct`, `interpolate`, `edit` and `traverse`: pictures from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_vae.cli import printing
from keras_vae.cli.late_imports import for_model, with_tensorflow
from keras_vae.cli.options import (
    AttributeOption,
    CodesOption,
    ImageOption,
    JsonOption,
    LabelOption,
    ModelArgument,
    PictureOption,
    PriorOption,
    RunDataOption,
    SeedOption,
    StartArgument,
    WholeModelArgument,
    check_exists,
    path,
)

RowsOption = Annotated[int, typer.Option(help="Rows, if neither images nor codes are given.")]
RangeStepsOption = Annotated[int, typer.Option(min=2, max=100, help="Images per range.")]


def sample(
    model: ModelArgument,
    out: PictureOption = Path("samples.png"),
    count: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Number of images, by default 64; of a conditional model, in a row."),
    ] = None,
    label: LabelOption = None,
    attribute: AttributeOption = None,
    prior: PriorOption = "learned",
    temperature: Annotated[
        float,
        typer.Option(help="Standard deviation of the noise; below 1, images vary less and are closer to the mean."),
    ] = 1.0,
    seed: SeedOption = 0,
) -> None:
    """Write a grid of new images.

    Draws noise, which the prior maps to latents and the decoder to images. The same seed gives the same images from
    every kind of MODEL. Of a conditional model a row for each class or attribute, or what is asked for.
    """
    check_exists(model, whole=False)
    sampling = for_model(model, "keras_vae.cli.sampling")
    print(sampling.sample(model, out, count, seed, prior, temperature, label or (), attribute or ()))


def reconstruct(
    model: WholeModelArgument,
    image: Annotated[
        list[Path] | None,
        typer.Option(parser=path, help="Image file; can be repeated. By default held-out images are taken."),
    ] = None,
    data: RunDataOption = None,
    out: PictureOption = Path("reconstructions.png"),
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Number of held-out images.")] = 24,
    label: LabelOption = None,
    attribute: AttributeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write images above their reconstructions.

    Takes image files or held-out images, and measures how close and how sharp the reconstructions are. With a label or
    attributes, of a conditional model, further rows show them as of those.
    """
    check_exists(model, whole=True)
    with printing.results(as_json) as show:
        reconstructing = with_tensorflow("keras_vae.evaluation.reconstructing")
        show(reconstructing.reconstruct(model, data, out, count, image or (), label or (), attribute or ()))


def interpolate(
    model: StartArgument,
    image: ImageOption = None,
    codes: CodesOption = None,
    data: RunDataOption = None,
    out: PictureOption = Path("interpolation.png"),
    count: RowsOption = 6,
    steps: Annotated[int, typer.Option(help="Images per row, both ends included.")] = 10,
    method: Annotated[str, typer.Option(help="linear or spherical.")] = "spherical",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write interpolations between images.

    Moves through the latent space between image files, codes, or pairs of held-out images; with an exported decoder,
    between codes or draws from the prior.
    """
    check_exists(model, whole=False)
    with printing.results(as_json) as show:
        walks = for_model(model, "keras_vae.latents.walks")
        start = walks.Start(image or (), codes, data, count, seed)
        show(walks.interpolate(model, start, steps, method, out))


def edit(
    model: StartArgument,
    attribute: Annotated[
        list[str], typer.Option(help="Attribute to add, or to remove with - in front; can be repeated.")
    ],
    strength: Annotated[
        str, typer.Option(help="Multiples of the attribute vector: a range such as -2..2, or comma-separated numbers.")
    ] = "-2..2",
    steps: RangeStepsOption = 5,
    image: ImageOption = None,
    codes: CodesOption = None,
    data: RunDataOption = None,
    vectors: Annotated[
        Path | None,
        typer.Option(parser=path, help="Attribute vectors; by default the run's own, or those beside the decoder."),
    ] = None,
    direction: Annotated[
        str,
        typer.Option(help="mean (images with the attribute minus those without) or linear (a classifier's normal)."),
    ] = "mean",
    together: Annotated[
        bool, typer.Option("--together", help="Apply all attributes at once instead of one per row.")
    ] = False,
    out: PictureOption = Path("edit.png"),
    count: RowsOption = 6,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write images with attributes added and removed.

    Edits image files, codes or held-out images along attribute vectors, which a run finds once and keeps; with an
    exported decoder, codes or draws from the prior.
    """
    check_exists(model, whole=False)
    with printing.results(as_json) as show:
        walks = for_model(model, "keras_vae.latents.walks")
        strengths = walks.parse_numbers(strength, "--strength", steps)
        start = walks.Start(image or (), codes, data, count, seed)
        show(walks.edit(model, attribute, strengths, start, out, vectors, direction, together))


def traverse(
    model: StartArgument,
    image: Annotated[
        Path | None, typer.Option(parser=path, help="Image file; by default the first held-out image.")
    ] = None,
    codes: CodesOption = None,
    data: RunDataOption = None,
    latents: Annotated[int, typer.Option(help="How many latents, those with the highest KL first.")] = 10,
    values: Annotated[
        str, typer.Option(help="Values of each latent: a range such as -3..3, or comma-separated numbers.")
    ] = "-3..3",
    steps: RangeStepsOption = 7,
    out: PictureOption = Path("traversals.png"),
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what single latents do.

    One image, with one of the strongest latents varied in each row.
    """
    check_exists(model, whole=False)
    with printing.results(as_json) as show:
        walks = for_model(model, "keras_vae.latents.walks")
        start = walks.Start((image,) if image else (), codes, data, 1, seed)
        show(walks.traverse(model, start, latents, walks.parse_numbers(values, "--values", steps), out))
