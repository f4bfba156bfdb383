"""Which devices to train on: `--strategy`, on TensorFlow's own engine, `tf.distribute`."""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from typing import Any

import numpy as np
import tensorflow as tf

from keras_vae.data.pipelines import ALONE, Share
from keras_vae.support.errors import InputError, RunError
from keras_vae.support.progress import SECONDS_BETWEEN_LINES
from keras_vae.training import signals

STRATEGIES = ("auto", "none", "mirrored", "multi-worker")
TASKS = ("chief", "worker")
SECONDS_TO_WAIT = 1800  # for the other workers to come


def check(name: str) -> None:
    """Refuses a strategy that is not available here, as far as that can be told at once.

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
    """Whether this process writes the run's files: it is the only process, or the first of TF_CONFIG's workers."""
    cluster = _cluster()
    if cluster is None:
        return True
    workers, kind, index = cluster
    return (kind, index) == ("chief", 0) or (not workers.get("chief") and (kind, index) == ("worker", 0))


def is_multi_worker(name: str) -> bool:
    """Whether the strategy of that name comes to several workers here."""
    cluster = _cluster()
    workers = 0 if cluster is None else sum(map(len, cluster[0].values()))
    return name in ("auto", "multi-worker") and workers > 1  # one alone is a machine like any other


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
        strategy = _multi_worker(f"waiting for the other workers of {json.dumps(workers)}")
        replicas = strategy.num_replicas_in_sync
        return strategy, f"{kind} {index} of {number} workers with {_counted(replicas, 'replica')} altogether"
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name in ("auto", "multi-worker") and len(gpus) > 1):
        devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
        return _mirrored(tuple(devices)), _counted(len(devices), "replica") + " on this machine"
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
        if any(isinstance(addresses, str) for addresses in cluster.values()):
            raise TypeError("addresses are a list")
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it is not a cluster and task"
        raise InputError(f"TF_CONFIG cannot be read ({reason}): give {example}") from error
    if not workers:
        return None
    others = sorted(set(workers) - set(TASKS))
    if others:
        raise InputError(f"TF_CONFIG has {', '.join(others)} in its cluster: give workers, and a chief at most")
    if kind not in workers or not 0 <= index < len(workers[kind]):
        raise InputError(f"TF_CONFIG's task {kind!r} {index} is not in its cluster: give {example}")
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


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """One strategy a process: the exchanges of a second one would be taken for those of the first (TensorFlow 2.21)."""
    return tf.distribute.MirroredStrategy(list(devices))


@functools.cache
def _multi_worker(waiting: str) -> tf.distribute.Strategy:
    """TensorFlow's strategy, which is made once all the workers are there; says so where that takes a while."""
    made: list[tf.distribute.Strategy] = []
    failed: list[BaseException] = []

    def make() -> None:
        try:
            made.append(tf.distribute.MultiWorkerMirroredStrategy())
        except BaseException as error:  # re-raised below
            failed.append(error)

    # TensorFlow waits outside of Python, where no Ctrl-C comes through, and has a handler of its own for SIGTERM.
    with signals.handled(lambda number, frame: _end("interrupted", 128 + number)):
        thread = threading.Thread(target=make, daemon=True)
        thread.start()
        start, spoke = time.monotonic(), False
        while thread.is_alive():
            thread.join(0.2)
            waited = time.monotonic() - start
            if waited > SECONDS_BETWEEN_LINES and not spoke:
                print(waiting, flush=True)
                spoke = True
            if waited > SECONDS_TO_WAIT:
                _end(
                    f"{waiting[0].upper()}{waiting[1:]}: not all of them came within {SECONDS_TO_WAIT / 60:g} minutes",
                    1,
                )
    if failed:
        raise RunError(f"the workers cannot be joined: {' '.join(str(failed[0]).split())[:300]}") from failed[0]
    return made[0]


def _end(message: str, status: int) -> None:
    """Ends the process, whose other threads may never return."""
    print(f"keras-vae: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)
