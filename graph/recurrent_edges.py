"""Names for what a recurrent layer carries from step to step.

The state that step t hands on is called `<node>/h/<t>`, and the cell state of an LSTM `<node>/c/<t>`. Its gradient is the
recurrent one alone, without what arrives from the step's output, so that it can be looked at and fused: `norm` at
`<node>/h/*` clips it at every step. Steps are numbered in the order in which they run. Where the layer is a loop, the state
that its body receives stands for those of all steps, as `<node>/h/each`; the first step's counts with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .builder import Builder, Tensor

__all__ = ["carried", "received"]


def carried(builder: Builder, layer: str, state: Sequence[Tensor], step: int) -> list[Tensor]:
    """The state after a step, as the next one reads it: under a name of its own.

    Args:
        builder: Writes to the graph.
        layer: Name of the recurrent node; of the second direction of a bidirectional one, with a suffix.
        state: h, and c of an LSTM.
        step: Number of the step.
    """
    edges = []
    for letter, part in zip("hc", state, strict=False):
        edge = builder.op("Identity", part)
        edge.value.name, edge.value.shape = builder.unique_name(f"{layer}/{letter}/{step}"), part.value.shape
        edges.append(edge)
    return edges


def received(body: Builder, layer: str, dtypes: Sequence[ir.DataType]) -> list[Tensor]:
    """The state as further inputs of the body of a loop.

    Args:
        body: Writes to the body.
        layer: As for `carried`.
        dtypes: Element types of h, and of c of an LSTM.
    """
    edges = []
    for letter, dtype in zip("hc", dtypes, strict=False):
        edge = body.input("state", dtype)
        edge.value.name = body.unique_name(f"{layer}/{letter}/each")
        edges.append(edge)
    return edges
