"""What `keras-vae sample` does. An .onnx file takes neither TensorFlow nor Keras."""

from __future__ import annotations

from pathlib import Path

from keras_vae import pictures
from keras_vae.errors import InputError
from keras_vae.export import samplers
from keras_vae.export.samplers import KINDS, Prior, Sampler
from keras_vae.files import check_output_file
from keras_vae.models import Model, open_model, sampler_file


def sample(path: Path, out: Path, count: int, seed: int, sampler: str = Prior.kind, source: str | None = None) -> None:
    """Writes a grid of decoded draws.

    Args:
        path: any MODEL.
        out: the picture.
        count: images.
        seed: of the draw; what is fitted is fitted with seed 0.
        sampler: "prior", "gmm", "second-stage", or a sampler's file.
        source: images to fit it to; what the model was trained on.

    Raises:
        InputError, ExportError: no model, no such sampler, or a picture that cannot be written.
    """
    check_output_file(out, pictures.ENDINGS)
    check_sampler(sampler)
    model = open_model(path)
    found = _sampler_of(model, sampler, source)
    pictures.save(pictures.grid(model.sample(count, seed, found)), out)


def check_sampler(name: str) -> None:
    """Refuses what is neither a sampler's name nor its file, before anything is read.

    Raises:
        InputError: it is refused.
    """
    if name not in KINDS and not Path(name).is_file():
        if name.endswith(samplers.ENDING):
            raise InputError(f"no sampler at {name}: choose {', '.join(KINDS)}, or the file of one")
        raise InputError(f"unknown sampler {name!r}: choose {', '.join(KINDS)}, or a sampler's .npz file")


def _sampler_of(model: Model, name: str, source: str | None) -> Sampler:
    if name == Prior.kind:
        return Prior(model.latent_dim)
    if model.vae is not None:
        from keras_vae.evaluation.fitting import sampler_of  # TensorFlow is loaded by now

        return sampler_of(model, model.vae, name, source)
    file = Path(name) if name not in KINDS else sampler_file(model.path.absolute().parent, name)
    return samplers.load(file, model.latent_dim, model.metadata.get("model", ""))
