"""What `keras-vae score` does: how unusual each image of a source is, the most unusual ones, and where it shows."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from sklearn.metrics import average_precision_score, roc_auc_score

from keras_vae import data
from keras_vae.data import image_batches
from keras_vae.data.loading import check_outside
from keras_vae.data.pipelines import NamedImages
from keras_vae.evaluation import charts, report
from keras_vae.features import judges
from keras_vae.model.scoring import DRAWS, USUAL, Scorer, Scores
from keras_vae.runs.opening import BATCH, open_model
from keras_vae.runs.run_images import data_of
from keras_vae.support import pictures, progress
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_output_folder, write_aside, write_json
from keras_vae.support.names import position
from keras_vae.support.pixels import to_float
from keras_vae.support.true_float32 import true_float32

FOLDER = "scores"
FIGURES, TABLE, PAGE = "scores.json", "scores.csv", "scores.html"
FLAG = 0.99
SHOWN = 24
NAMED = 5  # the most unusual ones, in what is printed
BOOTSTRAPS = 200  # enough for two digits
INTERVAL = 0.95
FEWEST = 20  # images of a kind, from which a bootstrap covers about what it says
NO_FEATURES = "none"


@dataclass(frozen=True)
class Options:
    """How images are scored.

    Attributes:
        source: the images, as `keras_vae.data.load` takes them; by default what the run was trained on.
        usual: images of which the held-out ones are what others are ranked among; by default the same.
        out: folder to write; by default a run's own `scores`.
        flag: rank from which images are flagged; by default 0.99, or the highest rank there is.
        unusual, normal: attributes, at most one of the two: images with any of the first are unusual, or those with
            none of the second; then the scores themselves are measured.
        draws: of the importance-weighted bound, for each image; 0 to leave it out.
        features: feature network, one of `judges.names`, or "none".
        limit: the most images to score.
        seed: of the draws.
    """

    source: str | None = None
    usual: str | None = None
    out: Path | None = None
    flag: float | None = None
    unusual: Sequence[str] = ()
    normal: Sequence[str] = ()
    draws: int = DRAWS
    features: str = judges.DEFAULT
    limit: int | None = None
    seed: int = 0


@true_float32(device=None)
def score(path: Path, options: Options) -> dict[str, Any]:
    """Scores images, and writes a table of all of them and a page with the most unusual.

    Returns:
        `images` and `usual_images`, how many there were; `flag`, the rank from which images are flagged, and `flagged`,
        how many; `most_unusual`, names with ranks; with attributes for it `unusual_images`, and `measured`: by score
        `auroc` and `average_precision`, each with `low` and `high`, a 95 % interval (bootstrap over images), or in
        `notes` why not; and the paths `table`, `figures` and `page`.

    Raises:
        InputError: no model, a decoder alone, unusable images or attributes, or a folder that cannot be written to.
    """
    if options.unusual and options.normal:
        raise InputError("--unusual and --normal are given: give one of them")
    if options.flag is not None and not 0.0 < options.flag < 1.0:
        raise InputError(f"--flag {options.flag}: give a rank between 0 and 1, such as 0.99")
    if options.draws < 0:
        raise InputError(f"--draws {options.draws}: give a whole number from 0 on")
    model = open_model(path)
    vae = model.whole("scoring")
    out = options.out or (path / FOLDER if model.kind == "run" else None)
    if out is None:
        raise InputError(f"{path} is not a run with a place of its own: give --out, a folder")
    check_output_folder(out)
    for source in (options.source, options.usual, model.config.get("data")):
        if source is not None:
            check_outside(out, source)
    if options.usual is None and options.source is not None and model.config.get("data") is None:
        raise InputError(f"{path} does not say what it was trained on: give --usual, images to rank among")
    judge = None if options.features == NO_FEATURES else judges.load(options.features)
    named = (*options.unusual, *options.normal)
    images = data_of(model, vae, options.source, batch_size=1, attributes=bool(named), only_held_out=True)
    columns = [position(name, images.attribute_names) for name in named]
    same = options.usual == options.source
    held_out = images if same else data_of(model, vae, options.usual, batch_size=1, only_held_out=True)
    # Held-out images of the source itself rank among the others of them.
    flag = _flag(options.flag, min(held_out.test_size, USUAL) - same)

    scorer = Scorer(vae, judge, options.draws, options.seed)
    usual = _usual(scorer, held_out)
    found = _Found(usual)
    count = images.train_size + images.test_size
    count = count if options.limit is None else min(count, options.limit)
    with progress.bar(count, "scoring", "images") as bar:
        for part in _parts(images, count):
            found.add(part, scorer(to_float(part.images)), columns)
            bar.update(len(part.names))
    scores = Scores.joined(found.scores)
    ranks = scores.ranks(usual, np.concatenate(found.held_out) if same else None)
    labels = None
    figures: dict[str, Any] = {"images": len(scores), "usual_images": len(usual), "flag": flag}
    figures["flagged"] = int((ranks["combined"] >= flag).sum())
    order = np.argsort(-scores.combined(usual), kind="stable")
    figures["most_unusual"] = {found.names[place]: float(ranks["combined"][place]) for place in order[:NAMED]}
    if named:
        labels = np.concatenate(found.labels) == bool(options.unusual)
        figures["unusual_images"] = int(labels.sum())
        if labels.all() or not labels.any():
            kind = "unusual" if labels.all() else "normal"
            figures["notes"] = [f"all images of {images.name} are {kind}: there is nothing to tell apart"]
        else:
            figures["measured"] = _measured(scores, usual, labels, options.seed)
            fewest = min(labels.sum(), (~labels).sum())
            if fewest < FEWEST:
                figures["notes"] = [f"the intervals are too narrow: one of the kinds has {fewest} images alone"]
    out.mkdir(parents=True, exist_ok=True)
    _write_table(out / TABLE, found.names, scores, scores.combined(usual), ranks, order, flag, labels)
    settings = {"model": str(path), "data": images.name, "usual": held_out.name, "draws": options.draws}
    settings |= {"features": options.features, "seed": options.seed, "weights": vae.fingerprint()}
    write_json(out / FIGURES, {**figures, "settings": settings})
    with write_aside(out / PAGE) as aside:
        page = _page(path.resolve().name, figures, settings, scorer, found, scores, usual, ranks, labels)
        aside.write_text(page, encoding="utf-8")
    return {**figures, "table": str(out / TABLE), "figures": str(out / FIGURES), "page": str(out / PAGE)}


def _flag(wanted: float | None, usual: int) -> float:
    """The rank from which images are flagged: among n usual images none is above n / (n + 1)."""
    highest = usual / (usual + 1)
    if wanted is None:
        return min(FLAG, highest)
    if wanted > highest:
        needed = math.ceil(wanted / (1.0 - wanted) - 1e-6)
        more = f"give --usual with more, or --flag {math.floor(highest * 1e4) / 1e4} at most"
        if needed > USUAL:
            more = f"no more than {USUAL:,} are taken: give --flag {math.floor(highest * 1e4) / 1e4} at most"
        raise InputError(
            f"--flag {wanted} takes {needed:,} held-out images to rank among, and there are {usual:,}: {more}"
        )
    return wanted


def _usual(scorer: Scorer, images: data.ImageData) -> Scores:
    count = min(images.test_size, USUAL)
    parts = []
    with progress.bar(count, "scoring held-out images", "images") as bar:
        for batch in images.test.unbatch().take(count).batch(BATCH).as_numpy_iterator():
            found = image_batches.unpack(batch)
            parts.append(scorer(found))
            bar.update(len(found))
    if not parts:
        raise InputError(f"{images.name} has no held-out images to rank others among: give --usual")
    return Scores.joined(parts)


def _parts(images: data.ImageData, count: int) -> Iterator[NamedImages]:
    """Named images, `count` of them at most."""
    for part in images.named():
        yield part.first(count)
        count -= len(part.names)
        if count <= 0:
            return


class _Found:
    """What is kept of the images: names, scores, labels, and the pixels of the most unusual ones."""

    def __init__(self, usual: Scores) -> None:
        self.usual = usual
        self.names: list[str] = []
        self.scores: list[Scores] = []
        self.labels: list[np.ndarray] = []
        self.held_out: list[np.ndarray] = []
        self.shown: list[tuple[float, int, np.ndarray]] = []  # score, place and pixels, the most unusual first

    def add(self, part: NamedImages, scores: Scores, columns: list[int]) -> None:
        combined = scores.combined(self.usual)
        places = range(len(self.names), len(self.names) + len(scores))
        self.shown += zip(combined.tolist(), places, part.images, strict=True)
        self.shown = sorted(self.shown, key=lambda each: (-each[0], each[1]))[:SHOWN]
        self.names += part.names
        self.scores.append(scores)
        self.held_out.append(np.full(len(scores), part.held_out))
        self.labels.append(np.asarray(part.attributes[:, columns].any(axis=1)))


def _measured(scores: Scores, usual: Scores, labels: np.ndarray, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """How well each score tells unusual images from normal ones."""
    return {
        each: {
            title: _with_interval(measure, labels, values, seed)
            for title, measure in (("auroc", roc_auc_score), ("average_precision", average_precision_score))
        }
        for each, values in scores.unusualness(usual).items()
    }


def _with_interval(measure: Any, labels: np.ndarray, values: np.ndarray, seed: int) -> dict[str, float]:
    """A figure and its percentile bootstrap interval (Efron and Tibshirani 1993), unusual and normal images apart."""
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(labels == each) for each in (False, True)]
    drawn = []
    for _ in range(BOOTSTRAPS):
        rows = np.concatenate([rng.choice(each, len(each)) for each in classes])
        drawn.append(measure(labels[rows], values[rows]))
    low, high = np.quantile(drawn, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return {"value": float(measure(labels, values)), "low": float(low), "high": float(high)}


def _write_table(
    path: Path,
    names: list[str],
    scores: Scores,
    combined: np.ndarray,
    ranks: dict[str, np.ndarray],
    order: np.ndarray,
    flag: float,
    labels: np.ndarray | None,
) -> None:
    known = [each.name for each in fields(scores) if each.name in ranks]
    head = ["image", "rank", "flagged", "combined", *known, *(f"{name}_rank" for name in known)]
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *([] if labels is None else ["unusual"])])
        for place in order:
            rank = ranks["combined"][place]
            row = [names[place], f"{rank:.6f}", int(rank >= flag), f"{combined[place]:.8g}"]
            row += [f"{getattr(scores, name)[place]:.8g}" for name in known]
            row += [f"{ranks[name][place]:.6f}" for name in known]
            writer.writerow([*row, *([] if labels is None else [int(labels[place])])])


def _page(
    name: str,
    figures: dict[str, Any],
    settings: dict[str, Any],
    scorer: Scorer,
    found: _Found,
    scores: Scores,
    usual: Scores,
    ranks: dict[str, np.ndarray],
    labels: np.ndarray | None,
) -> str:
    originals = to_float(np.stack([pixels for _, _, pixels in found.shown]))
    reconstructions, maps = scorer.error_maps(originals)
    triples = zip(originals, reconstructions, heat(originals, maps), strict=True)
    combined = scores.combined(usual)
    groups = {"held-out images": usual.combined(usual)}
    if labels is None:
        groups["images"] = combined
    else:
        groups |= {"normal images": combined[~labels], "unusual images": combined[labels]}
    return report.render(
        "scores.html.j2",
        name=name,
        figures=figures,
        settings=settings,
        measured=figures.get("measured", {}),
        histogram=report.embedded(charts.histograms(groups, "combined score")),
        images=[
            {
                "name": found.names[place],
                "picture": report.embedded(pictures.grid(np.stack([_colour(each) for each in triple]), columns=3)),
                "ranks": {each: float(values[place]) for each, values in ranks.items()},
                "unusual": None if labels is None else bool(labels[place]),
            }
            for (_, place, _), triple in zip(found.shown, triples, strict=True)
        ],
    )


def heat(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Error maps in colour over grey images: float32 (count, height, width, 3) in [0, 1]; each map up to its maximum.

    Args:
        images: float (count, height, width, 1 or 3) in [0, 1].
        maps: float (count, height, width), from 0 on.
    """
    grey = images.mean(axis=-1, keepdims=True)
    share = (maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12))[..., np.newaxis]
    colours = colormaps["inferno"](share[..., 0])[..., :3]
    return ((1.0 - share) * 0.6 * grey + (0.4 + 0.6 * share) * colours).clip(0.0, 1.0).astype(np.float32)


def _colour(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
