"""Encoders and decoders: families by name, a file for each, and the layers they are made of."""

from keras_vae.networks.families import FAMILIES, LAYOUT, Family, adopt, build, check, check_layout, make
from keras_vae.networks.layers import BatchNormalization, HalvingConv2D, UpsampledConv2D
from keras_vae.networks.parts import ReplicationPadding2D, SafeLogVariance, inputs, without_condition

__all__ = [
    "FAMILIES",
    "LAYOUT",
    "BatchNormalization",
    "Family",
    "HalvingConv2D",
    "ReplicationPadding2D",
    "SafeLogVariance",
    "UpsampledConv2D",
    "adopt",
    "build",
    "check",
    "check_layout",
    "inputs",
    "make",
    "without_condition",
]
