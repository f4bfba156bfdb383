"""A TensorFlow function that computes once, not at each call, what depends on its weights alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def compute_weights_once(function: Callable[[Any], Any], spec: tf.TensorSpec) -> tuple[Callable[[Any], Any], list[Any]]:
    """The same function with variables of its own, which hold what it computes of its weights: folded kernels, say.

    A frozen graph would do as well, whose constants TensorFlow computes when it is loaded; but not those that are
    larger than what they are made of.

    Args:
        function: of one tensor, returns one tensor. Its weights are variables.
        spec: of the tensor.

    Returns:
        the function, and the variables that it reads.
    """
    traced = tf.compat.v1.wrap_function(function, [spec])
    given, output = traced.inputs[0], traced.outputs[0]
    follows: dict[str, bool] = {}  # operations behind weights or what is given: whether they follow from weights alone
    ends: dict[str, Any] = {}
    for operation in traced.graph.get_operations():  # each after those that it takes from
        inputs = [tensor for tensor in operation.inputs if tensor.op.name in follows]
        if operation.type == "Placeholder":
            follows[operation.name] = operation.name != given.op.name
        elif inputs:
            follows[operation.name] = all(follows[tensor.op.name] for tensor in inputs)
            if not follows[operation.name]:
                ends |= {tensor.name: tensor for tensor in inputs if follows[tensor.op.name]}
    if any(tensor.dtype == tf.resource for tensor in ends.values()):
        return function, list(traced.variables)  # it hands variables on, to a function within it
    weights = [tf.Variable(value, trainable=False) for value in traced.prune([], list(ends.values()))()]
    definition = traced.graph.as_graph_def()
    rest = [node for node in definition.node if not follows.get(node.name) and node.name != given.op.name]
    del definition.node[:]
    definition.node.extend(rest)

    def run(x: Any) -> Any:
        known = dict(zip([given.name, *ends], map(tf.convert_to_tensor, [x, *weights]), strict=True))
        return tf.graph_util.import_graph_def(definition, known, [output.name], name="decoder")[0]

    return run, weights
