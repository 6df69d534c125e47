"""Training in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...converters.frameworks import require
from .trainers import Array, Task

if TYPE_CHECKING:
    import torch

__all__ = ["PyTorchTrainer"]


class PyTorchTrainer:
    """A module trained by `torch.optim.SGD`."""

    def __init__(self, module: torch.nn.Module, task: Task) -> None:
        framework = require("torch")
        self._framework, self._module, self._task = framework, module, task
        self._x, self._y = framework.from_numpy(task.x), framework.from_numpy(task.y)
        self._loss = {
            "cross-entropy": framework.nn.functional.cross_entropy,
            "mse": framework.nn.functional.mse_loss,
        }[task.loss]
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._optimizer = framework.optim.SGD(self._parameters, lr=1.0, momentum=task.momentum)

    def step(self, indices: Array, learning_rate: float) -> tuple[float, float]:
        """See `Trainer.step`."""
        self._module.train()
        self._optimizer.param_groups[0]["lr"] = learning_rate
        rows = self._framework.from_numpy(indices)
        loss = self._loss(self._module(self._x[rows]), self._y[rows])
        self._optimizer.zero_grad()
        loss.backward()
        norm = self._framework.nn.utils.get_total_norm([p.grad for p in self._parameters])
        if self._task.clip_norm is not None:
            self._framework.nn.utils.clip_grads_with_norm_(self._parameters, self._task.clip_norm, norm)
        self._optimizer.step()
        return loss.item(), norm.item()

    def score(self, indices: Array) -> tuple[float, float | None]:
        """See `Trainer.score`."""
        self._module.eval()
        rows = self._framework.from_numpy(indices)
        with self._framework.no_grad():
            output = self._module(self._x[rows])
            loss = self._loss(output, self._y[rows]).item()
        if self._task.loss != "cross-entropy":
            return loss, None
        return loss, float((output.argmax(1) == self._y[rows]).float().mean().item())
