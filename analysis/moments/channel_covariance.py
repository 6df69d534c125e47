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
from .quadrature import Array

__all__ = ["ChannelCovariance", "mean_products"]


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
        near, far = (
            np.clip(np.divide(k, scale, out=np.zeros_like(k), where=scale > 0), -1.0, 1.0)
            for k in (self.pairs.near, self.pairs.far)
        )
        return ChannelCovariance(Autocovariance(near, far, self.pairs.lengths))

    def series(self, coefficients: Sequence[Array]) -> ChannelCovariance:
        """sum_k coefficients_k K^k, each `[C, C]`."""
        columns = [self._column(matrix) for matrix in coefficients]
        near, far = (np.broadcast_to(columns[-1], k.shape).copy() for k in (self.pairs.near, self.pairs.far))
        for column in reversed(columns[:-1]):
            near *= self.pairs.near
            near += column
            far *= self.pairs.far
            far += column
        return ChannelCovariance(Autocovariance(near, far, self.pairs.lengths))

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


def _on_diagonal(rows: Array) -> Array:
    count = len(rows)
    spread = np.zeros((count * count, *rows.shape[1:]))
    spread[:: count + 1] = rows
    return spread
