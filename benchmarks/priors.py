"""Priors of trained models' latents, side by side: how good their samples are, what they cost, what they gain.

    python -m benchmarks.priors RUN... --note "how the runs were trained"

fits each prior to the codes of each run's training images, and holds as many samples against held-out images as there
are of those, 2,000 at most, from the same noise. A figure is written to benchmarks/results/priors.json as soon as it is
known, and not measured again for the same weights; priors.md is the table, and priors.png shows twelve samples a prior
for the first run of each data set. Needs the extra `bench`. The priors themselves are in benchmarks/prior_models.py;
`training codes` is none: codes of training images are decoded, as good as a prior that is fitted to them can get.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from benchmarks import prior_models, runners
from keras_vae.evaluation import distances, learned_prior
from keras_vae.evaluation.distances import Moments
from keras_vae.export import latents
from keras_vae.features import judges
from keras_vae.features.judges import Judge
from keras_vae.latents.fitting import encode_training
from keras_vae.model.encoding import Encoded, encode
from keras_vae.model.vae import VAE
from keras_vae.runs.opening import BATCH, Model, open_model
from keras_vae.runs.run_images import data_of
from keras_vae.support import pictures
from keras_vae.support.files import write_json
from keras_vae.support.pixels import to_uint8
from keras_vae.support.true_float32 import true_float32

RESULTS = Path(__file__).parent / "results"
HELD_OUT = 2000  # at most
SHOWN = 12
SHOWN_PIXELS = 48  # a side, for the picture to be small
COLOURS = 128
DRAWN = 64
SEED = 0
TRAINED = ("image_size", "steps", "batch_size", "perceptual", "perceptual_layers", "seed", "train_images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--only", nargs="+", choices=list(prior_models.FITS), default=list(prior_models.FITS))
    parser.add_argument("--note", help="how the runs were trained: a sentence for the table")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for priors.json, .md and .png")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "priors.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"models": {}}
    for run in options.runs:
        for name, figures in measured(run, options.only, record["models"]):
            record = {
                "device": runners.device_name("cpu"),
                "cores": os.cpu_count(),
                "versions": runners.versions(("keras-vae", "keras", "tensorflow", "scikit-learn")),
                "note": options.note or record.get("note", ""),
                "models": {**record["models"], name: figures},
            }
            write_json(path, record, indent=1)
            (options.out / "priors.md").write_text(table(record))
    picture(options.runs, options.out / "priors.png")
    print(table(record))


@true_float32(device=None)
def measured(run: Path, wanted: list[str], known: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A run's name with all its figures so far, once for each prior that had none; samples go into its `priors`."""
    model = open_model(run)
    vae = model.whole("measuring")
    name = f"{run.resolve().name.removesuffix('-' + str(model.config['seed']))}, seed {model.config['seed']}"
    figures = known.get(name, {})
    if figures.get("model") != vae.fingerprint():
        figures = {"model": vae.fingerprint(), **{each: model.config[each] for each in TRAINED}, "priors": {}}
    missing = [each for each in wanted if each not in figures["priors"]]
    if not missing:
        return
    network = judges.load()
    held_out, unseen, figures = references(model, vae, network, figures)
    seen = encode_training(model, vae, None)
    (run / "priors").mkdir(exist_ok=True)
    for each in missing:
        print(f"{name}: {each}", flush=True)
        found, shown = measure(each, model, seen, unseen, held_out, network)
        found["ratio"] = found["frechet_distance"] / figures["reconstructions"]
        print("  " + ", ".join(f"{key} {value:.4g}" for key, value in found.items() if value is not None), flush=True)
        pictures.save(row(shown), run / "priors" / f"{each}.png")
        figures = {**figures, "codes": len(seen), "priors": {**figures["priors"], each: found}}
        yield name, figures


def references(
    model: Model, vae: VAE, network: Judge, figures: dict[str, Any]
) -> tuple[np.ndarray, Encoded, dict[str, Any]]:
    """Features of held-out images, their posteriors, and the figures with the reconstructions' Fréchet distance."""
    images = data_of(model, vae, None, batch_size=1, only_held_out=True)
    batches = list(images.test.unbatch().take(HELD_OUT).batch(BATCH).as_numpy_iterator())
    held_out = features(network, batches, "held-out images")
    if "reconstructions" not in figures:
        made = features(network, (vae.predict_on_batch(batch) for batch in batches), "reconstructions")
        figures = {
            **figures,
            "images": len(held_out),
            "reconstructions": distances.frechet_distance(Moments.of(made), Moments.of(held_out)),
        }
    return held_out, encode(vae, batches, seed=SEED), figures


def features(network: Judge, batches: Iterable[np.ndarray], name: str) -> np.ndarray:
    """Pooled features of images, float32 (count, channels)."""
    return np.concatenate([network.pooled(batch) for batch in tqdm(batches, desc=name, unit=" batches", disable=None)])


def measure(
    name: str, model: Model, seen: Encoded, unseen: Encoded, held_out: np.ndarray, network: Judge
) -> tuple[dict[str, Any], np.ndarray]:
    """A prior's figures, and the samples that are shown."""
    wall, processor = time.perf_counter(), time.process_time()
    prior = prior_models.FITS[name](seen, SEED)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    noise = latents.draw(len(held_out), model.latent_dim, SEED)
    z = np.asarray(prior.draw(noise))
    images = [model.decode(z[start : start + BATCH]) for start in range(0, len(z), BATCH)]
    made = features(network, images, "samples")
    shares = distances.precision_recall(held_out, made)
    figures = {
        "frechet_distance": distances.frechet_distance(Moments.of(made), Moments.of(held_out)),
        "precision": shares.precision,
        "recall": shares.recall,
        "fit_seconds": wall,
        "fit_processor_seconds": processor,
        "draw_ms": 1000.0 * median_seconds(lambda: np.asarray(prior.draw(noise[:DRAWN]))),
        "gain_nats": learned_prior.gain(prior, unseen, SEED) if hasattr(prior, "log_prob") else None,
    }
    return figures, images[0][:SHOWN]


def median_seconds(run: Callable[[], Any], rounds: int = 20) -> float:
    """The median time of a call; the first one, which compiles, is left out."""
    run()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def table(record: dict[str, Any]) -> str:
    """Three tables in Markdown, a row a prior and a column a run: quality, density and cost."""
    models = record["models"]
    rows = [name for name in prior_models.FITS if any(name in each["priors"] for each in models.values())]

    def lines(title: str, form: Callable[[dict[str, Any]], str], first: tuple[str, list[str]] | None = None) -> str:
        head = f"| {title} | " + " | ".join(models) + " |\n" + "|---" * (len(models) + 1) + "|\n"
        cells = [first] if first else []
        for name in rows:
            found = [each["priors"].get(name) for each in models.values()]
            cells.append((name, [form(each) if each else "" for each in found]))
        return head + "".join(f"| {name} | " + " | ".join(each) + " |\n" for name, each in cells)

    def gain(each: dict[str, Any]) -> str:
        return "not known" if each["gain_nats"] is None else f"{each['gain_nats']:+.0f}"

    def cost(each: dict[str, Any]) -> str:
        return f"{each['fit_seconds']:.0f} ({each['fit_processor_seconds']:.0f}), {each['draw_ms']:.1f}"

    images = {each["images"] for each in models.values()}
    return "\n".join(
        [
            f"{record['device']}, {record['cores']} cores, others at work on it too. {record['note']}\n".strip() + "\n",
            "Fréchet distance to held-out images (EfficientNet-Lite0), of as many samples as images "
            f"({', '.join(f'{each:,}' for each in sorted(images))}); in brackets its ratio to the reconstructions':\n",
            lines(
                "prior",
                lambda each: f"{each['frechet_distance']:.1f} ({each['ratio']:.2f})",
                ("reconstructions", [f"{each['reconstructions']:.1f}" for each in models.values()]),
            ),
            "Precision and recall:\n",
            lines("prior", lambda each: f"{each['precision']:.2f}, {each['recall']:.2f}"),
            "Nats an image by which the bound is higher than under the standard normal, on 500 held-out posteriors:\n",
            lines("prior", gain),
            "Seconds of fitting to codes at hand, in brackets the processors', and milliseconds for 64 latents:\n",
            lines("prior", cost),
        ]
    )


def row(images: np.ndarray) -> Image.Image:
    """Images beside each other, each `SHOWN_PIXELS` a side."""
    strip = Image.new("RGB", (len(images) * SHOWN_PIXELS, SHOWN_PIXELS))
    for place, image in enumerate(to_uint8(images)):
        one = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).convert("RGB")
        size = (SHOWN_PIXELS, SHOWN_PIXELS)
        strip.paste(one.resize(size, Image.Resampling.LANCZOS), (place * SHOWN_PIXELS, 0))
    return strip


def picture(runs: list[Path], path: Path) -> None:
    """Rows of samples, a prior each, of the first run of each data set that has them all."""
    seen: set[str] = set()
    rows, labels = [], []
    for run in runs:
        data = run.resolve().name.rpartition("-")[0]
        files = [run / "priors" / f"{each}.png" for each in prior_models.FITS]
        if data in seen or not all(file.is_file() for file in files):
            continue
        seen.add(data)
        for name, file in zip(prior_models.FITS, files, strict=True):
            strip = np.asarray(Image.open(file))
            rows.append(np.stack(np.split(strip, SHOWN, axis=1)))
            labels.append(f"{data}, {name}")
    if rows:
        drawn = pictures.labelled_rows(np.stack(rows) / np.float32(255), labels)
        pictures.save(drawn.quantize(COLOURS, dither=Image.Dither.NONE), path)


if __name__ == "__main__":
    main()
