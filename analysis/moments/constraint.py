"""What batch normalisation takes from sums over a batch whose examples follow several laws (`mixture`).

Behind a normalisation of y the gradients g_b of a batch's examples fulfil, whatever the examples are (Ioffe and Szegedy 2015),

    sum_b g_b = 0          sum_b g_b yhat_b = 0

so that a sum over them of g times a function f of the example is, with <.> over all laws, one of

    g (f - <f> - yhat <f yhat>)

With y = W' h and h = phi(x), what x receives is sum_c W_c g_c phi'(x); its sums with v have f = phi'(x) v. Under one law, with
xi the standardised x, v = mean + deviation xi, b_k = E[phi' xi^k] and tied = Cov(h, yhat), from which Price's theorem (1958)
gives Cov(xi, yhat):

    E[phi' yhat] = b_0 level + b_1 r          E[phi' xi yhat] = b_1 level + b_2 r
    level = E yhat                            r = tied / E[phi xi]

Where h itself is normalised, W is the identity: its n channels then stand in place of an axis of channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from .quadrature import Array

__all__ = ["Constraint", "Sums", "over_all_laws"]

Sums: TypeAlias = tuple[Array, Array]
"""E f and E[f yhat], the second with an axis of channels more."""


@dataclass(frozen=True)
class Constraint:
    """On a gradient `[n]` that comes from a normalisation of C channels, under one law; C = 1 where each has its own.

    Attributes:
        means: E[g] W and E[g yhat] W, `[n, C]` each; over all laws they are 0.
        variance: Of the gradient before the elementwise function, what each channel gives, `[n, C]`.
        level: E yhat, `[n or 1, C]`.
        square: E yhat^2, `[n or 1, C]`.
        tied: Cov(h, yhat), `[n, C]`.
        slopes: b_0, b_1 and b_2 of the function, `[n]` each.
        gain: E[phi xi], `[n]`.
    """

    means: tuple[Array, Array]
    variance: Array
    level: Array
    square: Array
    tied: Array
    slopes: tuple[Array, Array, Array]
    gain: Array

    @property
    def is_own(self) -> bool:
        """Whether each channel is normalised itself."""
        return len(self.variance[0]) == 1

    def behind(self, slopes: tuple[Array, Array, Array], gain: Array) -> Constraint:
        """On the gradient of the input of a function with these b_k and this E[phi xi]."""
        return replace(self, slopes=slopes, gain=gain)

    def sums(self, mean: Array, deviation: Array) -> Sums:
        """Of v = mean + deviation xi, which broadcast to `[..., n]`."""
        b0, b1, b2 = self.slopes
        gain = self.gain[:, None]
        # No correlation is beyond 1, though the function may hardly be one of xi.
        most = np.sqrt(np.maximum(self.square - self.level**2, 0.0))
        moved = np.clip(
            np.divide(self.tied, gain, out=np.zeros_like(self.tied), where=gain != 0), -most, most
        )
        constant, linear = (a[:, None] * self.level + b[:, None] * moved for a, b in ((b0, b1), (b1, b2)))
        return mean * b0 + deviation * b1, mean[..., None] * constant + deviation[..., None] * linear

    def taken(self, mean: Array, deviation: Array, shared: Sums) -> tuple[Array, Array]:
        """What sums over a batch of gradient times v lack of the mean and the variance under this law.

        Args:
            mean: Of v.
            deviation: Of v.
            shared: The sums over all laws.
        """
        own, along = self.sums(mean, deviation)
        f, tilt = shared[0][..., None], shared[1]
        square = f**2 + 2.0 * f * tilt * self.level + tilt**2 * self.square
        lost = 2.0 * (f * own[..., None] + tilt * along) - square
        return np.sum(f * self.means[0] + tilt * self.means[1], -1), np.sum(self.variance * lost, -1)


def over_all_laws(constraints: Sequence[Constraint], values: Iterable[tuple[Array, Array]]) -> Sums:
    """The mean over the laws of the sums of v, given by its mean and deviation under each."""
    first, second = np.zeros(()), np.zeros(())
    for constraint, value in zip(constraints, values, strict=True):
        sums = constraint.sums(*value)
        first, second = np.add(first, sums[0]), np.add(second, sums[1])
    return first / len(constraints), second / len(constraints)
