"""Fixed draws of Gaussian tensors of known moments, and the moments of what is drawn.

Where a tensor is no function of one Gaussian per element - attention weights, products of two sequences - it is carried as
draws for a while. The draws are of the moments, not of data: Gaussian by construction, the same in every run.
"""

from __future__ import annotations

import zlib

import numpy as np

from .quadrature import Array
from .state import GradientDraws, GradientMoments, Moments, ParameterGradient, ValueDraws
from .tokens import MATRIX_LIMIT, TokenCorrelation, as_rows, from_rows

__all__ = [
    "drawn_gradient",
    "drawn_parameter",
    "drawn_value",
    "fitted_value",
    "sample",
    "sample_gradient",
    "token_deviations",
]


def sample(moments: Moments, name: str, count: int) -> Array:
    """`count` antithetic draws of a tensor, `[count, *elements]`; one name always gives the same ones."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    half = _deviations(moments, rng, (count + 1) // 2)
    deviations = np.concatenate([half, -half])[:count]
    return np.asarray(moments.mean.astype(np.float32) + deviations, np.float32)


def sample_gradient(gradient: GradientMoments, name: str, values: Array) -> GradientDraws:
    """What draws of the tensor tell of its gradient - the mean, and how it moves with the value - and draws about that."""
    rng = np.random.default_rng(zlib.crc32(b"gradient of " + name.encode()))
    coherent = np.broadcast_to(gradient.mean.astype(np.float32), values.shape)
    coherent = coherent + _moved(gradient, values - values.mean(0))
    return GradientDraws(coherent, _deviations(gradient, rng, len(values)))


def _moved(gradient: GradientMoments, deviations: Array) -> Array:
    """The hessian times the value's deviation from its mean."""
    if gradient.hessian is not None and deviations.ndim == 2:
        return np.asarray(deviations @ gradient.hessian.T, np.float32)
    response = gradient.response
    if response is None:
        return np.zeros((), np.float32)
    own, between = (response.own - response.between).T, response.between.T
    rows = np.stack([as_rows(each, response.axes) for each in deviations])
    moved = rows @ own + rows.sum(1, keepdims=True) @ between
    return np.stack([from_rows(row, response.axes, deviations.shape[1:]) for row in moved]).astype(np.float32)


def _deviations(moments: Moments | GradientMoments, rng: np.random.Generator, count: int) -> Array:
    shape = moments.mean.shape
    deviation = np.sqrt(moments.variance).astype(np.float32)
    if moments.tokens is not None:
        rows = token_deviations(moments.tokens, rng, count, as_rows(deviation, moments.tokens.axes))
        return np.stack([from_rows(row, moments.tokens.axes, shape) for row in rows])
    xi = rng.standard_normal((count, *shape), np.float32)
    if moments.covariance is not None and moments.mean.ndim == 1:
        return np.asarray(xi @ _root(moments.covariance).T)
    return np.asarray(xi * deviation)


def token_deviations(
    tokens: TokenCorrelation, rng: np.random.Generator, count: int, deviation: Array
) -> Array:
    """Draws of mean 0 of a sequence whose elements have these deviations `[T, F]`."""
    length, features = deviation.shape
    common = rng.standard_normal((count, 1, features), np.float32)
    own = rng.standard_normal((count, length, features), np.float32)
    if tokens.within.ndim == 1:
        shared = np.clip(tokens.between, 0.0, 1.0).astype(np.float32)
        return np.asarray((common * np.sqrt(shared) + own * np.sqrt(1.0 - shared)) * deviation)
    drawn = common @ _root(tokens.between).T + own @ _root(tokens.within - tokens.between).T
    return np.asarray(drawn * deviation)


def _root(covariance: Array) -> Array:
    """A matrix R with R R' = C; what is negative in C counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)), np.float32)


def drawn_value(draws: Array, axes: tuple[int, ...]) -> Moments:
    """A tensor that stays drawn; `axes` are its axes of tokens."""
    finite = np.where(np.isfinite(draws), draws, 0.0)  # a mask of minus infinity has no moments
    mean, variance = finite.mean(0, dtype=np.float64), finite.var(0, dtype=np.float64)
    return Moments(mean, variance, drawn=ValueDraws(draws.shape, axes))


def fitted_value(draws: Array, axes: tuple[int, ...] | None) -> Moments:
    """The moments of draws: of a sequence whose tokens are on `axes`, or of one row."""
    mean = draws.mean(0, dtype=np.float64)
    deviations = draws - mean.astype(np.float32)
    variance = np.mean(deviations.astype(np.float64) ** 2, 0)
    if axes:
        variance, tokens = _sequence(deviations, len(deviations), variance, axes)
        return Moments(mean, variance, tokens=tokens)
    covariance = None
    if mean.ndim == 1 and mean.size <= MATRIX_LIMIT:
        covariance = (deviations.T @ deviations / len(deviations)).astype(np.float64)
    return Moments(mean, variance, covariance)


def drawn_gradient(draws: GradientDraws, axes: tuple[int, ...] | None) -> GradientMoments:
    """Moments of a gradient, which keeps its draws."""
    mean, noise = _mean(draws.coherent)
    about = draws.coherent - mean.astype(np.float32)
    mean = mean * _kept(mean, noise)
    variance = np.mean(about.astype(np.float64) ** 2, 0) + np.mean(draws.scattered.astype(np.float64) ** 2, 0)
    tokens = None
    if axes:
        stacked = np.concatenate([about, draws.scattered])
        variance, tokens = _sequence(stacked, len(about), variance, axes)
    gradient = GradientMoments.of(mean, variance, tokens=tokens)
    return gradient.with_draws(draws)


def drawn_parameter(coherent: Array, scattered: Array) -> ParameterGradient:
    """Moments of the gradient of a shared tensor, `[count, *shape]` of examples."""
    mean, noise = _mean(coherent)
    variance = coherent.var(0, dtype=np.float64) + np.mean(scattered.astype(np.float64) ** 2, 0)
    return ParameterGradient(mean * _kept(mean, noise), variance)


def _mean(draws: Array) -> tuple[Array, Array]:
    """The mean, and the variance that it has because the draws are few."""
    count = len(draws)
    return draws.mean(0, dtype=np.float64), draws.var(0, dtype=np.float64) / max(count - 1, 1)


def _kept(mean: Array, noise: Array) -> float:
    """How much of an estimated mean is no noise: a batch would take the noise for a coherent part."""
    energy = float(np.sum(mean**2))
    return float(np.sqrt(max(0.0, 1.0 - float(np.sum(noise)) / energy))) if energy > 0 else 0.0


def _sequence(
    deviations: Array, count: int, variance: Array, axes: tuple[int, ...]
) -> tuple[Array, TokenCorrelation]:
    """Variance as a product of one profile over tokens and one over features, and the correlation of `count` examples."""
    rows = as_rows(variance, axes)
    smooth = np.outer(rows.mean(1), rows.mean(0)) / max(float(rows.mean()), np.finfo(float).tiny)
    by_token = np.stack([as_rows(each, axes) for each in deviations])
    length, features = rows.shape
    summed = by_token.sum(1)
    if features <= MATRIX_LIMIT:
        flat = by_token.reshape(-1, features)
        within, total = flat.T @ flat / (count * length), summed.T @ summed / count
    else:
        within, total = np.sum(by_token**2, (0, 1)) / (count * length), np.sum(summed**2, 0) / count
    between = (total - length * within) / max(length * (length - 1), 1)
    tokens = TokenCorrelation.of_covariances(
        axes, within.astype(np.float64), between.astype(np.float64), np.sqrt(smooth)
    )
    return from_rows(smooth, axes, variance.shape), tokens
