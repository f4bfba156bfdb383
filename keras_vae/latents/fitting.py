"""Attribute vectors of a model, which its run keeps."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from keras_vae._version import __version__
from keras_vae.latents import attributes
from keras_vae.latents.directions import AttributeVectors
from keras_vae.model.encoding import LIMIT, Encoded, encode
from keras_vae.model.vae import VAE
from keras_vae.runs.folder import VECTORS_FILE
from keras_vae.runs.opening import Model
from keras_vae.runs.run_images import data_of
from keras_vae.support.errors import InputError
from keras_vae.support.names import position


def vectors_of(model: Model, vae: VAE, source: str | None, wanted: Sequence[str] = ()) -> AttributeVectors:
    """The attribute vectors of a model. For a run they are found once and kept.

    Vectors beside a .keras file, such as a pretrained model's, are used, but none are written there.

    Args:
        model, vae: the model.
        source: images with attributes; by default what the model was trained on.
        wanted: attributes that the images must have.

    Raises:
        InputError: the images have no attributes, or none with images of both classes.
    """
    kept = model.folder / VECTORS_FILE
    known = _known(model, vae, source)
    if kept.is_file():
        try:
            found = AttributeVectors.load(kept, vae.latent_dim)
        except InputError as error:
            print(f"{error}; they are found again", file=sys.stderr)
        else:
            if all(found.metadata.get(key) == value for key, value in known.items()):
                return found
    return keep_vectors(model, vae, encode_training(model, vae, source, True, wanted=wanted), source)


def keep_vectors(model: Model, vae: VAE, seen: Encoded, source: str | None) -> AttributeVectors:
    """Vectors of encoded training images, kept in the run if the model is one."""
    metadata = {"keras_vae_version": __version__, "images": str(len(seen)), **_known(model, vae, source)}
    found = attributes.vectors(seen, metadata)
    if model.kind == "run":
        try:
            found.save(model.path / VECTORS_FILE)
        except OSError as error:
            print(
                f"{model.path / VECTORS_FILE} cannot be written ({error.strerror}): found for this once",
                file=sys.stderr,
            )
    return found


def encode_training(
    model: Model,
    vae: VAE,
    source: str | None,
    with_attributes: bool = False,
    limit: int = LIMIT,
    wanted: Sequence[str] = (),
) -> Encoded:
    """Posteriors of the images that a model was trained on, or of the training part of others: at most 20,000.

    Raises:
        InputError: as `data_of`, or a wanted attribute that the images do not have.
    """
    images = data_of(model, vae, source, batch_size=1, attributes=with_attributes)
    for name in wanted:
        position(name, images.attribute_names)
    count = min(images.train_size, limit)
    names = images.attribute_names if with_attributes else ()
    return encode(
        vae, images.first(count).as_numpy_iterator(), names, total=count, description="encoding training images"
    )


def _known(model: Model, vae: VAE, source: str | None) -> dict[str, str]:
    """What the vectors depend on: they are found again if any of it has changed."""
    return {"model": vae.fingerprint(), "data": str(source or model.config.get("data", ""))}
