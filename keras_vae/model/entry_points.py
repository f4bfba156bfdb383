"""Keras's entry points, guarded: `compile`, `fit`, `evaluate`, `predict` and their kin.

Arguments are checked before any work, what goes wrong in a step is raised as one line, and averaged weights replace the
weights where the model is evaluated. The mathematics is in `keras_vae.model.vae`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_vae.data import image_batches, pipelines
from keras_vae.features.perceptual import PerceptualLoss
from keras_vae.model import callback_list, compiling, conditioning, guards, schedules
from keras_vae.model.averaging import restored, swapped
from keras_vae.model.state import StatefulModel
from keras_vae.support import keras_internals, precision, replicas
from keras_vae.support.conditions import Condition
from keras_vae.support.errors import InputError, check_count

KERAS_BATCH = 32  # images, where no batch size is given


class CheckedModel(keras_internals.BuiltBeforehand, StatefulModel):
    """A Keras model of images that brings its own loss and metrics.

    Attributes:
        image_shape: (height, width, channels).
        condition: what images can be asked for by, or None.
        perceptual, perceptual_weight, pixel_weight: as `keras_vae.VAE` takes them.
        watch: the `Watch` that records what goes wrong in steps.
        xla: what XLA compiles, after `compile`.
    """

    image_shape: tuple[int, int, int]
    condition: Condition | None
    perceptual: PerceptualLoss | None
    perceptual_weight: Any
    pixel_weight: float
    watch: guards.Watch
    xla: compiling.Xla
    jit_compile: bool

    # What is known of the model ----------------------------------------------------------------

    @functools.cached_property
    def computes_in_float16(self) -> bool:
        """Whether any layer does."""
        layers = [*keras_internals.all_layers(self.encoder), *keras_internals.all_layers(self.decoder)]
        return "float16" in {self.compute_dtype, *(layer.compute_dtype for layer in layers)}

    @functools.cached_property
    def needs_xla(self) -> bool:
        """Whether this machine can compute in the model's precision only through XLA: float16 on a CPU."""
        return self.computes_in_float16 and precision.needs_xla("float16")

    def build(self, input_shape: Any) -> None:
        self.built = True  # both networks are built when they are made

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (None, *self.image_shape)

    def _initial_loss_scale(self) -> float:
        """Where float16's loss scale starts."""
        in_nats = bool(self.pixel_weight) or isinstance(self.perceptual_weight, str)
        return compiling.initial_loss_scale(self.image_shape, in_nats)

    def load_perceptual(self) -> None:
        """Loads the perceptual network's weights, once; training and evaluation do so by themselves.

        Raises:
            InputError: the weights cannot be loaded.
        """
        if self.perceptual is not None:
            with self.distribute_strategy.scope():  # a copy on each device
                self.perceptual.load(self.dtype_policy.name)

    @property
    def needs_adapting(self) -> bool:
        """Whether the network begins with the images' statistics, and has not been given any."""
        return False

    def _before_training(self, images: Any, held_out: float = 0.0, labels: Any = None) -> None:
        """What a network needs to know of the images before the first step, but for the share that is held out."""

    # Compiling ---------------------------------------------------------------------------------

    def compile(self, optimizer: Any = None, *, jit_compile: bool | str = "auto", **kwargs: Any) -> None:
        """As `keras.Model.compile`, without `loss` and `metrics`: the model brings its own.

        Args:
            optimizer: a Keras optimizer; Adam with the paper's learning rate, 5e-4, by default. Under the policy
                "mixed_float16" it is wrapped for dynamic loss scaling.
            jit_compile: whether to compile with XLA. "auto" compiles training on GPUs; on a CPU only float16, which
                cannot be computed there otherwise. Under a strategy of several replicas the parts of a step between
                what they exchange are compiled. `vae.xla` says what was decided.
            **kwargs: `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Raises:
            InputError: a loss or metrics were given, or options that contradict each other.
        """
        # Everything that can be refused is refused first: a model whose `compile` fails is as it was.
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.pop(name, None) is not None:
                raise InputError(f"compile({name}=...): a VAE brings its own loss and metrics; leave {name!r} out")
        unknown = set(kwargs) - {"run_eagerly", "steps_per_execution", "auto_scale_loss"}
        if unknown:
            raise InputError(
                f"compile takes no {', '.join(sorted(unknown))}: it takes optimizer, jit_compile, run_eagerly, "
                "steps_per_execution and auto_scale_loss"
            )
        if "steps_per_execution" in kwargs:
            check_count("steps_per_execution", kwargs["steps_per_execution"])
        optimizer = compiling.optimizer_for(optimizer, self.trainable_variables)
        if self.computes_in_float16 and kwargs.get("auto_scale_loss", True):
            optimizer = compiling.with_loss_scale(optimizer, self._initial_loss_scale())
        xla = compiling.xla_for(jit_compile, bool(kwargs.get("run_eagerly")), self.distribute_strategy, self.needs_xla)
        super().compile(optimizer, jit_compile=xla.step, **kwargs)
        self.xla = xla
        self._asked_jit_compile = jit_compile
        # Now rather than at the first step, so that a model saved before that loads with the same variables.
        self.optimizer.build(self.trainable_variables)
        self.averaging.begin(self.optimizer)
        self.watch.overflows.assign(0.0)  # those of another optimizer's loss scale

    def get_compile_config(self) -> dict[str, Any] | None:
        config = super().get_compile_config()
        # Keras would store what "auto" came to here; another machine decides for itself.
        return config and {**config, "jit_compile": self._asked_jit_compile}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    # Training and evaluation -------------------------------------------------------------------

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`, without weights of samples or classes.

        With an optimizer that averages weights (`use_ema=True`), validation uses the averages, and so does everything
        after `fit`, which replaces the weights with them.

        A step whose images, loss or gradient cannot be used leaves the model as it was, and ends `fit`: at once, or on
        a GPU, where checking waits for the device, within 50 steps or at the end of the epoch.

        Raises:
            InputError: images that are not finite, outside of [0, 1], or of another shape than the model's; no images,
                or an endless dataset; weights of samples or classes; two callbacks that set beta; perceptual weights
                that cannot be loaded; a model that was not compiled.
            NotFiniteError: the loss or its gradient became infinite or NaN.
        """
        options = dict(inspect.signature(keras.Model.fit).bind(self, x, *args, **kwargs).arguments)
        del options["self"]
        self._check_compiled("fit")
        for name in ("sample_weight", "class_weight"):
            if options.get(name) is not None:
                raise InputError(f"fit({name}=...): the bound counts every image alike; leave {name!r} out")
        schedule = schedules.only_one(_callbacks(options))
        if not self.trainable_weights:
            raise InputError("no weight is trainable: set vae.trainable = True, and compile again")
        options["x"] = self._checked_images("fit", x, options.get("steps_per_epoch"), "steps_per_epoch")
        options["y"] = conditioning.checked_labels(self.condition, options["x"], options.get("y"), needed=True)
        held_out = options.get("validation_data")
        if isinstance(held_out, list):
            held_out = tuple(held_out)  # as Keras takes it
        if held_out is not None:
            images = image_batches.unpack(held_out) if isinstance(held_out, tuple) else held_out
            with guards.named("validation_data"):
                images = self._checked_images(
                    "validation_data", images, options.get("validation_steps"), "validation_steps"
                )
                labels = conditioning.checked_labels(self.condition, images, conditioning.labels_of(held_out))
            options["validation_data"] = (images, labels, *held_out[2:]) if isinstance(held_out, tuple) else images
        if isinstance(x, tf.data.Dataset):
            # Keras's default, True, makes it warn that datasets shuffle themselves.
            options.setdefault("shuffle", False)
        held_out = options.get("validation_split") if options.get("validation_data") is None else None
        self._before_training(options["x"], held_out or 0.0, options.get("y"))
        with self._following(schedule), self._watched(options):
            if guards.steps_between_looks() > 1 and isinstance(options["callbacks"], list):
                options["callbacks"] = callback_list.for_fit(self, options, KERAS_BATCH)
            history = super().fit(**options)
        # Keras has replaced the weights with their averages: the statistics must belong to those.
        for variable, average in self.averages():
            variable.assign(average)
        return history

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.evaluate`; with averaged weights where the optimizer keeps them.

        The draw of an image's latents depends only on the model's seed and the image's position in the data: figures
        do not depend on the batch size, except with free bits, which compare means over a batch.

        Raises:
            InputError: as `fit`.
        """
        options = {"callbacks": callbacks}
        within_fit = keras_internals.is_within_fit(kwargs)
        if not within_fit:
            self._check_compiled("evaluate")
            if sample_weight is not None:
                raise InputError("evaluate(sample_weight=...): the bound counts every image alike; leave it out")
            x = self._checked_images("evaluate", x, steps, "steps")
            y = conditioning.checked_labels(self.condition, x, y)
        with self._judged(_callbacks(options)), nullcontext() if within_fit else self._watched(options):
            return super().evaluate(
                x,
                y,
                batch_size,
                verbose,
                steps=steps,
                callbacks=options["callbacks"],
                return_dict=return_dict,
                **kwargs,
            )

    def _judged(self, callbacks: list[Any]) -> AbstractContextManager[Any]:
        """A block with averages instead of weights; only of the statistics if Keras's own callback swaps weights."""
        if not any(isinstance(each, keras.callbacks.SwapEMAWeights) for each in callbacks):
            return self.averaged_weights()
        both = ExitStack()
        both.enter_context(restored([each for pair in self.averages() for each in pair], only_on_failure=True))
        both.enter_context(swapped(self.averaging.statistics_pairs()))
        return both

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:
        """As `keras.Model.predict`: reconstructions, float32 in [0, 1].

        Raises:
            InputError: as `fit`.
        """
        x = self._checked_images("predict", x, steps, "steps")
        if isinstance(x, np.ndarray) and x.dtype in (np.float32, np.uint8) and steps is None:
            x, batch_size = pipelines.of_array(x, batch_size or KERAS_BATCH), None
        options = {"callbacks": callbacks}
        with self._watched(options):
            return super().predict(x, batch_size=batch_size, verbose=verbose, steps=steps, **options)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.train_on_batch`. Raises as `fit`."""
        self._check_compiled("train_on_batch")
        if self.needs_adapting:
            raise InputError("the network begins with the statistics of many images: call vae.adapt(images) first")
        if not self._fits:  # a callback may call it
            self._follow(None)
        x = self._checked_images("train_on_batch", x)
        y = conditioning.checked_labels(self.condition, x, kwargs.pop("y", args[0] if args else None), needed=True)
        return self._looked_at(super().train_on_batch, x, y, *args[1:], **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.test_on_batch`. Raises as `fit`."""
        self._check_compiled("test_on_batch")
        return self._looked_at(super().test_on_batch, self._checked_images("test_on_batch", x), *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        """As `keras.Model.predict_on_batch`. Raises as `fit`."""
        return self._looked_at(super().predict_on_batch, self._checked_images("predict_on_batch", x))

    def make_train_function(self, force: bool = False) -> Any:
        self.load_perceptual()  # replicas trace a step in threads, whose names Keras counts apart
        if self.train_function is None or force:
            super().make_train_function(force=True)
            if self.xla.parts:
                self.train_function = compiling.clustered(self.train_function)
        return self.train_function

    def reset_metrics(self) -> None:
        super().reset_metrics()
        self.test_noise.begin()  # Keras calls this when an evaluation begins: each one draws the same

    def make_test_function(self, force: bool = False) -> Any:
        self.load_perceptual()
        with self._compiled_for_evaluation():
            return super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> Any:
        with self._compiled_for_evaluation():
            return super().make_predict_function(force)

    @contextmanager
    def _compiled_for_evaluation(self) -> Iterator[None]:
        compiles = self.jit_compile
        self.jit_compile = self.xla.evaluation if self.compiled else compiles
        try:
            yield
        finally:
            self.jit_compile = compiles

    # What comes in, and what goes wrong --------------------------------------------------------

    def images_of(self, data: Any) -> Any:
        """The images of what Keras hands a step, float32 of the model's shape."""
        return image_batches.as_float32(image_batches.unpack(data), self.image_shape)

    def _noted(self, data: Any) -> tuple[Any, Any, Any]:
        """The images of what Keras hands a step, what they are of, and whether both are usable, which is recorded."""
        images = image_batches.shaped(image_batches.unpack(data), self.image_shape)
        condition = None
        if self.condition is not None and (labels := conditioning.labels_of(data)) is not None:
            condition = conditioning.one_each(conditioning.of_labels(labels, self.condition), images)
        return self.images_of(images), condition, self.watch.note(images, condition)

    def _logged(self, logs: dict[str, Any]) -> dict[str, Any]:
        """What a step returns, as Keras 3.15 can reduce it over workers: it expects scalars to have a first axis."""
        if not isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return logs
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()}

    def _looked_at(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.watch.anew():
            result = method(*args, **kwargs)
            self.watch.look(self)
        return result

    def _check_compiled(self, method: str) -> None:
        if not self.compiled:
            raise InputError(f"{method} comes after compile: call vae.compile() first; without arguments it takes Adam")

    def _checked_images(self, method: str, images: Any, steps: int | None = None, option: str = "steps") -> Any:
        """The images as Keras gets them; refused if Keras would fail obscurely or miss a mistake."""
        if images is None:
            raise InputError(f"{method} needs images: give an array or a dataset")
        if isinstance(images, tf.data.Dataset):
            return image_batches.checked_dataset(images, self.image_shape, steps, option)
        if isinstance(images, tuple):
            raise InputError(f"{method} takes images and labels apart, as {method}(images, labels), not as a tuple")
        values = image_batches.unpack(images) if isinstance(images, dict) else images
        # Keras would take a list for one of a model's inputs, and shuffle each image's rows.
        if isinstance(values, list | np.ndarray | np.generic | tf.Variable | keras.Variable) or tf.is_tensor(values):
            values = image_batches.as_array(values)
            image_batches.check(values, self.image_shape)
            return conditioning.in_memory(images, values, self.condition) if isinstance(images, dict) else values
        return images

    @contextmanager
    def _watched(self, options: dict[str, Any]) -> Iterator[None]:
        """A block in which an added callback checks what steps record."""
        looks, given = guards.Looks(), options.get("callbacks")
        if isinstance(given, keras.callbacks.CallbackList):
            looks.set_model(self)
            given.callbacks.insert(0, looks)
        else:
            options["callbacks"] = [looks, *_callbacks(options)]  # first, so no callback records a skipped step
        try:
            with self.watch.anew():
                yield
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            refused = self._worded(error)
            if refused is None:
                raise
            raise refused from (error if isinstance(error, ValueError) else None)
        finally:
            if isinstance(given, keras.callbacks.CallbackList):
                given.callbacks.remove(looks)

    def _worded(self, error: Exception) -> InputError | None:
        """The error reworded as one about the input; None if it is not about it."""
        text = str(error)
        if isinstance(error, ValueError):
            if "Python generator" in text:
                return InputError("a generator must yield tuples, (images,) or (images, labels), at least one")
            if "Unrecognized data type" in text:
                return InputError("images come as an array, a tensor, a tf.data or Python dataset, or a generator")
            return None
        if replicas.SHARE_MARK in text:
            return InputError(
                f"a batch has fewer images than the {self.distribute_strategy.num_replicas_in_sync} replicas that "
                "share it: leave out the smaller last one, as .batch(64, drop_remainder=True) does"
            )
        return image_batches.worded(error, self.image_shape)


def _callbacks(options: dict[str, Any]) -> list[Any]:
    callbacks = options.get("callbacks")
    callbacks = getattr(callbacks, "callbacks", callbacks)
    return list(callbacks) if isinstance(callbacks, list | tuple) else [] if callbacks is None else [callbacks]
