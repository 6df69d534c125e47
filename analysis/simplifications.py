"""What the prediction simplifies in some kinds of networks, whichever values they have: stated once for each kind.

What a rule passes over at one node it notes itself (`moments.site`); here is what rules do as a matter of course.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property

import onnx_ir as ir

from .moments import Moments, Note, Propagation, gathers_examples
from .moments.transfer.recurrent.cells import CELLS

__all__ = ["simplifications"]


def simplifications(state: Propagation) -> list[Note]:
    """A note for each node and simplification, those of one kind side by side."""
    network = _Network(state)
    kinds = _KINDS.items()
    return [Note(node, text) for text, applies in kinds for node in state.nodes if applies(network, node)]


class _Network:
    """What the kinds ask about."""

    def __init__(self, state: Propagation) -> None:
        self.state = state

    @cached_property
    def dependent(self) -> set[ir.Value]:
        """Tensors that depend on the model's inputs, and not on a dropout's mask alone."""
        found = {
            v for v in self.state.values if v.producer() is None and isinstance(self.state.values[v], Moments)
        }
        for node in self.state.nodes:
            if any(value in found for value in node.inputs if value is not None):
                found.update(node.outputs)
        return found

    @cached_property
    def readings(self) -> Counter[ir.Value]:
        """How many nodes read a parameter."""
        names = set(self.state.gradients.source.parameters)
        return Counter(
            value
            for node in self.state.nodes
            for value in {*node.inputs}
            if value is not None and value.name in names
        )

    @cached_property
    def gathers(self) -> bool:
        """Whether one law of the inputs is not enough."""
        return gathers_examples(self.state)

    def joins(self, node: ir.Node) -> bool:
        """Whether more than one operand depends on the inputs, and they are not followed together."""
        inputs = {value for value in node.inputs if value in self.dependent}
        result = self.state.values.get(node.outputs[0])
        if len(inputs) < 2 or not isinstance(result, Moments) or result.drawn is not None:
            return False
        return result.curve is None or result.curve.latent == node.outputs[0].name


def _is_drawn(network: _Network, node: ir.Node) -> bool:
    result = network.state.values.get(node.outputs[0])
    return (
        node.op_type in ("Softmax", "MatMul", "Einsum")
        and isinstance(result, Moments)
        and result.drawn is not None
    )


def _is_read_again(network: _Network, node: ir.Node) -> bool:
    """Of the nodes that read a parameter more than once, the first."""
    first = [value for value in node.inputs if value is not None and network.readings[value] > 1]
    return any(next(n for n in network.state.nodes if value in n.inputs) is node for value in first)


def _ends_in_positions(network: _Network, node: ir.Node) -> bool:
    output = network.state.output
    result = network.state.values.get(output)
    return output in node.outputs and isinstance(result, Moments) and result.mean.ndim > 1


def _ends(network: _Network, node: ir.Node) -> bool:
    return network.state.output in node.outputs and network.gathers


_KINDS: Mapping[str, Callable[[_Network, ir.Node], bool]] = {
    "its summands, a branch and a skip for instance, are taken as uncorrelated": lambda network, node: (
        node.op_type in ("Add", "Sub", "Sum") and network.joins(node)
    ),
    "its factors, a gate and what it gates for instance, are taken as independent": lambda network, node: (
        node.op_type == "Mul" and network.joins(node)
    ),
    "its parts are taken as uncorrelated": lambda network, node: (
        node.op_type == "Concat" and network.joins(node)
    ),
    "a softmax or product of two tensors that vary is carried as fixed draws, fewer in larger models": _is_drawn,
    "different channels at different steps are taken as uncorrelated": lambda network, node: (
        node.domain == "" and node.op_type in CELLS and node not in network.state.all_steps
    ),
    "its two directions are taken as uncorrelated": lambda network, node: (
        node.domain == ""
        and node.op_type in CELLS
        and node.attributes.get_string("direction", "forward") == "bidirectional"
    ),
    "other nodes read its weight as well: what each adds to the gradient is taken as uncorrelated": _is_read_again,
    "its gradients are the mean over several laws of the inputs, its values by one": lambda network, node: (
        _ends(network, node) and network.state.laws > 1
    ),
    "several laws of its inputs would be too much: gradients by one may be twice too large": lambda network, node: (
        _ends(network, node) and network.state.laws == 1
    ),
    "the loss's positions are taken as alike, and what they receive as uncorrelated": _ends_in_positions,
}
"""By what is said: which nodes it is said of."""
