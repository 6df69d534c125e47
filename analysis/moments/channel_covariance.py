"""How channels vary together: the covariance of one channel with another some positions on.

What is known of every pair of channels is an autocovariance (`autocovariance`), whose row c C + d is

    K_cd(lag) = Cov(x_c(p), x_d(p + lag)), averaged over the positions p
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .autocovariance import Autocovariance
from .blocks import blocks_of, repeats
from .quadrature import Array

__all__ = ["ChannelCovariance", "lag_products", "mean_products"]


@dataclass(frozen=True, eq=False)
class ChannelCovariance:
    """Covariance between the channels of a tensor with positions, by lags.

    Attributes:
        pairs: A row for each pair of channels.
    """

    pairs: Autocovariance

    __array_ufunc__ = None
    """So that an array on the left leaves the arithmetic to this class."""

    @classmethod
    def of_lags(cls, lags: Autocovariance) -> ChannelCovariance:
        """Of uncorrelated channels."""
        near, far = (_on_diagonal(k) for k in (lags.near, lags.far))
        return cls(Autocovariance(near, far, lags.lengths))

    @classmethod
    def constant(cls, matrix: Array, lengths: tuple[int, ...]) -> ChannelCovariance:
        """Of positions that are all the same, `[C, C]`."""
        return cls(Autocovariance.constant(matrix.reshape(-1), lengths))

    @classmethod
    def of_products(cls, a: Array, b: Array) -> ChannelCovariance:
        """Mean over the positions p of a_c(p) b_d(p + lag), by spectra, on the torus of all positions."""
        lengths, axes = a.shape[1:], tuple(range(1, a.ndim))
        left, right = (np.fft.rfftn(each, axes=axes) / math.sqrt(math.prod(lengths)) for each in (a, b))
        parts = []
        for rows in blocks_of(len(left), len(left) * right.size):
            spectra = (np.conj(left[rows, None]) * right).reshape(-1, *right.shape[1:])
            parts.append(Autocovariance.of_lags(np.fft.irfftn(spectra, s=lengths, axes=axes)))
        near, far = (np.concatenate([getattr(part, name) for part in parts]) for name in ("near", "far"))
        return cls(Autocovariance(near, far, lengths))

    @property
    def channels(self) -> int:
        """C."""
        return math.isqrt(len(self.pairs.near))

    @property
    def lags(self) -> Autocovariance:
        """Of each channel with itself."""
        return self.pairs.channels(slice(None, None, self.channels + 1))

    @property
    def lag0(self) -> Array:
        """At one position, `[C, C]`."""
        return self.pairs.lag0.reshape(self.channels, self.channels)

    def total(self) -> Array:
        """Sum over all lags, `[C, C]`."""
        return self.pairs.total().reshape(self.channels, self.channels)

    def scaled(self, left: Array, right: Array | None = None) -> ChannelCovariance:
        """K_cd times left_c right_d; right is left unless it is given."""
        return self * np.outer(left, left if right is None else right)

    def scaled_to(self, variance: Array) -> ChannelCovariance:
        """Channels multiplied by what brings them to these variances."""
        lag0 = np.diag(self.lag0)
        ratio = np.divide(variance, lag0, out=np.ones_like(lag0), where=lag0 > 0)
        return self.scaled(np.sqrt(np.maximum(ratio, 0.0)))

    def summing_to(self, total: Array) -> ChannelCovariance:
        """With what all lags but 0 have in common changed, so that all lags sum to `total`, `[C, C]`."""
        return ChannelCovariance(self.pairs.summing_to(total.reshape(-1)))

    def with_lags(self, lags: Autocovariance) -> ChannelCovariance:
        """The same but for what each channel has to do with itself."""
        near, far = (np.array(k) for k in (self.pairs.near, self.pairs.far))
        near[:: self.channels + 1], far[:: self.channels + 1] = lags.near, lags.far
        return ChannelCovariance(Autocovariance(near, far, lags.lengths))

    def with_noise(self, added: Array) -> ChannelCovariance:
        """With independent noise of these variances on every element."""
        return self.with_lags(self.lags.with_lag0(self.lags.lag0 + added))

    def correlation(self) -> ChannelCovariance:
        """Divided by the deviations."""
        std = np.sqrt(np.maximum(np.diag(self.lag0), 0.0))
        scale = np.outer(std, std).reshape(self.pairs.far.shape)
        return ChannelCovariance(self.pairs.over(Autocovariance(scale, scale, self.pairs.lengths)))

    def series(self, coefficients: Sequence[Array | ChannelCovariance]) -> ChannelCovariance:
        """sum_k coefficients_k K^k, each `[C, C]` or by lags."""
        near, far = (
            _series(k, [self._part(each, name) for each in coefficients])
            for k, name in ((self.pairs.near, "near"), (self.pairs.far, "far"))
        )
        return ChannelCovariance(Autocovariance(near, far, self.pairs.lengths))

    def _part(self, coefficients: Array | ChannelCovariance, name: str) -> Any:
        column = self._column(coefficients)
        return getattr(column, name) if isinstance(column, Autocovariance) else column

    def _column(self, other: Any) -> Any:
        if isinstance(other, ChannelCovariance):
            return other.pairs
        return np.reshape(other, self.pairs.far.shape) if np.ndim(other) else other

    def __add__(self, other: ChannelCovariance | Array | float) -> ChannelCovariance:
        return ChannelCovariance(self.pairs + self._column(other))

    def __sub__(self, other: ChannelCovariance | Array | float) -> ChannelCovariance:
        return ChannelCovariance(self.pairs - self._column(other))

    def __mul__(self, other: ChannelCovariance | Array | float) -> ChannelCovariance:
        return ChannelCovariance(self.pairs * self._column(other))

    __radd__, __rmul__ = __add__, __mul__


def mean_products(a: Array, b: Array) -> Array:
    """Mean over positions of a_c b_d, `[C, C]`."""
    return np.asarray(a.reshape(len(a), -1) @ b.reshape(len(b), -1).T / a[0].size)


def lag_products(a: Array, b: Array) -> Array | ChannelCovariance:
    """The same of a_c(p) b_d(p + lag), where it differs from lag to lag."""
    positions = tuple(range(1, a.ndim))
    alike = repeats(a, positions) or repeats(b, positions)
    return mean_products(a, b) if alike else ChannelCovariance.of_products(a, b)


def _series(k: Array, coefficients: Sequence[Array]) -> Array:
    total = np.broadcast_to(coefficients[-1], k.shape).copy()
    for coefficient in reversed(coefficients[:-1]):
        total *= k
        total += coefficient
    return total


def _on_diagonal(rows: Array) -> Array:
    count = len(rows)
    spread = np.zeros((count * count, *rows.shape[1:]))
    spread[:: count + 1] = rows
    return spread
