"""The losses: each takes the model's first output and a target, and gives one number, the mean over the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from .builder import Builder, Tensor
from .errors import InputError
from .model import TensorSpec

__all__ = ["LOSSES", "Loss", "attach_loss", "loss_named"]


@dataclass(frozen=True)
class Loss:
    """A loss function.

    Attributes:
        name: What a user writes.
        target: The target's specification, given the specification of the model's output; None where there is no target.
        build: The loss as a scalar, from output and target.
    """

    name: str
    target: Callable[[TensorSpec], TensorSpec | None]
    build: Callable[[Tensor, Tensor], Tensor]


def _labels(output: TensorSpec) -> TensorSpec:
    if len(output.dims) < 2:
        raise InputError(
            f"cross-entropy on the output {output}", expected="an output [batch, classes, ...] of logits"
        )
    return TensorSpec("target", ir.DataType.INT64, (output.dims[0], *output.dims[2:]))


def _like_output(output: TensorSpec) -> TensorSpec:
    return TensorSpec("target", output.dtype, output.dims)


def _no_target(output: TensorSpec) -> None:
    return None


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-ln softmax(logits)[label]; logits [N, C, ...], labels int64 [N, ...] in 0 .. C-1."""
    return logits.builder.op("SoftmaxCrossEntropyLoss", logits, labels, reduction="mean")


def _mse(output: Tensor, target: Tensor) -> Tensor:
    """(output - target)^2."""
    return (output - target).square().mean(keepdims=False)


def _l1(output: Tensor, target: Tensor) -> Tensor:
    """|output - target|."""
    return (output - target).abs().mean(keepdims=False)


def _bce_with_logits(logits: Tensor, target: Tensor) -> Tensor:
    """-t ln sigmoid(x) - (1 - t) ln(1 - sigmoid(x)) = softplus(x) - x t, which no logit overflows."""
    return (logits.builder.op("Softplus", logits) - logits * target).mean(keepdims=False)


def _output(output: Tensor, target: Tensor) -> Tensor:
    return output.mean(keepdims=False)


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("cross-entropy", _labels, _cross_entropy),
        Loss("mse", _like_output, _mse),
        Loss("l1", _like_output, _l1),
        Loss("bce-with-logits", _like_output, _bce_with_logits),
        Loss("output", _no_target, _output),
    )
}
"""Every loss by name; `output` says that the model's first output is the loss (its mean, where it is not a scalar)."""


def loss_named(name: str) -> Loss:
    """Look a loss up.

    Raises:
        InputError: There is none of that name.
    """
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r}", expected=f"one of {', '.join(LOSSES)}")
    return LOSSES[name]


def attach_loss(
    builder: Builder, output: ir.Value, spec: TensorSpec, loss: Loss
) -> tuple[Tensor, ir.Value | None]:
    """Append the loss of `output`.

    Returns:
        The scalar loss, and the new graph input for the target (None where the loss takes none).

    Raises:
        InputError: The loss does not fit the output.
    """
    if output.dtype is not None and not output.dtype.is_floating_point():
        raise InputError(
            f"the loss {loss.name} on the output {spec}", expected="an output of floating-point numbers"
        )
    target = loss.target(spec)
    value = None
    if target is not None:
        name = builder.unique_name(target.name)
        value = ir.val(name, dtype=target.dtype, shape=ir.Shape(target.dims))
        builder.graph.inputs.append(value)
    tensor = builder.tensor(output)
    with builder.scope(f"loss/{loss.name}"):
        scalar = loss.build(tensor, tensor if value is None else builder.tensor(value))
    scalar.value.shape = ir.Shape(())
    return scalar, value
