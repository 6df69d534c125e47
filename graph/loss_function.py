"""A loss of the user's own, given as an ONNX model of output and target."""

from __future__ import annotations

import onnx_ir as ir

from .builder import Builder, Tensor
from .errors import InputError
from .lowering import lower

__all__ = ["build_loss"]


def build_loss(model: ir.Model, output: Tensor, *targets: Tensor) -> Tensor:
    """Append the nodes of `model` to the graph that `output` belongs to.

    Args:
        model: Its inputs are the output and, where it has a second one, the target; its only output is the loss. It is changed.
        output: The model's output.
        targets: The target; left out where `model` has one input.

    Returns:
        The loss as a scalar: the mean where `model` gives more than one number.

    Raises:
        InputError: `model` has other inputs or outputs.
    """
    lower(model)
    graph, builder = model.graph, output.builder
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    if len(inputs) not in (1, 2) or len(graph.outputs) != 1:
        raise InputError(
            f"a loss with {len(inputs)} inputs and {len(graph.outputs)} outputs",
            expected="inputs for the model's output and, at most, a target, and one output",
        )
    known: dict[ir.Value, Tensor] = dict(zip(inputs, (output, *targets), strict=False))
    for value in graph.initializers.values():
        assert value.const_value is not None
        known[value] = builder.constant(value.const_value.numpy(), value.const_value.dtype)
    for node in list(graph):
        _append(builder, node, known)
    loss = known[graph.outputs[0]]
    return loss if loss.rank == 0 else loss.mean(keepdims=False)


def _append(builder: Builder, node: ir.Node, known: dict[ir.Value, Tensor]) -> None:
    attributes = {
        name: _body(builder, attribute.as_graph(), known)
        if attribute.type == ir.AttributeType.GRAPH
        else attribute
        for name, attribute in node.attributes.items()
    }
    copies = builder.ops(
        node.op_type,
        *(None if value is None else known[value] for value in node.inputs),
        dtypes=[value.dtype for value in node.outputs],
        domain=node.domain,
        **attributes,
    )
    copied = copies[0].value.producer()
    assert copied is not None
    copied.metadata_props.update(node.metadata_props)
    for value, copy in zip(node.outputs, copies, strict=True):
        copy.value.shape = value.shape
        known[value] = copy


def _body(builder: Builder, body: ir.Graph, known: dict[ir.Value, Tensor]) -> ir.Graph:
    """A copy of the body of a node of `model`, with what it takes from outside taken from the new graph."""
    copied = builder.copying(body).graph
    for node in copied.all_nodes():
        for index, value in enumerate(node.inputs):
            if value in known:
                node.replace_input_with(index, known[value].value)
    return copied
