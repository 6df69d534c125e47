"""Which tensors of an ONNX file training changes.

A floating-point initializer is a parameter if an op uses it as a weight, directly or through ops that only rearrange it. Never
one are

    running statistics of BatchNormalization      state, which the forward pass updates
    a number, or a tensor of one element          part of a formula, unless it is a PRelu's slope or added to a product: a bias
    a tensor that meets an input of the model     preprocessing, as (x - mean) * (1 / std)
    a tensor that masks                           it holds -inf, a number of -1e4 or below, or only 0 and 1, both of them
    a constant block that is joined to others     padding
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx_ir as ir

from ..graph.errors import InputError, some
from ..graph.model import TrainableModel
from ..graph.source import describe_node

__all__ = ["choose_parameters", "integer_weight", "weights"]

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")

_PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")

_WEIGHT_INPUTS = {
    **dict.fromkeys(("Add", "Sub", "Mul", "MatMul", "Einsum"), (0, 1)),
    "Div": (0,),
    **dict.fromkeys(("Conv", "ConvTranspose"), (1, 2)),
    **dict.fromkeys(
        ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"), (1, 2)
    ),
    **dict.fromkeys(("GRU", "RNN"), (1, 2, 3)),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "LSTM": (1, 2, 3, 7),
    "PRelu": (1,),
    "RMSNormalization": (1,),
}
"""Where ops take their weights."""

_REARRANGING = {
    *(
        "Cast",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    )
}

_MASKED = -1e4
"""What a mask adds where it masks is at most that."""


def choose_parameters(model: TrainableModel, patterns: Sequence[str] | None) -> TrainableModel:
    """The model with only the parameters that a pattern chooses; all of them for None.

    Args:
        model: The model.
        patterns: As `fnmatch` takes them: `layer4.*`, `*.bias`. The whole name of a floating-point initializer that is no
            parameter yet makes it one.

    Raises:
        InputError: A pattern chooses none.
    """
    if patterns is None:
        return model
    chosen = set().union(*(_chosen(model, pattern) for pattern in patterns))
    names = dict.fromkeys([*model.parameters, *model.onnx.graph.initializers])
    return replace(model, parameters=tuple(name for name in names if name in chosen))


def _chosen(model: TrainableModel, pattern: str) -> list[str]:
    matches = [name for name in model.parameters if fnmatch.fnmatchcase(name, pattern)]
    others = [name for name in model.onnx.graph.initializers if _is_floating(model, name)]
    if not matches and pattern in others and pattern not in model.state:
        return [pattern]
    if not matches and pattern in model.onnx.graph.initializers and pattern not in others:
        dtype = model.onnx.graph.initializers[pattern].dtype
        raise InputError(
            f"{pattern!r} is of {dtype}, which cannot train",
            expected="floating-point numbers",
            remedy="export the model before it is quantised",
        )
    if not matches:
        near = difflib.get_close_matches(pattern, model.parameters, n=8, cutoff=0.5)
        raise InputError(
            f"no parameter matches {pattern!r}", expected=f"a pattern for {some(near or model.parameters)}"
        )
    return matches


def _is_floating(model: TrainableModel, name: str) -> bool:
    dtype = model.onnx.graph.initializers[name].dtype
    return dtype is not None and dtype.is_floating_point()


def weights(graph: ir.Graph) -> tuple[str, ...]:
    """Names of the initializers that ops use as weights, those in the bodies of If, Loop and Scan included."""
    found = {
        value.name
        for node in graph.all_nodes()
        if node.domain == ""
        for index, value in _weights_of(node)
        if value.name in graph.initializers and _is_weight(node, index, value)
    }
    statistics = {
        value.name
        for node in graph.all_nodes()
        if node.op_type == "BatchNormalization"
        for value in node.inputs[3:5]
        if value is not None
    }
    return tuple(name for name in graph.initializers if name in found - statistics)


def integer_weight(graph: ir.Graph) -> str:
    """The first product with whole numbers as its weights, in words; empty where there is none."""
    for node in graph.all_nodes():
        for _, value in _weights_of(node) if node.op_type in _PRODUCTS else ():
            if value.const_value is not None and value.const_value.dtype.is_integer():
                return f"{describe_node(node)} takes {value.name!r} of {value.const_value.dtype}"
    return ""


def _weights_of(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    """The values that a node takes as weights, by the position of the input."""
    positions = range(len(node.inputs)) if node.op_type == "Concat" else _WEIGHT_INPUTS.get(node.op_type, ())
    for index in positions:
        value = _origin(node.inputs[index]) if index < len(node.inputs) else None
        if value is not None:
            yield index, value


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The value that `value` is a rearrangement of."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _REARRANGING:
        value = node.inputs[0]
    return value


def _is_weight(node: ir.Node, index: int, value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) == 0 or tensor.size == 0:
        return False
    if node.op_type == "Concat":
        array = tensor.numpy()
        return bool((array != array.flat[0]).any())
    if node.op_type not in _ELEMENTWISE:
        return True
    other = _origin(node.inputs[1 - index])
    if other is None or _is_raw(other):
        return False
    if tensor.size == 1:
        producer = other.producer()
        return node.op_type == "Add" and producer is not None and producer.op_type in _PRODUCTS
    return not _is_mask(tensor)


def _is_raw(value: ir.Value, steps: int = 4) -> bool:
    """Whether a value is an input of the model, or one that numbers were added to or multiplied with, in so many steps."""
    node = value.producer()
    if node is None or not steps:
        return node is None and value.is_graph_input()
    operands = [_origin(operand) for operand in node.inputs]
    return node.op_type in _ELEMENTWISE and all(
        operand is None or operand.const_value is not None or _is_raw(operand, steps - 1)
        for operand in operands
    )


def _is_mask(tensor: ir.TensorProtocol) -> bool:
    array = tensor.numpy()
    ones = array == 1
    return bool(array.min() <= _MASKED or (ones.any() and not ones.all() and (ones | (array == 0)).all()))
