"""Everything that rules judge: the prediction, the verdict, and the remedies that help."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..graph.errors import InputError
from .findings import Remedy
from .plan import FusePlan
from .prediction import Prediction
from .remedies import OFFERS, fuse_remedy
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

    def _offer(self, kind: str) -> Remedy | None:
        """Each is worked out once for all rules."""
        if kind not in self._offers:
            self._offers[kind] = OFFERS[kind](self.prediction)
        return self._offers[kind]
