"""One cell of a comparison: one trainer with one remedy."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime import Schedule
from ...runtime.data import batches, split
from ...runtime.schedules import Progress
from .networks import Network
from .remedies import Remedy
from .trainers import TRAINERS, Task, Trainer

__all__ = ["Cell", "Settings", "run_cell"]


@dataclass(frozen=True)
class Settings:
    """What all cells of a comparison share.

    Attributes:
        network: Module of the network, see `networks.read_network`.
        data: As for `gradfuse train`.
        loss: `cross-entropy` or `mse`.
        epochs: Passes over the training examples.
        batch_size: Examples in a batch.
        lr: Learning rate.
        momentum: Of SGD.
        seed: Of the split and the order of the examples.
    """

    network: str
    data: str
    loss: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    seed: int


@dataclass(frozen=True)
class Cell:
    """What one training came to.

    Attributes:
        remedy: Name of the remedy.
        trainer: Name of the trainer.
        verdict: The report's, before the first step; None for a native trainer, as the next.
        log10_gain: Predicted growth of the gradient from the last layer to the first, in decades.
        losses: Of each step, before it; the last may be non-finite, and is then None.
        gradient_norm: Largest norm of all gradients together, before clipping; None where one is not finite.
        diverged_at: Number of the step, counting from 0, whose loss or gradient norm was not finite, which ended the training:
            TensorFlow's ReLU makes 0 of NaN, and hides in its loss what became of the weights. None where all were finite.
        loss: On the examples held out, in inference form; None where it is not finite.
        accuracy: Share of right labels among them; None for targets.
        milliseconds: Median time of a step.
    """

    remedy: str
    trainer: str
    verdict: str | None
    log10_gain: float | None
    losses: tuple[float | None, ...]
    gradient_norm: float | None
    diverged_at: int | None
    loss: float | None
    accuracy: float | None
    milliseconds: float


def run_cell(settings: Settings, network: Network, remedy: Remedy, trainer_name: str) -> Cell:
    """Train once."""
    kind = TRAINERS[trainer_name]
    task = Task(network.x, network.y, settings.loss, settings.momentum, remedy.clip_norm)
    trainer = kind.start(network.build(kind.framework, dict(remedy.network)), task)
    train, held_out = split(len(network.x), 0.2, settings.seed)
    losses, norms, seconds = _train(trainer, settings, Schedule(settings.lr, remedy.schedule), train)
    finite = math.isfinite(losses[-1]) and math.isfinite(norms[-1])
    loss, accuracy = trainer.score(held_out) if finite else (math.nan, None)
    report: Any = getattr(trainer, "report", None)
    return Cell(
        remedy.name,
        trainer_name,
        None if report is None else report.summary.verdict,
        None if report is None else _finite(report.summary.log10_gain),
        tuple(_finite(number) for number in losses),
        _finite(float(np.max(norms))),
        None if finite else len(losses) - 1,
        _finite(loss),
        accuracy,
        1e3 * statistics.median(seconds),
    )


def _train(
    trainer: Trainer, settings: Settings, schedule: Schedule, indices: Any
) -> tuple[list[float], list[float], list[float]]:
    """Loss, gradient norm and seconds of each step, to the last or to one that is not finite."""
    whole, rest = divmod(len(indices), settings.batch_size)
    per_epoch = whole + (rest > 1)  # batch normalisation cannot take a batch of one
    total = per_epoch * settings.epochs
    losses: list[float] = []
    norms: list[float] = []
    seconds: list[float] = []
    for epoch in range(1, settings.epochs + 1):
        order = batches(indices, settings.batch_size, settings.seed, epoch)
        for batch in itertools.islice(order, per_epoch):
            rate = schedule.at(Progress(len(losses), per_epoch, total))
            started = time.perf_counter()
            loss, norm = trainer.step(batch, rate)
            seconds.append(time.perf_counter() - started)
            losses.append(loss)
            norms.append(norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                return losses, norms, seconds
    return losses, norms, seconds


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
