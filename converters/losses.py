"""Which framework a loss of the user's own is written in.

PyTorch takes the output first, Keras the target. A function tells which it means by the names of its arguments alone; one that
does not is refused, since with the two exchanged most losses still give a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graph.callables import find_callable, required_arguments
from ..graph.errors import InputError
from ..graph.losses import Loss
from .keras_loss import KERAS_LOSSES, keras_loss_named, loss_from_keras
from .torch_loss import loss_from_torch

__all__ = ["find_loss"]

_PYTORCH = "loss(output, target), loss(output, labels) or loss(output) of PyTorch tensors"
_KERAS = "loss(y_true, y_pred) or loss(labels, y_pred) of Keras's"


def find_loss(loss: str | Loss | Callable[..., Any]) -> str | Loss:
    """The loss that a user means.

    Args:
        loss: A name, or a Loss, which are returned as they are; `keras.losses.Huber(delta=0.5)`, as a string or itself; or a
            function of PyTorch or Keras tensors, itself or as `module:callable` or `file.py:callable`. It is PyTorch's if its
            second argument is `target` or `labels`, or it has but one; Keras's if its arguments are `(y_true, y_pred)` or
            `(labels, y_pred)`. With other names, use `loss_from_torch` or `loss_from_keras`.

    Raises:
        InputError: There is no such function, or its arguments do not tell the framework.
    """
    if isinstance(loss, str) and loss.startswith(KERAS_LOSSES):
        return keras_loss_named(loss)
    if isinstance(loss, str) and ":" in loss:
        return _of_function(find_callable(loss, "a loss of PyTorch or Keras tensors"), loss)
    if callable(loss):
        return _of_function(loss, getattr(loss, "__name__", type(loss).__name__))
    return loss


def _of_function(function: Callable[..., Any], name: str) -> Loss:
    arguments = required_arguments(function)
    match arguments:
        case ["y_true" | "labels", "y_pred"]:
            return loss_from_keras(function, name)
        case [_] | [_, "target" | "labels"]:
            return loss_from_torch(function, name)
    raise InputError(
        f"the loss {name} takes ({', '.join(arguments)})",
        expected=f"{_PYTORCH}, or {_KERAS}",
        remedy="name the arguments so: the two take them in opposite order",
    )
