"""Gradients of ops that move elements without changing them: the elements of dy move back."""

from __future__ import annotations

from collections.abc import Sequence

from ..builder import Tensor
from .broadcast import sum_to
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


def reshape(g: Adjoint) -> Gradients:
    """Reshape, Flatten, Squeeze, Unsqueeze: dx has the shape of x again."""
    return (g.dy.reshape_like(g.x),)


def transpose(g: Adjoint) -> Gradients:
    """y = x with its axes permuted: dx permutes them back."""
    rank = g.rank()
    perm = g.attribute("perm", tuple(reversed(range(rank))))
    return (g.dy.transpose(*sorted(range(rank), key=perm.__getitem__)),)


def expand(g: Adjoint) -> Gradients:
    """y = x broadcast to a shape."""
    return (sum_to(g.dy, g.x, g.y.dims, [None]),)


def tile(g: Adjoint) -> Gradients:
    """y = x repeated along its axes: the copies' gradients are added up."""
    rank = g.rank()
    repeats = g.constant_ints(1)
    if repeats is None:
        raise g.unsupported("its repeats are computed at run time")
    parts = [part for axis in range(rank) for part in (repeats[axis], g.x.length(axis))]
    return (g.dy.reshape(*parts).sum(range(0, 2 * rank, 2), keepdims=False),)


def concat(g: Adjoint) -> Gradients:
    """y = [a, b, ...]: dy is cut where the inputs meet."""
    axis = g.attribute("axis", 0)
    present = [tensor for tensor in g.inputs if tensor is not None]
    if len(present) == 1:
        return (g.dy,)
    sizes = g.builder.concat(*(tensor.length(axis) for tensor in present))
    return g.builder.ops("Split", g.dy, sizes, dtypes=[None] * len(present), axis=axis)


def split(g: Adjoint) -> Gradients:
    """[y1, y2, ...] = x: the gradients are put together again."""
    parts = [
        gradient if gradient is not None else output.zeros_like()
        for output, gradient in zip(g.outputs, g.output_gradients, strict=True)
    ]
    return (g.builder.op("Concat", *parts, axis=g.attribute("axis", 0)),)


def pad(g: Adjoint) -> Gradients:
    """y = x with elements added around it, or taken off where a pad is negative: dx undoes both."""
    if g.attribute("mode", "constant") != "constant":
        raise g.unsupported(f"mode {g.attribute('mode', 'constant')!r}; only constant padding has a gradient")
    return (g.builder.op("Pad", g.dy, -g.input(1), None, g.optional(3)),)
