"""The learning rate as a function of the step, computed in float64 outside the graph.

With s steps done, e = floor(s / steps per epoch) epochs done, T steps in all and W of them warm-up:

    constant      lr
    exponential   lr decay^e                                           torch ExponentialLR, stepped once an epoch
    cosine        floor + (lr - floor) (1 + cos(pi (s - W) / (T - W))) / 2    torch CosineAnnealingLR, stepped every step
    warm-up       the value above times (s + 1) / W while s < W        torch LinearLR(1/W, total_iters=W-1)

During the warm-up cosine stays at lr.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..graph.errors import InputError

__all__ = ["SCHEDULES", "Schedule"]


@dataclass(frozen=True)
class Schedule:
    """A learning rate for every step.

    Attributes:
        learning_rate: The rate at its highest, above 0.
        name: One of `SCHEDULES`.
        decay: Factor per epoch of `exponential`, in (0, 1].
        floor: The rate at which `cosine` would arrive after the last step, in [0, learning_rate].
        warmup: Number of steps over which the rate rises linearly.
    """

    learning_rate: float
    name: str = "constant"
    decay: float = 0.95
    floor: float = 0.0
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise InputError(f"unknown schedule {self.name!r}", expected=f"one of {', '.join(SCHEDULES)}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning rate {self.learning_rate:g}", expected="a number above 0")
        if not 0 < self.decay <= 1:
            raise InputError(f"decay {self.decay:g} of the learning rate", expected="a number in (0, 1]")
        if not 0 <= self.floor <= self.learning_rate:
            raise InputError(
                f"final learning rate {self.floor:g}", expected="a number from 0 to the learning rate"
            )
        if self.warmup < 0:
            raise InputError(f"{self.warmup} steps of warm-up", expected="a number of at least 0")

    def at(self, step: int, steps_per_epoch: int, steps: int) -> float:
        """The learning rate of a step, counting from 0, of `steps` in all."""
        rate = SCHEDULES[self.name](self, step, steps_per_epoch, steps)
        return rate * (step + 1) / self.warmup if step < self.warmup else rate


def _constant(schedule: Schedule, step: int, steps_per_epoch: int, steps: int) -> float:
    return schedule.learning_rate


def _exponential(schedule: Schedule, step: int, steps_per_epoch: int, steps: int) -> float:
    return schedule.learning_rate * schedule.decay ** (step // steps_per_epoch)


def _cosine(schedule: Schedule, step: int, steps_per_epoch: int, steps: int) -> float:
    done = max(step - schedule.warmup, 0) / max(steps - schedule.warmup, 1)
    return schedule.floor + (schedule.learning_rate - schedule.floor) * (1 + math.cos(math.pi * done)) / 2


SCHEDULES: dict[str, Callable[[Schedule, int, int, int], float]] = {
    "constant": _constant,
    "exponential": _exponential,
    "cosine": _cosine,
}
"""Every schedule by name."""
