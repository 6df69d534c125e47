"""The gradient of one example's loss with respect to the model's output, by loss.

For cross-entropy with labels of frequencies f and p = softmax(z), z ~ N(mu, C):

    E[dz] = E[p] - f        E[dz dz'] = E[p p'] - E[p] f' - f E[p]' + diag f

The expectations over z are taken over fixed antithetic draws of the logits alone. Targets of regression are taken as N(0, 1),
those of binary cross-entropy as fair coins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np

from ...graph.errors import InputError
from .quadrature import Array
from .state import GradientMoments, Moments

__all__ = ["HEADS", "output_gradient"]

Head: TypeAlias = "tuple[Array, Array, Array | None]"
"""E[dz], E[dz dz'] (only its diagonal for outputs with positions), E[d dz / dz] where it is known."""

_DRAWS = 4096
_MAX_NUMBERS = 4_000_000


def output_gradient(loss: str, output: Moments, frequencies: Array | None = None) -> GradientMoments:
    """Moments of the gradient at the output; not finite where the output is not.

    Args:
        loss: One of HEADS.
        output: The model's output.
        frequencies: Share of each class among the labels of cross-entropy, `[classes]`; None for equal shares.

    Raises:
        InputError: There are more or fewer frequencies than classes.
    """
    if not (np.all(np.isfinite(output.mean)) and np.all(np.isfinite(output.variance))):
        unknown = np.full(output.shape, np.inf)
        return GradientMoments.of(unknown, unknown)
    head = HEADS[loss]
    if frequencies is not None and loss == "cross-entropy":
        head = partial(_cross_entropy, given=frequencies)
    mean, second, hessian = head(output)
    if second.shape == mean.shape:
        return GradientMoments.of(mean, np.maximum(second - mean**2, 0.0))
    covariance = second - np.outer(mean, mean)
    return GradientMoments.of(mean, np.maximum(np.diag(covariance), 0.0), covariance, hessian)


def _cross_entropy(output: Moments, given: Array | None = None) -> Head:
    f = _frequencies(output.shape[0], given)
    if output.mean.ndim > 1:
        return _per_position(output, f)
    z = _draws(output)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    cross = np.outer(mean, f)
    square = p.T @ p / len(p)
    return mean - f, square - cross - cross.T + np.diag(f), np.diag(mean) - square


def _frequencies(classes: int, given: Array | None) -> Array:
    if given is not None and np.shape(given) != (classes,):
        raise InputError(
            f"label frequencies of shape {list(np.shape(given))}",
            expected=f"one for each of {classes} classes",
        )
    return np.full(classes, 1.0 / classes) if given is None else np.asarray(given, np.float64)


def _per_position(output: Moments, f: Array) -> Head:
    """Classes on the first axis; every position is an example of its own share of the loss."""
    positions = output.mean[0].size
    flat = Moments(output.mean.reshape(len(f), -1).mean(1), output.variance.reshape(len(f), -1).mean(1))
    mean, second, _ = _cross_entropy(flat, f)
    shape = (-1, *[1] * (output.mean.ndim - 1))
    full = output.shape
    return (
        np.broadcast_to(mean.reshape(shape) / positions, full),
        np.broadcast_to(np.diag(second).reshape(shape) / positions**2, full),
        None,
    )


def _mse(output: Moments) -> Head:
    """dz = 2 (z - t) / n."""
    n = output.mean.size
    mean = 2.0 * output.mean / n
    if output.mean.ndim > 1 or output.covariance is None:
        return mean, 4.0 * (output.second + 1.0) / n**2, None
    raw = output.covariance + np.outer(output.mean, output.mean) + np.eye(n)
    return mean, 4.0 * raw / n**2, 2.0 * np.eye(n) / n


def _l1(output: Moments) -> Head:
    """dz = sign(z - t) / n."""
    n = output.mean.size
    z = _draws(output)
    t = np.random.default_rng(1).standard_normal(z.shape)
    return *_moments_over_draws(np.sign(z - t) / n, output.shape), None


def _bce(output: Moments) -> Head:
    """dz = (sigmoid(z) - t) / n, Var t = 1/4."""
    n = output.mean.size
    slope = (1.0 / (1.0 + np.exp(-np.clip(_draws(output), -700, 700))) - 0.5) / n
    mean, second = _moments_over_draws(slope, output.shape)
    return mean, second + (0.25 / n**2 if second.shape == mean.shape else 0.25 * np.eye(n) / n**2), None


def _output(output: Moments) -> Head:
    """The loss is the output's mean."""
    n = output.mean.size
    return np.full(output.shape, 1.0 / n), np.full(output.shape, 1.0 / n**2), None


def _draws(output: Moments) -> Array:
    """Fixed antithetic draws of the output, `[draws, elements]`."""
    n = output.mean.size
    count = int(max(64, min(_DRAWS, _MAX_NUMBERS // n))) // 2
    xi = np.random.default_rng(0).standard_normal((count, n))
    if output.covariance is not None and output.mean.ndim == 1:
        values, vectors = np.linalg.eigh(output.covariance)
        z = (xi * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    else:
        z = xi * np.sqrt(output.variance.reshape(-1))
    return np.asarray(output.mean.reshape(-1) + np.concatenate([z, -z]))


def _moments_over_draws(slope: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    mean = slope.mean(0).reshape(shape)
    if len(shape) == 1:
        return mean, slope.T @ slope / len(slope)
    return mean, (slope**2).mean(0).reshape(shape)


HEADS: Mapping[str, Callable[[Moments], Head]] = {
    "cross-entropy": _cross_entropy,
    "mse": _mse,
    "l1": _l1,
    "bce-with-logits": _bce,
    "output": _output,
}
"""By loss."""
