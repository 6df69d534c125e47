"""Predictions of a changed model, as many as the budget allows.

What one takes is estimated from shapes, so that one model gets one answer on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ..graph.gradient_graph import GradientGraph
from .moments import propagation_seconds
from .prediction import Prediction, predict

__all__ = ["BudgetSpentError", "Recomputation"]


class BudgetSpentError(Exception):
    """Another prediction would exceed the budget."""


@dataclass
class Recomputation:
    """What the remedies of a report share.

    Attributes:
        prediction: Of the model as it is.
        runs: Predictions of changed models that were made.
    """

    prediction: Prediction
    runs: int = 0

    @cached_property
    def seconds(self) -> float:
        """What a prediction takes, estimated."""
        state = self.prediction.state
        return state.laws * propagation_seconds(state.values, state.full_covariance, state.all_steps)

    @property
    def fits(self) -> bool:
        """Whether another prediction is within the budget."""
        return (self.runs + 1) * self.seconds <= self.prediction.state.assumptions.budget

    def predict(self, changed: Callable[[], GradientGraph]) -> Prediction:
        """What is predicted of a changed model, which is made only if it is predicted.

        Raises:
            BudgetSpentError: It does not fit the budget.
        """
        if not self.fits:
            raise BudgetSpentError
        self.runs += 1
        state = self.prediction.state
        return predict(changed(), state.assumptions, self.prediction.thresholds, one_law=state.laws == 1)

    def budget_for(self, more: int) -> float:
        """The budget within which as many more predictions would fit, with all covariances that it may bring with it."""
        state = self.prediction.state
        everything = dict.fromkeys(state.full_covariance, True)
        seconds = propagation_seconds(state.values, everything, frozenset(everything))
        return (self.runs + more) * state.laws * seconds
