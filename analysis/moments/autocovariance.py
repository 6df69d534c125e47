"""How the positions of a channel vary together: near lags one by one, and one number for all that lie further.

The lags of n positions form a torus, on which convolutions are products of spectra. Beyond REACH lags of an axis the smaller
torus stands in for it, for what the near lags have in excess of the far ones. What reaches past its edge comes in again at
the other side, so that sums over all lags stay exact:

    sum over lags of K = n far + sum(near - far)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .blocks import one_of, repeats
from .quadrature import Array

__all__ = ["REACH", "Autocovariance", "torus"]

REACH = 8
"""Lags of an axis that are carried one by one; an axis of up to so many positions is carried whole."""


def torus(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Lags that are carried for these numbers of positions."""
    return tuple(min(length, REACH) for length in lengths)


@dataclass(frozen=True, eq=False)
class Autocovariance:
    """Covariance of each channel with itself some positions away, averaged over positions.

    Arithmetic is lag by lag, with another or with an array `[C, 1, ...]`.

    Attributes:
        near: `[C, *torus(lengths)]`, lag 0 first, then 1, ..., -2, -1.
        far: `[C, 1, ...]`.
        lengths: Positions of each axis.
    """

    near: Array
    far: Array
    lengths: tuple[int, ...]

    __array_ufunc__ = None
    """So that an array on the left leaves the arithmetic to this class."""

    @classmethod
    def white(cls, variance: Array, lengths: tuple[int, ...]) -> Autocovariance:
        """Of uncorrelated positions, given each channel's variance."""
        near, far = (np.zeros((len(variance), *lags)) for lags in (torus(lengths), (1,) * len(lengths)))
        return cls(near, far, lengths).with_lag0(variance)

    @classmethod
    def constant(cls, value: Array, lengths: tuple[int, ...]) -> Autocovariance:
        """Of positions that are all the same."""
        far = value.reshape(-1, *[1] * len(lengths))
        return cls(np.broadcast_to(far, (len(far), *torus(lengths))), far, lengths)

    @classmethod
    def of_products(cls, elements: Array) -> Autocovariance:
        """Mean over positions of the products of two elements of `[C, *positions]`, on the torus of all positions."""
        axes, lengths = tuple(range(1, elements.ndim)), elements.shape[1:]
        if repeats(elements, axes):
            return cls.constant(one_of(elements, axes).reshape(-1) ** 2, lengths)
        power = np.abs(np.fft.rfftn(elements, axes=axes)) ** 2
        return cls.of_lags(np.fft.irfftn(power, s=lengths, axes=axes) / math.prod(lengths))

    @classmethod
    def of_lags(cls, products: Array) -> Autocovariance:
        """Given all lags of the torus of all positions, `[C, *positions]`."""
        axes, lengths = tuple(range(1, products.ndim)), products.shape[1:]
        lags = [np.fft.fftfreq(n, 1.0 / n).round().astype(int) for n in torus(lengths)]
        places: Any = (slice(None), *np.ix_(*lags))
        near = products[places]
        more = max(math.prod(lengths) - near[0].size, 1)
        far = (products.sum(axes) - near.sum(axes)) / more
        return cls(near, far.reshape(-1, *[1] * len(lengths)), lengths)

    @property
    def count(self) -> int:
        """Positions."""
        return math.prod(self.lengths)

    @property
    def lag0(self) -> Array:
        """The variance of each channel."""
        return self.near.reshape(len(self.near), -1)[:, 0]

    def total(self) -> Array:
        """Sum over all lags, per channel."""
        lags = self.near[0].size
        return np.asarray(
            self.near.reshape(len(self.near), -1).sum(1) + (self.count - lags) * self.far.reshape(-1)
        )

    def products(self, other: Autocovariance) -> Array:
        """Sum over all lags of the product of two channels' covariances, `[C, C of the other]`."""
        a, b = (k.near.reshape(len(k.near), -1) for k in (self, other))
        more = self.count - a.shape[1]
        if not more:
            return np.asarray(a @ b.T)
        far = (k.far.reshape(-1, 1) for k in (self, other))
        ones, others = (np.concatenate(part, 1) for part in zip((a, b), far, strict=True))
        ones[:, -1] *= more
        return np.asarray(ones @ others.T)

    def with_lag0(self, variance: Array) -> Autocovariance:
        """The same but for lag 0."""
        near = np.array(self.near, order="C")
        near.reshape(len(near), -1)[:, 0] = variance
        return Autocovariance(near, self.far, self.lengths)

    def scaled_to(self, variance: Array) -> Autocovariance:
        """All lags of a channel multiplied by what brings lag 0 to its variance."""
        lag0 = self.lag0
        ratio = np.divide(variance, lag0, out=np.ones_like(lag0), where=lag0 > 0)
        return self * np.maximum(ratio, 0.0).reshape(self.far.shape)

    def summing_to(self, total: Array) -> Autocovariance:
        """With what all lags but 0 have in common changed, so that all lags sum to `total`."""
        if self.count == 1:
            return self
        more = ((total - self.total()) / (self.count - 1)).reshape(self.far.shape)
        return (self + more).with_lag0(self.lag0)

    def scaled(self, factor: Array) -> Autocovariance:
        """Each channel's times a factor that is not negative, `[C, 1, ...]`; it holds no lags of its own."""
        return _Scaled(self, factor)

    def laid_out(self) -> Array:
        """All lags of the torus of all positions, `[C, *positions]`."""
        full = np.array(np.broadcast_to(self.far, (len(self.near), *self.lengths)))
        lags = [np.fft.fftfreq(n, 1.0 / n).round().astype(int) for n in self.near.shape[1:]]
        places: Any = (slice(None), *np.ix_(*lags))
        full[places] = self.near
        return full

    def correlation(self) -> Autocovariance:
        """Divided by lag 0."""
        scale = self.lag0.reshape(self.far.shape)
        return self.over(Autocovariance(scale, scale, self.lengths))

    def over(self, scale: Autocovariance) -> Autocovariance:
        """Divided by what no covariance exceeds."""
        near, far = (
            np.clip(np.divide(k, by, out=np.zeros_like(k), where=by > 0), -1.0, 1.0)
            for k, by in ((self.near, scale.near), (self.far, scale.far))
        )
        return Autocovariance(near, far, self.lengths)

    def channels(self, part: Any) -> Autocovariance:
        """Of some channels."""
        return Autocovariance(self.near[part], self.far[part], self.lengths)

    def summed(self) -> Autocovariance:
        """Of the sum over channels, as if they were uncorrelated, `[1, ...]`."""
        return Autocovariance(self.near.sum(0, keepdims=True), self.far.sum(0, keepdims=True), self.lengths)

    def _with(self, other: Any, operation: Callable[[Any, Any], Any]) -> Autocovariance:
        near, far = (other.near, other.far) if isinstance(other, Autocovariance) else (other, other)
        return Autocovariance(operation(self.near, near), operation(self.far, far), self.lengths)

    def __add__(self, other: Autocovariance | Array | float) -> Autocovariance:
        return self._with(other, operator.add)

    def __sub__(self, other: Autocovariance | Array | float) -> Autocovariance:
        return self._with(other, operator.sub)

    def __mul__(self, other: Autocovariance | Array | float) -> Autocovariance:
        return self._with(other, operator.mul)

    __radd__, __rmul__ = __add__, __mul__


class _Scaled(Autocovariance):
    """Another's, times a factor for each channel, worked out whenever it is asked for."""

    base: Autocovariance
    factor: Array

    def __init__(self, base: Autocovariance, factor: Array) -> None:
        vars(self).update(base=base, factor=factor, far=base.far * factor, lengths=base.lengths)

    @property
    def near(self) -> Array:
        """As for any."""
        return np.asarray(self.base.near * self.factor)

    def correlation(self) -> Autocovariance:
        """That of the other, where the factor is not 0."""
        known = self.base.correlation()
        return known if np.all(self.factor > 0) else known * (self.factor > 0)
