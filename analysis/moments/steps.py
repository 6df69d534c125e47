"""Covariance of a sequence of states: of one step's features in full, of different steps feature by feature or in full."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .quadrature import Array
from .tokens import TokenCorrelation

__all__ = ["Steps", "numbered", "of_tokens"]


@dataclass(frozen=True)
class Steps:
    """What is known of the states of a sequence of T steps and F features, or of their gradients.

    Attributes:
        place: Which number of the sequence each element of a tensor is, `step * F + feature`; of the tensor's shape.
        within: Covariance of one step's features, `[T, F, F]`.
        across: Covariance between two steps, of one feature `[T, T, F]` or of all `[T, T, F, F]`.
        hessian: Of gradients: E[d gradient / d value] at each step, `[T, F, F]`. None counts as 0.
    """

    place: Array
    within: Array
    across: Array
    hessian: Array | None = None

    @property
    def features(self) -> int:
        """F."""
        return int(self.within.shape[1])

    @property
    def is_full(self) -> bool:
        """Whether the covariance of all features between steps is known."""
        return self.across.ndim == 4

    def between(self, *, full: bool) -> Array:
        """Covariance between two steps, of all features or of one; what is not known of different ones counts as 0."""
        if full == self.is_full:
            return self.across
        if self.is_full:
            return np.diagonal(self.across, axis1=2, axis2=3)
        every = np.arange(len(self.within))
        across = self.across[..., None] * np.eye(self.features)
        across[every, every] = self.within
        return np.asarray(across)

    def is_in_order(self) -> bool:
        """Whether the elements come in the order of steps and features, all of them."""
        elements = len(self.within) * self.features
        return bool(np.array_equal(self.place.reshape(-1), np.arange(elements)))

    def moved(self, place: Array) -> Steps:
        """The same of a tensor whose elements have these places."""
        return replace(self, place=place)

    def __add__(self, other: Steps) -> Steps | None:
        """Of a sum of uncorrelated tensors; None where their elements are numbered differently."""
        if self.within.shape != other.within.shape or not np.array_equal(self.place, other.place):
            return None
        hessians = [steps.hessian for steps in (self, other) if steps.hessian is not None]
        full = self.is_full and other.is_full
        return Steps(
            self.place,
            self.within + other.within,
            self.between(full=full) + other.between(full=full),
            sum(hessians[1:], hessians[0]) if hessians else None,
        )

    def with_noise(self, added: Array) -> Steps:
        """Of the tensor plus independent noise of this variance, of the tensor's shape."""
        step, feature = np.divmod(self.place, self.features)
        within, across = self.within.copy(), self.across.copy()
        within[step, feature, feature] += added
        across[(step, step, *[feature] * (across.ndim - 2))] += added
        return replace(self, within=within, across=across)

    def constant(self, covariance: Array) -> tuple[Array, Array]:
        """`within` and `across` of a sequence that is the same at every step, of this covariance `[F, F]`."""
        held = covariance if self.is_full else np.diag(covariance)
        return np.broadcast_to(covariance, self.within.shape), np.broadcast_to(held, self.across.shape)

    def scaled(self, factor: float) -> Steps:
        """Of the tensor times a number."""
        hessian = None if self.hessian is None else self.hessian * factor**2
        return Steps(self.place, self.within * factor**2, self.across * factor**2, hessian)

    def matrix(self) -> Array:
        """The covariance of the tensor's elements, `[n, n]`."""
        step, feature = np.divmod(self.place.reshape(-1), self.features)
        if self.is_full:
            return self.across[step[:, None], step, feature[:, None], feature]
        same_step, same_feature = step[:, None] == step, feature[:, None] == feature
        within = self.within[step[:, None], feature[:, None], feature[None, :]]
        across = self.across[step[:, None], step[None, :], feature[:, None]]
        return np.where(same_step, within, np.where(same_feature, across, 0.0))

    def mean_over_steps(self) -> Array:
        """Covariance of the mean over the steps, `[F, F]`: between features as within a step where no more is known."""
        count = len(self.within)
        if self.is_full:
            return np.asarray(self.across.mean((0, 1)))
        variance = self.across.sum((0, 1)) / count**2
        within = self.within.mean(0)
        own = np.diag(within)
        scale = np.sqrt(np.divide(np.maximum(variance, 0.0), own, out=np.zeros_like(own), where=own > 0))
        return np.asarray(within * np.outer(scale, scale))

    def of_matrix(self, covariance: Array, hessian: Array | None) -> Steps:
        """The same numbering for the covariance `[n, n]` of a tensor whose n elements have the places of this one."""
        step, feature = np.divmod(self.place.reshape(-1), self.features)
        within, across = np.zeros(self.within.shape), np.zeros(self.across.shape)
        curvature = None if hessian is None else np.zeros_like(within)
        for s in np.unique(step):
            rows = np.flatnonzero(step == s)
            at = np.ix_([s], feature[rows], feature[rows])
            within[at] = covariance[np.ix_(rows, rows)]
            if curvature is not None and hessian is not None:
                curvature[at] = hessian[np.ix_(rows, rows)]
        if self.is_full:
            across[step[:, None], step, feature[:, None], feature] = covariance
        else:
            same = np.nonzero(feature[:, None] == feature)
            across[step[same[0]], step[same[1]], feature[same[0]]] = covariance[same]
        return Steps(self.place, within, across, curvature)


def of_tokens(tokens: TokenCorrelation, variance: Array) -> Steps:
    """Of a sequence `[T, F]` whose tokens are exchangeable."""
    deviation = np.sqrt(variance)
    within = np.diag(tokens.within) if tokens.within.ndim == 1 else tokens.within
    across = tokens.shared * deviation[:, None] * deviation
    every = np.arange(len(variance))
    across[every, every] = variance
    return numbered(within * deviation[:, :, None] * deviation[:, None], across, variance.shape)


def numbered(within: Array, across: Array, shape: tuple[int, ...], hessian: Array | None = None) -> Steps:
    """Of a tensor whose elements come in the order of steps and features."""
    return Steps(np.arange(int(np.prod(shape))).reshape(shape), within, across, hessian)
