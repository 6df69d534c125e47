"""Sequences of tokens: a covariance that the tokens share, and one that each has for itself.

Some axes of one example are its tokens t; the others, flattened, are its features i. With D the standard deviation of each
element,

    Cov(x_ti, x_tj) = within_ij D_ti D_tj          Cov(x_ti, x_sj) = between_ij D_ti D_sj,   s not t

so that tokens are exchangeable but for their mean and scale. Elements are used as rows `[T, F]`; matrices over features are
`[F, F]`, or `[F]` where only their diagonal is carried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .blocks import product
from .quadrature import Array

__all__ = [
    "MATRIX_LIMIT",
    "TokenCorrelation",
    "TokenResponse",
    "TokenTilt",
    "as_rows",
    "congruence",
    "diagonal",
    "from_rows",
    "of_hadamard",
    "of_sum",
    "over_tokens",
    "sum_variance",
]

MATRIX_LIMIT = 400
"""Features beyond which only the diagonal of their covariance is carried: the matrices cost their cube."""


@dataclass(frozen=True)
class TokenCorrelation:
    """Correlation of a sequence's elements, as above.

    Attributes:
        axes: The axes of tokens among one example's axes.
        within: Of features of one token; ones where it is `[F]`.
        between: Of features of two tokens.
    """

    axes: tuple[int, ...]
    within: Array
    between: Array

    @classmethod
    def white(cls, axes: tuple[int, ...], shape: tuple[int, ...]) -> TokenCorrelation:
        """Uncorrelated elements."""
        features = int(np.prod([length for axis, length in enumerate(shape) if axis not in axes]))
        return cls(axes, np.ones(features), np.zeros(features))

    @classmethod
    def of_covariances(
        cls, axes: tuple[int, ...], within: Array, between: Array, deviation: Array
    ) -> TokenCorrelation:
        """From covariances averaged over tokens, and the standard deviations `[T, F]`."""
        own, common = _profiles(deviation, within.ndim == 2)
        correlation = np.ones(within.shape) if within.ndim == 1 else np.clip(_ratio(within, own), -1.0, 1.0)
        if correlation.ndim == 2:
            np.fill_diagonal(correlation, 1.0)
        return cls(axes, correlation, np.clip(_ratio(between, common), -1.0, 1.0))

    def covariances(self, deviation: Array) -> tuple[Array, Array]:
        """Covariances within and between tokens, averaged over the tokens."""
        own, common = _profiles(deviation, self.within.ndim == 2)
        return self.within * own, self.between * common

    @property
    def shared(self) -> Array:
        """Correlation of each feature with itself in another token, `[F]`."""
        return diagonal(self.between)


@dataclass(frozen=True)
class TokenResponse:
    """How a sequence's gradient moves with its values, on average over examples: a hessian with the form of a covariance.

    Attributes:
        axes: The axes of tokens.
        own: E[d dy_ti / d y_tj], `[F, F]`, averaged over tokens.
        between: E[d dy_ti / d y_sj] of two tokens, averaged over pairs.
    """

    axes: tuple[int, ...]
    own: Array
    between: Array

    def __add__(self, other: TokenResponse) -> TokenResponse:
        return TokenResponse(self.axes, self.own + other.own, self.between + other.between)

    def through(self, weight: Array) -> TokenResponse:
        """At x where it is known at y = x W."""
        return TokenResponse(self.axes, weight @ self.own @ weight.T, weight @ self.between @ weight.T)

    def moment(self, tokens: TokenCorrelation, deviation: Array) -> Array:
        """sum over t of E[y_ti dy_tj] about the means, `[F, F]` (Stein's lemma), given the covariance of y."""
        within, between = (np.diag(c) if c.ndim == 1 else c for c in tokens.covariances(deviation))
        count = len(deviation)
        return np.asarray(count * (within @ self.own.T + (count - 1) * between @ self.between.T))


@dataclass(frozen=True)
class TokenTilt:
    """What a sequence's gradient dy, which moves with the values, adds up to over the tokens of an example.

    The values are standardised over tokens and examples: zeta = (y - mean) / deviation, those of `over_tokens`.

    Attributes:
        axes: The axes of tokens.
        variance: Var(sum_t dy_ti zeta_ti), `[F]`.
        with_sum: Its covariance with sum_t dy_ti, `[F]`.
    """

    axes: tuple[int, ...]
    variance: Array
    with_sum: Array


def over_tokens(mean: Array, variance: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean and standard deviation of every feature over tokens and examples, of length 1 along the axes of tokens."""
    spread = variance.mean(axes, keepdims=True) + mean.var(axes, keepdims=True)
    return mean.mean(axes, keepdims=True), np.sqrt(spread)


def _profiles(deviation: Array, full: bool) -> tuple[Array, Array]:
    """D_ti D_tj averaged over tokens, and over pairs of tokens."""
    mean = deviation.mean(0)
    if full:
        return deviation.T @ deviation / len(deviation), np.outer(mean, mean)
    return np.mean(deviation**2, 0), mean**2


def _ratio(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator > 0)


def as_rows(array: Array, axes: tuple[int, ...]) -> Array:
    """Elements of one example as `[T, F]`."""
    front = tuple(range(len(axes)))
    count = int(np.prod([array.shape[axis] for axis in axes]))
    return np.moveaxis(array, axes, front).reshape(count, -1)


def from_rows(rows: Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """The inverse of `as_rows`, for an example of this shape."""
    others = tuple(length for axis, length in enumerate(shape) if axis not in axes)
    moved = rows.reshape(*(shape[axis] for axis in axes), *others)
    return np.moveaxis(moved, tuple(range(len(axes))), axes)


def diagonal(matrix: Array) -> Array:
    """The diagonal of a matrix over features, in either form."""
    return matrix if matrix.ndim == 1 else np.diag(matrix)


def congruence(matrix: Array, weight: Array, full: bool) -> Array:
    """W' C W of a covariance in either form; only its diagonal unless `full`."""
    small = full and max(weight.shape) <= MATRIX_LIMIT
    if matrix.ndim == 1:
        return np.asarray((weight.T * matrix) @ weight) if small else product(matrix, weight, square=True)
    spread = product(matrix, weight)
    return np.asarray(weight.T @ spread if small else np.sum(weight * spread, 0))


def of_sum(
    parts: Sequence[tuple[TokenCorrelation | None, Array]], variance: Array
) -> TokenCorrelation | None:
    """Correlation of a sum of uncorrelated sequences, given each one's correlation and variance, and the sum's variance."""
    known = [tokens for tokens, _ in parts if tokens is not None]
    if not known or any(tokens.axes != known[0].axes for tokens in known):
        return None
    axes = known[0].axes
    covariances = []
    for tokens, own in parts:
        filled = TokenCorrelation.white(axes, own.shape) if tokens is None else tokens
        covariances.append(filled.covariances(as_rows(np.sqrt(own), axes)))
    within, between = (_sum_of_matrices(matrices) for matrices in zip(*covariances, strict=True))
    return TokenCorrelation.of_covariances(axes, within, between, as_rows(np.sqrt(variance), axes))


def of_hadamard(
    parts: Sequence[tuple[TokenCorrelation | None, Array, Array]], variance: Array
) -> TokenCorrelation | None:
    """Correlation of the elementwise product of two independent tensors, given each one's correlation, mean and variance.

    Cov = C1 o C2 + C1 o m2 m2' + m1 m1' o C2, means averaged over tokens; an operand of another shape is broadcast.
    """
    known = [tokens for tokens, mean, _ in parts if tokens is not None and mean.shape == variance.shape]
    if not known or any(tokens.axes != known[0].axes for tokens in known):
        return None
    axes, full, terms = known[0].axes, all(tokens.within.ndim == 2 for tokens in known), []
    for tokens, mean, own in parts:
        held = tokens if tokens is not None and mean.shape == variance.shape else None
        filled = TokenCorrelation.white(axes, variance.shape) if held is None else held
        own, mean = (as_rows(np.broadcast_to(a, variance.shape), axes) for a in (own, mean))
        within, between = filled.covariances(np.sqrt(own))
        if full and within.ndim == 1:
            within, between = np.diag(within), np.diag(between)
        elif not full:
            within, between = diagonal(within), diagonal(between)
        terms.append((within, between, *_profiles(mean, full)))
    (w1, b1, m1, n1), (w2, b2, m2, n2) = terms
    within, between = w1 * w2 + w1 * m2 + m1 * w2, b1 * b2 + b1 * n2 + n1 * b2
    return TokenCorrelation.of_covariances(axes, within, between, as_rows(np.sqrt(variance), axes))


def _sum_of_matrices(matrices: Sequence[Array]) -> Array:
    full = any(matrix.ndim == 2 for matrix in matrices)
    total = sum(np.diag(matrix) if full and matrix.ndim == 1 else matrix for matrix in matrices)
    return np.asarray(total)


def sum_variance(variance: Array, shared: Array) -> Array:
    """Variance of the sum over tokens of each feature, from its variances `[T, F]`."""
    own = (1.0 - shared) * variance.sum(0)
    return np.asarray(np.maximum(own + shared * np.sqrt(variance).sum(0) ** 2, 0.0))
