"""Deployment of a decoder: SavedModel for TF Serving, ONNX for onnxruntime, both compared with Keras.

Takes any Keras model of one latent input and one image output; knows nothing of keras_vae.
`keras_vae.export.runtime` imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_vae.export.errors import ExportError, VerificationError
from keras_vae.support.lazy import attributes

if TYPE_CHECKING:
    from keras_vae.export.artifact import export_decoder
    from keras_vae.export.formats import FORMATS
    from keras_vae.export.runtime import Decoder
    from keras_vae.export.verify import Report

__getattr__ = attributes(
    __name__,
    {
        "FORMATS": "keras_vae.export.formats",
        "export_decoder": "keras_vae.export.artifact",
        "Decoder": "keras_vae.export.runtime",
        "Report": "keras_vae.export.verify",
    },
)

__all__ = ["FORMATS", "Decoder", "ExportError", "Report", "VerificationError", "export_decoder"]
