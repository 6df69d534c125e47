"""Gradients of ops that pick elements: dy goes back to where its elements were taken, and adds up where one was taken twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from ..builder import Tensor
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


def slice_(g: Adjoint) -> Gradients:
    """y = x[starts:ends:steps]: zeros around and between. Each axis takes dy to where its elements came from."""
    rank = g.rank()
    axes = g.constant_ints(3) if g.optional(3) is not None else _leading_axes(g)
    if axes is None:
        raise g.unsupported("its axes are computed at run time")
    dx = g.dy
    for position, axis in enumerate(axes):
        dx = _unslice(g, dx, position, axis % rank)
    return (dx,)


def _leading_axes(g: Adjoint) -> tuple[int, ...] | None:
    starts = g.input(1).dims
    return tuple(range(starts[0])) if starts and isinstance(starts[0], int) else None


def _unslice(g: Adjoint, dy: Tensor, position: int, axis: int) -> Tensor:
    """Undo the slice of one axis."""
    length, starts, ends = g.x.length(axis), g.constant_ints(1), g.constant_ints(2)
    steps = g.constant_ints(4) if g.optional(4) is not None else (1,) * (position + 1)
    if isinstance(length, int) and starts is not None and ends is not None and steps is not None:
        start, stop, step = slice(starts[position], ends[position], steps[position]).indices(length)
        if step == 1:
            return _zeros_around(dy, axis, start, length - max(start, stop))
    return _scatter_slice(g, dy, position, axis)


def _zeros_around(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    if before == after == 0:
        return x
    return x.builder.op("Pad", x, x.builder.ints(before, after), None, x.builder.ints(axis))


def _scatter_slice(g: Adjoint, dy: Tensor, position: int, axis: int) -> Tensor:
    """Slice the axis's positions in the same way, which gives the place of each element of dy."""
    builder, rank = g.builder, g.rank()
    length = g.x.length(axis)
    bounds = [g.input(index).slice([position], [position + 1], [0], [1]) for index in (1, 2)]
    step = (
        builder.ints(1) if g.optional(4) is None else g.input(4).slice([position], [position + 1], [0], [1])
    )
    taken = builder.op("Slice", builder.arange(length), *bounds, builder.ints(0), step)
    return _scatter_along(dy, taken, axis, rank, builder.concat(length))


def _scatter_along(dy: Tensor, positions: Tensor, axis: int, rank: int, length: Tensor) -> Tensor:
    """Zeros of `length` elements along `axis`, with dy's slices added at `positions` (int64, of any rank 1)."""
    builder = dy.builder
    front = (axis, *(other for other in range(rank) if other != axis))
    moved = dy.transpose(*front)
    shape = builder.op("Concat", length, builder.op("Shape", moved, start=1), axis=0)
    zeros = builder.op("ConstantOfShape", shape, dtype=dy.dtype, value=_zero(dy.dtype))
    added = builder.op("ScatterND", zeros, positions.unsqueeze(-1), moved, reduction="add")
    return added.transpose(*sorted(range(rank), key=front.__getitem__))


def _zero(dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.tensor([0.0], dtype=dtype)


def gather(g: Adjoint) -> Gradients:
    """y = x[indices] along one axis: each slice of dy is added where it was taken, repeated indices included."""
    x, indices, rank = g.x, g.input(1), g.rank()
    axis = g.attribute("axis", 0) % rank
    index_rank = indices.rank
    if index_rank is None:
        raise g.unsupported("the rank of its indices is unknown")
    # The index axes of dy stand where `axis` stood; they are folded into one.
    leading, trailing = range(axis), range(axis + 1, rank)
    shape = [*(x.length(a) for a in leading), _number(indices), *(x.length(a) for a in trailing)]
    length = g.builder.concat(x.length(axis))
    positions = indices.reshape(-1).cast(ir.DataType.INT64)
    folded = g.builder.op("Reshape", g.dy, g.builder.concat(*shape), allowzero=1)
    return (_scatter_along(folded, positions, axis, rank, length),)


def _number(indices: Tensor) -> Tensor | int:
    """How many there are; a -1 could not be worked out where another length is 0."""
    lengths = [dim for dim in indices.dims or () if isinstance(dim, int)]
    if len(lengths) == indices.rank:
        return math.prod(lengths)
    return indices.builder.op("Size", indices).reshape(1)


def gather_elements(g: Adjoint) -> Gradients:
    """y[i] = x[i with its axis replaced by indices[i]]."""
    axis = g.attribute("axis", 0)
    return (g.builder.op("ScatterElements", g.x.zeros_like(), g.input(1), g.dy, axis=axis, reduction="add"),)


def gather_nd(g: Adjoint) -> Gradients:
    """y = x at index tuples, below the leading axes that x and the indices share."""
    indices = _with_batch_indices(g, g.input(1), g.attribute("batch_dims", 0))
    return (g.builder.op("ScatterND", g.x.zeros_like(), indices, g.dy, reduction="add"),)


def _with_batch_indices(g: Adjoint, indices: Tensor, batch_dims: int) -> Tensor:
    """Index tuples that begin with the position on each of the leading axes."""
    if batch_dims == 0:
        return indices
    if indices.rank is None:
        raise g.unsupported("the rank of its indices is unknown")
    zeros = indices.slice([0], [1], [-1], [1])
    zeros = zeros - zeros
    leading = [
        zeros + g.builder.arange(g.x.length(axis)).unsqueeze(*range(1, indices.rank - axis))
        for axis in range(batch_dims)
    ]
    return g.builder.op("Concat", *leading, indices, axis=-1)


def scatter_elements(g: Adjoint) -> Gradients:
    """y = x, then y[i with its axis replaced by indices[i]] = updates[i], or added to, or compared with what is there."""
    indices, axis = g.input(1), g.attribute("axis", 0)
    op = g.builder.op
    return _scattered(
        g,
        lambda data: op("GatherElements", data, indices, axis=axis),
        lambda data, updates, reduction: op(
            "ScatterElements", data, indices, updates, axis=axis, reduction=reduction
        ),
    )


def scatter_nd(g: Adjoint) -> Gradients:
    """y = x with updates at index tuples, stored, added, or compared with what is there."""
    indices, op = g.input(1), g.builder.op
    return _scattered(
        g,
        lambda data: op("GatherND", data, indices),
        lambda data, updates, reduction: op("ScatterND", data, indices, updates, reduction=reduction),
    )


def _scattered(
    g: Adjoint, gather: Callable[[Tensor], Tensor], scatter: Callable[[Tensor, Tensor, str], Tensor]
) -> Gradients:
    """What is overwritten loses its gradient; those that tie for an extremum share it, as torch.scatter_reduce does."""
    reduction, updates = g.attribute("reduction", "none"), g.input(2)
    if reduction == "none":
        return scatter(g.dy, updates.zeros_like(), "none"), None, gather(g.dy)
    if reduction == "add":
        return g.dy, None, gather(g.dy)
    if reduction == "mul":
        raise g.unsupported("reduction 'mul'; only none, add, max and min have a gradient")
    kept = g.x.equals(g.y).cast_like(g.dy)
    attained = updates.equals(gather(g.y)).cast_like(g.dy)
    share = g.dy / scatter(kept, attained, "add")
    return share * kept, None, gather(share) * attained


def top_k(g: Adjoint) -> Gradients:
    """y = the k largest or smallest elements along an axis: dy goes back to where they stood."""
    indices, axis = g.outputs[1], g.attribute("axis", -1)
    return (g.builder.op("ScatterElements", g.x.zeros_like(), indices, g.dy, axis=axis),)


def padded(g: Adjoint) -> Gradients:
    """y = x with elements repeated around it: the axis's positions, padded in the same way, tell which."""
    rank, mode, dx = g.rank(), g.attribute("mode", "constant"), g.dy
    axes = tuple(range(rank)) if g.optional(3) is None else g.constant_ints(3)
    if axes is None:
        raise g.unsupported("its axes are computed at run time")
    known = g.constant_ints(1)
    for position, axis in enumerate(axes):
        if known is not None and known[position] == known[position + len(axes)] == 0:
            continue
        length = g.x.length(axis % rank)
        ends = (position, position + len(axes))
        amounts = g.builder.concat(*(g.input(1).slice([end], [end + 1], [0], [1]) for end in ends))
        taken = g.builder.op("Pad", g.builder.arange(length), amounts, mode=mode)
        dx = _scatter_along(dx, taken, axis % rank, rank, g.builder.concat(length))
    return (dx,)
