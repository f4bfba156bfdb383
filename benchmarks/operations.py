"""What a training step computes: its multiplications and additions, and how fast its convolutions are alone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

# Of the features' network in PyTorch and JAX: filters of VGG16's convolutions by block, and the blocks whose first
# activations are compared.
VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
LAYERS = {"vae-123": (0, 1, 2), "vae-345": (2, 3, 4)}


def gflop(vae: Any, size: int, batches: list[int]) -> list[float]:
    """Multiplications and additions of a training step, forward and back, in thousand millions, for batches of so many.

    Those of each convolution and matrix product in the step's graph, two for each product of two numbers. What is left
    out - normalization, activations, the distance, Adam - is under a hundredth of them.
    """
    # In graphs of 2 and 4 images, for it is linear: of a batch of any size TensorFlow does not know all shapes.
    two, four = (
        sum(_flop(operation, count) or 0.0 for operation in _operations(vae, (count, size, size, 3))) / 1e9
        for count in (2, 4)
    )
    return [two + (batch - 2) * (four - two) / 2 for batch in batches]


def _operations(vae: Any, shape: tuple[int, ...]) -> list[Any]:
    """The operations that a training step computes, for images of a shape.

    TensorFlow writes a convolution's gradients down both, that of the images or of a frozen kernel too, and leaves out
    those that nothing asks for when it runs the graph.
    """
    import tensorflow as tf

    graph = tf.function(vae.train_step, autograph=False).get_concrete_function(tf.TensorSpec(shape)).graph
    needed = [*(output.op for output in graph.outputs), *graph.control_outputs]
    seen = {id(operation) for operation in needed}
    for operation in needed:  # which grows meanwhile
        for before in (*(each.op for each in operation.inputs), *operation.control_inputs):
            if id(before) not in seen:
                seen.add(id(before))
                needed.append(before)
    return needed


def _flop(operation: Any, batch: int) -> float | None:
    """Multiplications and additions of an operation of a graph; None where it is none of those counted."""
    if operation.type == "MatMul":
        inner = _shape(operation.inputs[0], batch)[0 if operation.get_attr("transpose_a") else 1]
        return 2.0 * inner * math.prod(_shape(operation.outputs[0], batch))
    if operation.type == "Conv2D":
        kernel, result = operation.inputs[1], operation.outputs[0]
    elif operation.type == "Conv2DBackpropInput":
        kernel, result = operation.inputs[1], operation.inputs[2]
    elif operation.type == "Conv2DBackpropFilter":
        kernel, result = operation.outputs[0], operation.inputs[2]
    else:
        return None
    return 2.0 * math.prod(_shape(result, batch)) * math.prod(_shape(kernel, batch)[:3])


def _shape(tensor: Any, batch: int) -> tuple[int, ...]:
    return tuple(batch if side is None else side for side in tensor.shape)


def convolutions(vae: Any, case: dict[str, Any]) -> dict[str, Any]:
    """Every convolution and matrix product in the step's graph, forward and back, run alone.

    Returns:
        `alone_ms`, their time together; `gflop`, of the step; `tflops`, what they reach alone; `peak_tflops`, what a
        large matrix product reaches in the same precision: the roof.
    """
    import tensorflow as tf

    total_ms = total_flop = 0.0
    for operation in _operations(vae, (case["batch"], case["size"], case["size"], 3)):
        made = _alone(operation, case["batch"])
        if made is not None:
            run, flop = made
            total_ms += 1e3 * _median_seconds(run)
            total_flop += flop
    side = 4096
    square = tf.cast(tf.random.normal((side, side)), case["precision"])
    product = tf.function(lambda a: tf.matmul(a, a)[:1, :1])
    return {
        "alone_ms": total_ms,
        "gflop": total_flop / 1e9,
        "tflops": total_flop / total_ms / 1e9,
        "peak_tflops": 2.0 * side**3 / _median_seconds(lambda: product(square)) / 1e12,
    }


def _alone(operation: Any, batch: int) -> tuple[Callable[[], Any], float] | None:
    """What runs an operation of a graph on random numbers, and its multiplications and additions."""
    import tensorflow as tf

    flop = _flop(operation, batch)
    if flop is None:
        return None

    def shape(tensor: Any) -> tuple[int, ...]:
        return _shape(tensor, batch)

    def random(tensor: Any) -> Any:
        return tf.cast(tf.random.normal(shape(tensor)), tensor.dtype)

    if operation.type == "MatMul":
        one, other = map(random, operation.inputs)
        transposed = {name: operation.get_attr(name) for name in ("transpose_a", "transpose_b")}
        return tf.function(lambda: tf.matmul(one, other, **transposed)), flop
    settings = {name: operation.get_attr(name) for name in ("strides", "padding", "explicit_paddings", "dilations")}
    settings["padding"] = settings["padding"].decode()
    if operation.type == "Conv2D":
        x, k = random(operation.inputs[0]), random(operation.inputs[1])
        function = tf.function(lambda: tf.raw_ops.Conv2D(input=x, filter=k, **settings))
    elif operation.type == "Conv2DBackpropInput":
        k, y, sizes = random(operation.inputs[1]), random(operation.inputs[2]), shape(operation.outputs[0])
        function = tf.function(
            lambda: tf.raw_ops.Conv2DBackpropInput(input_sizes=sizes, filter=k, out_backprop=y, **settings)
        )
    else:
        x, y, sizes = random(operation.inputs[0]), random(operation.inputs[2]), shape(operation.outputs[0])
        function = tf.function(
            lambda: tf.raw_ops.Conv2DBackpropFilter(input=x, filter_sizes=sizes, out_backprop=y, **settings)
        )
    return function, flop


def _median_seconds(run: Callable[[], Any], runs: int = 7) -> float:
    run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()[0].device  # noqa: B018
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
