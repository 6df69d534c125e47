"""The gradient of one example's loss with respect to the model's output, by loss.

For cross-entropy with labels of frequencies f and p = softmax(z), z ~ N(mu, C):

    E[dz] = E[p] - f        E[dz dz'] = E[p p'] - E[p] f' - f E[p]' + diag f

The expectations over z are taken over fixed antithetic draws of the logits alone. Targets of regression are taken as N(0, 1),
those of two classes as fair coins, and probabilities of classes as equal. Weights of classes change their frequencies; labels
that do not count are taken to be none. A loss that is not listed is taken as the mean square.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ...graph.errors import InputError
from ...graph.losses import base_name, loss_named
from .blocks import blocks_of
from .quadrature import Array
from .state import GradientMoments, Moments

__all__ = ["HEADS", "output_gradient"]

Head: TypeAlias = "tuple[Array, Array, Array | None]"
"""E[dz], E[dz dz'] (only its diagonal for outputs with positions), E[d dz / dz] where it is known."""

_DRAWS = 4096
_MAX_NUMBERS = 1_000_000


def output_gradient(loss: str, output: Moments, frequencies: Array | None = None) -> GradientMoments:
    """Moments of the gradient at the output; not finite where the output is not.

    Args:
        loss: The loss's name, with its parameters.
        output: The model's output.
        frequencies: Share of each class among the labels of cross-entropy, `[classes]`; None for equal shares.

    Raises:
        InputError: There are more or fewer frequencies than classes.
    """
    if not (np.all(np.isfinite(output.mean)) and np.all(np.isfinite(output.variance))):
        unknown = np.full(output.shape, np.inf)
        return GradientMoments.of(unknown, unknown)
    head = HEADS.get(base_name(loss), _mse)
    if base_name(loss) in _OF_LABELS:
        head = partial(head, given=frequencies)
    mean, second, hessian = head(output, **_parameters(loss))
    if second.shape == mean.shape:
        return GradientMoments.of(mean, np.maximum(second - mean**2, 0.0))
    _subtract_outer(second, mean, mean)
    return GradientMoments.of(mean, np.maximum(np.diag(second), 0.0), second, hessian)


def _parameters(loss: str) -> dict[str, Any]:
    """The parameters that a loss was given, and that its gradient depends on."""
    if base_name(loss) not in HEADS:
        return {}
    given = getattr(loss_named(loss).build, "keywords", {})
    return {name: value for name, value in given.items() if name not in ("ignore_index", "log_target")}


def _cross_entropy(
    output: Moments,
    given: Array | None = None,
    weight: Sequence[float] = (),
    label_smoothing: float = 0.0,
) -> Head:
    f = _frequencies(output.shape[0], given, weight)
    target = (1.0 - label_smoothing) * f + label_smoothing / len(f)
    square = np.diag((1.0 - label_smoothing) ** 2 * f)
    if label_smoothing:
        spread = np.full(len(f), label_smoothing / len(f))
        cross = (1.0 - label_smoothing) * np.outer(f, spread)
        square += cross + cross.T + np.outer(spread, spread)
    if output.mean.ndim > 1:
        return _per_position(output, target, square)
    return _of_logits(output, target, square)


def _of_logits(output: Moments, target: Array, second: Array) -> Head:
    """From E[t] and E[t t'] of the labels t as probabilities; the latter's memory is used."""
    p = _draws(output)
    p -= p.max(1, keepdims=True)
    p = np.exp(p, out=p)
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    square = p.T @ p
    square /= len(p)
    del p
    second += square
    _subtract_outer(second, mean, target)
    _subtract_outer(second, target, mean)
    hessian = np.negative(square, out=square)
    hessian.flat[:: len(mean) + 1] += mean
    return mean - target, second, hessian


def _subtract_outer(matrix: Array, a: Array, b: Array) -> None:
    """Take a b' from a matrix, in place."""
    for rows in blocks_of(len(a), matrix.size):
        matrix[rows] -= np.outer(a[rows], b)


def _frequencies(classes: int, given: Array | None, weight: Sequence[float] = ()) -> Array:
    """The share of each class in the loss."""
    if given is not None and np.shape(given) != (classes,):
        raise InputError(
            f"label frequencies of shape {list(np.shape(given))}",
            expected=f"one for each of {classes} classes",
        )
    f = np.ones(classes) if given is None else np.asarray(given, np.float64)
    f = f * weight if len(weight) else f
    return np.asarray(f / f.sum())


def _per_position(output: Moments, target: Array, target_square: Array) -> Head:
    """Classes on the first axis; every position is an example of its own share of the loss."""
    positions = output.mean[0].size
    classes = len(target)
    flat = Moments(output.mean.reshape(classes, -1).mean(1), output.variance.reshape(classes, -1).mean(1))
    mean, second, _ = _of_logits(flat, target, target_square)
    shape = (-1, *[1] * (output.mean.ndim - 1))
    full = output.shape
    return (
        np.broadcast_to(mean.reshape(shape) / positions, full),
        np.broadcast_to(np.diag(second).reshape(shape) / positions**2, full),
        None,
    )


def _nll(output: Moments, given: Array | None = None, weight: Sequence[float] = ()) -> Head:
    """dz = -1 at the label, shared by the positions."""
    f = _frequencies(output.shape[0], given, weight)
    if output.mean.ndim == 1:
        return -f, np.diag(f), None
    positions = output.mean[0].size
    shares = np.broadcast_to(f.reshape(-1, *[1] * (output.mean.ndim - 1)), output.shape)
    return -shares / positions, shares / positions**2, None


def _multi_margin(output: Moments, given: Array | None = None, margin: float = 1.0) -> Head:
    """dz_i = [margin - z_label + z_i > 0] / C beside the label, and minus their sum at the label."""
    classes = output.shape[0]
    z, rng = _draws(output), np.random.default_rng(1)
    labels = rng.choice(classes, len(z), p=_frequencies(classes, given))
    rows = np.arange(len(z))
    slope = (margin - z[rows, labels, None] + z > 0).astype(np.float64)
    slope[rows, labels] = 0.0
    slope[rows, labels] = -slope.sum(1)
    return *_moments_over_draws(slope / classes, output.shape), None


def _mse(output: Moments) -> Head:
    """dz = 2 (z - t) / n."""
    n = output.mean.size
    mean = 2.0 * output.mean / n
    if output.mean.ndim > 1 or output.covariance is None:
        return mean, 4.0 * (output.second + 1.0) / n**2, None
    raw = output.covariance + np.outer(output.mean, output.mean) + np.eye(n)
    return mean, 4.0 * raw / n**2, 2.0 * np.eye(n) / n


def _drawn(slope: Callable[[Array, Array], Array], output: Moments, *, coins: bool = False) -> Head:
    """dz = slope(z, t) / n for targets of N(0, 1), or, for coins, of -1 or 1."""
    z, rng = _draws(output), np.random.default_rng(1)
    t = rng.choice([-1.0, 1.0], z.shape) if coins else rng.standard_normal(z.shape)
    return *_moments_over_draws(slope(z, np.asarray(t)) / output.mean.size, output.shape), None


def _l1(output: Moments) -> Head:
    """dz = sign(z - t) / n."""
    return _drawn(lambda z, t: np.asarray(np.sign(z - t)), output)


def _smooth_l1(output: Moments, beta: float = 1.0) -> Head:
    """dz = clip((z - t) / beta, -1, 1) / n."""
    return _drawn(lambda z, t: np.clip((z - t) / beta, -1.0, 1.0), output)


def _huber(output: Moments, delta: float = 1.0) -> Head:
    """dz = clip(z - t, -delta, delta) / n."""
    return _drawn(lambda z, t: np.clip(z - t, -delta, delta), output)


def _hinge(output: Moments, margin: float = 1.0) -> Head:
    """dz = -t [t z < margin] / n."""
    return _drawn(lambda z, t: -t * (t * z < margin), output, coins=True)


def _hinge_embedding(output: Moments, margin: float = 1.0) -> Head:
    """dz = 1 / n where t is 1, -[z < margin] / n where t is -1."""
    return _drawn(lambda z, t: np.where(t > 0, 1.0, -1.0 * (z < margin)), output, coins=True)


def _bce_of_probabilities(output: Moments) -> Head:
    """dz = (z - t) / (z (1 - z)) / n, z held in 1e-6 .. 1 - 1e-6."""

    def slope(z: Array, t: Array) -> Array:
        p = np.clip(z, 1e-6, 1.0 - 1e-6)
        return np.asarray((p - (t + 1.0) / 2.0) / (p * (1.0 - p)))

    return _drawn(slope, output, coins=True)


def _kl(output: Moments) -> Head:
    """dz = -t, with t the same for every class."""
    share = 1.0 / math.prod(output.shape[:1])
    return np.full(output.shape, -share), np.full(output.shape, share**2), None


def _cosine(output: Moments) -> Head:
    """dz = (cos z / |z| - t / |t|) / |z|."""
    z, rng = _draws(output), np.random.default_rng(1)
    length = np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-6)
    t = rng.standard_normal(z.shape)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    cosine = (z * t).sum(1, keepdims=True) / length
    return *_moments_over_draws((cosine * z / length - t) / length, output.shape), None


def _bce(output: Moments, pos_weight: float | Sequence[float] = 1.0) -> Head:
    """dz = (sigmoid(z) - t) / n, where t = 1 multiplied by its weight."""

    def slope(z: Array, t: Array) -> Array:
        p, w = 1.0 / (1.0 + np.exp(-np.clip(z, -700, 700))), np.broadcast_to(pos_weight, output.shape)
        return np.asarray(np.where(t > 0, (p - 1.0) * w.reshape(-1), p))

    if pos_weight != 1.0:
        return _drawn(slope, output, coins=True)
    n = output.mean.size
    mean, second = _moments_over_draws((slope(_draws(output), np.zeros(1)) - 0.5) / n, output.shape)
    return mean, second + (0.25 / n**2 if second.shape == mean.shape else 0.25 * np.eye(n) / n**2), None


def _output(output: Moments) -> Head:
    """The loss is the output's mean."""
    n = output.mean.size
    return np.full(output.shape, 1.0 / n), np.full(output.shape, 1.0 / n**2), None


def _draws(output: Moments) -> Array:
    """Fixed antithetic draws of the output, `[draws, elements]`."""
    n = output.mean.size
    count = int(max(64, min(_DRAWS, _MAX_NUMBERS // n))) // 2
    z = np.empty((2 * count, n))
    xi, opposite = z[:count], z[count:]
    np.random.default_rng(0).standard_normal(out=xi)
    if output.covariance is not None and output.mean.ndim == 1:
        values, vectors = np.linalg.eigh(output.covariance)
        xi[:] = xi @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    else:
        xi *= np.sqrt(output.variance.reshape(-1))
    np.negative(xi, out=opposite)
    z += output.mean.reshape(-1)
    return z


def _moments_over_draws(slope: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    mean = slope.mean(0).reshape(shape)
    if len(shape) == 1:
        return mean, slope.T @ slope / len(slope)
    return mean, (slope**2).mean(0).reshape(shape)


_OF_LABELS = ("cross-entropy", "nll", "multi-margin")

HEADS: Mapping[str, Callable[..., Head]] = {
    "cross-entropy": _cross_entropy,
    "nll": _nll,
    "multi-margin": _multi_margin,
    "mse": _mse,
    "l1": _l1,
    "smooth-l1": _smooth_l1,
    "huber": _huber,
    "bce": _bce_of_probabilities,
    "bce-with-logits": _bce,
    "kl": _kl,
    "hinge": _hinge,
    "hinge-embedding": _hinge_embedding,
    "cosine-embedding": _cosine,
    "output": _output,
}
"""By loss; keyword arguments are the loss's parameters."""
