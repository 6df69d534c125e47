"""Elements that are moved: taken from a row, and what the row receives back from where they went.

Places are counted from 0; -1 stands for a 0 that an op fills in. Rows may be many at once, `[..., n]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .quadrature import Array

__all__ = ["given_back", "joined", "taken"]


def joined(parts: Sequence[Array], leading: int = 0) -> Array:
    """The elements of all parts in one row, each of which has as many leading axes."""
    rows = [part.reshape(*part.shape[:leading], -1) for part in parts]
    return rows[0] if len(rows) == 1 else np.concatenate(rows, -1)


def taken(rows: Array, places: Array) -> Array:
    """The elements at these places, `[..., *places.shape]`: a view of them where the places are evenly apart."""
    steps = _steps(places)
    if steps is not None:
        first, apart = rows[..., int(places.flat[0]) :], tuple(step * rows.strides[-1] for step in steps)
        shape, strides = (*rows.shape[:-1], *places.shape), (*rows.strides[:-1], *apart)
        return np.lib.stride_tricks.as_strided(first, shape, strides, writeable=False)
    if np.any(places < 0):
        rows = np.concatenate([rows, np.zeros((*rows.shape[:-1], 1), rows.dtype)], -1)
    return np.asarray(rows[..., places])


def given_back(elements: Array, places: Array, size: int) -> Array:
    """What rows of `size` receive, `[..., size]`: each of its elements the sum over the places where it was taken to."""
    flat, leading = places.reshape(-1) % (size + 1), elements.shape[: elements.ndim - places.ndim]
    counts = np.bincount(flat, minlength=size + 1)
    if np.all(counts[:size] <= 1) and not counts[size]:
        rows = np.zeros((*leading, size), elements.dtype)
        rows[..., flat] = elements.reshape(*leading, -1)
        return rows
    summed = [np.bincount(flat, one, size + 1)[:size] for one in elements.reshape(-1, flat.size)]
    return np.stack(summed).reshape(*leading, size).astype(elements.dtype)


def _steps(places: Array) -> tuple[int, ...] | None:
    """How far places lie apart along each axis; None where that differs or is nothing, or where an element is filled in."""
    if places.size == 0:
        return None
    first, even, steps = int(places.flat[0]), np.zeros((), np.int64), []
    for axis, length in enumerate(places.shape):
        beside = (
            int(places[tuple(int(other == axis) for other in range(places.ndim))]) if length > 1 else first
        )
        steps.append(beside - first)
        column = [-1 if other == axis else 1 for other in range(places.ndim)]
        even = even + steps[-1] * np.arange(length).reshape(column)
    once = all(steps[axis] for axis, length in enumerate(places.shape) if length > 1)
    return tuple(steps) if once and places.min() >= 0 and np.array_equal(places, first + even) else None
