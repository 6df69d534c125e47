"""What a fuse is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import InputError

__all__ = ["ALL_PARAMETERS", "FUSE_KINDS", "GLOBAL_KINDS", "Fuse"]

ALL_PARAMETERS = "global-norm"
"""The target of a fuse on the norm of all parameters' gradients together."""

FUSE_KINDS = ("value", "norm", "global-norm", "adaptive", "quantile", "zscore")
"""Every kind of fuse."""

GLOBAL_KINDS = ("global-norm", "quantile", "zscore")
"""The kinds that may take all parameters' gradients together."""


@dataclass(frozen=True)
class Fuse:
    """One clipping node.

    Attributes:
        kind: One of FUSE_KINDS.
        target: Name of the parameter or activation whose gradient it clips, or `ALL_PARAMETERS`.
        threshold: Above 0. The largest absolute value (`value`) or Euclidean norm (`norm`, `global-norm`) that passes
            unchanged; the largest ratio of gradient norm to weight norm (`adaptive`); the quantile of past norms, below 1
            (`quantile`); the largest number of standard deviations above the mean of past norms (`zscore`).
        reason: Why it is there, in a sentence; kept with the node.
    """

    kind: str
    target: str
    threshold: float
    reason: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.kind not in FUSE_KINDS:
            raise InputError(
                f"unknown kind of fuse {self.kind!r}", expected=f"one of {', '.join(FUSE_KINDS)}"
            )
        below = 1.0 if self.kind == "quantile" else math.inf
        if not 0 < self.threshold < below:
            expected = "a number between 0 and 1" if self.kind == "quantile" else "a positive number"
            raise InputError(f"threshold {self.threshold} of {self.name}", expected=expected)
        if self.kind == "global-norm" and not self.is_global:
            raise InputError(
                f"a {self.kind} fuse on {self.target!r}", expected=f"the target {ALL_PARAMETERS!r}"
            )
        if self.is_global and self.kind not in GLOBAL_KINDS:
            raise InputError(
                f"a {self.kind} fuse on {self.target!r}",
                expected=f"the target {ALL_PARAMETERS!r} for {', '.join(GLOBAL_KINDS)} only",
            )

    @property
    def is_global(self) -> bool:
        """Whether it takes all parameters' gradients together."""
        return self.target == ALL_PARAMETERS

    @property
    def name(self) -> str:
        """Name of the node."""
        return f"fuse/{self.target}"
