"""A loss written in PyTorch, exported with the model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..graph.builder import Tensor
from ..graph.callables import required_arguments
from ..graph.errors import InputError
from ..graph.loss_function import build_loss
from ..graph.losses import LOSSES, Loss
from .pytorch import from_pytorch

if TYPE_CHECKING:
    import torch

__all__ = ["loss_from_torch"]


def loss_from_torch(function: Callable[..., torch.Tensor], name: str = "") -> Loss:
    """A loss from a function of PyTorch tensors.

    Args:
        function: `loss(output, target)` with a target like the output, `loss(output, labels)`, known by that name, with labels
            int64 [batch, ...] of the classes on axis 1, or `loss(output)`. It gives a scalar, or numbers to take the mean of.
        name: What reports call it; by default the function's name.

    Raises:
        InputError: It takes other arguments.
        ConversionError: torch.export refuses it.
    """
    arguments = required_arguments(function)
    name = name or getattr(function, "__name__", type(function).__name__)
    kind = {1: "output", 2: "mse"}.get(len(arguments))
    if kind is None:
        raise InputError(
            f"the loss {name} takes {len(arguments)} arguments",
            expected="loss(output, target), loss(output, labels) or loss(output)",
        )
    like = LOSSES["cross-entropy" if "labels" in arguments[1:] else kind]
    return Loss(name, like.target, partial(_build, function, name, len(arguments)), like.classes)


def _build(function: Callable[..., Any], name: str, arguments: int, output: Tensor, target: Tensor) -> Tensor:
    import torch

    class Exported(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> Any:
            return function(*tensors)

    Exported.__name__ = name
    examples = tuple(_example(tensor) for tensor in (output, target)[:arguments])
    opset = output.builder.graph.opset_imports.get("", 18)
    return build_loss(
        from_pytorch(Exported(), examples, opset=opset).onnx, output, *(target,) * (arguments - 1)
    )


def _example(tensor: Tensor) -> Any:
    """Numbers of the tensor's shape: a batch of 2, labels of class 0."""
    import torch

    lengths = [length for length in (tensor.dims or ())[1:] if isinstance(length, int)]
    if tensor.dims is None or len(lengths) != len(tensor.dims) - 1:
        raise InputError(
            f"the output {tensor.value.name} has a dynamic shape",
            expected="lengths that are known but for the batch, for a loss that PyTorch exports",
        )
    dtype = torch.int64 if tensor.dtype.is_integer() else getattr(torch, str(tensor.dtype.numpy()))
    return torch.zeros((2, *lengths), dtype=dtype)
