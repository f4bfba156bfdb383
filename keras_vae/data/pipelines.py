"""tf.data pipelines of image batches: shuffled, augmented and scaled, each batch a function of seed and step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from keras_vae.data.images import Images, fits_in_memory, fits_on_disk

CORES = os.cpu_count() or 1
PREFETCH = 2  # batches prepared while the model works on one
SHUFFLE_BYTES = 2**28  # of the buffer in which examples that come in sequence are shuffled
SHUFFLE_EXAMPLES = 16_384
NAMED = 64  # examples at a time, with their names


@dataclass(frozen=True)
class Share:
    """The replicas of this process among those that share each batch: from `first` on, `count` of `replicas`.

    Each replica takes an equal share of a batch's rows, in order: together they see the batch that one alone would.
    Of a smaller last batch the last replicas get fewer rows, or none.
    """

    first: int = 0
    count: int = 1
    replicas: int = 1

    def rows(self, batch_size: int) -> int:
        """Rows of a full batch for each replica."""
        return batch_size // self.replicas


ALONE = Share()


@dataclass(frozen=True)
class Batches:
    """How batches are made of images.

    Attributes:
        size: images in a batch.
        attributes: whether they are dicts with the images' attributes.
        seed: of order and augmentation.
        flip, random_crop: augmentation of training images, as `keras_vae.data.load` takes them.
        share: the replicas that this process makes batches for; an element is one replica's rows.
        scaled: whether training images are float32 in [0, 1], or uint8 as they are kept.
        asked: which attributes are the images' conditions (`keras_vae.Condition`), and whether they are classes; None
            for none.
    """

    size: int
    attributes: bool = False
    seed: int = 0
    flip: bool = False
    random_crop: int = 0
    share: Share = ALONE
    scaled: bool = True
    asked: tuple[tuple[int, ...], bool] | None = None


# One epoch's training batches, from a key that determines its order and augmentation, and how many to skip.
Epoch = Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]


class NamedImages(NamedTuple):
    """Some images of a part.

    Attributes:
        names: of each: its path in the folder, or its number in the source, of a sequence in its part.
        images: uint8 (count, height, width, channels).
        attributes: uint8 (count, attributes).
        held_out: whether they are held out.
    """

    names: list[str]
    images: np.ndarray
    attributes: np.ndarray
    held_out: bool = False

    def first(self, count: int) -> NamedImages:
        """The first images, all if there are fewer."""
        return NamedImages(self.names[:count], self.images[:count], self.attributes[:count], self.held_out)


class Part(Protocol):
    """Some of a source's images: those to train on, or those held out."""

    def __len__(self) -> int: ...

    def shuffled(self, batches: Batches) -> Epoch:
        """Full training batches in an order that the epoch's key determines."""

    def in_order(self, batches: Batches) -> tf.data.Dataset:
        """Batches in a fixed order, for evaluation; the last one may be smaller."""

    def named(self) -> Iterator[NamedImages]:
        """All images once, some at a time, with their names."""


@dataclass(frozen=True)
class Indexed:
    """A part whose images can be had by index.

    Attributes:
        images: those of the whole source.
        indices: int (count,), those of this part.
    """

    images: Images
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def shuffled(self, batches: Batches) -> Epoch:
        """Full batches.

        Their order is a pseudo-random permutation that is computed, not stored
        (`tf.random.experimental.index_shuffle`), so that it shuffles the whole set and takes no memory. Unreadable
        images leave their places to others, and an epoch has as many batches as if there were none.
        """
        count = len(self)
        steps = count // batches.size

        def epoch(key: tf.Tensor, skipped: tf.Tensor) -> tf.data.Dataset:
            def once(time: tf.Tensor) -> tf.data.Dataset:
                places = tf.data.Dataset.range(count).batch(batches.size).skip(tf.where(time == 0, skipped, 0))
                return places.map(
                    lambda place: tf.random.experimental.index_shuffle(
                        place, tf.stack([key, time]), tf.cast(count - 1, tf.int64)
                    )
                )

            # Once through all of them, and a second time for the places of those that cannot be read.
            order = _shared(tf.data.Dataset.range(2).flat_map(once), batches)
            read = order.map(self._read, num_parallel_calls=CORES)
            read = read.rebatch(batches.share.rows(batches.size), drop_remainder=True)
            return _augmented(read.take((steps - skipped) * batches.share.count), batches, key, skipped)

        return epoch

    def in_order(self, batches: Batches) -> tf.data.Dataset:
        """Batches in a fixed order; the last one, and those with unreadable images, are smaller."""
        places = _shared(tf.data.Dataset.range(len(self)).batch(batches.size), batches)
        return _evaluated(places.map(self._read, num_parallel_calls=CORES), len(self), batches)

    def named(self) -> Iterator[NamedImages]:
        """All images that can be read, once."""
        ahead = NAMED * CORES  # no further: `in_parcels` reads all that it is given
        for start in range(0, len(self), ahead):
            for _, (pixels, good) in self.images.in_parcels(self.indices[start : start + ahead]):
                found = self.images.attributes
                attributes = np.empty((len(good), 0), np.uint8) if found is None else found[good]
                if len(good):
                    yield NamedImages([self.images.name(int(index)) for index in good], pixels, attributes)

    def _read(self, places: tf.Tensor) -> dict[str, tf.Tensor]:
        images, indices = self.images, self.indices

        def read(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            pixels, good = images.read(indices[places])
            after = int(places[-1]) if len(places) else 0
            while len(places) and not len(pixels):  # an empty batch has no mean: the next readable image stands in
                after = (after + 1) % len(indices)
                pixels, good = images.read(indices[[after]])
            if images.attributes is None:
                return pixels, np.empty((len(pixels), 0), np.uint8)
            return pixels, images.attributes[good]

        pixels, attributes = tf.numpy_function(read, [places], (tf.uint8, tf.uint8), stateful=False)
        pixels.set_shape((None, *images.shape))
        attributes.set_shape((None, 0 if images.attributes is None else images.attributes.shape[1]))
        return {"image": pixels, "attributes": attributes}


@dataclass(frozen=True)
class Examples:
    """A part whose images come one after the other.

    Attributes:
        dataset: of `{"image": uint8 (height, width, channels), "attributes": uint8 (attributes,)}`.
        count: number of examples.
        image_shape: (height, width, channels).
        kind: what its examples are called by, before their numbers.
    """

    dataset: tf.data.Dataset
    count: int
    image_shape: tuple[int, int, int]
    kind: str = ""

    def __len__(self) -> int:
        return self.count

    def shuffled(self, batches: Batches) -> Epoch:
        """Full batches, shuffled in a buffer of at most 256 MiB."""
        most = max(batches.size, SHUFFLE_BYTES // int(np.prod(self.image_shape)))
        buffer = min(self.count, SHUFFLE_EXAMPLES, most)
        examples = self.dataset.take(self.count)

        def epoch(key: tf.Tensor, skipped: tf.Tensor) -> tf.data.Dataset:
            tf.random.set_seed(1)  # of this graph alone: the key is to determine the order, not a global seed
            order = examples.shuffle(buffer, seed=key, reshuffle_each_iteration=False)
            whole = order.skip(skipped * batches.size).batch(batches.size, drop_remainder=True)
            return _augmented(_shared(whole, batches), batches, key, skipped)

        return epoch

    def in_order(self, batches: Batches) -> tf.data.Dataset:
        """Batches in the examples' own order."""
        return _evaluated(_shared(self.dataset.take(self.count).batch(batches.size), batches), self.count, batches)

    def named(self) -> Iterator[NamedImages]:
        """All examples once; their names are their numbers."""
        first = 0
        for batch in self.dataset.take(self.count).batch(NAMED).as_numpy_iterator():
            numbers = range(first, first := first + len(batch["image"]))
            yield NamedImages([f"{self.kind}{number}" for number in numbers], batch["image"], batch["attributes"])


_CACHES: list[tempfile.TemporaryDirectory[str]] = []  # removed when the program ends


def cached(train: Examples, test: Examples) -> tuple[Examples, Examples]:
    """Both parts of a source, kept after the first epoch: in memory where they fit, else on disk, else not.

    When an iterator is dropped, TensorFlow 2.21 cancels the stages it reads from, and a cancelled `prefetch` reports
    the end of its data: the cache would then take what it has for everything. Asserting the cardinality prevents that.
    """
    size = (len(train) + len(test)) * int(np.prod(train.image_shape))
    keeps, folder = fits_in_memory(size), ""
    if not keeps and fits_on_disk(size):
        _CACHES.append(tempfile.TemporaryDirectory(prefix="keras_vae"))
        keeps, folder = True, _CACHES[-1].name

    def kept(part: Examples, name: str) -> Examples:
        dataset = part.dataset.apply(tf.data.experimental.assert_cardinality(len(part)))
        if keeps:
            dataset = dataset.cache(str(Path(folder) / name) if folder else "")
        return Examples(dataset, len(part), part.image_shape)

    return replace(kept(train, "train"), kind="training "), replace(kept(test, "test"), kind="held-out ")


def epochs(epoch: Epoch, steps: int, batches: Batches) -> tf.data.Dataset:
    """One epoch of training batches, reshuffled and augmented anew at each iteration of the dataset."""
    keys = tf.data.Dataset.random(seed=batches.seed, rerandomize_each_iteration=True).take(1)
    once = keys.flat_map(lambda key: epoch(key, tf.constant(0, tf.int64)))
    return _ready(once.apply(tf.data.experimental.assert_cardinality(steps * batches.share.count)))


def continued(epoch: Epoch, steps: int, batches: Batches, step: int) -> tf.data.Dataset:
    """Training batches without end, from a step on, one epoch after another.

    A batch depends on the seed and its step alone, so that a resumed run sees the batches it would have seen.
    """

    def one(number: tf.Tensor) -> tf.data.Dataset:
        key = tf.random.stateless_uniform((), tf.stack([batches.seed, number]), None, None, tf.int64)
        return epoch(key, tf.where(number == step // steps, tf.constant(step % steps, tf.int64), 0))

    return _ready(tf.data.Dataset.range(step // steps, np.iinfo(np.int64).max).flat_map(one))


def _shared(batches_: tf.data.Dataset, batches: Batches) -> tf.data.Dataset:
    """The rows of each batch for the replicas of this process, one element for each replica."""
    share = batches.share
    if share.replicas == 1:
        return batches_
    rows = share.rows(batches.size)

    def of(batch: Any) -> tf.data.Dataset:
        replicas = tf.data.Dataset.range(share.first, share.first + share.count)
        return replicas.map(lambda replica: tf.nest.map_structure(lambda each: each[replica * rows :][:rows], batch))

    return batches_.flat_map(of)


def _augmented(read: tf.data.Dataset, batches: Batches, key: tf.Tensor, skipped: tf.Tensor) -> tf.data.Dataset:
    """Training batches flipped, shifted and scaled; the first is number `skipped` of its epoch."""
    share, rows = batches.share, batches.share.rows(batches.size)

    def finish(number: tf.Tensor, batch: dict[str, tf.Tensor]) -> Any:
        image = batch["image"]
        step, replica = skipped + number // share.count, share.first + number % share.count

        def draw(kind: int, shape: tuple[int, ...], most: int) -> tf.Tensor:
            # Drawn for the whole batch, then sliced: the draws do not depend on how many replicas share it.
            seed = tf.stack([key, 2 * step + kind])
            drawn = tf.random.stateless_uniform((share.replicas * rows, *shape), seed, 0, most, tf.int32)
            return drawn[replica * rows :][: tf.shape(image)[0]]

        if batches.flip:
            image = tf.where(draw(0, (1, 1, 1), 2) == 0, image, tf.reverse(image, [2]))
        if batches.random_crop:
            image = _moved(image, batches.random_crop, draw(1, (2,), 2 * batches.random_crop + 1))
        return _scaled({**batch, "image": image}, batches) if batches.scaled else _chosen(image, batch, batches)

    return read.enumerate().map(finish, num_parallel_calls=CORES)


def _evaluated(read: tf.data.Dataset, count: int, batches: Batches) -> tf.data.Dataset:
    steps = -(-count // batches.size) * batches.share.count
    read = read.map(lambda batch: _scaled(batch, batches), num_parallel_calls=CORES)
    return _ready(read.apply(tf.data.experimental.assert_cardinality(steps)))


def _scaled(batch: dict[str, tf.Tensor], batches: Batches) -> Any:
    return _chosen(tf.cast(batch["image"], tf.float32) / 255.0, batch, batches)


def _chosen(image: tf.Tensor, batch: dict[str, tf.Tensor], batches: Batches) -> Any:
    """The images, with attributes and conditions where they are asked for."""
    found = {"attributes": batch["attributes"]} if batches.attributes else {}
    if batches.asked is not None:
        columns, exclusive = batches.asked
        values = tf.cast(tf.gather(batch["attributes"], columns, axis=1), tf.float32)
        found["condition"] = values if exclusive else 2.0 * values - 1.0
    return {"image": image, **found} if found else image


def of_array(images: Any, batch_size: int) -> tf.data.Dataset:
    """Batches of an array, or of several together, sharded among workers as Keras does it, without autotuning.

    See `_ready`.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return _ready(tf.data.Dataset.from_tensor_slices(images).batch(batch_size).with_options(options))


def _ready(dataset: tf.data.Dataset) -> tf.data.Dataset:
    # With autotuning (TensorFlow 2.21) an iterator that is dropped sometimes waits for the tuning thread, which
    # sleeps for up to a minute and is not always woken (seen in gdb: RootDataset::Iterator's destructor). Four runs
    # stood idle for 33 to 57 s, three of them where one epoch's iterator gives way to the next; without it none did.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(PREFETCH).with_options(options)


def _moved(images: tf.Tensor, most: int, offsets: tf.Tensor) -> tf.Tensor:
    """Each image shifted by its offset, int32 (batch, 2) in 0..2 * most, its edges mirrored into the gap."""
    height, width = images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [most, most], [most, most], [0, 0]], "REFLECT")
    padded = tf.gather(padded, offsets[:, :1] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(padded, offsets[:, 1:] + tf.range(width), axis=2, batch_dims=1)
