"""Gradients of normalisation layers, and of dropout.

With xhat = (x - mean) / std, y = gamma xhat + beta, and <.> the mean over the n normalised elements, mean and variance
taken from x itself:

    dx = gamma / std (dy - <dy> - xhat <dy xhat>)        (Ioffe 2015; Ba 2016)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..builder import Tensor, where
from .broadcast import sum_to
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


BATCH_STATISTICS = "gradfuse.batch_statistics"
"""Metadata key of a BatchNormalization node whose mean and variance are those of its own input."""


def batch_normalization(g: Adjoint) -> Gradients:
    """Statistics are the batch's own, or given, and then have gradients of their own.

    In the first case the gradient through mean and variance is part of dx: the nodes that compute them pass none.
    """
    if g.attribute("training_mode", 0):
        raise g.unsupported("training_mode=1 with frozen statistics; export the layer in inference mode")
    rank, gamma = g.rank(), g.input(1)
    mean, variance, epsilon = g.input(3), g.input(4), g.attribute("epsilon", 1e-5)
    axes = [0, *range(2, rank)]
    inverse = 1.0 / (variance + epsilon).sqrt()
    slope = gamma * inverse
    # x - mean is a node of the forward pass too; scaling by 1 / std after the sums spares a pass over x.
    deviation = g.x - per_channel(mean, rank)
    dbeta = g.dy.sum(axes, keepdims=False)
    dgamma = (g.dy * deviation).sum(axes, keepdims=False) * inverse
    if BATCH_STATISTICS not in g.node.metadata_props:
        return g.dy * per_channel(slope, rank), dgamma, dbeta, -dbeta * slope, -0.5 * dgamma * slope * inverse
    n = g.x.count(axes)
    centred = g.dy - per_channel(dbeta / n, rank) - deviation * per_channel(inverse * dgamma / n, rank)
    return per_channel(slope, rank) * centred, dgamma, dbeta


def per_channel(vector: Tensor, rank: int) -> Tensor:
    """A vector over channels, shaped to broadcast against [N, C, *S]."""
    return vector.unsqueeze(*range(1, rank - 1)) if rank > 2 else vector


def layer_normalization(g: Adjoint) -> Gradients:
    """Statistics over the last axes; the forward node is asked for the mean and 1 / std that it has anyway."""
    rank = g.rank()
    first = g.attribute("axis", -1) % rank
    axes = list(range(first, rank))
    scale, bias = g.input(1), g.optional(2)
    mean, inverse = (g.extra_output(index, ir.DataType.FLOAT).cast_like(g.x) for index in (1, 2))
    xhat = (g.x - mean) * inverse
    dxhat = g.dy * scale
    dx = inverse * (dxhat - dxhat.mean(axes) - xhat * (dxhat * xhat).mean(axes))
    dscale = sum_to(g.dy * xhat, scale, g.x.dims, [None])
    return dx, dscale, None if bias is None else sum_to(g.dy, bias, g.x.dims, [None])


def instance_normalization(g: Adjoint) -> Gradients:
    """Statistics over the spatial axes of each example and channel (Ulyanov 2016)."""
    rank = g.rank()
    axes = list(range(2, rank))
    deviation = g.x - g.x.mean(axes)
    inverse = 1.0 / (deviation.square().mean(axes) + g.attribute("epsilon", 1e-5)).sqrt()
    xhat = deviation * inverse
    dbeta, dgamma = g.dy.mean(axes), (g.dy * xhat).mean(axes)
    dx = per_channel(g.input(1), rank) * inverse * (g.dy - dbeta - xhat * dgamma)
    count, others = g.x.count(axes), [0, *axes]
    return dx, dgamma.sum(others, keepdims=False) * count, dbeta.sum(others, keepdims=False) * count


def lp_normalization(g: Adjoint) -> Gradients:
    """y = x / |x|_p along one axis, p 1 or 2; no gradient where the norm is 0."""
    axes, p = [g.attribute("axis", -1)], g.attribute("p", 2)
    norm = g.builder.op(f"ReduceL{p}", g.x, g.builder.ints(*axes), keepdims=1)
    slope = g.y if p == 2 else g.x.sign()
    centred = g.dy - slope * (g.dy * g.y).sum(axes)
    return (where(norm.equals(0.0), 0.0, centred / norm),)


def local_response_normalization(g: Adjoint) -> Gradients:
    """y = x s^-beta with s = bias + alpha / size times the sum of x^2 over neighbouring channels (Krizhevsky 2012)."""
    channels = g.x.length(1)
    if not isinstance(channels, int):
        raise g.unsupported("the number of channels is dynamic")
    size, beta = g.attribute("size", 1), g.attribute("beta", 0.75)
    scale = g.attribute("alpha", 1e-4) / size
    offset = np.arange(channels)[None] - np.arange(channels)[:, None]
    near = g.builder.constant((offset >= -((size - 1) // 2)) & (offset <= size // 2), g.x.dtype)

    def neighbours(band: Tensor, x: Tensor) -> Tensor:
        return (band @ x.reshape(0, channels, -1)).reshape_like(g.x)

    s = neighbours(near, g.x.square()) * scale + g.attribute("bias", 1.0)
    shared = neighbours(near.transpose(1, 0), g.dy * g.y / s)
    return (g.dy * s**-beta - g.x * shared * (2.0 * beta * scale),)


def dropout(g: Adjoint) -> Gradients:
    """y = mask x / (1 - ratio) in training, y = x otherwise (Srivastava 2014)."""
    training = None if g.optional(2) is None else ir.convenience.get_const_tensor(g.input(2).value)
    if g.optional(2) is None or (training is not None and not training.numpy().item()):
        return (g.dy,)
    ratio = g.optional(1)
    mask = g.extra_output(1, ir.DataType.BOOL)
    kept = 1.0 - (ratio.cast_like(g.dy) if ratio is not None else g.builder.constant(0.5, g.dy.dtype))
    return (g.dy * mask.cast_like(g.dy) / kept,)
