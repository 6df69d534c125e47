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
from ..tokens import MATRIX_LIMIT, TokenCorrelation
from . import shape

__all__ = ["gather_backward", "gather_forward"]


def gather_forward(site: Site) -> Sequence[Moments]:
    """A gather at fixed places moves elements; one at places that depend on the example reads a table."""
    if site.is_static(1):
        return shape.forward(site)
    table, indices = _table(site), site.moments(1)
    site.notes.append("its indices are taken as uniform and independent")
    full = (*indices.shape, *table.shape[1:])
    mean, variance = (np.broadcast_to(a, full) for a in (table.mean(0), table.var(0)))
    if table.ndim != 2 or indices.mean.ndim == 0:
        return [Moments(mean, variance)]
    return [Moments(mean, variance, tokens=_rows_of_table(table, tuple(range(indices.mean.ndim))))]


def _rows_of_table(table: Array, axes: tuple[int, ...]) -> TokenCorrelation:
    features = table.shape[1]
    if features > MATRIX_LIMIT:
        return TokenCorrelation(axes, np.ones(features), np.zeros(features))
    centred = table - table.mean(0)
    within = centred.T @ centred / len(table)
    return TokenCorrelation.of_covariances(axes, within, np.zeros(within.shape), table.std(0)[None])


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
