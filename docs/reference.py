"""Writes the API reference from docstrings, as pages of HTML: `make docs`, or `python docs/reference.py FOLDER`.

Importing what is documented needs neither a GPU nor a network.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pdoc

# The public modules. Of `keras_vae` and `keras_vae.export` also what their `__all__` names.
MODULES = (
    "keras_vae",
    "keras_vae.evaluation",
    "keras_vae.latents.directions",
    "keras_vae.model.presets",
    "keras_vae.support.errors",
    "keras_vae.export",
    "keras_vae.export.artifact",
    "keras_vae.export.formats",
    "keras_vae.export.verify",
    "keras_vae.export.runtime",
    "keras_vae.model.priors",
    "keras_vae.export.latents",
    "keras_vae.export.encoder",
    "keras_vae.export.scorer",
    "keras_vae.export.scored",
    "keras_vae.export.triton",
    "keras_vae.export.errors",
    "keras_vae.export.serving.rest_client",
    "keras_vae.export.serving.grpc_client",
)


def build(folder: Path) -> None:
    """Writes index.html and a page a module into a folder."""
    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):  # pdoc does not look at what is imported when it is used
            found = getattr(module, public)
            setattr(module, public, found)
            for below in getattr(found, "__all__", ()):
                setattr(found, below, getattr(found, below))
    # The annotations of TFDS's own classes, which a class of ours inherits from.
    warnings.filterwarnings("ignore", message=".*(tensorflow_datasets|AvatarsConfig)")
    pdoc.render.configure(docformat="google", footer_text="keras-vae")
    pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")
    build(out)
    print(out / "index.html")
