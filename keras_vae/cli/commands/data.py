"""`keras-vae data`: look at images, prepare TFDS data sets, build one from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keras_vae.cli import printing
from keras_vae.cli.late_imports import with_tensorflow
from keras_vae.cli.options import CropOption, JsonOption, PictureOption, StrictOption

app = typer.Typer(
    name="data",
    help="Look at images, prepare TFDS data sets, and build one from a folder.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def info(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Anything that --data takes.")],
    out: PictureOption = Path("images.png"),
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels; by default 64, or the data set's own size.")
    ] = None,
    crop: CropOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Read at most this many images.")] = 10_000,
    as_json: JsonOption = False,
) -> None:
    """Show what a source of images holds.

    Counts, sizes, how common each attribute is, what cannot be read and why, and a picture grid.
    """
    with printing.results(as_json) as show:
        show(with_tensorflow("keras_vae.data.describing").describe(source, out, image_size, crop, limit))


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A TFDS data set, as NAME[/CONFIG].")],
    as_json: JsonOption = False,
) -> None:
    """Download and prepare a TFDS data set.

    Does what training would do on first use, and prints where the data set is stored.
    """
    with printing.results(as_json) as show:
        show(with_tensorflow("keras_vae.data.describing").prepare(name))


@app.command()
def build(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of images.")],
    name: Annotated[str | None, typer.Option(help="Name of the data set; by default the folder's.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where data sets are stored; by default TFDS_DATA_DIR or TFDS's own folder.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side in pixels.")] = 64,
    crop: CropOption = None,
    attributes: Annotated[bool, typer.Option(help="Keep the attributes, if there are any.")] = True,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build a TFDS data set from a folder.

    Decodes, crops and resizes each image once, into shards that load at full speed. Prints the name that --data takes.
    """
    with printing.results(as_json) as show:
        make = with_tensorflow("keras_vae.data.tfds.from_folder").build
        show(make(folder, name, data_dir, image_size, crop, attributes, strict))
