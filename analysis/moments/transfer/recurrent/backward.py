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

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from ...quadrature import Array
from ...state import ParameterGradient
from .direction import Direction, blocks, diagonal, set_blocks
from .forward import LAGS, Inputs, Trace
from .statistics import Statistics

__all__ = ["Arriving", "Back", "Gradients", "Sums", "back", "bounded"]

Traced = TypeVar("Traced", bound=Trace)
"""A trace that knows enough for a walk."""


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
    return _Back(direction, x, trace, arriving).walk()


class Sums:
    """Sums over steps of d_t x_t': of the products of means, of what Stein's lemma adds, and of mean squares."""

    def __init__(self, *shape: int) -> None:
        self.product, self.added, self.square = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def settled(self) -> ParameterGradient:
        """Mean and variance."""
        return ParameterGradient(self.product + self.added, np.maximum(self.square - self.product**2, 0.0))


class Back(ABC, Generic[Traced]):
    """The walk: mean `[q, H]`, covariance and hessian of the gradient g_t, and what it has in common with later ones.

    Attributes:
        means: E g_u of later steps u, the nearest first, `[q, H]` each.
        locals: E d_u of the same steps, `[H, p]` each.
    """

    def __init__(self, direction: Direction, x: Inputs, trace: Traced, arriving: Arriving) -> None:
        self.direction, self.x, self.trace, self.arriving = direction, x, trace, arriving
        self.mean, self.covariance, self.hessian = arriving.last
        p, channels = direction.bias.shape
        self.sums = [Sums(p, channels, n) for n in (x.mean.shape[1], channels, 1)]
        self.x_mean, self.x_covariance = np.zeros(x.mean.shape), np.zeros(x.covariance.shape)
        self.x_across = None if x.across is None else np.zeros(x.across.shape)
        self.means: list[Array] = []
        self.locals: list[Array] = []

    def walk(self) -> Gradients:
        """All steps, last first."""
        for number in reversed(range(len(self.direction.order))):
            self.arrive(number)
            self.step(number)
        inputs, states, bias = (sums.settled() for sums in self.sums)
        first = (self.mean, self.covariance)
        return Gradients(inputs, states, bias, self.x_mean, self.x_covariance, self.x_across, first)

    def arrive(self, number: int) -> None:
        """Add what the output receives at this step, which moves with what it receives later."""
        step, arriving, channels = self.direction.order[number], self.arriving, self.direction.channels
        self.mean = np.concatenate([self.mean[:1] + arriving.mean[step], self.mean[1:]])
        if self.hessian is not None and arriving.hessian is not None:
            self.hessian = _plus(self.hessian, arriving.hessian[step], channels)
        self._arrive(number)

    @abstractmethod
    def _arrive(self, number: int) -> None:
        """Add to the covariance of this step's gradient, and to what it has in common with later ones."""

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
        self.x_mean[self.direction.order[number]] = np.einsum("phi,hp->i", self.direction.inputs, local)
        self._pass_covariance(number, own)
        self._pass_hessian(number, change)
        self.means, self.locals = [self.mean, *self.means], [local, *self.locals]
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
            self.sums, (inputs, state, np.ones(1)), squares, self._lagged(number, len(together)), strict=True
        ):
            sums.product += local.T[:, :, None] * value
            sums.square += own[:, :, None] * square + 2.0 * np.einsum("lhp,ln->phn", together, other)
        for sums, spread in zip(self.sums, self._with_locals(number), strict=False):
            sums.added += self._changed(trace.statistics[number], change, spread)

    @abstractmethod
    def _together(self, number: int, local: Array) -> Array:
        """E[d_t d_u] of this step and later ones, `[steps, H, p]`."""

    def _lagged(self, number: int, count: int) -> tuple[Array, Array, Array]:
        """E[x_t x_u] and E[h_t h_u] of this step and so many later ones, `[count, n]`."""
        order = self.direction.order
        steps = [order[number + 1 + lag] for lag in range(count)]
        inputs = self.x.mean[steps] * self.x.mean[order[number]]
        if self.x.across is not None:
            across = self.x.across[steps, order[number]]
            inputs = inputs + (across if across.ndim == 2 else diagonal(across))
        mean, states = self.trace.mean[number][0], self.trace.with_later(number, count)
        means = [mean * later[0] for later in self.trace.mean[number + 1 : number + 1 + count]]
        return inputs, states + np.reshape(means, states.shape), np.ones((count, 1))

    def _of_slopes(self, number: int, covariance: Array) -> Array:
        """What the slopes of this step and later ones have in common adds to E[d_t d_u], `[steps, H, p]`.

        Args:
            number: The step.
            covariance: Cov(g_t, g_u) of each channel, `[steps, H, q, q]`.
        """
        count = len(covariance)
        if not count:
            return np.zeros((0, *np.swapaxes(self.direction.bias, 0, 1).shape))
        held = covariance + np.stack([_pair(self.mean, mean) for mean in self.means[:count]])
        later = self.trace.statistics[number + 1 : number + 1 + count]
        curvatures = np.stack([found.curvature for found in later])
        moved = np.stack([self.trace.local_lags[number + 1 + lag][lag] for lag in range(count)])
        bent = np.einsum("lhqr,hqpa->lhrpa", held, self.trace.statistics[number].curvature, optimize=True)
        return np.asarray(np.sum(bent * (curvatures @ moved[:, :, None]), (2, 4)))

    @abstractmethod
    def _with_locals(self, number: int) -> tuple[Array, Array]:
        """Cov(l_t, x_t) and Cov(l_t, h_t), `[p, H, n]`."""

    def _changed(self, found: Statistics, change: Array, spread: Array) -> Array:
        """E[dd / dl] Cov(l, y) for covariances `[p, H, n]`: of two channels only through the hessian (Stein's lemma)."""
        if self.hessian is None or self.hessian.ndim == 3:
            return np.asarray(np.einsum("hps,shn->phn", change, spread))
        slope, own = found.slope, blocks(self.hessian, self.direction.channels)
        rest = change - np.swapaxes(slope, 1, 2) @ own @ slope
        moved = np.einsum("hqp,phn->qhn", slope, spread)
        flat = (self.hessian @ moved.reshape(len(self.hessian), -1)).reshape(moved.shape)
        return np.asarray(np.einsum("hqp,qhn->phn", slope, flat) + np.einsum("hps,shn->phn", rest, spread))

    @abstractmethod
    def _pass_covariance(self, number: int, own: Array) -> None:
        """To the states before the step and its input, from the covariance of each channel's d_t, `[H, p, p]`."""

    def _pass_hessian(self, number: int, change: Array) -> None:
        if self.hessian is None:
            return
        direction, slope = self.direction, self.trace.statistics[number].slope
        held = blocks(self.hessian, direction.channels)
        rest = change - np.swapaxes(slope, 1, 2) @ held @ slope
        of_states, matrix = direction.transition(slope)[0], self.hessian.ndim == 2
        self.hessian = _pulled(self.hessian, of_states, direction.states, change, rest, matrix)


class _Back(Back[Trace]):
    """The walk with what each channel shares with itself.

    Attributes:
        lags: Cov(g_t, g_u) of each channel for u = t + 1, ..., `[lags, H, q, q]`.
        local_lags: Cov(d_t, d_u) in the same way, `[lags, H, p, p]`.
        after: Cov(g_t, e_u) in the same way, from u = t on, `[lags, H, q]`.
        beside: For u = t + 1, t + 2, ...: Cov(e_v, g_u) for v = u, u - 1, ..., `[steps, H, q]`.
    """

    def __init__(self, direction: Direction, x: Inputs, trace: Trace, arriving: Arriving) -> None:
        super().__init__(direction, x, trace, arriving)
        p, channels = direction.bias.shape
        q = len(self.mean)
        self.lags = np.zeros((0, channels, q, q))
        self.local_lags = np.zeros((0, channels, p, p))
        self.after = np.zeros((0, channels, q))
        self.beside: list[Array] = []
        self.input_energy = None if x.across is None else _energies(direction.inputs)
        self.state_energy = _energies(direction.states)

    def passing(self, number: int) -> Array:
        """P of a step, `[H, q, q]`."""
        return self.trace.statistics[number].slope @ self.direction.own

    def _arrive(self, number: int) -> None:
        added = self.arriving.covariance[self.direction.order[number]]
        self.covariance = _plus(self.covariance, added, self.direction.channels)
        self._carry_beside(number)
        self._arrive_lags(number)

    def _arrive_lags(self, number: int) -> None:
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

    def _together(self, number: int, local: Array) -> Array:
        count, found = len(self.lags), self.trace.statistics[number]
        extra = self._of_slopes(number, self.lags)
        if not count:
            self.local_lags = np.zeros((0, *local.shape, local.shape[1]))
            return extra
        slopes = np.stack([later.slope for later in self.trace.statistics[number + 1 : number + 1 + count]])
        covariance = np.swapaxes(found.slope, 1, 2) @ self.lags @ slopes
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

    def _with_locals(self, number: int) -> tuple[Array, Array]:
        direction, states = self.direction, self.trace.covariance[number]
        inputs, channels = self.x.covariance[direction.order[number]], direction.channels
        fed = direction.inputs * inputs if inputs.ndim == 1 else direction.inputs @ inputs
        if states.ndim == 3:
            return fed, direction.states[:, :, :channels] * states[:, 0, 0]
        return fed, direction.states @ states[:, :channels]

    def _pass_covariance(self, number: int, own: Array) -> None:
        step, direction, found = self.direction.order[number], self.direction, self.trace.statistics[number]
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
