"""Each layer's gain, in log10, put down to its causes; the parts of a layer sum to its gain, the layers to the whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .trunk import CAUSES, Step

__all__ = ["Attribution", "attribute", "by_cause"]


@dataclass(frozen=True)
class Attribution:
    """How a layer changes the RMS of the gradient that flows back through it, in decades.

    Pooling, dropout and ops that move elements count as activation. The gain of the first layer's own weights is not part of
    the flow: nothing lies before it.
    """

    layer: str
    weight: float = 0.0
    activation: float = 0.0
    normalisation: float = 0.0
    residual: float = 0.0
    recurrence: float = 0.0

    @property
    def log10_gain(self) -> float:
        """The sum of the parts."""
        return self.weight + self.activation + self.normalisation + self.residual + self.recurrence


def attribute(steps: Iterable[Step]) -> list[Attribution]:
    """Layers in forward order. A step whose gain is undefined, because both ends overflow, counts as 0."""
    parts: dict[str, dict[str, float]] = {}
    for step in steps:
        layer = parts.setdefault(step.layer, {})
        gain = 0.0 if math.isnan(step.log10_gain) else step.log10_gain
        layer[step.cause] = layer.get(step.cause, 0.0) + gain
    return [Attribution(layer, **causes) for layer, causes in reversed(parts.items())]


def by_cause(attribution: Sequence[Attribution]) -> dict[str, float]:
    """The gain of all layers together, in decades, by cause."""
    return {cause: sum(getattr(row, cause) for row in attribution) for cause in CAUSES}
