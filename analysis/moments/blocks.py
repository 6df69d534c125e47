"""Products with large weights in blocks, so that no copy of a whole weight is ever made, and with rows that are all alike.

A tensor whose positions or tokens are alike is a view that repeats one of them, its stride 0: what is done to one is done to
all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...graph.mapping import release
from .quadrature import Array

__all__ = [
    "aligned",
    "blocks_of",
    "each",
    "gram",
    "mean_square",
    "multiplier",
    "one_of",
    "product",
    "repeats",
    "times",
]

_BLOCK = 1 << 18
"""Numbers in a block: what is worked out of one stays in the processor's cache."""


def aligned(weight: Array) -> Array:
    """A weight at an address that fits its type, in memory of its own where a file has it elsewhere: products would copy it."""
    if weight.flags.aligned:
        return weight
    copy = weight.copy(order="K")
    release(weight)
    return copy


def blocks_of(count: int, size: int) -> Iterator[slice]:
    """Slices of an axis of length `count`, of an array of `size` numbers, that take one block each."""
    step = max(1, _BLOCK * count // max(size, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def repeats(array: Array, axes: tuple[int, ...]) -> bool:
    """Whether an array is a view that repeats one number along these axes."""
    return all(array.strides[axis] == 0 or array.shape[axis] == 1 for axis in axes)


def one_of(array: Array, axes: tuple[int, ...]) -> Array:
    """The array with one of its repetitions along these axes, if it repeats along all of them; else itself."""
    if not axes or not repeats(array, axes):
        return array
    return array[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(array.ndim))]


def each(function: Callable[..., Array], *arrays: Array) -> Array:
    """An elementwise function of arrays of one shape, worked out once for what all of them repeat."""
    axes = tuple(axis for axis in range(arrays[0].ndim) if all(repeats(array, (axis,)) for array in arrays))
    return np.broadcast_to(function(*(one_of(array, axes) for array in arrays)), arrays[0].shape)


def product(array: Array, weight: Array, square: bool = False) -> Array:
    """`array @ weight`, or times the weight's squares, in float64."""
    leading = tuple(range(array.ndim - 1))
    row = one_of(array, leading)
    if weight.size <= _BLOCK:
        result = row @ _double(weight, square)
    elif weight.strides[0] >= weight.strides[1]:
        result = np.zeros((*row.shape[:-1], weight.shape[1]))
        for rows in blocks_of(len(weight), weight.size):
            result += row[..., rows] @ _double(weight[rows], square)
    else:
        columns = blocks_of(weight.shape[1], weight.size)
        result = np.concatenate([row @ _double(weight[:, part], square) for part in columns], -1)
    return np.broadcast_to(result, (*array.shape[:-1], weight.shape[1]))


def times(matrix: Array, columns: Array) -> Array:
    """`matrix @ columns`, of a float32 matrix in float32, with columns of any scale: a copy in float64 takes longer."""
    return multiplier(columns, matrix.dtype)(matrix)


def multiplier(columns: Array, dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    """`times` for matrices of this type: the columns are brought to it once."""
    scale = float(np.maximum(np.max(columns, initial=0.0), -np.min(columns, initial=0.0))) or 1.0
    if dtype != np.float32 or not scale < np.inf:
        return lambda matrix: np.asarray(matrix @ columns)
    single = np.divide(columns, scale, out=np.empty(columns.shape, np.float32), casting="same_kind")
    return lambda matrix: scale * (matrix @ single).astype(np.float64)


def _double(weight: Array, square: bool) -> Array:
    """A part of a weight, or its squares, in float64; its pages are given back, where it is mapped."""
    double = weight.astype(np.float64)
    release(weight)
    return np.square(double, out=double) if square else double


def gram(a: Array, b: Array) -> Array:
    """a' b of `[T, m]` and `[T, n]`."""
    if len(a) > 1 and repeats(a, (0,)) and repeats(b, (0,)):
        return np.asarray(len(a) * np.outer(a[0], b[0]))
    return np.asarray(a.T @ b)


def mean_square(weight: Array) -> float:
    """The mean of a weight's squares."""
    flat = weight.reshape(-1)
    total = sum(float(np.sum(_double(flat[part], square=True))) for part in blocks_of(flat.size, flat.size))
    return total / max(weight.size, 1)
