"""Concat: parts side by side, uncorrelated with one another; one that all examples share, as a class token, does not vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import UnknownTransferError
from ..quadrature import Array
from ..site import Contribution, Site, batch_axis
from ..state import GradientMoments, Moments, ParameterGradient
from ..tokens import TokenCorrelation, of_sum
from .whole_channels import joined_moments, picked_gradient

__all__ = ["backward", "forward"]


def forward(site: Site) -> Sequence[Moments]:
    """Means and variances joined."""
    parts, axis = _parts(site), _axis(site)
    joined = Moments(
        np.concatenate([part.mean for part in parts], axis),
        np.concatenate([part.variance for part in parts], axis),
    )
    known = {part.tokens.axes for part in parts if part.tokens is not None}
    if len(known) != 1:
        return [joined_moments(parts, joined) if axis == 0 else joined]
    axes = known.pop()
    tokens = _longer(parts, joined, axis) if axis in axes else _wider(parts, axes, axis)
    return [replace(joined, tokens=tokens)]


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """Each part of the gradient to the part it belongs to."""
    dy, axis = gradients[0], _axis(site)
    assert dy is not None
    received: list[Contribution] = []
    start = 0
    for index, part in enumerate(_parts(site)):
        stop = start + part.shape[axis]
        mean, variance = (np.take(a, np.arange(start, stop), axis) for a in (dy.mean, dy.variance))
        if index in site.varying:
            cut = GradientMoments.of(mean, variance, tokens=_cut(dy, axis, start, stop))
            whole = axis == 0 and dy.tokens is None
            received.append(picked_gradient(dy, np.arange(start, stop)) if whole else cut)
        else:
            shape = site.array(index).shape
            received.append(ParameterGradient(mean.reshape(shape), variance.reshape(shape)))
        start = stop
    return received


def _axis(site: Site) -> int:
    """The joined axis among one example's."""
    output, rank = site.node.outputs[0], site.moments(site.varying[0]).mean.ndim
    full = rank + 1 if output.shape is None else len(output.shape)
    axis, batch = site.attribute("axis", 0) % full, batch_axis(output)
    if full == rank:
        return axis
    if axis == batch:
        raise UnknownTransferError("it joins batches")
    return axis - (axis > batch)


def _parts(site: Site) -> list[Moments]:
    rank = site.moments(site.varying[0]).mean.ndim
    parts = []
    for operand in site.operands:
        if isinstance(operand, Moments):
            parts.append(operand)
            continue
        assert operand is not None
        batch = batch_axis(site.node.outputs[0])
        value: Array = operand.astype(np.float64)
        if value.ndim == rank + 1:
            value = np.asarray(value.take(0, batch))
        parts.append(Moments(value, np.zeros(value.shape)))
    return parts


def _longer(parts: Sequence[Moments], joined: Moments, axis: int) -> TokenCorrelation | None:
    """More tokens."""
    padded: list[tuple[TokenCorrelation | None, Array]] = []
    start = 0
    for part in parts:
        stop = start + part.shape[axis]
        variance = np.zeros(joined.shape)
        np.moveaxis(variance, axis, 0)[start:stop] = np.moveaxis(part.variance, axis, 0)
        padded.append((part.tokens, variance))
        start = stop
    return of_sum(padded, joined.variance)


def _wider(parts: Sequence[Moments], axes: tuple[int, ...], axis: int) -> TokenCorrelation:
    """More features, of which only what each shares with itself in other tokens is kept."""
    place = sum(other not in axes for other in range(axis))
    shared = []
    for part in parts:
        tokens = part.tokens or TokenCorrelation.white(axes, part.shape)
        features = [length for other, length in enumerate(part.shape) if other not in axes]
        shared.append(tokens.shared.reshape(features))
    between = np.concatenate(shared, place).reshape(-1)
    return TokenCorrelation(axes, np.ones(between.shape), between)


def _cut(dy: GradientMoments, axis: int, start: int, stop: int) -> TokenCorrelation | None:
    if dy.tokens is None or axis in dy.tokens.axes:
        return dy.tokens
    axes = dy.tokens.axes
    lengths = [length for other, length in enumerate(dy.mean.shape) if other not in axes]
    place = sum(other not in axes for other in range(axis))
    numbers = np.arange(int(np.prod(lengths))).reshape(lengths)
    features = np.take(numbers, np.arange(start, stop), place).reshape(-1)
    within, between = (_taken(m, features) for m in (dy.tokens.within, dy.tokens.between))
    return TokenCorrelation(axes, within, between)


def _taken(matrix: Array, features: Array) -> Array:
    return matrix[features] if matrix.ndim == 1 else matrix[np.ix_(features, features)]
