"""Ops that only move elements: each is evaluated once on the elements' indices, and the moments follow the indices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from ..autocovariance import Autocovariance, torus
from ..channel_covariance import ChannelCovariance
from ..elementwise_op import evaluate_node
from ..flattened import Flattened
from ..moves import given_back, joined, taken
from ..quadrature import Array
from ..site import Contribution, Operand, Site, arrays_of, batch_axis
from ..state import COVARIANCE_LIMIT, GradientMoments, Moments, ParameterGradient
from ..steps import Steps
from . import group_norm, reordered
from .sequence_moves import moved_back, moved_forward, tokens_back
from .whole_channels import picked_channels, picked_moments, put_back

__all__ = ["backward", "forward", "moved_indices", "static_backward"]


def forward(site: Site) -> Sequence[Moments]:
    """Every output element is one element of an input, or 0."""
    varying, indices = [site.moments(index) for index in site.varying], _indices(site.node, site.operands)
    means, variances = joined([x.mean for x in varying]), joined([x.variance for x in varying])
    spread = site.moments(site.varying[0]).norm_spread if len(site.varying) == 1 else None
    moved = [Moments(taken(means, index), taken(variances, index), norm_spread=spread) for index in indices]
    if len(site.varying) == 1 and (x := site.moments(site.varying[0])).steps is not None:
        return [_moved_steps(index, x.steps, y) for index, y in zip(indices, moved, strict=True)]
    if len(site.varying) == 1 and x.tokens is not None:
        return [moved_forward(index, x, y) for index, y in zip(indices, moved, strict=True)]
    if _is_row_of_positions(site):
        return [_in_one_row(x, y) for y in moved]
    if len(site.varying) == 1:
        reordered.leave(site, indices[0])
    picked = _picked_channels(site)
    if picked is not None:
        return [picked_moments(x, channels, y) for channels, y in zip(picked, moved, strict=True)]
    if site.node.op_type == "Reshape":
        whole = group_norm.found_again(site, moved[0].shape)
        if whole is not None:
            return [whole]
        group_norm.lay_aside(site, moved[0])
    shared = _same_elements(site)
    if shared is None:
        _note_lost(site, moved)
        return moved
    return [
        replace(y, covariance=shared.covariance, lags=shared.lags, channels=shared.channels)
        if y.shape == shared.shape
        else replace(y, lags=_lags_of(shared, y.shape))
        for y in moved
    ]


def _note_lost(site: Site, moved: Sequence[Moments]) -> None:
    """Say so where positions that are known to be correlated go where nothing is known of them."""
    known = any(site.moments(index).lags is not None for index in site.varying)
    if known and site.node not in site.memory and any(y.mean.ndim > 1 for y in moved):
        site.notes.append("the positions that it moves are taken as uncorrelated")


def _picked_channels(site: Site) -> list[Array] | None:
    """For each output the channels that it has of the one input; None where an output is made of something else."""
    if len(site.varying) != 1:
        return None
    x = site.moments(site.varying[0])
    if x.tokens is not None or x.steps is not None or x.mean.ndim < 1:
        return None
    found = [picked_channels(index, x.shape) for index in _indices(site.node, site.operands)]
    return None if any(channels is None for channels in found) else [c for c in found if c is not None]


def _put_back(
    site: Site, picked: Sequence[Array], gradients: Sequence[GradientMoments | None]
) -> list[Contribution]:
    """Each output's gradient to the channels that it has."""
    position = site.varying[0]
    parts = [
        put_back(dy, channels, site.moments(position).shape)
        for dy, channels in zip(gradients, picked, strict=True)
        if dy is not None
    ]
    received: list[Contribution] = [None] * len(site.operands)
    received[position] = functools.reduce(lambda a, b: a + b, parts)
    return received


def _is_row_of_positions(site: Site) -> bool:
    """Whether channels whose covariance is known, with their positions, come to lie in one row."""
    if len(site.varying) != 1 or (x := site.moments(site.varying[0])).channels is None:
        return False
    index = _indices(site.node, site.operands)[0]
    return index.ndim == 1 and np.array_equal(index, np.arange(x.mean.size))


def _in_one_row(x: Moments, y: Moments) -> Moments:
    assert x.channels is not None
    if y.shape == x.shape[:1]:
        return replace(y, covariance=x.channels.lag0)
    return replace(y, flattened=Flattened(x.channels))


def _out_of_one_row(x: Moments, dy: GradientMoments) -> GradientMoments:
    """The way back: channels receive what is known of the row."""
    shape, known = x.shape, dy.projected
    back = GradientMoments.of(dy.mean.reshape(shape), dy.variance.reshape(shape))
    channels = hessian = None
    if shape[:1] == dy.mean.shape:
        channels = ChannelCovariance.constant(dy.known_covariance, shape[1:])
        hessian = None if dy.hessian is None else ChannelCovariance.constant(dy.hessian, shape[1:])
        back = replace(back, cancelled=dy.cancelled)
    elif known is not None:
        channels = known.by_lags(known.covariance, shape)
        hessian = None if known.hessian is None else known.by_lags(known.hessian, shape)
    if channels is None:
        return back
    return replace(back, lags=channels.lags, channels=channels, channel_hessian=hessian)


def _lags_of(x: Moments | GradientMoments, shape: tuple[int, ...]) -> Autocovariance | None:
    """Its autocovariance as of another shape, if that has no other axes but of one position."""
    if x.lags is None or [n for n in x.lags.lengths if n > 1] != [n for n in shape[1:] if n > 1]:
        return None
    lengths = shape[1:]
    near = x.lags.near.reshape(len(x.lags.near), *torus(lengths))
    return Autocovariance(near, x.lags.far.reshape(-1, *[1] * len(lengths)), lengths) if lengths else None


def _moved_steps(index: Array, known: Steps, y: Moments) -> Moments:
    """With what is known of the elements as states of a sequence."""
    if np.any(index < 0):
        return y
    steps = known.moved(known.place.reshape(-1)[index])
    covariance = steps.matrix() if index.ndim == 1 and index.size <= COVARIANCE_LIMIT else None
    return replace(y, covariance=covariance, steps=steps)


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """An element receives the sum of what its copies receive."""
    if _is_row_of_positions(site) and gradients[0] is not None:
        back = _out_of_one_row(site.moments(site.varying[0]), gradients[0])
        return [back if index in site.varying else None for index in range(len(site.operands))]
    seed = reordered.sent_back(site)
    if seed is not None:
        return [seed]
    if site.node.op_type == "Reshape" and gradients[0] is not None:
        group_norm.lay_gradient_aside(site, gradients[0])
        laid_aside = group_norm.gradient_laid_aside(site)
        if laid_aside is not None:
            return [laid_aside, None]
    picked = _picked_channels(site)
    if picked is not None:
        return _put_back(site, picked, gradients)
    same = _same_elements(site)
    if _becomes_sequence(site, gradients):
        return [
            _out_of_sequence(site, gradients) if index in site.varying else None
            for index in range(len(site.operands))
        ]
    if same is not None and same.tokens is None and same.steps is None and gradients[0] is not None:
        back = _reshaped(gradients[0], same.shape)
        return [back if index in site.varying else None for index in range(len(site.operands))]
    return _gathered(site, gradients)


def _reshaped(dy: GradientMoments, shape: tuple[int, ...]) -> GradientMoments:
    """A gradient whose elements keep their order, as one of a tensor of this shape."""
    channels, same = shape[:1], dy.mean.shape == shape
    return replace(
        dy,
        mean=dy.mean.reshape(shape),
        variance=dy.variance.reshape(shape),
        covariance=dy.covariance if same else None,
        lags=_lags_of(dy, shape),
        channels=dy.channels if same else None,
        channel_hessian=dy.channel_hessian if same else None,
        projected=None,
        tilt=dy.tilt.reshape(shape),
        cancelled=dy.cancelled if dy.cancelled.shape == channels else np.zeros(channels),
        hessian=dy.hessian if len(shape) == 1 else None,
        skew=dy.skew if same else None,
        token_tilt=None,
    )


def _gathered(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """What the copies of each element receive, added up."""
    sizes = [_size(operand) for operand in site.operands]
    mean, variance = _given_back(_indices(site.node, site.operands), gradients, sum(sizes))
    ends, steps = np.cumsum(sizes), _steps_of_gradient(site, gradients)
    received: list[Contribution] = [
        GradientMoments.of(
            mean[end - size : end].reshape(x.shape), variance[end - size : end].reshape(x.shape), steps=steps
        )
        if isinstance(x, Moments)
        else None
        for x, size, end in zip(site.operands, sizes, ends, strict=True)
    ]
    return _as_sequence(site, gradients, received)


def _becomes_sequence(site: Site, gradients: Sequence[GradientMoments | None]) -> bool:
    """Whether the gradient of what is no sequence yet comes back as that of one."""
    if len(site.varying) != 1 or len(gradients) != 1 or gradients[0] is None or gradients[0].tokens is None:
        return False
    x = site.moments(site.varying[0])
    return x.tokens is None and x.steps is None


def _out_of_sequence(site: Site, gradients: Sequence[GradientMoments | None]) -> GradientMoments:
    x, dy = site.moments(site.varying[0]), gradients[0]
    assert dy is not None
    indices = _indices(site.node, site.operands)
    mean, variance = (given_back(m, indices[0], x.mean.size).reshape(x.shape) for m in (dy.mean, dy.variance))
    return tokens_back(indices[0], x, dy, GradientMoments.of(mean, variance))


def _as_sequence(
    site: Site, gradients: Sequence[GradientMoments | None], received: list[Contribution]
) -> list[Contribution]:
    """With the correlation of a sequence, where one sequence has been moved or cut to pieces."""
    position = site.varying[0]
    x = site.moments(position)
    if len(site.varying) > 1 or x.tokens is None:
        return received
    parts: list[GradientMoments] = []
    for index, dy in zip(_indices(site.node, site.operands), gradients, strict=False):
        if dy is None:
            continue
        mean, variance = (given_back(m, index, x.mean.size).reshape(x.shape) for m in (dy.mean, dy.variance))
        part = GradientMoments.of(mean, variance)
        parts.append(moved_back(index, x, dy, part))
    received[position] = functools.reduce(lambda a, b: a + b, parts) if parts else None
    return received


def _steps_of_gradient(site: Site, gradients: Sequence[GradientMoments | None]) -> Steps | None:
    """What is known of the input's gradient as one of states of a sequence, where all elements go back to one."""
    dy, indices = gradients[0], _indices(site.node, site.operands)
    if len(site.varying) != 1 or len(gradients) != 1 or dy is None or np.any(indices[0] < 0):
        return None
    x = site.moments(site.varying[0])
    if x.steps is None:
        return None
    if dy.covariance is not None and dy.mean.ndim == 1:
        moved = x.steps.moved(x.steps.place.reshape(-1)[indices[0]])
        return moved.of_matrix(dy.covariance, dy.hessian).moved(x.steps.place)
    if dy.steps is None or indices[0].size != x.mean.size:
        return None
    place = np.empty(x.mean.size, np.int64)
    place[indices[0].reshape(-1)] = dy.steps.place.reshape(-1)
    return dy.steps.moved(place.reshape(x.shape))


def static_backward(site: Site, gradients: Sequence[ParameterGradient | None]) -> Sequence[Contribution]:
    """The same for a node none of whose inputs depends on the example."""
    joined = site.node.op_type == "Concat"
    sources = [site.array(index) for index in range(len(site.operands) if joined else 1)]
    ends = np.cumsum([source.size for source in sources])
    # Counted from 1: an op that pads writes zeros.
    rows = np.split(np.arange(1, ends[-1] + 1, dtype=np.int64), ends[:-1])
    moved = [row.reshape(source.shape) for row, source in zip(rows, sources, strict=True)]
    fed = [*moved, *arrays_of(site.operands[len(moved) :])]
    places = [place - 1 for place in evaluate_node(site.node, fed)]
    mean, variance = _given_back(places, gradients, ends[-1])
    return [ParameterGradient(mean[row - 1], variance[row - 1]) for row in moved]


def _given_back(
    places: Sequence[Array], gradients: Sequence[GradientMoments | ParameterGradient | None], size: int
) -> tuple[Array, Array]:
    """Mean and variance of what the elements of all inputs receive, in one row."""
    mean, variance = np.zeros(size), np.zeros(size)
    for index, gradient in zip(places, gradients, strict=False):
        if gradient is not None:
            mean += given_back(gradient.mean, index, size)
            variance += given_back(gradient.variance, index, size)
    return mean, variance


def _size(operand: Operand) -> int:
    return operand.mean.size if isinstance(operand, Moments) else 0


def _indices(node: ir.Node, operands: Sequence[Operand]) -> list[Array]:
    """For each output, where in that row its elements come from."""
    shapes = [operand.shape if isinstance(operand, Moments) else None for operand in operands]
    shared = [None if isinstance(operand, Moments) else operand for operand in operands]
    return moved_indices(node, shapes, shared)


def moved_indices(
    node: ir.Node, shapes: Sequence[tuple[int, ...] | None], shared: Sequence[Array | None]
) -> list[Array]:
    """For each output, where in the row of all elements its own come from; -1 stands for a 0.

    Args:
        node: A node that only moves elements.
        shapes: For each input that depends on the example, the shape of one; None for others.
        shared: Values of the others.
    """
    fed: list[Array | None] = []
    start = 0
    for value, shape, operand in zip(node.inputs, shapes, shared, strict=True):
        if shape is not None:
            assert value is not None
            size = int(np.prod(shape))
            # Counted from 1: an op that pads writes zeros.
            row = np.arange(start + 1, start + size + 1, dtype=np.int64).reshape(shape)
            merged = value.shape is not None and row.ndim == len(value.shape)
            fed.append(row if merged else np.expand_dims(row, min(batch_axis(value), row.ndim)))
            start += size
        else:
            fed.append(operand)
    results = zip(node.outputs, evaluate_node(node, fed), strict=True)
    # Index -1 is the 0 at the row's end.
    return [_of_one_example(value, result) - 1 for value, result in results]


def _of_one_example(value: ir.Value, result: Array) -> Array:
    axis = batch_axis(value)
    if result.ndim <= axis or result.shape[axis] != 1:
        return result  # the batch is part of a longer axis, which now is that of one example
    return np.asarray(result.take(0, axis))


def _same_elements(site: Site) -> Moments | None:
    """The one input whose elements are the output's in the same order and, channel by channel, the same positions."""
    if len(site.varying) != 1:
        return None
    x = site.moments(site.varying[0])
    index = _indices(site.node, site.operands)[0]
    same_order = np.array_equal(index.reshape(-1), np.arange(x.mean.size))
    return x if same_order and index.shape[:1] == x.shape[:1] and index.size == x.mean.size else None
