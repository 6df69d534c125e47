"""Everything that rules judge: the prediction, the verdict, and the remedies that help."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from ..graph.errors import InputError
from .findings import Remedy
from .plan import FusePlan
from .prediction import Prediction
from .recomputation import BudgetSpentError, Recomputation
from .remedies import OFFERS, ROUNDS, fuse_remedy
from .verdict import Summary

__all__ = ["PRECISIONS", "Evidence", "TrainingSetup"]


PRECISIONS = ("float32", "float16", "bfloat16")
"""The element types that rules know."""


@dataclass(frozen=True)
class TrainingSetup:
    """How a model will be trained.

    Attributes:
        lr: Learning rate, above 0.
        momentum: Momentum, in [0, 1).
        precision: Element type of values and gradients, one of PRECISIONS.
    """

    lr: float = 0.01
    momentum: float = 0.9
    precision: str = "float32"

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise InputError(f"learning rate {self.lr:g}", expected="a positive number")
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum {self.momentum:g}", expected="a number in [0, 1)")
        if self.precision not in PRECISIONS:
            raise InputError(
                f"unknown precision {self.precision!r}", expected=f"one of {', '.join(PRECISIONS)}"
            )


@dataclass(frozen=True)
class Evidence:
    """What is known of a model.

    Attributes:
        prediction: Moments, profile, trunk and attribution.
        summary: The verdict: that of the probe where there was one, else the prediction's.
        plan: The fuse plan.
        setup: How the model will be trained.
    """

    prediction: Prediction
    summary: Summary
    plan: FusePlan
    setup: TrainingSetup
    _offers: dict[str, Remedy | None] = field(default_factory=dict, repr=False)
    _left_out: list[str] = field(default_factory=list, repr=False)

    def threshold(self, name: str) -> float:
        """The threshold of that name, as `GF101.growth`."""
        return self.prediction.thresholds[name]

    def remedies(self, *first: str) -> list[Remedy]:
        """Every remedy that helps: those that cure before others, of these the kinds named first; clipping last."""
        found = {kind: remedy for kind in OFFERS if (remedy := self._offer(kind))}
        order = sorted(found, key=lambda kind: (not found[kind].cures, kind not in first))
        return [*(found[kind] for kind in order), *self.clipping]

    @property
    def clipping(self) -> list[Remedy]:
        """Clipping, where it is planned."""
        remedy = fuse_remedy(self.plan.fuses, self.summary)
        return [] if remedy is None else [remedy]

    @property
    def not_recomputed(self) -> str:
        """Which remedies the budget left out, and a budget that is enough for them; empty where all were recomputed."""
        if not self._left_out:
            return ""
        count, budget = len(self._left_out), self.prediction.state.assumptions.budget
        enough = self._recomputed.budget_for(ROUNDS * (count + 1))  # a search may have stopped short, too
        what = f"{count} {'remedy' if count == 1 else 'remedies'} ({', '.join(self._left_out)})"
        return (
            f"{what} not recomputed within the budget of {budget:g} s: --budget {10 * math.ceil(enough / 10)}"
        )

    @cached_property
    def _recomputed(self) -> Recomputation:
        return Recomputation(self.prediction)

    def _offer(self, kind: str) -> Remedy | None:
        """Each is worked out once for all rules."""
        if kind not in self._offers:
            try:
                self._offers[kind] = OFFERS[kind](self._recomputed)
            except BudgetSpentError:
                self._offers[kind] = None
                self._left_out.append(kind)
        return self._offers[kind]
