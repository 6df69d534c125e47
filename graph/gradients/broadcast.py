"""The gradient of broadcasting: a sum over the axes along which a tensor was repeated, dynamic dimensions included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..builder import Dim, Tensor

__all__ = ["sum_to"]


def sum_to(
    gradient: Tensor, target: Tensor, full: Sequence[Dim] | None, others: Iterable[Sequence[Dim] | None]
) -> Tensor:
    """Sum `gradient` to the shape of `target`, which was broadcast to the shape of `gradient`.

    Args:
        gradient: The tensor to sum.
        target: The operand whose gradient this is.
        full: Dimensions of `gradient` as far as they are known; None where not even the rank is.
        others: Dimensions of the other operands, aligned with `full` on the right: where all of them are 1 on an axis,
            `target` was not repeated there, whatever its own dimension turns out to be.
    """
    own, others = target.dims, list(others)
    if full is None or own is None:
        return _sum_at_run_time(gradient, target)
    leading = len(full) - len(own)
    summed = list(range(leading))
    for axis in range(leading, len(full)):
        mine, whole = own[axis - leading], full[axis]
        if mine == 1 and whole != 1:
            summed.append(axis)
        elif not _surely_equal(mine, whole) and any(_may_repeat(dims, axis - len(full)) for dims in others):
            return _sum_at_run_time(gradient, target)
    if not summed:
        return gradient
    total = gradient.sum(summed, keepdims=False)
    return total if len(summed) == leading else total.reshape_like(target)


def _surely_equal(mine: Dim, whole: Dim) -> bool:
    return isinstance(mine, int) or (mine is not None and mine == whole)


def _may_repeat(dims: Sequence[Dim] | None, axis: int) -> bool:
    """Whether an operand of shape `dims` may be longer than 1 on `axis`, which counts from the last axis (-1)."""
    return dims is None or (len(dims) >= -axis and dims[axis] != 1)


def _sum_at_run_time(gradient: Tensor, target: Tensor) -> Tensor:
    """The axes to sum over are those where the two shapes differ, once the shorter one is padded with ones on the left.

    A further axis in front is always summed over: onnxruntime (seen in 1.19) takes no axes of an empty tensor for all of them.
    """
    builder, shape, full = target.builder, target.shape(), gradient.builder.op("Shape", gradient)
    missing = builder.op("Size", full).reshape(1) - builder.op("Size", shape).reshape(1)
    ones = builder.op("Expand", builder.ints(1), missing)
    padded = builder.op("Concat", ones, shape, axis=0)
    differing = builder.op("NonZero", ~padded.equals(full)).reshape(-1)
    axes = builder.op("Concat", builder.ints(0), differing + 1, axis=0)
    return builder.op("Reshape", gradient.unsqueeze(0).sum(axes), shape, allowzero=1)
