"""The package's version, where the build and the exported metadata read it."""

__version__ = "0.9.0"
