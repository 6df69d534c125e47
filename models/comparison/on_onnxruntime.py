"""Training on ONNX Runtime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...api import analyse, convert
from ...graph import ALL_PARAMETERS, Fuse, GradientGraph, insert_fuses
from ...runtime import SGD, StepGraph, TrainingSession
from ...runtime.data import fit_data
from ...runtime.training import score, with_weights
from .trainers import Array, Task

__all__ = ["OnnxRuntimeTrainer"]


class OnnxRuntimeTrainer:
    """A converted model, trained as `gradfuse train` trains it.

    Attributes:
        report: What is predicted of its gradients before the first step.
    """

    def __init__(self, model: Any, task: Task, rate_in_velocity: bool) -> None:
        source = convert(model, input_shape=task.x.shape[1:], verify=False)
        gradients = GradientGraph.of(source, task.loss)
        self.report = analyse(gradients)
        self._source, self._task = source, task
        self._arrays = fit_data((task.x, task.y), source, gradients.target, task.loss)
        fuses = [] if task.clip_norm is None else [Fuse("global-norm", ALL_PARAMETERS, task.clip_norm)]
        optimizer = SGD(task.momentum, rate_in_velocity=rate_in_velocity)
        self._session = TrainingSession(StepGraph.of(insert_fuses(gradients, fuses), optimizer), self._arrays)
        self._steps = 0

    def step(self, indices: Array, learning_rate: float) -> tuple[float, float]:
        """See `Trainer.step`."""
        result = self._session.run(indices, learning_rate, self._steps)
        self._steps += 1
        return result.loss, result.gradient_norm

    def score(self, indices: Array) -> tuple[float, float | None]:
        """See `Trainer.score`."""
        state = self._session.copy_state()
        weights = {name: state[name] for name in (*self._source.parameters, *self._source.state)}
        if not all(np.isfinite(array).all() for array in weights.values()):
            return math.nan, None
        held_out = tuple(array[indices] for array in self._arrays)
        result = score(with_weights(self._source, weights), held_out, self._task.loss)
        return result.loss, result.accuracy
