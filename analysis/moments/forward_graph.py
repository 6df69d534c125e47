"""The graph whose nodes the moments follow.

It is the gradient graph itself, except where that has recurrent nodes written out or turned into loops: their rules need the
nodes, and so the forward part is made anew with them.
"""

from __future__ import annotations

import onnx_ir as ir

from ...graph.builder import Builder
from ...graph.gradient_graph import GradientGraph
from ...graph.lowering import infer_shapes, lower
from ...graph.recurrence import RECURRENT
from ...graph.training_form import apply_training_form

__all__ = ["forward_graph", "has_recurrent_nodes"]


def has_recurrent_nodes(gradients: GradientGraph) -> bool:
    """Whether the moments follow the source's graph, and not the gradient graph itself."""
    source = gradients.source.onnx
    graphs = [source.graph, *(function.graph for function in source.functions.values())]
    return any(node.op_type in RECURRENT for graph in graphs for node in graph)


def forward_graph(gradients: GradientGraph) -> tuple[ir.Graph, ir.Value]:
    """The graph, in training form, and the output that the loss is taken of. Values keep their names."""
    if not has_recurrent_nodes(gradients):
        return gradients.onnx.graph, gradients.onnx.graph.outputs[1]
    model = gradients.source.onnx.clone()
    lower(model, keep=RECURRENT)
    apply_training_form(Builder(model.graph))
    infer_shapes(model)
    for name, value in model.graph.initializers.items():
        # A gradient graph may have been given other weights than its source has.
        value.const_value = gradients.onnx.graph.initializers.get(name, value).const_value
    return model.graph, model.graph.outputs[0]
