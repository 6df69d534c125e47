"""Gaussian expectations of a cell over its locals: fixed points in p dimensions whose first two moments are exact.

With locals l ~ N(mu, C) for each channel, states F(l) and derivatives J = dF/dl, Stein's lemma gives E[d2 F / dl dl] as
E[J xi'] C^(-1/2) for l = mu + C^(1/2) xi (Stein 1981; the statistical linearisation of Gelb 1974, ch. 6).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from ...quadrature import NODES, WEIGHTS, Array
from .cells import Activation, Cell

__all__ = ["Statistics", "expectations"]

_HALF = 256
"""Pairs of points in more than one dimension."""


@dataclass(frozen=True)
class Statistics:
    """Expectations over the locals, for each of H channels.

    Attributes:
        mean: E F, `[q, H]`.
        covariance: Cov F, `[H, q, q]`.
        slope: E J, `[H, q, p]`.
        slope_square: E[J J], `[H, q, p, q, p]`.
        curvature: E[d2 F / dl dl], `[H, q, p, p]`.
        slope_with_state: Cov(F, J), `[H, q, q, p]`.
        bend: E[d((F - E F) J) / dl], `[H, q, q, p, p]`: of a gradient that moves with F, times J.
    """

    mean: Array
    covariance: Array
    slope: Array
    slope_square: Array
    curvature: Array
    slope_with_state: Array
    bend: Array


def expectations(cell: Cell, activations: Sequence[Activation], mean: Array, covariance: Array) -> Statistics:
    """Of locals with this mean `[p, H]` and covariance `[H, p, p]`."""
    points, weights = _points(len(mean))
    root, inverse = _square_root(covariance)
    local = mean[:, None, :] + np.einsum("hab,nb->anh", root, points)
    state, slope = cell.evaluate(local, activations)
    q, p, n, channels = slope.shape
    weighted = weights[:, None]
    average = (state * weighted).sum(1)
    centred = np.moveaxis(state - average[:, None], 2, 0)
    flat = np.moveaxis(slope, 3, 0).reshape(channels, q * p, n)
    tilted = (flat * weights) @ points
    curvature = (tilted @ inverse).reshape(channels, q, p, p)
    turned = np.einsum("hrn,na->hran", centred, weighted * points).reshape(channels, q * p, n)
    moved = (turned @ np.swapaxes(flat, 1, 2)).reshape(channels, q, p, q, p)
    bend = np.einsum("hraqp,has->hrqps", moved, inverse)
    return Statistics(
        average,
        (centred * weights) @ np.swapaxes(centred, 1, 2),
        np.moveaxis((slope * weighted).sum(2), 2, 0),
        ((flat * weights) @ np.swapaxes(flat, 1, 2)).reshape(channels, q, p, q, p),
        0.5 * (curvature + np.swapaxes(curvature, 2, 3)),
        ((centred * weights) @ np.swapaxes(flat, 1, 2)).reshape(channels, q, q, p),
        0.5 * (bend + np.swapaxes(bend, 3, 4)),
    )


def _square_root(covariance: Array) -> tuple[Array, Array]:
    """Symmetric root of each channel's covariance, and its inverse on the directions that vary."""
    values, vectors = np.linalg.eigh(covariance)
    deviations = np.sqrt(np.maximum(values, 0.0))
    small = deviations <= 1e-9 * np.maximum(deviations.max(1, keepdims=True), 1e-300)
    inverse = np.divide(1.0, deviations, out=np.zeros_like(deviations), where=~small)
    turned = np.swapaxes(vectors, 1, 2)
    return vectors * deviations[:, None, :] @ turned, vectors * inverse[:, None, :] @ turned


@cache
def _points(dimensions: int) -> tuple[Array, Array]:
    """Standard Gaussian points `[n, p]` and their weights `[n]`."""
    if dimensions == 1:
        return NODES[:, None], WEIGHTS
    # An additive recurrence fills the cube evenly (Roberts 2018); mirrored, and stretched to unit covariance.
    ratio = 2.0
    for _ in range(64):
        ratio = (1.0 + ratio) ** (1.0 / (dimensions + 1))
    steps = ratio ** -np.arange(1.0, dimensions + 1)
    uniform = (0.5 + np.arange(1, _HALF + 1)[:, None] * steps) % 1.0
    half = np.vectorize(statistics.NormalDist().inv_cdf)(uniform)
    points = np.concatenate([half, -half])
    values, vectors = np.linalg.eigh(points.T @ points / len(points))
    return points @ (vectors / np.sqrt(values)) @ vectors.T, np.full(len(points), 1.0 / len(points))
