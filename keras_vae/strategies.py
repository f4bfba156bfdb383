"""Which devices to train on: `--strategy`, on TensorFlow's own engine, `tf.distribute`."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vae.data.pipelines import ALONE, Share
from keras_vae.errors import InputError
from keras_vae.progress import SECONDS_BETWEEN_LINES

STRATEGIES = ("auto", "none", "mirrored", "multi-worker")
TASKS = ("chief", "worker")


def check(name: str) -> None:
    """Refuses a strategy that cannot be had here, as far as that can be told at once.

    Raises:
        InputError: an unknown name, or TF_CONFIG is missing or says something that cannot be.
    """
    if name not in STRATEGIES:
        raise InputError(f"unknown strategy {name!r}: choose one of {', '.join(STRATEGIES)}")
    cluster = _cluster()
    if name == "multi-worker" and cluster is None:
        raise InputError(
            'strategy multi-worker reads the cluster from TF_CONFIG, which is not set: {"cluster": {"worker": '
            '["host:port", ...]}, "task": {"type": "worker", "index": 0}}, as Kubernetes\' TFJob sets it'
        )


def is_chief() -> bool:
    """Whether this process writes what training makes: it is alone, or the first of TF_CONFIG's workers."""
    cluster = _cluster()
    if cluster is None:
        return True
    workers, kind, index = cluster
    return (kind, index) == ("chief", 0) or (not workers.get("chief") and (kind, index) == ("worker", 0))


def is_multi_worker(name: str) -> bool:
    """Whether the strategy of that name comes to several workers here."""
    cluster = _cluster()
    workers = 0 if cluster is None else sum(map(len, cluster[0].values()))
    return name == "multi-worker" or (name == "auto" and workers > 1)


def choose(name: str = "auto") -> tuple[tf.distribute.Strategy, str]:
    """Picks a strategy for this machine. For several workers it must come before TensorFlow computes anything.

    Args:
        name: one of `STRATEGIES`. "auto" is the cluster of TF_CONFIG, where one of several workers is set, else all
            GPUs, where there are several, else one device.

    Returns:
        The strategy and, in words, which devices it is.

    Raises:
        InputError: as `check`.
    """
    check(name)
    if is_multi_worker(name):
        cluster = _cluster()
        assert cluster is not None
        workers, kind, index = cluster
        number = sum(map(len, workers.values()))
        with _waiting(f"waiting for the other workers of {json.dumps(workers)}"):
            strategy: tf.distribute.Strategy = tf.distribute.MultiWorkerMirroredStrategy()
        replicas = strategy.num_replicas_in_sync
        return strategy, f"{kind} {index} of {number} workers with {_counted(replicas, 'replica')} altogether"
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
        return tf.distribute.MirroredStrategy(devices), _counted(len(devices), "replica") + " on this machine"
    return tf.distribute.get_strategy(), "one device"


def share(strategy: tf.distribute.Strategy) -> Share:
    """Which rows of each batch this process's replicas take."""
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return ALONE
    here = len(strategy.extended.worker_devices)
    # All workers have as many replicas; the chief comes first.
    return Share(_task_number() * here if replicas > here else 0, here, replicas)


def distributed(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset) -> Any:
    """A dataset of this process's replicas' rows, as `fit` takes it under the strategy."""
    if strategy.num_replicas_in_sync == 1:
        return dataset
    return strategy.distribute_datasets_from_function(lambda _: dataset)


def agreed(strategy: tf.distribute.Strategy, values: list[float]) -> list[float]:
    """Each value's sum over all workers, float32: they come to the same decision. All must call it at the same step."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return values
    here = len(strategy.extended.worker_devices)
    own = tf.constant(values, tf.float32) / here
    return np.array(strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: own), None)).tolist()


def _cluster() -> tuple[dict[str, list[str]], str, int] | None:
    """The workers of TF_CONFIG, and the kind and number of this one; None where it is not set, or sets none."""
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    example = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster") or {}, config.get("task") or {}
        workers = {str(kind): list(addresses) for kind, addresses in cluster.items()}
        kind, index = str(task.get("type", "")), int(task.get("index", 0))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"TF_CONFIG cannot be read ({error}): give {example}") from error
    if not workers:
        return None
    others = sorted(set(workers) - set(TASKS))
    if others:
        raise InputError(f"TF_CONFIG has {', '.join(others)} in its cluster: give workers, and a chief at most")
    if kind not in workers or not 0 <= index < len(workers[kind]):
        raise InputError(f"TF_CONFIG's task {kind!r} {index} is none of its cluster's: give {example}")
    return workers, kind, index


def _task_number() -> int:
    """This worker's place among all, the chief's being 0."""
    cluster = _cluster()
    if cluster is None:
        return 0
    workers, kind, index = cluster
    return index + (len(workers.get("chief", [])) if kind == "worker" else 0)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextmanager
def _waiting(message: str) -> Iterator[None]:
    """Says so where something takes more than a moment."""
    timer = threading.Timer(SECONDS_BETWEEN_LINES, print, [message], {"flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
