"""What trains a network: ONNX Runtime on what either framework built, and the frameworks themselves as judges.

Every trainer sees the same batches in the same order with the same learning rates, and measures the same two numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

__all__ = ["TRAINERS", "Task", "Trainer", "TrainerKind"]

Array = np.ndarray[Any, Any]


class Task(NamedTuple):
    """What to train on.

    Attributes:
        x: Inputs, float32, examples along the first axis.
        y: Labels, int64, or targets, float32.
        loss: `cross-entropy` or `mse`.
        momentum: Of SGD.
        clip_norm: Bound on the norm of all gradients together; None does not clip.
    """

    x: Array
    y: Array
    loss: str
    momentum: float
    clip_norm: float | None


class Trainer(Protocol):
    """A network in training."""

    def step(self, indices: Array, learning_rate: float) -> tuple[float, float]:
        """Loss of the batch before the step, and the norm of all gradients before clipping."""

    def score(self, indices: Array) -> tuple[float, float | None]:
        """Mean loss in inference form, and the share of right labels; None for targets."""


class TrainerKind(NamedTuple):
    """One of the trainers.

    Attributes:
        framework: Which twin it trains: `pytorch` or `keras`.
        native: Whether the framework itself trains.
        start: Begins a training of a model that this twin's builder built.
    """

    framework: str
    native: bool
    start: Callable[[Any, Task], Trainer]

    @property
    def title(self) -> str:
        """What the table calls it."""
        framework = "PyTorch" if self.framework == "pytorch" else "Keras"
        return framework if self.native else f"ORT ({framework})"


def _pytorch(model: Any, task: Task) -> Trainer:
    from .native_pytorch import PyTorchTrainer

    return PyTorchTrainer(model, task)


def _keras(model: Any, task: Task) -> Trainer:
    from .native_keras import KerasTrainer

    return KerasTrainer(model, task)


def _onnxruntime(framework: str) -> Callable[[Any, Task], Trainer]:
    def start(model: Any, task: Task) -> Trainer:
        from .on_onnxruntime import OnnxRuntimeTrainer

        return OnnxRuntimeTrainer(model, task, rate_in_velocity=framework == "keras")

    return start


TRAINERS: Mapping[str, TrainerKind] = {
    "onnxruntime-pytorch": TrainerKind("pytorch", False, _onnxruntime("pytorch")),
    "pytorch": TrainerKind("pytorch", True, _pytorch),
    "onnxruntime-keras": TrainerKind("keras", False, _onnxruntime("keras")),
    "keras": TrainerKind("keras", True, _keras),
}
"""By name, each native one after the one it judges."""
