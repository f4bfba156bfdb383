"""The source `avatars`: a TensorFlow Datasets set of labelled cartoon faces, drawn here rather than downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import joblib
import numpy as np
import tensorflow_datasets as tfds

from keras_vae.data.sources import DEFAULT_SIZE, Named, Opened, Request, Source, is_named
from keras_vae.data.tfds import builders, sets
from keras_vae.support import progress
from keras_vae.support.errors import InputError

NAME = "avatars"
TRAIN_EXAMPLES = 16_000
TEST_EXAMPLES = 2_000
# Parcels small enough for a smooth progress bar, large enough that handing them over costs nothing.
PARCEL = 50


@dataclass(kw_only=True)
class AvatarsConfig(tfds.core.BuilderConfig):
    """One form of the set.

    Attributes:
        size: pixels a side. The drawings are vectors: the faces are the same in every size.
        seed: determines every face; another seed gives another set.
        train_examples, test_examples: how many to draw for each split.
    """

    size: int = 64
    seed: int = 0
    train_examples: int = TRAIN_EXAMPLES
    test_examples: int = TEST_EXAMPLES


class Avatars(tfds.core.GeneratorBasedBuilder):
    """Cartoon faces with 0/1 attributes, drawn with python-avatars and rendered with resvg-py.

    Importing this module registers the set, so that `tfds.load("avatars/64x64")` works. Examples are
    `{"image": uint8 (size, size, 3), "attributes": {name: 0 or 1}}`; splits are train and test.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 (the base class's attribute)
    BUILDER_CONFIGS = [  # noqa: RUF012
        AvatarsConfig(name=f"{size}x{size}", size=size, description=f"{size} pixels a side")
        for size in (64, 32, 128, 256)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        drawing = _drawing()
        size = self.builder_config.size
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(size, size, 3)),
                "attributes": {name: tfds.features.Scalar(np.uint8) for name in drawing.ATTRIBUTES},
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Labelled cartoon faces, {size}x{size}, drawn by {drawing.sources()}.",
            features=features,
            license="MIT (python-avatars; the artwork is Pablo Stanley's Avataaars, free for any use)",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        config = self.builder_config
        return {
            "train": self._generate_examples("train", config.train_examples),
            "test": self._generate_examples("test", config.test_examples),
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        parcels = [range(start, min(start + PARCEL, count)) for start in range(0, count, PARCEL)]
        # Separate processes, for drawing holds the interpreter's lock; joblib's start without running the
        # caller's script again, so that scripts need no __main__ guard.
        drawn = joblib.Parallel(n_jobs=-1, return_as="generator")(
            joblib.delayed(_drawing().draw_many)(config.seed, split, parcel, config.size) for parcel in parcels
        )
        with progress.bar(count, f"drawing {split} avatars", "faces") as bar:
            for parcel, examples in zip(parcels, drawn, strict=True):
                for index, example in zip(parcel, examples, strict=True):
                    yield index, {"image": example.image, "attributes": example.attributes}
                bar.update(len(parcel))


def takes(source: Source) -> bool:
    """Whether it is "avatars"."""
    return is_named(source) and str(source) == NAME


def check(source: Named, image_size: int | None) -> None:
    """Refuses a size that they are not drawn in.

    Raises:
        InputError: it is too large, or the packages that draw are not installed.
    """
    builder_for(image_size or DEFAULT_SIZE)


def open(source: Named, request: Request) -> Opened:
    """Opens the avatars in the next larger size, and draws them where that has not been done.

    Raises:
        InputError: as `check`.
    """
    size = request.image_size or DEFAULT_SIZE
    builder = builder_for(size)
    sets.check_names(NAME, builder, request)
    if not builders.is_prepared(builder):
        print("the avatars are drawn: a minute or so")
    builders.prepare(builder)
    return sets.open_builder(NAME, builder, replace(request, image_size=size))


def builder_for(size: int) -> Any:
    """The TFDS builder of the smallest drawings of at least this many pixels a side.

    Raises:
        InputError: as `check`.
    """
    sizes = sorted(config.size for config in Avatars.BUILDER_CONFIGS)
    drawn = next((candidate for candidate in sizes if candidate >= size), None)
    if drawn is None:
        raise InputError(f"avatars are drawn at up to {sizes[-1]} pixels a side: image size {size} is too large")
    return builders.find(f"avatars/{drawn}x{drawn}")


def _drawing() -> Any:
    """The drawing module, whose packages are in the extra `demo`.

    Raises:
        InputError: they are not installed.
    """
    missing = [name for name in ("python_avatars", "resvg_py") if importlib.util.find_spec(name) is None]
    if missing:
        packages = " and ".join(name.replace("_", "-") for name in missing)
        raise InputError(f"the avatars are drawn with {packages}, not installed here: pip install 'keras-vae[demo]'")
    from keras_vae.data import avatar_drawing

    return avatar_drawing
