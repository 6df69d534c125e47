"""TensorFlow ops that tf2onnx lacks, or converts wrongly: what they become instead.

Erfc                  1 - Erf: GELU is written with it
Expm1                 Exp - 1: CELU is
ReverseV2             Slice with a step of -1, instead of ReverseSequence, which has no gradient
Conv2DBackpropInput   ConvTranspose with explicit pads: tf2onnx (seen in 1.17) is wrong by some pixels for strides above 1;
and Conv3D...         where the image size is dynamic, what tf2onnx makes of it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .frameworks import require

__all__ = ["HANDLERS", "STOPPED"]

STOPPED = "GradfuseStopGradient"
"""The type of a node that tf2onnx leaves behind for `tf.stop_gradient`."""


def _erfc(graph: Any, node: Any, name: str, arguments: Any) -> None:
    node.type = "Erf"
    graph.insert_new_node_on_output("Sub", node.output[0], inputs=[_one(graph, node), node.output[0]])


def _expm1(graph: Any, node: Any, name: str, arguments: Any) -> None:
    node.type = "Exp"
    graph.insert_new_node_on_output("Sub", node.output[0], inputs=[node.output[0], _one(graph, node)])


def _log1p(graph: Any, node: Any, name: str, arguments: Any) -> None:
    node.type = "Log"
    graph.insert_new_node_on_input(node, "Add", [node.input[0], _one(graph, node)])


def _stop_gradient(graph: Any, node: Any, name: str, arguments: Any) -> None:
    node.type = STOPPED


def _one(graph: Any, node: Any) -> Any:
    tf2onnx = require("tensorflow", "tf2onnx")
    dtype = tf2onnx.utils.map_onnx_to_numpy_type(graph.get_dtype(node.output[0]))
    return graph.make_const(f"{node.name}/one", np.ones((), dtype)).output[0]


def _reverse(graph: Any, node: Any, name: str, arguments: Any) -> None:
    rank = len(graph.get_shape(node.output[0]))
    axes = [int(axis) % rank for axis in node.inputs[1].get_tensor_value()]
    ends = [np.iinfo(np.int64).min] * len(axes)
    slices = {"starts": [-1] * len(axes), "ends": ends, "axes": axes, "steps": [-1] * len(axes)}
    constants = [
        graph.make_const(f"{node.name}/{part}", np.array(numbers, np.int64)).output[0]
        for part, numbers in slices.items()
    ]
    node.type = "Slice"
    graph.replace_inputs(node, [node.input[0], *constants])


def _conv_transpose(graph: Any, node: Any, name: str, arguments: Any) -> None:
    _, kernel, x, *bias = node.input  # tf2onnx joins a BiasAdd to it
    shape, dtype = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0])
    spatial, channels_last = len(shape) - 2, node.get_attr_str("data_format").endswith("C")
    axes = range(1, 1 + spatial) if channels_last else range(2, 2 + spatial)
    if any(shape[axis] < 0 for axis in axes):
        require("tensorflow", "tf2onnx.onnx_opset.nn").ConvTranspose.version_11(graph, node)
        return
    to_front = [0, spatial + 1, *range(1, spatial + 1)] if channels_last else list(range(spatial + 2))
    first = _transposed(graph, node, x, to_front)
    weight = _transposed(graph, node, kernel, [spatial + 1, spatial, *range(spatial)])
    attributes = _explicit_padding(
        node, axes, [shape[axis] for axis in axes], graph.get_shape(kernel)[:spatial]
    )
    graph.remove_node(node.name)
    conv = graph.make_node(
        "ConvTranspose",
        [first, weight, *bias],
        attr=attributes,
        name=f"{node.name}/conv",
        shapes=[[shape[axis] for axis in to_front]],
        dtypes=[dtype],
    )
    back = {"perm": np.argsort(to_front).tolist()}
    graph.make_node(
        "Transpose",
        conv.output,
        attr=back,
        name=node.name,
        outputs=node.output,
        shapes=[shape],
        dtypes=[dtype],
    )


def _explicit_padding(node: Any, axes: range, lengths: list[int], kernel: list[int]) -> dict[str, list[int]]:
    """Attributes of the ConvTranspose whose outputs have these lengths."""
    strides, dilations = (
        [node.get_attr(key).ints[axis] for axis in axes] for key in ("strides", "dilations")
    )
    same = node.get_attr_str("padding") == "SAME"
    begins, ends, extra = [], [], []
    for length, size, stride, dilation in zip(lengths, kernel, strides, dilations, strict=True):
        extent = (size - 1) * dilation + 1
        steps = -(-(length if same else length - extent + 1) // stride)
        surplus = (steps - 1) * stride + extent - length  # what the op gives by itself, beyond that length
        begins.append(max(surplus, 0) // 2)
        ends.append(max(surplus, 0) - begins[-1])
        extra.append(max(-surplus, 0))
    return {
        "strides": strides,
        "dilations": dilations,
        "kernel_shape": kernel,
        "pads": [*begins, *ends],
        "output_padding": extra,
    }


def _transposed(graph: Any, node: Any, tensor: str, perm: list[int]) -> str:
    name = f"{node.name}/{'_'.join(map(str, perm))}"
    output: str = graph.make_node("Transpose", [tensor], attr={"perm": perm}, name=name).output[0]
    return output


HANDLERS: Mapping[str, Callable[..., None]] = {
    "Erfc": _erfc,
    "Expm1": _expm1,
    "Log1p": _log1p,
    "StopGradient": _stop_gradient,
    "ReverseV2": _reverse,
    "Conv2DBackpropInput": _conv_transpose,
    "Conv3DBackpropInputV2": _conv_transpose,
}
"""By TensorFlow op: handlers as tf2onnx calls them, with its graph and the node to change."""
