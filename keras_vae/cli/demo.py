"""What `keras-vae demo` does: from nothing to a trained VAE, pictures, and a decoder verified in both formats."""

from __future__ import annotations

import itertools
import resource
import sys
from pathlib import Path
from typing import Any

from keras_vae.cli import deployment, sampling, verifying
from keras_vae.export.errors import VerificationError
from keras_vae.support.errors import InputError
from keras_vae.training import TrainingConfig, train


def run(out: Path | None, minutes: float, seed: int) -> dict[str, Any]:
    """Trains on avatars with the offline feature network, exports, verifies and samples.

    Args:
        out: the run folder; by default runs/demo, or the next free one of runs/demo-2, runs/demo-3, ...
        minutes: minutes of training.
        seed: seed of the training.

    Returns:
        The paths of what was made, and what was measured.

    Raises:
        InputError: as `train`.
    """
    out = out or _free_folder()
    figures = train(
        TrainingConfig(
            data="avatars",
            out=str(out),
            minutes=minutes,
            image_size=64,
            perceptual="hed-vgg16",
            # Smaller batches and a higher learning rate than the paper's, which takes hours instead of minutes.
            batch_size=32,
            learning_rate=1e-3,
            learning_rate_schedule="cosine",
            seed=seed,
        )
    )
    print("exporting the decoder")
    exported = deployment.export(out, None, ("tf_saved_model", "onnx"))
    print("verifying the exported decoders")
    report = verifying.verify(out, [])
    if not report["passed"]:
        raise VerificationError(f"the exported decoders differ from Keras: keras-vae verify {out} says where")
    places = {(each["format"], each["part"]): each["path"] for each in exported["artifacts"]}
    sampling.sample(Path(places["onnx", "generator"]), out / "samples" / "samples-onnx.png", 64, seed)
    return {
        "title": f"keras-vae demo: {out}",
        "model": str(out / "model.keras"),
        "saved_model": exported["artifacts"][0]["path"],
        "decoder": places["onnx", "decoder"],
        "generator": places["onnx", "generator"],
        "reconstructions": str(out / "samples" / "reconstructions.png"),
        "samples": str(out / "samples" / "samples.png"),
        "training_minutes": figures["minutes"],
        "steps": figures["steps"],
        "images_per_second": figures["images_per_second"],
        "precision": figures["precision"],
        "held_out_elbo_nats": figures["val_elbo"],
        "held_out_kl_nats": figures["val_kl"],
        "psnr_db": figures["psnr"],
        "sharpness_to_originals": figures["sharpness"],
        "largest_difference": max(pair["max_difference"] for pair in report["pairs"]),
        "peak_memory_gib": _peak_memory_gib(),
    }


def _free_folder() -> Path:
    names = itertools.chain(["demo"], (f"demo-{number}" for number in range(2, 10_000)))
    for name in names:
        folder = Path("runs") / name
        if not folder.exists():
            return folder
    raise InputError("runs/demo to runs/demo-9999 are all taken: give --out")


def _peak_memory_gib() -> float:
    """The peak memory of this process, in GiB."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
