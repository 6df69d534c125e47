"""A plain recurrent layer, h' = f(M h + N x + b), as the deep network of shared weights that it is: all steps, all channels.

The locals l of all steps are jointly Gaussian, so that, with Hermite coefficients a of f and b of f' at each step (`curves`),

    Cov(l_t, l_u) = M Cov(h_t, h_u) M' + M Cov(h_t, x_u) N' + N Cov(x_t, h_u) M' + N Cov(x_t, x_u) N'
    Cov(h_{t+1}, h_{u+1}) = sum_{k>0} a_tk a_uk' o rho_tu^k        Cov(h_{t+1}, x_v) = E f' Cov(l_t, x_v)

and with e_t what the output receives, g_t = e_t + M' d_{t+1} what the states after step t do, and d_t what its locals do

    Cov(g_t, g_u) = Cov(e_t, e_u) + M' V_{t+1,u} + V_{u+1,t}' M + M' Cov(d_{t+1}, d_{u+1}) M
    V_tu = Cov(d_t, e_u) = E f'_t (Cov(e_t, e_u) + M' V_{t+1,u})
    Cov(d_t, d_u) = E f'_t (V_ut' + M' Cov(d_{t+1}, d_u)) + E[g_t g_u'] o sum_{k>0} b_tk b_uk' o rho_tu^k      for u > t

where d_t contains d_u, slopes and all, and of two steps the slopes are alike as well. One step is the step of a dense network.
(Yang 2019 for the states, Chen 2018 for their gradients.) Carried of each channel with itself alone (`forward`, `backward`),
two steps seem to share too little where the recurrent matrix has a leading eigenvector.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...curves import Seed, through
from ...quadrature import NODES, TERMS, Array, expectation, hermite_coefficients
from ...state import GradientMoments, Moments
from .backward import Arriving, Gradients, Sums, bounded
from .direction import Direction, diagonal
from .forward import Inputs

__all__ = ["PlainTrace", "back", "received", "run"]


@dataclass
class PlainTrace:
    """What is known at each step taken, the first first.

    Attributes:
        mean: Mean of the states that the step starts from, `[1, H]`; one more for the last ones.
        states: Cov(h_t, h_u) of the same, `[T + 1, T + 1, H, H]`.
        centre: Mean of the locals, `[1, H]`.
        local: Variance of the locals, `[H, 1, 1]`.
        correlations: Of l_t and l_u for u = 0 .. t, `[t + 1, H, H]` float32.
        curves: f and f' at the quadrature nodes of the locals, `[NODES, H]`.
        with_state: Cov(l_t, h_t), `[H, H]`.
        with_input: Cov(l_t, x_t), `[H, I]`.
    """

    mean: list[Array]
    states: Array
    centre: list[Array] = field(default_factory=list)
    local: list[Array] = field(default_factory=list)
    correlations: list[Array] = field(default_factory=list)
    curves: list[tuple[Array, Array]] = field(default_factory=list)
    with_state: list[Array] = field(default_factory=list)
    with_input: list[Array] = field(default_factory=list)

    @property
    def covariance(self) -> list[Array]:
        """Cov(h_t) `[H, H]`; as for `mean`."""
        return [own[number] for number, own in enumerate(self.states)]

    def latent(self, number: int) -> Moments:
        """Moments of the locals of a step."""
        variance = self.local[number][:, 0, 0]
        deviation = np.sqrt(variance)
        rho = self.correlations[number][number]
        return Moments(self.centre[number][0], variance, rho * np.outer(deviation, deviation))


def run(direction: Direction, x: Inputs, mean: Array, covariance: Array) -> PlainTrace:
    """All steps, from states of this mean `[1, H]` and covariance `[H, H]`."""
    walk = _Forward(direction, x, mean, covariance)
    for number in range(len(direction.order)):
        walk.step(number)
    return walk.trace


class _Forward:
    """The walk.

    Attributes:
        coming: For each step u: Cov(h_u, x_v) of the inputs v = u, u + 1, ..., `[steps, H, I]`.
        with_inputs: Cov(h_t, x_v) of all inputs, `[T, H, I]`.
        coefficients: Hermite coefficients of f at each step, `[TERMS + 1, H]`.
    """

    def __init__(self, direction: Direction, x: Inputs, mean: Array, covariance: Array) -> None:
        self.direction, self.x = direction, x
        count, channels = len(direction.order), direction.channels
        states = np.zeros((count + 1, count + 1, channels, channels))
        states[0, 0] = covariance
        self.trace = PlainTrace([mean], states)
        self.coming: list[Array] = []
        self.with_inputs = np.zeros((count, channels, x.mean.shape[1]))
        self.coefficients: list[Array] = []

    def step(self, number: int) -> None:
        """One step."""
        trace, recurrent, inputs = self.trace, self.direction.states[0], self.direction.inputs[0]
        of_states = recurrent @ trace.states[number, : number + 1]
        of_inputs = recurrent @ self.with_inputs
        self._add_inputs(number, of_states, of_inputs)
        locals_ = of_states @ recurrent.T + of_inputs[: number + 1] @ inputs.T
        trace.local.append(np.maximum(np.diag(locals_[-1]), 0.0)[:, None, None])
        trace.correlations.append(self._correlations(locals_))
        trace.with_state.append(of_states[-1])
        trace.with_input.append(of_inputs[number])
        slope = self._through(number)
        trace.states[number + 1, 0] = slope * of_states[0]
        self.with_inputs = slope * of_inputs
        self._set_states(number)

    def _add_inputs(self, number: int, of_states: Array, of_inputs: Array) -> None:
        """What the input of this step has to do with states and inputs."""
        order, inputs = self.direction.order, self.direction.inputs[0]
        step = order[number]
        if self.x.across is None:
            of_inputs[number] += inputs @ _matrix(self.x.covariance[step])
            return
        self.coming.append(self.with_inputs[number:].copy())
        earlier = np.stack([coming[number - u] for u, coming in enumerate(self.coming)])
        of_states += inputs @ np.swapaxes(earlier, 1, 2)
        of_inputs += inputs @ self.x.across[step, :: order.step]

    def _correlations(self, locals_: Array) -> Array:
        deviation = np.sqrt([local[:, 0, 0] for local in self.trace.local])
        scale = deviation[-1][:, None] * deviation[:, None, :]
        rho = np.divide(locals_, scale, out=np.zeros_like(locals_), where=scale > 0)
        return np.asarray(np.clip(rho, -1.0, 1.0), np.float32)

    def _through(self, number: int) -> Array:
        """Mean of the states after the step; E f', `[H, 1]`."""
        trace, direction = self.trace, self.direction
        fed = direction.inputs[0] @ self.x.mean[direction.order[number]]
        centre = fed + direction.states[0] @ trace.mean[-1][0] + direction.bias[0]
        deviation = np.sqrt(trace.local[-1][:, 0, 0])
        state, slope = direction.cell.evaluate(
            (centre + deviation * NODES[:, None])[None], direction.activations
        )
        trace.centre.append(centre[None])
        trace.curves.append((state[0], slope[0, 0]))
        trace.mean.append(expectation(state[0])[None])
        self.coefficients.append(hermite_coefficients(state[0]))
        return np.asarray(expectation(slope[0, 0])[:, None])

    def _set_states(self, number: int) -> None:
        trace, (state, _) = self.trace, self.trace.curves[-1]
        coefficients = np.stack(self.coefficients, 1)
        covariance = _series(coefficients[:, -1], coefficients, trace.correlations[-1])
        np.fill_diagonal(covariance[-1], expectation((state - trace.mean[-1]) ** 2))
        trace.states[number + 1, 1 : number + 2] = covariance
        trace.states[1 : number + 2, number + 1] = np.swapaxes(covariance, 1, 2)


def back(direction: Direction, x: Inputs, trace: PlainTrace, arriving: Arriving) -> Gradients:
    """All steps, last first."""
    walk = _Backward(direction, x, trace, arriving)
    for number in reversed(range(len(direction.order))):
        walk.step(number)
    inputs, states, bias = (sums.settled() for sums in walk.sums)
    first = (walk.mean[None], walk.sent[0] @ direction.states[0])
    return Gradients(inputs, states, bias, walk.x_mean, walk.x_covariance, walk.x_across, first)


class _Backward:
    """The walk: mean `[H]` and hessian `[H, H]` of what the states before the last step taken receive.

    Attributes:
        sent: M' Cov(d_t, d_u) for u = t, t + 1, ..., `[steps, H, H]`.
        received: Cov(e_t, e_v), `[T, columns, H, H]`, for steps t and those v that receive anything.
        first: The first such v.
        moved: V_t.
        held: V_u of later steps u, the nearest first, for v < u.
        means, locals: E g_u and E d_u of later steps, the nearest first.
    """

    def __init__(self, direction: Direction, x: Inputs, trace: PlainTrace, arriving: Arriving) -> None:
        self.direction, self.x, self.trace, self.arriving = direction, x, trace, arriving
        self.received, self.first = received(direction, arriving)
        channels, features = direction.inputs[0].shape
        self.mean, self.hessian = arriving.last[0][0], arriving.last[2]
        self.sent = np.zeros((0, channels, channels))
        self.moved = np.zeros(self.received.shape[1:])
        self.held: list[Array] = []
        self.means: list[Array] = []
        self.locals: list[Array] = []
        self.sums = [Sums(1, channels, n) for n in (features, channels, 1)]
        self.x_mean, self.x_covariance = np.zeros(x.mean.shape), np.zeros(x.covariance.shape)
        self.x_across = None if x.across is None else np.zeros(x.across.shape)
        self.coefficients = np.stack([hermite_coefficients(slope) for _, slope in trace.curves], 1)

    def step(self, number: int) -> None:
        """Add what the output receives at a step, and go back through the cell."""
        step, arriving = self.direction.order[number], self.arriving
        self.means.insert(0, self.mean + arriving.mean[step])
        if arriving.hessian is not None:
            self.hessian = self.hessian + arriving.hessian[step]
        covariance = self._arrive(number)
        own, hessian = self._through(number, covariance[0])
        covariance = np.concatenate([own[None], self._between(number, covariance[1:])])
        self._accumulate(number, covariance, hessian)
        self._pass_back(number, covariance, hessian)

    def _arrive(self, number: int) -> Array:
        """Cov(g_t, g_u) for u = t, t + 1, ..., `[steps, H, H]`."""
        at, recurrent = number - self.first, self.direction.states[0]
        found = np.zeros((len(self.sent) + 1, *recurrent.shape))
        found[:-1] = self.sent @ recurrent
        columns = self.received[number] + recurrent.T @ self.moved
        start, later = max(-at, 0), columns[max(at, 0) :]
        found[start : start + len(later)] += later
        if 0 <= at < len(columns):
            found[:-1] += self._with_received(number) @ recurrent
        self.moved = self.coefficients[0, number][:, None] * columns
        return found

    def _with_received(self, number: int) -> Array:
        """Cov(e_t, d_u) of later steps u, `[steps, H, H]`."""
        at = number - self.first
        if not self.held or not 0 <= at < self.received.shape[1]:
            return np.zeros_like(self.sent)
        return np.stack([held[at].T for held in self.held])

    def _through(self, number: int, covariance: Array) -> tuple[Array, Array]:
        """Covariance and hessian of d_t; its mean joins `locals`."""
        mean, (state, slope) = self.means[0], self.trace.curves[number]
        arrived = GradientMoments.of(mean, np.diag(covariance), covariance, self.hessian)
        passed = through(Seed(arrived, state, slope), self.trace.latent(number))
        assert passed.covariance is not None
        assert passed.hessian is not None
        straight = arrived.variance * self.coefficients[0, number] ** 2
        local = bounded(passed.mean, arrived.second * expectation(slope**2) - straight)
        self.locals.insert(0, local)
        return passed.covariance + np.outer(passed.mean, passed.mean) - np.outer(local, local), passed.hessian

    def _between(self, number: int, covariance: Array) -> Array:
        """Cov(d_t, d_u) of later steps u from Cov(g_t, g_u)."""
        if not len(covariance):
            return covariance
        slope = self.coefficients[0, number][:, None]
        moved = slope * (self._with_received(number) + self.sent)
        later = range(number + 1, len(self.direction.order))
        rho = np.stack([self.trace.correlations[u][number].T for u in later])
        raw = covariance + self.means[0][:, None] * np.stack(self.means[1:])[:, None]
        return np.asarray(
            moved + raw * _series(self.coefficients[:, number], self.coefficients[:, later], rho)
        )

    def _accumulate(self, number: int, covariance: Array, hessian: Array) -> None:
        """Add to the gradients of N, M and b; other steps count twice, as both steps of a pair."""
        trace, mean = self.trace, self.locals[0]
        twice = np.where(np.arange(len(covariance)) > 0, 2.0, 1.0)[:, None]
        together = twice * (np.diagonal(covariance, axis1=1, axis2=2) + mean * np.stack(self.locals))
        state, inputs = trace.mean[number][0], self.x.mean[self.direction.order[number]]
        values = (inputs, state, np.ones(1))
        added = (hessian @ trace.with_input[number], hessian @ trace.with_state[number], np.zeros(1))
        for sums, value, more, other in zip(self.sums, values, added, self._products(number), strict=True):
            sums.product += mean[:, None] * value
            sums.added += more
            sums.square += together.T @ other

    def _products(self, number: int) -> tuple[Array, Array, Array]:
        """E[x_t x_u] and E[h_t h_u] of this step and later ones, `[steps, n]`."""
        trace, steps = self.trace, [self.direction.order[u] for u in range(number, len(self.direction.order))]
        inputs = self.x.mean[steps[0]] * self.x.mean[steps]
        if self.x.across is None:
            inputs[0] += diagonal(self.x.covariance[steps[0]])
        else:
            inputs += np.diagonal(self.x.across[steps[0], steps], axis1=1, axis2=2)
        varied = np.diagonal(trace.states[number, number:-1], axis1=1, axis2=2)
        states = varied + trace.mean[number] * np.concatenate(trace.mean[number:-1])
        return inputs, states, np.ones((len(steps), 1))

    def _pass_back(self, number: int, covariance: Array, hessian: Array) -> None:
        order, recurrent, inputs = self.direction.order, self.direction.states[0], self.direction.inputs[0]
        step = order[number]
        self.x_mean[step] = inputs.T @ self.locals[0]
        fed = inputs.T @ covariance[0] @ inputs
        self.x_covariance[step] = fed if self.x_covariance.ndim == 3 else np.diag(fed)
        if self.x_across is not None:
            for u, row in enumerate(inputs.T @ covariance @ inputs, number):
                self.x_across[step, order[u]], self.x_across[order[u], step] = row, row.T
        self.mean = recurrent.T @ self.locals[0]
        self.hessian = recurrent.T @ hessian @ recurrent
        self.sent = recurrent.T @ covariance
        self.held.insert(0, self.moved[: max(number - self.first, 0)].copy())


def received(direction: Direction, arriving: Arriving) -> tuple[Array, int]:
    """Cov(e_t, e_v) of all steps t and the steps v from the first to the last that receive anything; the first of them."""
    channels = direction.channels
    back, last = direction.order.step, arriving.last[1][:channels, :channels]
    across = _apart(arriving.covariance) if arriving.across is None else arriving.across
    across = across[::back, ::back]
    at = [v for v, own in enumerate(across[range(len(across)), range(len(across))]) if np.any(own)]
    if not np.any(last):
        first, end = (at[0], at[-1] + 1) if at else (0, 0)
        return across[:, first:end], first
    first = at[0] if at else len(across) - 1
    received = across[:, first:].copy()
    received[-1, -1] += last
    return received, first


def _apart(covariance: Array) -> Array:
    """Of uncorrelated steps."""
    count, channels = covariance.shape[:2]
    across = np.zeros((count, count, channels, channels))
    for step, own in enumerate(covariance):
        across[step, step] = _matrix(own)
    return across


def _matrix(covariance: Array) -> Array:
    return np.diag(covariance) if covariance.ndim == 1 else covariance


def _series(a: Array, b: Array, rho: Array) -> Array:
    """sum_{k>0} a_k b_uk' o rho_u^k, `[steps, H, H]`, of coefficients a `[TERMS + 1, H]` and b `[TERMS + 1, steps, H]`."""
    total = a[TERMS][:, None] * b[TERMS][:, None, :] * rho
    for order in reversed(range(1, TERMS)):
        total += a[order][:, None] * b[order][:, None, :]
        total *= rho
    return np.asarray(total)
