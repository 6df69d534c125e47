"""Where float32 ends before the prediction does."""

from __future__ import annotations

import numpy as np

from .engine import Propagation
from .quadrature import NODES, Array
from .state import Moments

__all__ = ["LARGEST", "overflows"]

LARGEST = float(np.finfo(np.float32).max)
"""The largest finite float32."""

_REACHED = np.abs(NODES) <= 4.0
"""The part of the latent's distribution that the elements of a batch are sure to visit."""


def overflows(state: Propagation) -> tuple[str, str]:
    """Name of the first tensor whose values exceed float32 (`forward`), else of the first such gradient (`backward`)."""
    for value, moments in state.values.items():
        if isinstance(moments, Moments) and _values_overflow(moments):
            return value.name or "", "forward"
    for value, gradient in (*state.arrived.items(), *state.shared.items()):
        if not gradient.largest < LARGEST**2:
            return value.name or "", "backward"
    return "", ""


def _values_overflow(moments: Moments) -> bool:
    values = None if moments.curve is None else moments.curve.values
    if values is not None and values.dtype.kind == "f":
        return not _within(values[_REACHED])
    moments = moments.narrow
    return not _within(np.abs(moments.mean) + 4.0 * np.sqrt(moments.variance))


def _within(values: Array) -> bool:
    return bool(np.all(np.abs(values) < LARGEST))
