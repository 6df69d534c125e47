"""Reverse-mode differentiation of an ONNX graph (Linnainmaa 1970; the adjoint method).

`differentiate` walks the nodes from the loss backwards. For each node it asks the table for the gradients of the node's
inputs given those of its outputs, sums what arrives at a value from several consumers, and hands the sum on. What every
rule would otherwise repeat is done here, once: summing over broadcast axes, dynamic dimensions included, and leaving out
what does not depend on a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import onnx_ir as ir

from ..builder import Builder, Tensor
from ..errors import UnsupportedError
from ..model import STOP_GRADIENT
from ..source import describe_node
from .broadcast import sum_to

__all__ = [
    "DIFFERENTIATES",
    "Adjoint",
    "Gradient",
    "Rule",
    "backpropagate",
    "bodies",
    "captured",
    "differentiate",
    "operands_of",
    "reached",
]

DIFFERENTIATES = "gradfuse.differentiates"
"""Metadata key of a backward node: the name of the forward node that it differentiates."""

T = TypeVar("T")


@dataclass(frozen=True)
class Adjoint:
    """What a rule sees: one forward node, its values, and the gradients of its outputs.

    Attributes:
        node: The forward node.
        inputs: Its inputs, None where an optional input is absent, and then what its bodies take from outside.
        outputs: Its outputs.
        output_gradients: The loss's gradient for each output; None where the loss does not depend on it.
        builder: Appends nodes to the backward graph.
        varying: The values whose gradient is asked for, inputs of this node among them.
        table: Gradient of each op, for the bodies of control flow.
    """

    node: ir.Node
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    output_gradients: tuple[Tensor | None, ...]
    builder: Builder
    varying: AbstractSet[ir.Value] = frozenset()
    table: Mapping[tuple[str, str], Gradient] = field(default_factory=dict)

    @property
    def x(self) -> Tensor:
        """The first input."""
        return self.input(0)

    @property
    def y(self) -> Tensor:
        """The first output."""
        return self.outputs[0]

    @property
    def dy(self) -> Tensor:
        """The gradient of the first output, for ops whose other outputs have none."""
        gradient, *others = self.output_gradients
        if gradient is None or any(other is not None for other in others):
            raise self.unsupported("a secondary output takes part in the loss")
        return gradient

    def input(self, index: int) -> Tensor:
        """Input `index`, which must be present."""
        tensor = self.optional(index)
        if tensor is None:
            raise self.unsupported(f"input {index} is missing")
        return tensor

    def optional(self, index: int) -> Tensor | None:
        """Input `index`, or None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attribute(self, name: str, default: T) -> T:
        """The attribute's value, or `default` where the node does not have it."""
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return default
        value = attribute.value
        return tuple(value) if isinstance(default, tuple) else value  # type: ignore[return-value]  # the schema fixes the attribute's type

    def constant_ints(self, index: int) -> tuple[int, ...] | None:
        """The numbers of an int64 input whose value is known before the graph runs; None where it is not."""
        tensor = self.optional(index)
        known = None if tensor is None else ir.convenience.get_const_tensor(tensor.value)
        return None if known is None else tuple(int(number) for number in known.numpy().flatten())

    def rank(self) -> int:
        """Number of axes of the first input, which must be known."""
        rank = self.x.rank
        if rank is None:
            raise self.unsupported("the rank of its input is unknown")
        return rank

    def extra_output(self, index: int, dtype: ir.DataType) -> Tensor:
        """Output `index` of the forward node, added where the node does not produce it yet."""
        if len(self.node.outputs) <= index:
            self.node.resize_outputs(index + 1)
        value = self.node.outputs[index]
        if not value.name:
            value.name = self.builder.unique_name(f"{self.node.outputs[0].name}:{index}")
        value.type = value.type or ir.TensorType(dtype)
        return self.builder.tensor(value)

    def unsupported(self, why: str) -> UnsupportedError:
        """An error that names op, node and source layer."""
        return UnsupportedError(f"no gradient for {describe_node(self.node)}: {why}")


Rule: TypeAlias = Callable[[Adjoint], Sequence["Tensor | None"]]
"""Returns the gradient of each input in order, None where an input has none; missing trailing entries count as None."""


@dataclass(frozen=True)
class Gradient:
    """An entry of the table of gradients.

    Attributes:
        rule: Computes the gradients of the node's inputs.
        broadcasts: The op broadcasts its inputs to its output's shape, and the rule returns gradients of that shape; the
            engine sums each to its input's shape.
    """

    rule: Rule
    broadcasts: bool = False


def differentiate(
    builder: Builder,
    loss: ir.Value,
    wrt: Iterable[ir.Value],
    table: Mapping[tuple[str, str], Gradient],
) -> dict[ir.Value, Tensor]:
    """Append the backward graph of `loss`.

    Args:
        builder: Writes to the graph that holds the forward nodes, sorted topologically, with shapes inferred.
        loss: A scalar of that graph.
        wrt: The values to differentiate with respect to: graph inputs or initializers.
        table: Gradient of each op, by domain and op type.

    Returns:
        The gradient of `loss` for each member of `wrt` and each value between them and the loss; a value that the loss does
        not depend on is absent.

    Raises:
        UnsupportedError: A node between `wrt` and `loss` has no gradient.
    """
    return backpropagate(builder, {loss: builder.constant(1.0, builder.tensor(loss).dtype)}, wrt, table)


def backpropagate(
    builder: Builder,
    received: Mapping[ir.Value, Tensor],
    wrt: Iterable[ir.Value],
    table: Mapping[tuple[str, str], Gradient],
) -> dict[ir.Value, Tensor]:
    """Append the backward graph of several values, whose gradients are given: `differentiate` without its scalar loss."""
    gradients = dict(received)
    nodes, varying = _path(list(builder.graph), received, wrt)
    for node in reversed(nodes):
        entry = table.get((node.domain, node.op_type))
        if entry is None:
            raise UnsupportedError(
                f"no gradient for {describe_node(node)}",
                expected="an operator of the table of gradients, or one with a function body made of them",
                remedy="replace the operator in the source model, or export the part after it only",
            )
        adjoint = Adjoint(
            node,
            tuple(None if value is None else builder.tensor(value) for value in operands_of(node)),
            tuple(builder.tensor(value) for value in node.outputs),
            tuple(gradients.get(value) for value in node.outputs),
            builder,
            varying,
            table,
        )
        with builder.scope(f"grad/{node.name}", {DIFFERENTIATES: node.name or ""}):
            _accumulate(gradients, adjoint, entry)
    return gradients


def reached(nodes: Iterable[ir.Node], sources: Iterable[ir.Value]) -> set[ir.Value]:
    """The floating-point values that depend on `sources`, those included."""
    found = set(sources)
    for node in nodes:
        if STOP_GRADIENT not in node.metadata_props and any(value in found for value in operands_of(node)):
            found |= {
                value for value in node.outputs if value.dtype is None or value.dtype.is_floating_point()
            }
    return found


def _path(
    nodes: Sequence[ir.Node], ends: Iterable[ir.Value], wrt: Iterable[ir.Value]
) -> tuple[list[ir.Node], set[ir.Value]]:
    """The nodes on a path of floating-point values from a member of `wrt` to one of `ends`, in order, and those values."""
    varying = reached(nodes, wrt)
    needed = set(ends) & varying
    between = []
    for node in reversed(nodes):
        sources = {value for value in operands_of(node) if value is not None and value in varying}
        if sources and any(value in needed for value in node.outputs):
            between.append(node)
            needed |= sources
    return between[::-1], needed


def operands_of(node: ir.Node) -> list[ir.Value | None]:
    """The inputs of a node, and what the bodies of an If, Loop or Scan take from outside."""
    outer = dict.fromkeys(value for body in bodies(node) for value in captured(body))
    return [*node.inputs, *outer]


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that an If, Loop or Scan runs."""
    attributes = node.attributes.values()
    return [attribute.as_graph() for attribute in attributes if attribute.type == ir.AttributeType.GRAPH]


def captured(body: ir.Graph) -> list[ir.Value]:
    """The values from outside that a body refers to, in the order of their first use."""
    own = {*body.inputs, *body.initializers.values(), *(value for node in body for value in node.outputs)}
    used = [value for node in body for value in operands_of(node)] + list(body.outputs)
    return list(dict.fromkeys(value for value in used if value is not None and value not in own))


def _accumulate(gradients: dict[ir.Value, Tensor], adjoint: Adjoint, entry: Gradient) -> None:
    if all(gradient is None for gradient in adjoint.output_gradients):
        return
    received = {gradient.value for gradient in adjoint.output_gradients if gradient is not None}
    try:
        contributions = entry.rule(adjoint)
    except (IndexError, TypeError, ValueError) as error:
        # A rule takes for granted what the standard promises; a model file may break the promise.
        raise adjoint.unsupported(
            f"its attributes or shapes contradict the ONNX standard ({error})"
        ) from error
    for tensor, contribution in zip(adjoint.inputs, contributions, strict=False):
        if tensor is None or contribution is None or tensor.value not in adjoint.varying:
            continue
        if entry.broadcasts:
            others = [t.dims for t in adjoint.inputs if t is not None and t.value is not tensor.value]
            contribution = sum_to(contribution, tensor, adjoint.y.dims, others)
        if contribution.value in received:
            # Every value's gradient is a value of its own, so that it can be named, looked at and fused alone.
            contribution = adjoint.builder.op("Identity", contribution)
        if contribution.value.shape is None:
            contribution.value.shape = tensor.value.shape
        earlier = gradients.get(tensor.value)
        gradients[tensor.value] = contribution if earlier is None else earlier + contribution
