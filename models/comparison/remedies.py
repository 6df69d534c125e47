"""The remedies against exploding gradients that are compared: what each changes in the network or its training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["REMEDIES", "Remedy"]


@dataclass(frozen=True)
class Remedy:
    """One row of a comparison.

    Attributes:
        name: What the table calls it.
        network: Arguments of the network's builders.
        schedule: Name of the learning rate's schedule, with its defaults.
        clip_norm: Bound on the norm of all gradients together; None does not clip.
    """

    name: str
    network: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "constant"
    clip_norm: float | None = None

    def changes(self, builder: Callable[..., Any]) -> bool:
        """Whether a network with this builder can take the remedy and does not have it already."""
        parameters = inspect.signature(builder).parameters
        known = all(name in parameters for name in self.network)
        return known and (
            not self.network or any(parameters[name].default != value for name, value in self.network.items())
        )


REMEDIES = (
    Remedy("none"),
    Remedy("leaky-relu", {"activation": "leaky_relu"}),
    Remedy("prelu", {"activation": "prelu"}),
    Remedy("batch-norm", {"batch_norm": True}),
    Remedy("exponential-decay", schedule="exponential"),
    Remedy("cosine-decay", schedule="cosine"),
    Remedy("clipping", clip_norm=1.0),
    Remedy("all four", {"activation": "leaky_relu", "batch_norm": True}, "cosine", 1.0),
)
"""No remedy, each of the four in its forms, and all four together."""
