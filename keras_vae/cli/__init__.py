"""The `keras-vae` command."""

from keras_vae.cli.app import main, run

__all__ = ["main", "run"]
