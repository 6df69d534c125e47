"""A gated layer, s' = F(M s + N x + b), with the covariance of all channels of all steps (see `plain` for one without gates).

With J = E[dF/dl] of each step and Stein's lemma, for any y that is jointly Gaussian with the locals l_t,

    Cov(s_{t+1}, y) = J_t Cov(l_t, y)           y = s_u, x_v
    Cov(l_t, y) = M Cov(s_t, y) + N Cov(x_t, y)

where a step's own covariance, from which those with later steps follow, has each channel's own block exact. On the way
back, of g_t = e_t + M' d_{t+1}, with e_t what the output receives and d_u = J_u' g_u what the locals of a later step do,

    Cov(g_t, e_v) = Cov(e_t, e_v) + M' J_{t+1}' Cov(g_{t+1}, e_v)
    Cov(g_t, d_u) = Cov(e_t, d_u) + M' Cov(d_{t+1}, d_u)
    Cov(d_t, d_u) = J_t' Cov(g_t, d_u) + sum E[g_t g_u'] K_t Cov(l_t, l_u) K_u'         of one channel, K = E[d2 F / dl dl]

which starts from Cov(d_u, d_u), that has the squares of the slopes: g_t contains d_u, slopes and all. Carried of each
channel with itself alone (`forward`, `backward`), too little is left of what the states of all steps have in common: training
makes them remember a few directions, those of the classes, and then the weights' gradients come out at half of what they are.

Sources: Stein 1981 for the covariances, Chen 2018 for the gradients' independence of the slopes that they meet.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ...quadrature import Array
from .backward import Arriving, Back, Gradients
from .direction import Direction, blocks, diagonal, set_blocks
from .forward import Inputs, Trace
from .plain import received
from .statistics import Statistics, expectations

__all__ = ["GatedTrace", "back", "run"]


@dataclass
class GatedTrace(Trace):
    """What is known at each step taken, the first first.

    Attributes:
        states: Cov(h_t, h_u) of what the steps start from, `[T + 1, T + 1, H, H]`; one more for the last ones.
        with_input: Cov(l_t, x_t), `[p, H, I]`.
        with_state: Cov(l_t, h_t), `[p, H, H]`.
    """

    states: Array = field(default_factory=lambda: np.zeros(0))
    with_input: list[Array] = field(default_factory=list)
    with_state: list[Array] = field(default_factory=list)

    def with_later(self, number: int, count: int) -> Array:
        """Cov(h_t, h_u) of each channel, of the states that a step and so many later ones start from, `[count, H]`."""
        return np.diagonal(self.states[number, number + 1 : number + 1 + count], axis1=1, axis2=2)


def run(direction: Direction, x: Inputs, mean: Array, covariance: Array) -> GatedTrace:
    """All steps, from states of this mean `[q, H]` and covariance `[q H, q H]`."""
    walk = _Forward(direction, x, mean, covariance)
    for number in range(len(direction.order)):
        walk.step(number)
    return walk.trace


class _Forward:
    """The walk.

    Attributes:
        earlier: Cov(s_t, s_u) for u = 0 .. t, `[t + 1, q H, q H]`.
        with_inputs: Cov(s_t, x_v) of all inputs, `[T, q H, I]`.
        coming: For each step u: Cov(s_u, x_v) of the inputs v = u, u + 1, ..., `[steps, q H, I]`.
    """

    def __init__(self, direction: Direction, x: Inputs, mean: Array, covariance: Array) -> None:
        self.direction, self.x = direction, x
        count, channels = len(direction.order), direction.channels
        states = np.zeros((count + 1, count + 1, channels, channels))
        states[0, 0] = covariance[:channels, :channels]
        self.trace = GatedTrace([mean], [covariance], states=states)
        self.earlier = covariance[None]
        self.with_inputs = np.zeros((count, len(covariance), x.mean.shape[1]))
        self.coming: list[Array] = []

    def step(self, number: int) -> None:
        """One step."""
        trace, direction, channels = self.trace, self.direction, self.direction.channels
        of_states, of_inputs = (direction.of_states(held) for held in (self.earlier, self.with_inputs))
        self._add_inputs(number, of_states, of_inputs)
        locals_ = _own(of_states, direction.states) + _own(of_inputs[: number + 1], direction.inputs)
        trace.local.append(0.5 * (locals_[-1] + np.swapaxes(locals_[-1], 1, 2)))
        trace.local_lags.append(locals_[-2::-1])
        trace.with_state.append(of_states[-1][:, :, :channels].copy())
        trace.with_input.append(of_inputs[number].copy())
        found = self._through(number)
        self._set_states(number, found, _by_slope(found.slope, of_states), _by_slope(found.slope, of_inputs))

    def _add_inputs(self, number: int, of_states: Array, of_inputs: Array) -> None:
        """What the input of this step has to do with states and inputs."""
        order, inputs = self.direction.order, self.direction.inputs
        step = order[number]
        if self.x.across is None:
            of_inputs[number] += inputs * own if (own := self.x.covariance[step]).ndim == 1 else inputs @ own
            return
        self.coming.append(self.with_inputs[number:].copy())
        earlier = np.stack([coming[number - u] for u, coming in enumerate(self.coming)])
        of_states += _times(inputs, np.swapaxes(earlier, 1, 2))
        of_inputs += _times(inputs, self.x.across[step, :: order.step])

    def _through(self, number: int) -> Statistics:
        trace, direction = self.trace, self.direction
        fed = direction.inputs @ self.x.mean[direction.order[number]]
        centre = fed + direction.states @ trace.mean[-1].reshape(-1) + direction.bias
        found = expectations(direction.cell, direction.activations, centre, trace.local[-1])
        trace.centre.append(centre)
        trace.statistics.append(found)
        trace.mean.append(found.mean)
        return found

    def _set_states(self, number: int, found: Statistics, earlier: Array, with_inputs: Array) -> None:
        trace, direction, channels = self.trace, self.direction, self.direction.channels
        of_states, of_inputs = direction.transition(found.slope)
        own = set_blocks(earlier[-1] @ of_states.T + with_inputs[number] @ of_inputs.T, found.covariance)
        self.earlier = np.concatenate([earlier, own[None]])
        self.with_inputs = with_inputs
        trace.covariance.append(own)
        hidden = self.earlier[:, :channels, :channels]
        trace.states[number + 1, : number + 2] = hidden
        trace.states[: number + 2, number + 1] = np.swapaxes(hidden, 1, 2)


def back(direction: Direction, x: Inputs, trace: GatedTrace, arriving: Arriving) -> Gradients:
    """All steps, last first."""
    return _Backward(direction, x, trace, arriving).walk()


class _Backward(Back[GatedTrace]):
    """The walk.

    Attributes:
        with_locals: Cov(g_t, d_u) of later steps u, the nearest first, `[steps, q H, p H]`.
        sent: M' Cov(d_t, d_u) for u = t, t + 1, ..., `[steps, q H, p H]`.
        received: Cov(e_t, e_v), `[T, columns, H, H]`, for steps t and those v that receive anything.
        first: The first such v.
        with_received: Cov(g_t, e_v), `[columns, q H, H]`.
        moved: M' Cov(d_t, e_v).
        held: Cov(g_u, e_v) of later steps u, the nearest first, for v < u, `[columns, q H, H]` each.
    """

    def __init__(self, direction: Direction, x: Inputs, trace: GatedTrace, arriving: Arriving) -> None:
        super().__init__(direction, x, trace, arriving)
        channels, rows = direction.channels, len(self.covariance)
        self.received, self.first = received(direction, arriving)
        # What the last h receives counts as received at the last step.
        self.covariance = self.covariance.copy()
        self.covariance[:channels, :channels] = 0.0
        self.sent = np.zeros((0, rows, direction.bias.size))
        self.moved = np.zeros((self.received.shape[1], rows, channels))
        self.held: list[Array] = []

    def _arrive(self, number: int) -> None:
        at, channels = number - self.first, self.direction.channels
        self.with_locals = self.sent.copy()
        self.with_received = self.moved.copy()
        self.with_received[:, :channels] += self.received[number]
        if not 0 <= at < len(self.moved):
            return
        self.covariance[:, :channels] += self.with_received[at]
        self.covariance[:channels] += self.moved[at].T
        later = self.trace.statistics[number + 1 :]
        for row, held, found in zip(self.with_locals, self.held, later, strict=True):
            row[:channels] += _by_slope_back(found.slope, held[at : at + 1])[0].T

    def _together(self, number: int, local: Array) -> Array:
        count = len(self.means)
        if not count:
            self.extra = np.zeros((0, *local.shape))
            return self.extra
        self.extra = self._of_slopes(number, self._with_later(number))
        p, channels = self.direction.bias.shape
        every = np.arange(channels)
        pairs = self.with_locals.reshape(count, -1, channels, p, channels)[:, :, every, :, every]
        moved = np.einsum("hqp,huqp->uhp", self.trace.statistics[number].slope, pairs)
        return np.asarray(moved + self.extra + local * np.stack(self.locals))

    def _with_later(self, number: int) -> Array:
        """Cov(g_t, g_u) of each channel and later steps u, `[steps, H, q, q]`."""
        count, channels = len(self.means), self.direction.channels
        q, every = len(self.mean), np.arange(self.direction.channels)
        found = np.zeros((count, channels, q, q))
        back = np.moveaxis(self.direction.states.reshape(-1, q, channels), 2, 0)
        rows = np.moveaxis(self.with_locals[1:].reshape(count - 1, q, channels, len(back[0])), 2, 0)
        found[:-1] = np.swapaxes(rows @ back[:, None], 0, 1)
        start = max(number + 1 - self.first, 0)
        columns = self.with_received[start:].reshape(-1, q, channels, channels)[:, :, every, every]
        at = max(self.first - number - 1, 0)
        found[at : at + len(columns), :, :, 0] += np.swapaxes(columns, 1, 2)
        return found

    def _with_locals(self, number: int) -> tuple[Array, Array]:
        return self.trace.with_input[number], self.trace.with_state[number]

    def _pass_covariance(self, number: int, own: Array) -> None:
        found, direction = self.trace.statistics[number], self.direction
        rest = (
            own - np.swapaxes(found.slope, 1, 2) @ blocks(self.covariance, direction.channels) @ found.slope
        )
        of_states, of_inputs = direction.transition(found.slope)
        held = self._with_own_locals(found)
        self._set_inputs(number, of_inputs, held, rest)
        self.sent = _sent(of_states, direction.states, held, rest, self.extra)
        states = direction.states.reshape(direction.bias.size, -1)
        self.covariance = self.sent[0] @ states
        self.moved = of_states.T @ self.with_received
        self.held.insert(0, self.with_received[: max(number - self.first, 0)].copy())

    def _with_own_locals(self, found: Statistics) -> Array:
        """Cov(g_t, g_t) J_t, then Cov(g_t, d_u) of later steps, `[steps + 1, q H, p H]`."""
        q, channels = found.mean.shape
        own = np.einsum("xqh,hqp->xph", self.covariance.reshape(-1, q, channels), found.slope)
        return np.concatenate([own.reshape(1, len(own), -1), self.with_locals])

    def _set_inputs(self, number: int, of_inputs: Array, held: Array, rest: Array) -> None:
        direction, order = self.direction, self.direction.order
        later = slice(1 if self.x_across is None else None)
        sent = _sent(of_inputs, direction.inputs, held[later], rest, self.extra[: len(held[later]) - 1])
        fed, step = sent @ direction.inputs.reshape(direction.bias.size, -1), order[number]
        self.x_covariance[step] = fed[0] if self.x_covariance.ndim == 3 else diagonal(fed[0])
        if self.x_across is not None:
            for u, row in enumerate(fed, number):
                self.x_across[step, order[u]], self.x_across[order[u], step] = row, row.T


def _own(products: Array, weight: Array) -> Array:
    """Each channel's own part of Cov(l_t, l_u), `[*, H, p, p]`, from Cov(l_t, y_u) `[*, p, H, n]` and the weight of y."""
    return np.asarray(np.swapaxes(products, 1, 2) @ np.transpose(weight, (1, 2, 0)))


def _times(weight: Array, covariance: Array) -> Array:
    """W C, `[*, p, H, m]`, of a weight `[p, H, n]` and matrices `[*, n, m]`."""
    flat = weight.reshape(-1, weight.shape[2]) @ covariance
    return np.asarray(flat.reshape(-1, *weight.shape[:2], covariance.shape[2]))


def _by_slope(slope: Array, of_locals: Array) -> Array:
    """J C, `[*, q H, n]`, for slopes `[H, q, p]` and matrices `[*, p, H, n]`."""
    found = np.einsum("hqp,uphx->uqhx", slope, of_locals)
    return np.asarray(found.reshape(len(found), -1, found.shape[3]))


def _by_slope_back(slope: Array, of_states: Array) -> Array:
    """J' C, `[*, p H, n]`, for slopes `[H, q, p]` and matrices `[*, q H, n]`."""
    channels, q, p = slope.shape
    found = np.einsum(
        "hqp,uqhx->uphx", slope, of_states.reshape(len(of_states), q, channels, of_states.shape[2])
    )
    return np.asarray(found.reshape(len(found), p * channels, of_states.shape[2]))


def _sent(transition: Array, weight: Array, held: Array, rest: Array, extra: Array) -> Array:
    """W' Cov(d_t, d_u) for u = t, t + 1, ..., `[*, n, p H]`, from Cov(g_t, d_u) and what slopes add to each channel's own.

    Of the same step they add `rest` `[H, p, p]`, of two steps `extra` `[steps, H, p]`.
    """
    found = transition.T @ held
    found[0] += np.einsum("phx,hpr->xrh", weight, rest).reshape(found[0].shape)
    by_row = np.moveaxis(weight, 2, 0)
    found[1:] += (by_row * np.swapaxes(extra, 1, 2)[:, None]).reshape(found[1:].shape)
    return np.asarray(found)
