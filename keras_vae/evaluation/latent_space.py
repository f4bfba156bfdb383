"""What `keras-vae attributes` and `keras-vae map` do: what latents tell about attributes, and a map of them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.manifold import TSNE, trustworthiness

from keras_vae.data.loading import check_outside
from keras_vae.evaluation import charts
from keras_vae.latents import attributes as measures
from keras_vae.latents import disentanglement
from keras_vae.latents.fitting import encode_training, keep_vectors
from keras_vae.model.encoding import Reservoir, encode
from keras_vae.runs.folder import VECTORS_FILE
from keras_vae.runs.opening import BATCH, open_model
from keras_vae.runs.run_images import data_of
from keras_vae.support import pictures, progress
from keras_vae.support.errors import InputError
from keras_vae.support.files import check_output_file, check_output_folder, write_json

FOLDER = "attributes"
FIGURES = "attributes.json"
MAP_LEAST = 10
MAP_MOST = 5_000


def attributes(path: Path, source: str | None, out: Path | None, seed: int = 0) -> dict[str, Any]:
    """Measures how well attributes can be predicted from latents, and finds the vectors along which they change.

    Writes a folder: `attributes.json`, `vectors.npz`, and pictures of the predictions and of the correlations of
    vectors and of labels.

    Returns:
        `images` and `held_out`, the numbers of images to learn from and to judge on; `predictions`, as
        `attributes.Prediction`; the means of `accuracy`, `majority`, `balanced_accuracy` and `auc`;
        `mutual_information_gap`, `disentanglement`, `completeness` and `informativeness`, with each attribute a factor;
        `left_out`, attributes with images of one class only; and the paths of what was written.

    Raises:
        InputError: no model, or images without attributes, or without one that has images of both classes.
    """
    model = open_model(path)
    vae = model.whole("attributes")
    folder = out or (path / FOLDER if model.kind == "run" else None)
    if folder is None:
        raise InputError(f"{path} is not a run with a place of its own: give --out, a folder")
    check_output_folder(folder)
    check_outside(folder, source or model.config.get("data") or "avatars")
    seen = encode_training(model, vae, source, with_attributes=True)
    images = data_of(model, vae, source, batch_size=1, attributes=True)
    batches = images.test.unbatch().batch(BATCH).as_numpy_iterator()
    unseen = encode(
        vae, batches, images.attribute_names, total=images.test_size, description="encoding held-out images"
    )
    vectors = keep_vectors(model, vae, seen, source)
    with progress.bar(len(vectors.names), "predicting", "attributes") as bar:
        predictions = measures.predict(seen, unseen, lambda name: bar.update(1), seed)
    names = tuple(each.name for each in predictions)
    figures: dict[str, Any] = {"images": len(seen), "held_out": len(unseen)}
    for name in ("accuracy", "majority", "balanced_accuracy", "auc"):
        figures[name] = float(np.mean([getattr(each, name) for each in predictions]))
    columns = [images.attribute_names.index(name) for name in names]
    factors, unseen_factors = (disentanglement.factors_of(side)[:, columns] for side in (seen, unseen))
    notes = []
    try:
        gap = disentanglement.mutual_information_gap(seen.mean, factors, names)
        with progress.bar(len(names), "growing forests", "attributes") as bar:
            found = disentanglement.dci(
                seen.mean, factors, unseen.mean, unseen_factors, names, seed, lambda name: bar.update(1)
            )
        figures |= {"mutual_information_gap": gap.mean, **asdict(found)}
    except InputError as error:
        notes.append(str(error))
    figures["left_out"] = [name for name in images.attribute_names if name not in names]
    figures["predictions"] = [asdict(each) for each in predictions]
    figures["notes"] = notes
    folder.mkdir(parents=True, exist_ok=True)
    vectors.save(folder / VECTORS_FILE)
    drawn = {
        "predictions": charts.shares(
            names,
            {
                name: [getattr(each, name) for each in predictions]
                for name in ("balanced_accuracy", "accuracy", "majority")
            },
            "Attributes from latents, on held-out images",
        ),
        "vector_correlation": charts.matrix(vectors.correlation(), vectors.names, "Correlation of attribute vectors"),
        "label_correlation": charts.matrix(
            measures.label_correlation(seen), seen.attribute_names, "Correlation of the labels"
        ),
    }
    for name, picture in drawn.items():
        pictures.save(picture, folder / f"{name}.png")
    pictures_written = {f"{name}_picture": str(folder / f"{name}.png") for name in drawn}
    correlation = {"names": vectors.names, "vectors": np.nan_to_num(vectors.correlation()).round(4).tolist()}
    write_json(folder / FIGURES, {**figures, "correlation": correlation})
    return {**figures, **pictures_written, "vectors": str(folder / VECTORS_FILE), "figures": str(folder / FIGURES)}


def draw_map(path: Path, source: str | None, out: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """Writes a map of held-out images: thumbnails, close together if their latents are (t-SNE).

    Returns:
        `picture`, `images`, and `trustworthiness`, in [0, 1]: to what extent the 12 nearest neighbours on the map are
        neighbours in the latent space (Venna and Kaski 2001).

    Raises:
        InputError: no model, unusable images, or fewer than 10.
    """
    check_output_file(out, pictures.ENDINGS)
    if not MAP_LEAST <= count <= MAP_MOST:
        raise InputError(f"--count {count}: a map takes {MAP_LEAST} to {MAP_MOST} images")
    model = open_model(path)
    vae = model.whole("a map")
    images = data_of(model, vae, source, batch_size=1, only_held_out=True)
    kept = Reservoir(count, seed)
    with progress.bar(images.test_size, "reading", "images") as bar:
        for batch in images.test.unbatch().batch(BATCH).as_numpy_iterator():
            kept.update(batch)
            bar.update(len(batch))
    if len(kept) < MAP_LEAST:
        raise InputError(f"a map needs {MAP_LEAST} held-out images, and there are {len(kept)}: give others with --data")
    (shown,) = kept.columns()
    encoded = encode(vae, (shown[start : start + BATCH] for start in range(0, len(shown), BATCH)))
    print("laying out the map")
    perplexity = min(30.0, (len(shown) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(encoded.mean)
    pictures.save(pictures.scattered(shown, places), out)
    neighbours = min(12, (len(shown) - 1) // 2)
    return {
        "picture": str(out),
        "images": len(shown),
        "trustworthiness": float(trustworthiness(encoded.mean, places, n_neighbors=neighbours)),
    }
