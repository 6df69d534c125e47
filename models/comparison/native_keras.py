"""Training in TensorFlow, compiled as `keras.Model.fit` compiles it."""

from __future__ import annotations

from typing import Any

from ...converters.frameworks import require
from .trainers import Array, Task

__all__ = ["KerasTrainer"]


class KerasTrainer:
    """A Keras model trained by `keras.optimizers.SGD`."""

    def __init__(self, model: Any, task: Task) -> None:
        keras = require("tensorflow", "keras")
        self._model, self._task = model, task
        self._loss = {
            "cross-entropy": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "mse": keras.losses.MeanSquaredError(),
        }[task.loss]
        self._optimizer = keras.optimizers.SGD(1.0, momentum=task.momentum)
        self._optimizer.build(model.trainable_variables)
        self._compiled = require("tensorflow").function(self._step, reduce_retracing=True)

    def step(self, indices: Array, learning_rate: float) -> tuple[float, float]:
        """See `Trainer.step`."""
        self._optimizer.learning_rate.assign(learning_rate)
        loss, norm = self._compiled(self._task.x[indices], self._task.y[indices])
        return float(loss), float(norm)

    def _step(self, x: Any, y: Any) -> tuple[Any, Any]:
        tensorflow, variables = require("tensorflow"), self._model.trainable_variables
        with tensorflow.GradientTape() as tape:
            loss = self._loss(y, self._model(x, training=True))
        gradients = tape.gradient(loss, variables)
        norm = tensorflow.linalg.global_norm(gradients)
        if self._task.clip_norm is not None:
            gradients, _ = tensorflow.clip_by_global_norm(gradients, self._task.clip_norm, use_norm=norm)
        self._optimizer.apply(gradients)
        return loss, norm

    def score(self, indices: Array) -> tuple[float, float | None]:
        """See `Trainer.score`."""
        output, y = self._model(self._task.x[indices], training=False).numpy(), self._task.y[indices]
        loss = float(self._loss(y, output))
        return loss, float((output.argmax(1) == y).mean()) if self._task.loss == "cross-entropy" else None
