"""Reverse-mode differentiation of an ONNX graph (Linnainmaa 1970; the adjoint method).

`differentiate` walks the nodes from the loss backwards. For each node it asks the table for the gradients of the node's
inputs given those of its outputs, sums what arrives at a value from several consumers, and hands the sum on. What every
rule would otherwise repeat is done here, once: summing over broadcast axes, dynamic dimensions included, and leaving out
what does not depend on a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import onnx_ir as ir

from ..builder import Builder, Tensor
from ..errors import UnsupportedError
from ..source import describe_node
from .broadcast import sum_to

__all__ = ["DIFFERENTIATES", "Adjoint", "Gradient", "Rule", "differentiate"]

DIFFERENTIATES = "gradfuse.differentiates"
"""Metadata key of a backward node: the name of the forward node that it differentiates."""

T = TypeVar("T")


@dataclass(frozen=True)
class Adjoint:
    """What a rule sees: one forward node, its values, and the gradients of its outputs.

    Attributes:
        node: The forward node.
        inputs: Its inputs; None where an optional input is absent.
        outputs: Its outputs.
        output_gradients: The loss's gradient for each output; None where the loss does not depend on it.
        builder: Appends nodes to the backward graph.
    """

    node: ir.Node
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    output_gradients: tuple[Tensor | None, ...]
    builder: Builder

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
    gradients = {loss: builder.constant(1.0, builder.tensor(loss).dtype)}
    nodes, varying = _path(list(builder.graph), loss, wrt)
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
            tuple(None if value is None else builder.tensor(value) for value in node.inputs),
            tuple(builder.tensor(value) for value in node.outputs),
            tuple(gradients.get(value) for value in node.outputs),
            builder,
        )
        with builder.scope(f"grad/{node.name}", {DIFFERENTIATES: node.name or ""}):
            _accumulate(gradients, adjoint, entry, varying)
    return gradients


def _path(
    nodes: Sequence[ir.Node], loss: ir.Value, wrt: Iterable[ir.Value]
) -> tuple[list[ir.Node], set[ir.Value]]:
    """The nodes on a path of floating-point values from a member of `wrt` to `loss`, in order, and those values."""
    varying, kept = set(wrt), []
    for node in nodes:
        if any(value in varying for value in _operands(node)):
            kept.append(node)
            varying |= {
                value for value in node.outputs if value.dtype is None or value.dtype.is_floating_point()
            }
    needed = {loss} & varying
    between = []
    for node in reversed(kept):
        if any(value in needed for value in node.outputs):
            between.append(node)
            needed |= {value for value in _operands(node) if value in varying}
    return between[::-1], needed


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of a node, and what the bodies of an If, Loop or Scan take from outside, their inner values included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().outputs
            for inner in attribute.as_graph():
                yield from _operands(inner)


def _accumulate(
    gradients: dict[ir.Value, Tensor], adjoint: Adjoint, entry: Gradient, varying: set[ir.Value]
) -> None:
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
        if tensor is None or contribution is None or tensor.value not in varying:
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
