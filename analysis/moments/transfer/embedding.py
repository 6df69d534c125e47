"""Rows of a table that all examples share, read at indices which are taken as uniform and independent.

With V rows w_v: mean and variance over the rows, and for the gradient of each row, summed over the positions p of an example,

    E = sum_p m_p / V            Var = sum_p s_p / V - sum_p m_p^2 / V^2
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UnknownTransferError
from ..quadrature import Array
from ..site import Contribution, Site
from ..state import GradientMoments, Moments, ParameterGradient
from . import shape

__all__ = ["gather_backward", "gather_forward"]


def gather_forward(site: Site) -> Sequence[Moments]:
    """A gather at fixed places moves elements; one at places that depend on the example reads a table."""
    if site.is_static(1):
        return shape.forward(site)
    table, indices = _table(site), site.moments(1)
    site.notes.append("its indices are taken as uniform and independent")
    full = (*indices.shape, *table.shape[1:])
    return [Moments(np.broadcast_to(table.mean(0), full), np.broadcast_to(table.var(0), full))]


def gather_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The formulas above; indices receive nothing."""
    if site.is_static(1):
        return shape.backward(site, gradients)
    dy, table = gradients[0], _table(site)
    assert dy is not None
    axes = tuple(range(site.moments(1).mean.ndim))
    mean, second = dy.mean.sum(axes) / len(table), dy.second.sum(axes) / len(table)
    variance = second - (dy.mean**2).sum(axes) / len(table) ** 2
    whole = table.shape
    return [ParameterGradient(np.broadcast_to(mean, whole), np.broadcast_to(variance, whole)), None]


def _table(site: Site) -> Array:
    if site.attribute("axis", 0) != 0:
        raise UnknownTransferError("it reads a table along an inner axis")
    return site.array(0).astype(np.float64)
