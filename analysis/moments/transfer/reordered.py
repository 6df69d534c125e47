"""Maxima behind a transposition: they are taken of the tensor before it, of which more is known, as of channels and positions.

The transposition leaves its input for the maximum that alone reads it. What that sends back comes to it the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..curves import Seed
from ..quadrature import Array
from ..site import Site, only_reader
from ..state import Moments

__all__ = ["Before", "at", "before", "leave", "sent_back"]

_EXTREMA = frozenset({"ReduceMax", "ReduceMin"})


@dataclass
class Before:
    """A tensor that was put in another order.

    Attributes:
        x: It.
        index: For each element of the result, its place in x.
        seed: What x receives, once that is known.
    """

    x: Moments
    index: Array
    seed: Seed | None = None

    def axes(self, axes: tuple[int, ...]) -> tuple[int, ...] | None:
        """The axes of x that these axes of the result are; None where the others come in another order."""
        first = self.index.take([0], axes[0]) if axes else self.index
        for axis in axes[1:]:
            first = first.take([0], axis)
        kept = first.reshape(-1)
        apart = zip(
            np.unravel_index(self.index, self.x.shape), np.unravel_index(first, self.x.shape), strict=True
        )
        found = tuple(axis for axis, (all_of, one) in enumerate(apart) if np.any(all_of != one))
        counted = np.prod([self.x.shape[axis] for axis in found]) * kept.size == self.index.size
        return found if counted and np.all(np.diff(kept) > 0) else None


def leave(site: Site, index: Array) -> None:
    """Of a transposition: its input, where one maximum alone reads the result."""
    reader = only_reader(site.node.outputs[0])
    if reader is not None and reader.op_type in _EXTREMA and site.node.op_type == "Transpose":
        site.memory[site.node] = Before(site.x, index)


def before(site: Site) -> Before | None:
    """Of a maximum: what was left for it."""
    value = site.node.inputs[0]
    producer = None if value is None else value.producer()
    left = None if producer is None else site.memory.get(producer)
    return left if isinstance(left, Before) else None


def sent_back(site: Site) -> Seed | None:
    """Of a transposition: what its input receives of the maximum."""
    left = site.memory.get(site.node)
    return left.seed if isinstance(left, Before) else None


def at(site: Site, left: Before) -> Site:
    """The maximum, taken of the tensor before the transposition."""
    return replace(site, operands=(left.x, *site.operands[1:]))
