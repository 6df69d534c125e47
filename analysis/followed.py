"""Which parameters the prediction follows the gradient to, and which lie behind ops that no rule knows."""

from __future__ import annotations

import onnx_ir as ir

from .moments import Propagation
from .moments.engine import differentiable_inputs

__all__ = ["followed_parameters", "rests_on_little"]

_LEAST = 0.5
"""Share of the parameters' elements that a verdict must rest on."""


def followed_parameters(state: Propagation) -> list[str]:
    """The parameters that some path from the loss reaches through known ops alone."""
    unknown = {note.node for note in state.notes if note.is_unknown}
    reached: set[ir.Value] = {state.output}
    for node in reversed(state.nodes):
        if node not in unknown and any(value in reached for value in node.outputs):
            reached.update(value for value in differentiable_inputs(node) if value is not None)
    names = {value.name for value in reached}
    return [name for name in state.gradients.source.parameters if name in names]


def rests_on_little(state: Propagation) -> bool:
    """Whether more than half of the parameters, by elements, lie behind ops that no rule knows."""
    if not any(note.is_unknown for note in state.notes):
        return False
    sizes = state.gradients.source.sizes
    return sum(sizes[name] for name in followed_parameters(state)) < _LEAST * sum(sizes.values())
