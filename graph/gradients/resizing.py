"""The gradient of Resize.

Every mode interpolates one axis after the other, and each axis linearly: y = M x along it, for a matrix M that depends on the
lengths alone. So dx = M' dy, and M is what the same Resize makes of the identity matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..builder import Tensor
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


def resize(g: Adjoint) -> Gradients:
    """y = x with its axes resized by scales or to sizes, by nearest, linear or cubic interpolation."""
    if g.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise g.unsupported("coordinate_transformation_mode tf_crop_and_resize")
    if g.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise g.unsupported("keep_aspect_ratio_policy; give the sizes that it leads to")
    rank, dx = g.rank(), g.dy
    axes = [axis % rank for axis in g.attribute("axes", tuple(range(rank)))]
    for position, axis in enumerate(axes):
        if not _unchanged(g, position, axis):
            dx = _along(dx, _interpolation(g, position, axis), axis, rank)
    return (dx,)


def _unchanged(g: Adjoint, position: int, axis: int) -> bool:
    """Whether an axis keeps its length for certain: with scale 1, or asked for the size that it has."""
    scales = g.optional(2)
    known = None if scales is None else ir.convenience.get_const_tensor(scales.value)
    if known is not None and known.size:
        return float(known.numpy()[position]) == 1.0
    return isinstance(length := g.x.length(axis), int) and length == g.y.length(axis)


def _interpolation(g: Adjoint, position: int, axis: int) -> Tensor:
    """The matrix M [outputs, inputs] of one axis: the identity, as an image of one channel, resized along its height."""
    builder, length = g.builder, g.x.length(axis)
    numbers = builder.arange(length)
    identity = numbers.unsqueeze(1).equals(numbers).cast_like(g.x).unsqueeze(0, 1)
    attributes: dict[str, Any] = {key: value for key, value in g.node.attributes.items() if key != "axes"}
    where = ([position], [position + 1], [0], [1])
    if (scales := g.optional(2)) is not None and scales.dims != (0,):
        one = builder.constant([1.0], scales.dtype)
        new = builder.op("Concat", one, one, scales.slice(*where), one, axis=0)
        resized = builder.op("Resize", identity, None, new, **attributes)
    else:
        sizes = builder.concat(1, 1, g.input(3).slice(*where), length)
        resized = builder.op("Resize", identity, None, None, sizes, **attributes)
    return resized.squeeze(0, 1)


def _along(dy: Tensor, matrix: Tensor, axis: int, rank: int) -> Tensor:
    """M' dy along one axis."""
    if axis == rank - 1:
        return dy @ matrix
    if axis == rank - 2:
        return matrix.transpose(1, 0) @ dy
    last = [other for other in range(rank) if other != axis] + [axis]
    return (dy.transpose(*last) @ matrix).transpose(*sorted(range(rank), key=last.__getitem__))
