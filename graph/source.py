"""Where a node came from: what a person who wrote the model, not the graph, would recognise."""

from __future__ import annotations

import ast

import onnx_ir as ir

__all__ = ["LAYER", "describe_node", "source_layer"]

LAYER = "gradfuse.layer"
"""Metadata key of a node: path of the framework layer that it came from, as `encoder.layers.3` or `dense_1`."""

_TORCH_SCOPES = "pkg.torch.onnx.name_scopes"


def source_layer(node: ir.Node) -> str:
    """Path of the framework's layer that `node` came from; empty where the exporter did not record it."""
    if layer := node.metadata_props.get(LAYER):
        return layer
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_TORCH_SCOPES, "[]"))
    except (SyntaxError, ValueError):
        return ""
    # torch lists the enclosing modules from the outside in and the traced operation last.
    modules = [scope for scope in scopes[:-1] if isinstance(scope, str)] if isinstance(scopes, list) else []
    return modules[-1] if modules else ""


def describe_node(node: ir.Node) -> str:
    """Op type, node name and source layer in words: `Conv node 'conv2d' (layer features.0)`."""
    op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    layer = source_layer(node)
    return f"{op_type} node {node.name!r}" + (f" (layer {layer})" if layer else "")
