"""TensorFlow functions through tf2onnx, and what comes out put in order: variables, names, and no op left over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from ..graph.errors import ConversionError
from ..graph.model import STOP_GRADIENT
from ..graph.source import describe_node
from .frameworks import require, silenced
from .parity import Array
from .tensorflow_ops import HANDLERS, STOPPED

__all__ = [
    "OPSET",
    "check_ops",
    "mark_stopped",
    "name_signature",
    "nodes_of",
    "restore_constants",
    "restore_variables",
    "to_onnx",
]

OPSET = 18
"""The newest that tf2onnx writes."""


def to_onnx(
    function: Any, specs: Sequence[Any], handlers: Mapping[str, Callable[..., None]]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A `tf.function` as ONNX, and what its inputs beyond `specs` are: tensors from outside, by the inputs' names.

    Args:
        function: The function.
        specs: A `tf.TensorSpec` for each argument.
        handlers: What becomes of ops, besides `HANDLERS`, by their names.
    """
    tf, tf2onnx = require("tensorflow"), require("tensorflow", "tf2onnx")
    captures = function.get_concrete_function(*specs).graph.captures
    with silenced("tf2onnx"):
        proto, _ = tf2onnx.convert.from_function(
            function,
            input_signature=specs,
            opset=OPSET,
            custom_op_handlers={op: (handler, []) for op, handler in {**HANDLERS, **handlers}.items()},
        )
    held = [(inner.name, outer) for outer, inner in captures if inner.dtype != tf.resource]
    return proto, {name: tensor.numpy() for name, tensor in held if not tf.is_symbolic_tensor(tensor)}


def nodes_of(graph: Any) -> Iterator[Any]:
    """The nodes of a GraphDef and of its functions."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def restore_variables(graph: ir.Graph, arrays: Mapping[str, Array]) -> None:
    """Turn the inputs `variable_0`, `variable_1`, ... into initializers of these names and values."""
    inputs = {value.name: value for value in graph.inputs}
    for index, (name, array) in enumerate(arrays.items()):
        _fill(graph, inputs[f"variable_{index}"], name, array)


def restore_constants(graph: ir.Graph, arrays: Mapping[str, Array]) -> None:
    """Turn the inputs of these names into initializers: TensorFlow makes inputs of tensors from outside a function."""
    for value in [value for value in graph.inputs if value.name in arrays]:
        assert value.name is not None
        _fill(graph, value, value.name, arrays[value.name])


def _fill(graph: ir.Graph, value: ir.Value, name: str, array: Array) -> None:
    graph.inputs.remove(value)
    value.name, value.const_value = name, ir.tensor(array, name=name)
    graph.register_initializer(value)


def mark_stopped(graph: ir.Graph) -> None:
    """Make what is left of each `tf.stop_gradient` an Identity that passes no gradient."""
    for node in graph:
        if node.op_type == STOPPED:
            node.op_type, node.metadata_props[STOP_GRADIENT] = "Identity", "true"


def name_signature(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Names of inputs and outputs as in the model, where it has them, and `batch` for the length of axis 0."""
    taken = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
    for values, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for value, name in zip(values, names, strict=False):
            if name not in taken:
                taken.add(name)
                value.name = name
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])


def check_ops(graph: ir.Graph) -> None:
    """Raise ConversionError if tf2onnx left an op in the graph that it could not convert."""
    for node in graph:
        if node.domain == "" and not onnx.defs.has(node.op_type):
            raise ConversionError(
                f"tf2onnx cannot convert {describe_node(node)}",
                expected="TensorFlow ops with a counterpart in ONNX",
                remedy="write it in TensorFlow's ops in place of Python"
                if "PyFunc" in node.op_type
                else "replace the layer",
            )
