"""The learning rate as a function of the step, computed in float64 outside the graph.

With s steps done, e = floor(s / steps per epoch) epochs done, T steps in all and W of them warm-up, t = (s - W) / (T - W):

    constant            lr
    exponential         lr decay^e                                      torch ExponentialLR, stepped once an epoch
    step                lr decay^floor(e / every)                       torch StepLR, stepped once an epoch
    linear              lr + (floor - lr) t                             torch LinearLR from 1 to floor / lr, stepped every step
    polynomial          floor + (lr - floor) (1 - t)^power              torch PolynomialLR (floor is 0), stepped every step
    cosine              floor + (lr - floor) (1 + cos(pi t)) / 2        torch CosineAnnealingLR, stepped every step
    one-cycle           from lr / 25 up to lr over W steps (0.3 T where W is 0), and down to lr / 250,000, both along half a
                        cosine                                          torch OneCycleLR, stepped every step
    reduce-on-plateau   times decay, floor at the least, after each run of more than `patience` epochs whose loss is not 1e-4
                        below the best so far                           torch ReduceLROnPlateau, stepped once an epoch
    warm-up             the value above times (s + 1) / W while s < W   torch LinearLR(1/W, total_iters=W-1)

During the warm-up linear, polynomial and cosine stay at lr. The loss of reduce-on-plateau is that of the examples held out, or
of the training where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..graph.errors import InputError

__all__ = ["SCHEDULES", "Progress", "Schedule"]

_DECAY = {"exponential": 0.95, "step": 0.1, "reduce-on-plateau": 0.1}
"""Factors where the user gives none; the last two are PyTorch's."""

_RISE, _START, _END = 0.3, 25.0, 1e4
"""Of one-cycle: share of the steps until the highest rate, and the quotients highest / first rate and first / last rate."""

_BETTER, _LEAST_STEP = 1e-4, 1e-8
"""Of reduce-on-plateau: relative fall of the loss that counts as an improvement, and the smallest change of the rate."""


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        step: Number of the step, counting from 0.
        steps_per_epoch: Steps of an epoch.
        steps: Steps in all.
        losses: The loss after each epoch so far; None where it was not finite.
    """

    step: int
    steps_per_epoch: int
    steps: int
    losses: Sequence[float | None] = ()


@dataclass(frozen=True)
class Schedule:
    """A learning rate for every step.

    Attributes:
        learning_rate: The rate at its highest, above 0.
        name: One of `SCHEDULES`.
        decay: Factor of `exponential`, `step` and `reduce-on-plateau`, in (0, 1]; None: 0.95, 0.1 and 0.1.
        floor: The rate at which `linear`, `polynomial` and `cosine` would arrive after the last step, and below which
            `reduce-on-plateau` does not go, in [0, learning_rate].
        warmup: Number of steps over which the rate rises linearly; with `one-cycle`, along half a cosine.
        every: Epochs between two decays of `step`, at least 1.
        power: Exponent of `polynomial`, above 0.
        patience: Epochs without improvement that `reduce-on-plateau` bears, at least 0.
    """

    learning_rate: float
    name: str = "constant"
    decay: float | None = None
    floor: float = 0.0
    warmup: int = 0
    every: int = 10
    power: float = 1.0
    patience: int = 10

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise InputError(f"unknown schedule {self.name!r}", expected=f"one of {', '.join(SCHEDULES)}")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning rate {self.learning_rate:g}", expected="a number above 0")
        if self.decay is not None and not 0 < self.decay <= 1:
            raise InputError(f"decay {self.decay:g} of the learning rate", expected="a number in (0, 1]")
        if not 0 <= self.floor <= self.learning_rate:
            raise InputError(
                f"final learning rate {self.floor:g}", expected="a number from 0 to the learning rate"
            )
        if not 0 < self.power < math.inf:
            raise InputError(f"power {self.power:g} of the learning rate", expected="a number above 0")
        for what, number, least in (
            ("steps of warm-up", self.warmup, 0),
            ("epochs between decays", self.every, 1),
            ("epochs of patience", self.patience, 0),
        ):
            if number < least:
                raise InputError(f"{number} {what}", expected=f"a number of at least {least}")

    @property
    def factor(self) -> float:
        """The decay, or what it is where none was given."""
        return _DECAY.get(self.name, 1.0) if self.decay is None else self.decay

    @property
    def depends_on_length(self) -> bool:
        """Whether the rate of a step depends on how many steps there are in all."""
        return self.name in ("linear", "polynomial", "cosine", "one-cycle")

    def at(self, progress: Progress) -> float:
        """The learning rate of a step."""
        rate = SCHEDULES[self.name](self, progress)
        warming = progress.step < self.warmup and self.name != "one-cycle"
        return rate * (progress.step + 1) / self.warmup if warming else rate

    def done(self, progress: Progress) -> float:
        """The share of the steps after the warm-up that are done."""
        return max(progress.step - self.warmup, 0) / max(progress.steps - self.warmup, 1)


def _constant(schedule: Schedule, progress: Progress) -> float:
    return schedule.learning_rate


def _exponential(schedule: Schedule, progress: Progress) -> float:
    return schedule.learning_rate * schedule.factor ** (progress.step // progress.steps_per_epoch)


def _step(schedule: Schedule, progress: Progress) -> float:
    epochs = progress.step // progress.steps_per_epoch
    return schedule.learning_rate * schedule.factor ** (epochs // schedule.every)


def _linear(schedule: Schedule, progress: Progress) -> float:
    return schedule.learning_rate + (schedule.floor - schedule.learning_rate) * schedule.done(progress)


def _polynomial(schedule: Schedule, progress: Progress) -> float:
    span = schedule.learning_rate - schedule.floor
    return schedule.floor + span * math.pow(1 - schedule.done(progress), schedule.power)


def _cosine(schedule: Schedule, progress: Progress) -> float:
    return _half_cosine(schedule.learning_rate, schedule.floor, schedule.done(progress))


def _one_cycle(schedule: Schedule, progress: Progress) -> float:
    highest = schedule.learning_rate
    lowest = highest / _START
    # PyTorch counts from 0, so that the highest rate belongs to the last step of the rise.
    peak, last = (schedule.warmup or _RISE * progress.steps) - 1, progress.steps - 1
    if progress.step <= peak:
        return _half_cosine(lowest, highest, progress.step / peak if peak > 0 else 1.0)
    return _half_cosine(highest, lowest / _END, min((progress.step - peak) / max(last - peak, 1), 1.0))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _reduce_on_plateau(schedule: Schedule, progress: Progress) -> float:
    rate, best, bad = schedule.learning_rate, math.inf, 0
    for loss in progress.losses:
        if loss is not None and loss < best * (1 - _BETTER):
            best, bad = loss, 0
        else:
            bad += 1
        if bad > schedule.patience:
            reduced, bad = max(rate * schedule.factor, schedule.floor), 0
            rate = reduced if rate - reduced > _LEAST_STEP else rate
    return rate


SCHEDULES: dict[str, Callable[[Schedule, Progress], float]] = {
    "constant": _constant,
    "exponential": _exponential,
    "step": _step,
    "linear": _linear,
    "polynomial": _polynomial,
    "cosine": _cosine,
    "one-cycle": _one_cycle,
    "reduce-on-plateau": _reduce_on_plateau,
}
"""Every schedule by name."""
