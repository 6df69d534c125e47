"""One direction of a recurrent layer: its weights by local, and how covariances pass through them.

A covariance of the states is a matrix `[q H, q H]`, states first, or, where only each channel's own is carried, `[H, q, q]`.
One of the input is a matrix `[I, I]` or a variance `[I]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...quadrature import Array
from .cells import Activation, Cell

__all__ = ["Direction", "blocks", "diagonal", "energy", "set_blocks"]


@dataclass(frozen=True)
class Direction:
    """The locals of all channels are l = M s + N x + b, of the states that a step starts from and its input.

    Attributes:
        cell: The kind of cell.
        activations: Its activations.
        inputs: N, `[p, H, I]`.
        states: M, `[p, H, q H]`.
        bias: b, `[p, H]`.
        order: The steps in the order in which they are taken.
    """

    cell: Cell
    activations: Sequence[Activation]
    inputs: Array
    states: Array
    bias: Array
    order: range

    @property
    def channels(self) -> int:
        """H."""
        return int(self.bias.shape[1])

    @cached_property
    def own(self) -> Array:
        """M between a channel's own states and locals, `[H, p, q]`."""
        every = np.arange(self.channels)
        columns = self.states.reshape(len(self.bias), self.channels, -1, self.channels)
        return columns[:, every, :, every]

    def local_covariance(self, states: Array, inputs: Array) -> Array:
        """Covariance of each channel's locals, `[H, p, p]`."""
        carried = states
        if states.ndim == 3:
            carried = np.diagonal(states, axis1=1, axis2=2).T.reshape(-1)
        return energy(self.states, carried) + energy(self.inputs, inputs)

    def of_states(self, covariance: Array) -> Array:
        """M C, `[*, p, H, n]`, of matrices C `[*, q H, n]`."""
        gates, channels = list(self.cell.state_gates), self.channels
        recurrent = self.states[gates, :, :channels].reshape(-1, channels)
        found = np.zeros((len(covariance), *self.bias.shape, covariance.shape[2]))
        found[:, gates] = (recurrent @ covariance[:, :channels]).reshape(len(found), -1, *found.shape[2:])
        for local, state in self.cell.own:
            found[:, local] = covariance[:, state * channels : (state + 1) * channels]
        return found

    def transition(self, slope: Array) -> tuple[Array, Array]:
        """J M `[q H, q H]` and J N `[q H, I]`, for slopes J `[H, q, p]`."""
        rows = slope.shape[0] * slope.shape[1]
        products = (np.einsum("hqp,phx->qhx", slope, weight) for weight in (self.states, self.inputs))
        of_states, of_inputs = (product.reshape(rows, -1) for product in products)
        return of_states, of_inputs


def energy(weight: Array, covariance: Array) -> Array:
    """W C W' between the locals of one channel, `[H, p, p]`, for W `[p, H, n]`."""
    by_channel = np.swapaxes(weight, 0, 1)
    spread = by_channel * covariance if covariance.ndim == 1 else by_channel @ covariance
    return np.asarray(spread @ np.swapaxes(by_channel, 1, 2))


def blocks(covariance: Array, channels: int) -> Array:
    """Each channel's own part `[H, q, q]`."""
    if covariance.ndim == 3:
        return covariance
    every = np.arange(channels)
    states = len(covariance) // channels
    return covariance.reshape(states, channels, states, channels)[:, every, :, every]


def set_blocks(covariance: Array, own: Array) -> Array:
    """The matrix with each channel's own part replaced, in place."""
    channels, states = own.shape[:2]
    every = np.arange(channels)
    covariance.reshape(states, channels, states, channels)[:, every, :, every] = own
    return covariance


def diagonal(covariance: Array) -> Array:
    """Variances, of a covariance or of variances."""
    return covariance if covariance.ndim == 1 else np.diagonal(covariance, axis1=-2, axis2=-1)
