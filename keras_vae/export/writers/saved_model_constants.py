"""A TensorFlow function that computes once, not at each call, what depends on its weights alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_vae.support.true_float32 import true_float32


def compute_weights_once(function: Callable[..., Any], *specs: tf.TensorSpec) -> tuple[Callable[..., Any], list[Any]]:
    """The same function with variables of its own, which hold what it computes of its weights: folded kernels, say.

    Freezing the graph would do too, but TensorFlow does not precompute constants that are larger than their inputs.

    Args:
        function: of tensors, returns one tensor. Its weights are variables.
        specs: of the tensors that it takes.

    Returns:
        the function, and the variables that it reads.
    """
    traced = tf.compat.v1.wrap_function(function, specs)
    given, output = traced.inputs[: len(specs)], traced.outputs[0]
    taken = {tensor.op.name for tensor in given}
    follows: dict[str, bool] = {}  # operations behind weights or what is given: whether they follow from weights alone
    ends: dict[str, Any] = {}
    for operation in traced.graph.get_operations():  # each after those that it takes from
        inputs = [tensor for tensor in operation.inputs if tensor.op.name in follows]
        if operation.type == "Placeholder":
            follows[operation.name] = operation.name not in taken
        elif inputs:
            follows[operation.name] = all(follows[tensor.op.name] for tensor in inputs)
            if not follows[operation.name]:
                ends |= {tensor.name: tensor for tensor in inputs if follows[tensor.op.name]}
    if any(tensor.dtype == tf.resource for tensor in ends.values()):
        return function, list(traced.variables)  # it hands variables on, to a function within it
    compute = traced.prune([], list(ends.values()))
    with true_float32():  # or a card would round what stays in the artifact for good
        values = compute()
    weights = [tf.Variable(value, trainable=False) for value in values]
    definition = traced.graph.as_graph_def()
    rest = [node for node in definition.node if not follows.get(node.name) and node.name not in taken]
    for node in rest:  # a gradient of its own, as SiLU has, would capture what is now computed beforehand
        node.attr.pop("_gradient_op_type", None)
    del definition.node[:]
    definition.node.extend(rest)

    def run(*rows: Any) -> Any:
        names = [*(tensor.name for tensor in given), *ends]
        known = dict(zip(names, map(tf.convert_to_tensor, [*rows, *weights]), strict=True))
        return tf.graph_util.import_graph_def(definition, known, [output.name], name="decoder")[0]

    return run, weights
