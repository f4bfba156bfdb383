"""What latents tell about attributes: vectors along which they change, and how well linear classifiers predict them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.svm import LinearSVC

from keras_vae.latents.directions import AttributeVectors
from keras_vae.model.encoding import Encoded
from keras_vae.support.errors import InputError

LEAST_OF_A_CLASS = 2
ITERATIONS = 2_000


@dataclass(frozen=True)
class Prediction:
    """How well a linear support vector machine predicts an attribute from latents, on held-out images.

    Attributes:
        name: of the attribute.
        share: of the training images that have it.
        accuracy: share of correct predictions.
        majority: accuracy of always predicting what is more frequent among the training images.
        balanced_accuracy: mean over both classes of the share of correct predictions, by a machine that weighs the
            classes equally; chance is 0.5.
        auc: area under the ROC curve of the first machine; chance is 0.5.
        with_it, without_it: numbers of held-out images with and without the attribute.
    """

    name: str
    share: float
    accuracy: float
    majority: float
    balanced_accuracy: float
    auc: float
    with_it: int
    without_it: int


def one_class(encoded: Encoded, least: int = LEAST_OF_A_CLASS) -> tuple[str, ...]:
    """Attributes that fewer than `least` images have, or lack: nothing can be learned about them."""
    counts = encoded.attributes.sum(axis=0, dtype=int)
    few = np.minimum(counts, len(encoded) - counts) < least
    return tuple(name for name, is_few in zip(encoded.attribute_names, few, strict=True) if is_few)


def vectors(encoded: Encoded, metadata: dict[str, str] | None = None) -> AttributeVectors:
    """Vectors of all attributes that have images of both classes.

    Args:
        encoded: training images with attributes.
        metadata: to keep with the vectors.

    Raises:
        InputError: no attribute has images of both classes.
    """
    names = _names(encoded)
    found = []
    for name in names:
        label = encoded.column(name).astype(bool)
        mean = encoded.mean[label].mean(axis=0) - encoded.mean[~label].mean(axis=0)
        found.append((mean, _normal(encoded.mean, label, mean)))
    mean, linear = (np.stack(each).astype(np.float32) for each in zip(*found, strict=True))
    return AttributeVectors(names, mean, linear, metadata or {}, one_class(encoded))


def _normal(z: np.ndarray, label: np.ndarray, difference: np.ndarray) -> np.ndarray:
    """The normal of a logistic regression's plane, as long as the distance of the classes' means along it."""
    deviation = z.std(axis=0) + 1e-8
    classifier = LogisticRegression(C=0.1, class_weight="balanced", max_iter=ITERATIONS)
    normal = classifier.fit(z / deviation, label).coef_[0] / deviation
    unit = normal / np.linalg.norm(normal)
    return unit * (difference @ unit)


def predict(
    seen: Encoded, unseen: Encoded, each: Callable[[str], None] = lambda name: None, seed: int = 0
) -> list[Prediction]:
    """Predicts attributes from posterior means, by linear support vector machines (the paper's section 4.5).

    Args:
        seen: images to learn from.
        unseen: held-out images, to judge on.
        each: called with the name of each attribute when it is done.
        seed: of the machines.

    Returns:
        one entry for each attribute that has images of both classes among the seen and among the unseen ones.

    Raises:
        InputError: there is none.
    """
    names = [name for name in _names(seen) if name not in one_class(unseen, 1)]
    if not names:
        raise InputError("no attribute has images of both classes among the held-out ones: give more images")
    centre, deviation = seen.mean.mean(axis=0), seen.mean.std(axis=0) + 1e-8
    x, x_unseen = ((side.mean - centre) / deviation for side in (seen, unseen))
    found = []
    for name in names:
        y, y_unseen = seen.column(name), unseen.column(name)
        plain = _machine(x, y, None, seed)
        balanced = _machine(x, y, "balanced", seed)
        usual = int(y.mean() > 0.5)
        found.append(
            Prediction(
                name=name,
                share=float(y.mean()),
                accuracy=float((plain.predict(x_unseen) == y_unseen).mean()),
                majority=float((y_unseen == usual).mean()),
                balanced_accuracy=float(balanced_accuracy_score(y_unseen, balanced.predict(x_unseen))),
                auc=float(roc_auc_score(y_unseen, plain.decision_function(x_unseen))),
                with_it=int(y_unseen.sum()),
                without_it=int(len(y_unseen) - y_unseen.sum()),
            )
        )
        each(name)
    return found


def _machine(x: np.ndarray, y: np.ndarray, class_weight: str | None, seed: int) -> LinearSVC:
    # A smaller cost than usual, because latents are many and noisy.
    machine = LinearSVC(
        C=0.01, dual=len(x) < x.shape[1], class_weight=class_weight, random_state=seed, max_iter=ITERATIONS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return machine.fit(x, y)


def label_correlation(encoded: Encoded) -> np.ndarray:
    """Pearson's correlation of the labels, float64 (attributes, attributes); NaN for a label that never varies."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.atleast_2d(np.corrcoef(encoded.attributes.astype(np.float64), rowvar=False))


def _names(encoded: Encoded) -> tuple[str, ...]:
    few = one_class(encoded)
    names = tuple(name for name in encoded.attribute_names if name not in few)
    if not names:
        raise InputError(
            f"none of the {len(encoded.attribute_names)} attributes has {LEAST_OF_A_CLASS} images of both classes: "
            "give images that differ in some"
        )
    return names
