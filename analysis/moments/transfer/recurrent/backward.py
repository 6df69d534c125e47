"""Moments of the gradients of one direction of a recurrent layer, from the last step to the first.

With g the gradient of the states that a step gives, d = J'g that of its locals, and J independent of g (the gradient
independence assumption: Schoenholz 2017; Chen 2018 for recurrent cells):

    g_{t-1} = e_{t-1} + M' d_t                  e: what the layer's output receives at a step
    E[d d'] = sum E[g g'] E[J J]                of one channel; of two channels the means of J suffice
    E[d_t d_u'] = J_t' E[g_t g_u'] J_u + sum E[g_t g_u'] K_t Cov(l_t, l_u) K_u'         K = E[d2 F / dl dl]

    Cov(g_t, g_u) = Cov(e_t, g_u) + Cov(g_t, e_u) - Cov(e_t, e_u) + M' Cov(d_{t+1}, d_{u+1}) M

A weight's gradient is the sum over steps of d_t x_t', so its mean square has E[d_t d_u'] E[x_t x_u'] of every two steps, and
its mean is sum_t E d_t E x_t' + E[dd_t / dl_t] Cov(l_t, x_t) (Stein's lemma).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...quadrature import Array
from ...state import ParameterGradient
from .direction import Direction, blocks, diagonal, set_blocks
from .forward import LAGS, Inputs, Trace
from .statistics import Statistics

__all__ = ["Arriving", "Gradients", "Sums", "back", "bounded"]


@dataclass(frozen=True)
class Arriving:
    """What a layer's output h receives, step by step in the order of time.

    Attributes:
        mean: `[T, H]`.
        covariance: Of each step `[T, H, H]`, or variances `[T, H]`.
        across: Covariance between two steps, of one channel `[T, T, H]` or of all `[T, T, H, H]`; None where steps are
            uncorrelated.
        hessian: E[de / dh] of each step `[T, H, H]`; None counts as 0.
        last: Mean `[q, H]`, covariance and hessian (or None) of what the states after the last step receive.
    """

    mean: Array
    covariance: Array
    across: Array | None
    hessian: Array | None
    last: tuple[Array, Array, Array | None]


@dataclass(frozen=True)
class Gradients:
    """What the inputs of one direction receive.

    Attributes:
        inputs: Gradient of N, mean and variance `[p, H, I]`.
        states: The same of the recurrent part of M, `[p, H, H]`.
        bias: The same of b, `[p, H, 1]`.
        mean: Of the input sequence, `[T, I]`.
        covariance: Of each step `[T, I, I]`, or variances `[T, I]`.
        across: Between two steps, `[T, T, I]` or `[T, T, I, I]`; None where that of the input sequence is.
        first: Mean `[q, H]` and covariance of what the states before the first step receive.
    """

    inputs: ParameterGradient
    states: ParameterGradient
    bias: ParameterGradient
    mean: Array
    covariance: Array
    across: Array | None
    first: tuple[Array, Array]


def back(direction: Direction, x: Inputs, trace: Trace, arriving: Arriving) -> Gradients:
    """All steps, last first."""
    walk = _Back(direction, x, trace, arriving)
    for number in reversed(range(len(direction.order))):
        walk.arrive(number)
        walk.step(number)
    inputs, states, bias = (sums.settled() for sums in walk.sums)
    return Gradients(
        inputs, states, bias, walk.x_mean, walk.x_covariance, walk.x_across, (walk.mean, walk.covariance)
    )


class Sums:
    """Sums over steps of d_t x_t': of the products of means, of what Stein's lemma adds, and of mean squares."""

    def __init__(self, *shape: int) -> None:
        self.product, self.added, self.square = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def settled(self) -> ParameterGradient:
        """Mean and variance."""
        return ParameterGradient(self.product + self.added, np.maximum(self.square - self.product**2, 0.0))


class _Back:
    """The walk: mean `[q, H]`, covariance and hessian of the gradient g_t, and what it has in common with later ones.

    Attributes:
        lags: Cov(g_t, g_u) of each channel for u = t + 1, ..., `[lags, H, q, q]`.
        local_lags: Cov(d_t, d_u) in the same way, `[lags, H, p, p]`.
        after: Cov(g_t, e_u) in the same way, from u = t on, `[lags, H, q]`.
        locals: E d_u of the same steps u, `[H, p]` each; one more, the nearest, while `step` runs.
        beside: For u = t + 1, t + 2, ...: Cov(e_v, g_u) for v = u, u - 1, ..., `[steps, H, q]`.
    """

    def __init__(self, direction: Direction, x: Inputs, trace: Trace, arriving: Arriving) -> None:
        self.direction, self.x, self.trace, self.arriving = direction, x, trace, arriving
        self.mean, self.covariance, self.hessian = arriving.last
        p, channels = direction.bias.shape
        q = direction.own.shape[2]
        self.sums = [Sums(p, channels, n) for n in (x.mean.shape[1], channels, 1)]
        self.x_mean, self.x_covariance = np.zeros(x.mean.shape), np.zeros(x.covariance.shape)
        self.x_across = None if x.across is None else np.zeros(x.across.shape)
        self.lags = np.zeros((0, channels, q, q))
        self.local_lags = np.zeros((0, channels, p, p))
        self.after = np.zeros((0, channels, q))
        self.means: list[Array] = []
        self.locals: list[Array] = []
        self.beside: list[Array] = []
        self.input_energy = None if x.across is None else _energies(direction.inputs)
        self.state_energy = _energies(direction.states)

    def passing(self, number: int) -> Array:
        """P of a step, `[H, q, q]`."""
        return self.trace.statistics[number].slope @ self.direction.own

    def arrive(self, number: int) -> None:
        """Add what the output receives at this step, which moves with what it receives later."""
        step, arriving, channels = self.direction.order[number], self.arriving, self.direction.channels
        self.mean = np.concatenate([self.mean[:1] + arriving.mean[step], self.mean[1:]])
        self.covariance = _plus(self.covariance, arriving.covariance[step], channels)
        if self.hessian is not None and arriving.hessian is not None:
            self.hessian = _plus(self.hessian, arriving.hessian[step], channels)
        self._carry_beside(number)
        self._arrive_lags(number)

    def _arrive_lags(self, number: int) -> None:
        """What this step's gradient has in common with later ones."""
        step, channels, q = self.direction.order[number], self.direction.channels, len(self.mean)
        now = np.zeros((1, channels, q))
        if number + 1 < len(self.direction.order):
            now[0, :, 0] = diagonal(self.arriving.covariance[step])
            together = self._together_at(number)
            own = blocks(self.covariance, channels) + together + np.swapaxes(together, 1, 2)
            self.covariance = own if self.covariance.ndim == 3 else set_blocks(self.covariance, own)
            now[0] += together[:, 0]
            carried = (self.after[:, :, None] @ self.passing(number + 1))[:, :, 0]
        else:
            now[0] = blocks(self.covariance, channels)[:, :, 0]
            carried = self.after
        if self.arriving.across is not None:
            carried[:, :, 0] += self._across(number, len(carried))
        self.after = np.concatenate([now, carried])[:LAGS]
        count = len(self.after) - 1
        spread = np.concatenate([self.local_lags, np.zeros((1, *self.local_lags.shape[1:]))])[:count]
        self.lags = _diagonal_blocks(
            (spread.reshape(count, len(self.state_energy)) @ self.state_energy), channels
        )
        self.lags[:, :, :, 0] += self.after[1:]
        if self.arriving.across is not None and count:
            beside = np.stack([held[lag + 1] for lag, held in enumerate(self.beside[1 : count + 1])])
            self.lags[:, :, 0] += beside
            self.lags[:, :, 0, 0] -= self._across(number, count)

    def _across(self, number: int, count: int) -> Array:
        """Cov(e_t, e_u) of later steps u, `[count, H]`."""
        assert self.arriving.across is not None
        order = self.direction.order
        later = [order[number + 1 + lag] for lag in range(count)]
        return np.asarray(self.arriving.across[order[number], later])

    def _together_at(self, number: int) -> Array:
        """Cov(e_t, M' d_{t+1}), `[H, q, q]`."""
        together = np.zeros((self.direction.channels, len(self.mean), len(self.mean)))
        if self.arriving.across is not None:
            beside = self.beside[1][1]
            together[:, 0] = (beside[:, None] @ self.passing(number + 1))[:, 0]
        return together

    def _carry_beside(self, number: int) -> None:
        if self.arriving.across is None:
            return
        order = self.direction.order
        earlier = [order[step] for step in range(number, max(number - 1 - LAGS, -1), -1)]
        own = self.arriving.across[earlier, order[number]]
        column = np.zeros((*own.shape, len(self.mean)))
        column[:, :, 0] = own
        if self.beside:
            carried = self.beside[0][1:][: len(column)]
            column[: len(carried)] += (carried[:, :, None] @ self.passing(number + 1))[:, :, 0]
        self.beside = [column, *self.beside][: LAGS + 1]

    def step(self, number: int) -> None:
        """Through the cell: gradients of the weights, and what the states before the step and its input receive."""
        found, channels = self.trace.statistics[number], self.direction.channels
        held = blocks(self.covariance, channels)
        raw = np.einsum("hqr,hqprs->hps", held + _outer(self.mean.T), found.slope_square)
        straight = np.swapaxes(found.slope, 1, 2) @ held @ found.slope
        local = bounded(self._local_mean(found), diagonal(raw - straight))
        own, change = raw - _outer(local), np.einsum("qh,hqps->hps", self.mean, found.curvature)
        if self.hessian is not None:
            change += np.einsum("hqr,hrqps->hps", blocks(self.hessian, channels), found.bend)
        self._accumulate(number, local, raw, change)
        self._pass_back(number, local, own, change)
        self.means, self.locals = [self.mean, *self.means][:LAGS], [local, *self.locals][:LAGS]
        self.mean = np.einsum("phx,hp->x", self.direction.states, local).reshape(self.mean.shape)

    def _local_mean(self, found: Statistics) -> Array:
        """E d, `[H, p]`: the gradient moves with the states, and they with the slope."""
        mean = np.einsum("qh,hqp->hp", self.mean, found.slope)
        if self.hessian is None:
            return np.asarray(mean)
        own = blocks(self.hessian, self.direction.channels)
        return np.asarray(mean + np.einsum("hqr,hrqp->hp", own, found.slope_with_state))

    def _accumulate(self, number: int, local: Array, raw: Array, change: Array) -> None:
        step, trace = self.direction.order[number], self.trace
        state, inputs = trace.mean[number][0], self.x.mean[step]
        variance = diagonal(blocks(trace.covariance[number], len(state)))[:, 0]
        squares = (inputs**2 + diagonal(self.x.covariance[step]), state**2 + variance, np.ones(1))
        together, own = self._together(number, local), diagonal(raw).T
        for sums, value, square, other in zip(
            self.sums, (inputs, state, np.ones(1)), squares, self._lagged(number), strict=True
        ):
            sums.product += local.T[:, :, None] * value
            sums.square += own[:, :, None] * square + 2.0 * np.einsum("lhp,ln->phn", together, other)
        for sums, added in zip(self.sums, self._stein(number, change), strict=False):
            sums.added += added

    def _lagged(self, number: int) -> tuple[Array, Array, Array]:
        """E[x_t x_u] and E[h_t h_u] of this step and later ones, `[lags, n]`."""
        order, count = self.direction.order, len(self.lags)
        steps = [order[number + 1 + lag] for lag in range(count)]
        inputs = self.x.mean[steps] * self.x.mean[order[number]]
        if self.x.across is not None:
            inputs = inputs + self.x.across[steps, order[number]]
        means, covariances = self.trace.mean, self.trace.state_lags
        states = [
            means[number + 1 + lag][0] * means[number][0] + covariances[number + 1 + lag][lag, :, 0, 0]
            for lag in range(count)
        ]
        channels = self.direction.channels
        return inputs, np.reshape(states, (count, channels)), np.ones((count, 1))

    def _together(self, number: int, local: Array) -> Array:
        """E[d_t d_u] of this step and later ones, `[lags, H, p]`; what inputs receive at two steps is set on the way."""
        count, later = len(self.lags), self.trace.statistics[number + 1 :]
        if count == 0:
            self.local_lags = np.zeros((0, *local.shape, local.shape[1]))
            return np.zeros((0, *local.shape))
        slopes = np.stack([found.slope for found in later[:count]])
        found = self.trace.statistics[number]
        covariance = np.swapaxes(found.slope, 1, 2) @ self.lags @ slopes
        held = self.lags + np.stack([_pair(self.mean, mean) for mean in self.means[:count]])
        curvatures = np.stack([found.curvature for found in later[:count]])
        moved = np.stack([self.trace.local_lags[number + 1 + lag][lag] for lag in range(count)])
        bent = np.einsum("lhqr,hqpa->lhrpa", held, found.curvature, optimize=True)
        extra = np.sum(bent * (curvatures @ moved[:, :, None]), (2, 4))
        covariance += extra[..., None] * np.eye(extra.shape[-1])
        self.local_lags = covariance
        self._set_across(number, covariance)
        return np.asarray(diagonal(covariance) + local * np.stack(self.locals[:count]))

    def _set_across(self, number: int, covariance: Array) -> None:
        if self.x_across is None or self.input_energy is None:
            return
        order = self.direction.order
        for lag, row in enumerate(covariance.reshape(len(covariance), -1) @ self.input_energy):
            now, later = order[number], order[number + 1 + lag]
            self.x_across[now, later] = self.x_across[later, now] = row

    def _stein(self, number: int, change: Array) -> tuple[Array, Array]:
        """E[dd / dl] Cov(l, x) and E[dd / dl] Cov(l, h), `[p, H, n]`."""
        direction, trace = self.direction, self.trace
        inputs, states = self.x.covariance[direction.order[number]], trace.covariance[number]
        channels, found = direction.channels, trace.statistics[number]
        fed = direction.inputs * inputs if inputs.ndim == 1 else direction.inputs @ inputs
        if states.ndim == 3:
            held = direction.states[:, :, :channels] * states[:, 0, 0]
        else:
            held = direction.states @ states[:, :channels]
        return self._changed(found, change, fed), self._changed(found, change, held)

    def _changed(self, found: Statistics, change: Array, spread: Array) -> Array:
        """Matrix of all channels' changes times `[p, H, n]`: of two channels only through the hessian."""
        if self.hessian is None or self.hessian.ndim == 3:
            return np.asarray(np.einsum("hps,shn->phn", change, spread))
        slope, own = found.slope, blocks(self.hessian, self.direction.channels)
        rest = change - np.swapaxes(slope, 1, 2) @ own @ slope
        moved = np.einsum("hqp,phn->qhn", slope, spread)
        flat = (self.hessian @ moved.reshape(len(self.hessian), -1)).reshape(moved.shape)
        return np.asarray(np.einsum("hqp,qhn->phn", slope, flat) + np.einsum("hps,shn->phn", rest, spread))

    def _pass_back(self, number: int, local: Array, own: Array, change: Array) -> None:
        step, direction, found = self.direction.order[number], self.direction, self.trace.statistics[number]
        self.x_mean[step] = np.einsum("phi,hp->i", direction.inputs, local)
        of_states, of_inputs = direction.transition(found.slope)
        channels = direction.channels
        rest = own - np.swapaxes(found.slope, 1, 2) @ blocks(self.covariance, channels) @ found.slope
        fed = _pulled(self.covariance, of_inputs, direction.inputs, own, rest, self.x_covariance.ndim == 3)
        self.x_covariance[step] = fed
        if self.x_across is not None:
            self.x_across[step, step] = diagonal(fed)
        matrix = self.covariance.ndim == 2
        covariance = _pulled(self.covariance, of_states, direction.states, own, rest, matrix)
        self.covariance = covariance if matrix else _diagonal_blocks(covariance, channels)
        if self.hessian is not None:
            held = blocks(self.hessian, channels)
            rest = change - np.swapaxes(found.slope, 1, 2) @ held @ found.slope
            self.hessian = _pulled(self.hessian, of_states, direction.states, change, rest, matrix)


def bounded(mean: Array, square: Array) -> Array:
    """A mean whose square is no more than is left of the mean square: in chaotic networks a hessian claims more."""
    largest = np.sqrt(np.maximum(square, 0.0))
    return np.clip(mean, -largest, largest)


def _pulled(
    covariance: Array, transition: Array, weight: Array, own: Array, rest: Array, matrix: bool
) -> Array:
    """Covariance of W'd, `[n, n]` or variances `[n]`, from that of g: each channel's own part is that of d itself."""
    by_channel = np.swapaxes(weight, 0, 1)
    if covariance.ndim == 3:
        variance = np.sum((own @ by_channel) * by_channel, (0, 1))
        return np.diag(variance) if matrix else np.asarray(variance)
    spread = (rest @ by_channel).reshape(-1, weight.shape[2])
    flat = by_channel.reshape(spread.shape)
    if not matrix:
        return np.asarray(np.sum((covariance @ transition) * transition, 0) + np.sum(spread * flat, 0))
    return np.asarray(transition.T @ covariance @ transition + flat.T @ spread)


def _energies(weight: Array) -> Array:
    """What maps covariances of locals, `[H p p]`, to variances of W'd, `[n]`, for W `[p, H, n]`."""
    by_channel = np.swapaxes(weight, 0, 1)
    return np.asarray(np.einsum("hpx,hrx->hprx", by_channel, by_channel).reshape(-1, weight.shape[2]))


def _plus(held: Array, added: Array, channels: int) -> Array:
    """Add what h receives, a matrix `[H, H]` or variances `[H]`, to a covariance of all states."""
    total = held.copy()
    if held.ndim == 3:
        total[:, 0, 0] += diagonal(added)
    else:
        total[:channels, :channels] += np.diag(added) if added.ndim == 1 else added
    return total


def _diagonal_blocks(variance: Array, channels: int) -> Array:
    """`[*, H, q, q]` of variances `[*, q H]`."""
    rows = np.swapaxes(
        variance.reshape(*variance.shape[:-1], variance.shape[-1] // channels, channels), -1, -2
    )
    return np.asarray(rows[..., None] * np.eye(rows.shape[-1]))


def _outer(rows: Array) -> Array:
    return rows[:, :, None] * rows[:, None, :]


def _pair(mean: Array, other: Array) -> Array:
    """m_q m'_r of each channel, `[H, q, r]`."""
    return mean.T[:, :, None] * other.T[:, None, :]
