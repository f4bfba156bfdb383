"""Encoder and decoder families, by name.

A family is a pair of functions that return plain Keras models: the encoder maps images to
`{"mean", "log_var"}`, the decoder maps latents to images. Both take and return float32; what is
computed in between follows the dtype policy. Any image size from a family's smallest on works: where a side is odd,
the encoder rounds its half up and the decoder crops the surplus row or column.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from keras_vae.networks import ppca
from keras_vae.networks.custom import adopt
from keras_vae.networks.dfc import dfc_decoder, dfc_encoder
from keras_vae.networks.parts import ImageShape
from keras_vae.networks.resnet import check_resnet_options, resnet_decoder, resnet_encoder
from keras_vae.support.errors import InputError, check_count
from keras_vae.support.keras_defaults import keras_defaults

LEAST_SIZE = 16
LAYOUT = 2  # of the weights in a .keras file; 1 had a layer for each step of a block
CHANGED = ("dfc", "resnet")  # with layout 2


@dataclass(frozen=True)
class Family:
    """An encoder and a decoder that belong together.

    Attributes:
        encoder, decoder: called with (image_shape, latent_dim, dtype, **options); as `dfc_encoder` and `dfc_decoder`
            they return Keras models. Those that can be conditional have a further argument `condition_dim`.
        options: the options of both, with defaults: whole numbers from 1 on, or True and False.
        least_size: pixels a side of the smallest images.
        adapt: called before training with encoder, decoder, an iterable of float32 batches (count, height, width,
            channels) and a seed, for networks that begin with what the images' statistics determine; of a conditional
            network the batches are pairs, of images and conditions.
        is_adapted: of a decoder, whether it has been; goes with `adapt`.
        check_options: raises `InputError` for options that contradict each other; it gets all of them, of the defaults'
            types.
    """

    encoder: Callable[..., keras.Model]
    decoder: Callable[..., keras.Model]
    options: Mapping[str, int | bool] = field(default_factory=dict)
    least_size: int = LEAST_SIZE
    check_options: Callable[[Mapping[str, Any]], None] | None = None
    adapt: Callable[..., None] | None = None
    is_adapted: Callable[[keras.Model], bool] | None = None

    @property
    def takes_conditions(self) -> bool:
        """Whether its networks can be conditional."""
        return all("condition_dim" in inspect.signature(each).parameters for each in (self.encoder, self.decoder))


FAMILIES = {
    "dfc": Family(dfc_encoder, dfc_decoder, {"width": 32}),
    "resnet": Family(
        resnet_encoder,
        resnet_decoder,
        {"width": 32, "blocks": 1, "attention": False},
        check_options=check_resnet_options,
    ),
    "ppca": Family(ppca.ppca_encoder, ppca.ppca_decoder, {"width": 32}, adapt=ppca.adapt, is_adapted=ppca.is_adapted),
}


def check(
    network: str,
    image_shape: ImageShape,
    latent_dim: int,
    options: Mapping[str, Any] | None = None,
    conditional: bool = False,
) -> dict[str, Any]:
    """Refuses what `build` cannot make, without building anything.

    Returns:
        The family's options, with defaults for those that are not given.

    Raises:
        InputError: unknown network or option, an image shape it cannot make, a latent_dim below 1, or a network that
            cannot be conditional and is to be.
    """
    if network not in FAMILIES:
        raise InputError(f"unknown network {network!r}: choose one of {', '.join(FAMILIES)}")
    if len(image_shape) != 3 or image_shape[2] not in (1, 3):
        raise InputError(f"image_shape={image_shape}: give (height, width, channels) with 1 or 3 channels")
    family = FAMILIES[network]
    if conditional and not family.takes_conditions:
        able = ", ".join(name for name, each in FAMILIES.items() if each.takes_conditions)
        raise InputError(f"the network {network!r} takes no conditions: choose one of {able}, or leave these out")
    if min(image_shape[:2]) < family.least_size:
        raise InputError(
            f"image size {image_shape[0]}x{image_shape[1]}: the network {network!r} makes images of "
            f"{family.least_size} pixels a side and more"
        )
    if latent_dim < 1:
        raise InputError(f"latent_dim={latent_dim}: give at least 1 latent")
    defaults = family.options
    complete = {**defaults, **(options or {})}
    for name, value in complete.items():
        if name not in defaults:
            raise InputError(f"network {network!r} has no option {name!r}: it has {', '.join(defaults) or 'none'}")
        if isinstance(defaults[name], bool):
            if not isinstance(value, bool):
                raise InputError(f"network option {name}={value!r}: give True or False")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"network option {name}={value!r}: give a whole number from 1 on")
    if family.check_options is not None:
        family.check_options(complete)
    return complete


@keras_defaults()
def build(
    network: str,
    image_shape: ImageShape,
    latent_dim: int,
    dtype: Any,
    options: Mapping[str, Any] | None = None,
    condition_dim: int = 0,
) -> tuple[keras.Model, keras.Model]:
    """Builds the encoder and decoder of a family.

    Args:
        network: name of the family, a key of `FAMILIES`.
        image_shape: (height, width, channels).
        latent_dim: number of latents.
        dtype: Keras dtype policy, or its name, of the hidden layers.
        options: the family's own, such as {"width": 64}.
        condition_dim: numbers in a condition; 0 for networks without.

    Raises:
        InputError: as `check`.
    """
    complete = check(network, image_shape, latent_dim, options, bool(condition_dim))
    if condition_dim:
        complete["condition_dim"] = condition_dim
    family = FAMILIES[network]
    return (
        family.encoder(image_shape, latent_dim, dtype, **complete),
        family.decoder(image_shape, latent_dim, dtype, **complete),
    )


def check_image_shape(image_shape: Sequence[int]) -> ImageShape:
    """Returns (height, width, channels).

    Raises:
        InputError: it is not three whole numbers.
    """
    try:
        height, width, channels = map(operator.index, image_shape)
    except (TypeError, ValueError) as error:
        raise InputError(f"image_shape={image_shape!r}: give (height, width, channels)") from error
    return height, width, channels


def make(
    network: str,
    image_shape: Sequence[int],
    latent_dim: int,
    dtype: Any,
    options: Mapping[str, Any],
    encoder: keras.Model | None = None,
    decoder: keras.Model | None = None,
    condition_dim: int = 0,
) -> tuple[keras.Model, keras.Model, ImageShape, int]:
    """The networks that a model asks for, a family's or the user's own, with the image shape and latents of these.

    Returns:
        encoder, decoder, image_shape, latent_dim.

    Raises:
        InputError: they cannot be built, do not fit in memory, or both a family and networks are named.
    """
    image_shape, latent_dim = check_image_shape(image_shape), check_count("latent_dim", latent_dim)
    if encoder is None and decoder is None:
        try:
            networks = build(network, image_shape, latent_dim, dtype, options, condition_dim)
            return (*networks, image_shape, latent_dim)
        except tf.errors.ResourceExhaustedError as error:
            raise InputError(
                f"network {network!r} of image_shape={image_shape}, latent_dim={latent_dim} and {dict(options)} "
                "does not fit in memory: give smaller ones"
            ) from error
    if options or network != "dfc":
        raise InputError("encoder and decoder are given, and network or network_options too: leave these out")
    if encoder is None or decoder is None:
        raise InputError("give both encoder and decoder, or neither and the name of a network")
    return adopt(encoder, decoder, image_shape, latent_dim, condition_dim)


def check_layout(network: str, layout: int, own: bool = False, calibrated: bool = False) -> None:
    """Refuses a .keras file whose weights belong to other layers than the model has now.

    Args:
        network: name of the family.
        layout: of the file, `LAYOUT` when it was saved.
        own: whether the networks are the user's own, which the file describes.
        calibrated: whether variances of features were saved, whose place has changed since.

    Raises:
        InputError: it is of another layout.
    """
    if layout != LAYOUT and (calibrated or (network in CHANGED and not own)):
        raise InputError(
            f"the network {network!r} had other layers when this model was saved, by another version of keras-vae: "
            "load it there and pass vae.get_weights() to set_weights of a model made here, or train again"
        )
