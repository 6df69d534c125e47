"""Moments of the states of one direction of a recurrent layer, step by step.

With F the cell, l = M s + N x + b its locals and J = E[dF/dl]:

    mu' = E F(l)        Cov s' = (J M) Cov s (J M)' + (J N) Cov x (J N)', each channel's own block exact

Between steps u < t each channel's covariance with itself is carried:

    Cov(s_{t+1}, .) = J_t Cov(l_t, .)
    Cov(l_t, l_u) = Cov(M s_t, M s_u) + Cov(N x_t, M s_u) + Cov(M s_t, N x_u) + Cov(N x_t, N x_u)
    Cov(N x_t, s_{u+1}) = Cov(N x_t, s_u) M' J_u' + Cov(N x_t, N x_u) J_u'
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...quadrature import Array
from .direction import Direction, energy, set_blocks
from .statistics import Statistics, expectations

__all__ = ["LAGS", "Inputs", "Trace", "run"]

LAGS = 64
"""Steps over which correlations in time are carried; further apart they count as uncorrelated."""


@dataclass(frozen=True)
class Inputs:
    """Moments of the input sequence.

    Attributes:
        mean: `[T, I]`.
        covariance: Of each step `[T, I, I]`, or variances `[T, I]`.
        across: Covariance between two steps, of one feature `[T, T, I]` or of all `[T, T, I, I]`; None where steps are
            uncorrelated.
    """

    mean: Array
    covariance: Array
    across: Array | None


@dataclass
class Trace:
    """What is known at each step taken, the first first.

    Attributes:
        mean: Mean of the states that the step starts from, `[q, H]`; one more for the last ones.
        covariance: Their covariance.
        statistics: Expectations over the locals.
        centre: Mean of the locals, `[p, H]`.
        local: Covariance of each channel's locals, `[H, p, p]`.
        state_lags: Cov(s_t, s_u) of each channel for the steps u before t, the nearest first, `[lags, H, q, q]`; as for `mean`.
        local_lags: Cov(l_t, l_u) in the same way, `[lags, H, p, p]`.
    """

    mean: list[Array]
    covariance: list[Array]
    statistics: list[Statistics] = field(default_factory=list)
    centre: list[Array] = field(default_factory=list)
    local: list[Array] = field(default_factory=list)
    state_lags: list[Array] = field(default_factory=list)
    local_lags: list[Array] = field(default_factory=list)

    def with_later(self, number: int, count: int) -> Array:
        """Cov(h_t, h_u) of each channel, of the states that a step and so many later ones start from, `[count, H]`."""
        lags = self.state_lags[number + 1 : number + 1 + count]
        found = [between[lag, :, 0, 0] for lag, between in enumerate(lags)]
        return np.reshape(found, (count, self.mean[0].shape[1]))


def run(direction: Direction, x: Inputs, mean: Array, covariance: Array) -> Trace:
    """All steps, from states of this mean `[q, H]` and covariance."""
    trace, lags = Trace([mean], [covariance]), _Lags(direction, x)
    for number, step in enumerate(direction.order):
        states, inputs = trace.covariance[-1], x.covariance[step]
        together = lags.with_input() @ np.swapaxes(direction.own, 1, 2)
        local = direction.local_covariance(states, inputs) + together + np.swapaxes(together, 1, 2)
        centre = direction.inputs @ x.mean[step] + direction.states @ trace.mean[-1].reshape(-1)
        centre = centre + direction.bias
        found = expectations(direction.cell, direction.activations, centre, local)
        trace.statistics.append(found)
        trace.centre.append(centre)
        trace.local.append(local)
        trace.state_lags.append(lags.states)
        trace.local_lags.append(lags.advance(number, found.slope, local))
        trace.mean.append(found.mean)
        trace.covariance.append(_after(direction, found, states, inputs))
    trace.state_lags.append(lags.states)
    return trace


def _after(direction: Direction, found: Statistics, states: Array, inputs: Array) -> Array:
    """Covariance of the states after a step."""
    if states.ndim == 3:
        return found.covariance
    of_states, of_inputs = direction.transition(found.slope)
    fed = (of_inputs * inputs if inputs.ndim == 1 else of_inputs @ inputs) @ of_inputs.T
    return set_blocks(of_states @ states @ of_states.T + fed, found.covariance)


class _Lags:
    """Covariances of each channel between the step that is about to be taken and those before it, the nearest first.

    Attributes:
        states: Cov(s_t, s_u), `[lags, H, q, q]`.
        mixed: Cov(s_t, l_u), `[lags, H, q, p]`.
        slopes: J_u, the nearest first, `[H, q, p]` each.
        fed: For each u = t, t - 1, ...: Cov(N x_v, s_u) for v = u, u + 1, ..., `[steps, H, p, q]`.
    """

    def __init__(self, direction: Direction, x: Inputs) -> None:
        self.direction, self.across = direction, x.across
        p, channels = direction.bias.shape
        q = direction.own.shape[2]
        self.states, self.mixed = np.zeros((0, channels, q, q)), np.zeros((0, channels, q, p))
        self.slopes: list[Array] = []
        self.blank = np.zeros((channels, p, q))
        self.fed = [np.zeros((min(LAGS + 1, len(direction.order)), channels, p, q))]
        recurrent = np.swapaxes(direction.states[:, :, :channels], 0, 1)
        self.recurrent = np.einsum("hpl,hrl->lhpr", recurrent, recurrent).reshape(channels, -1)

    def with_input(self) -> Array:
        """Cov(N x_t, s_t), `[H, p, q]`."""
        return self.blank if self.across is None else np.asarray(self.fed[0][0])

    def advance(self, number: int, slope: Array, local: Array) -> Array:
        """Take step `number`, whose locals have covariance `[H, p, p]`; Cov(l_t, l_u) `[lags, H, p, p]`."""
        count, own = len(self.states), self.direction.own
        through_states = (self.states[:, :, 0, 0] @ self.recurrent).reshape(count, *local.shape)
        lags = own @ self.mixed + through_states + self._fed(number, count)
        self.slopes = [slope, *self.slopes][:LAGS]
        self.mixed = slope @ np.concatenate([local[None], lags])[:LAGS]
        self.states = np.zeros((len(self.mixed), *self.states.shape[1:]))
        earlier = np.stack(self.slopes)[1 : len(self.mixed)]
        # The first states of all, the furthest away, do not vary with anything.
        self.states[: len(earlier)] = self.mixed[1:] @ np.swapaxes(earlier, 2, 3)
        self._advance_fed(number, slope)
        return np.asarray(lags)

    def _fed(self, number: int, count: int) -> Array:
        """Cov(N x_t, l_u) of the steps u before t, `[lags, H, p, p]`."""
        if self.across is None or count == 0:
            return np.zeros((count, *self.blank.shape[:2], self.blank.shape[1]))
        states = np.stack([self.fed[lag][lag] for lag in range(1, count + 1)])
        inputs = np.stack([self._inputs(number, number - lag) for lag in range(1, count + 1)])
        return np.asarray(states @ np.swapaxes(self.direction.own, 1, 2) + inputs)

    def _inputs(self, number: int, other: int) -> Array:
        """Cov(N x_t, N x_u), `[H, p, p]`."""
        assert self.across is not None
        order = self.direction.order
        return energy(self.direction.inputs, self.across[order[number], order[other]])

    def _advance_fed(self, number: int, slope: Array) -> None:
        if self.across is None:
            return
        later = range(number + 1, min(number + 1 + LAGS + 1, len(self.direction.order)))
        held, turned = self.fed[0][1:], np.swapaxes(slope @ self.direction.own, 1, 2)
        rows = [self._inputs(step, number) @ np.swapaxes(slope, 1, 2) for step in later]
        for index, row in enumerate(rows[: len(held)]):
            rows[index] = held[index] @ turned + row
        self.fed = [np.stack(rows) if rows else held[:0], *self.fed][: LAGS + 1]
