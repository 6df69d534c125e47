"""What PyTorch computes for a batch, to compare a converted module with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .parity import Array, DrawTarget, Reference
from .pytorch import as_tensors, in_mode, quiet
from .torch_functions import dropout_off

if TYPE_CHECKING:
    import torch

__all__ = ["reference"]


def reference(
    module: torch.nn.Module, inputs: Sequence[Array], loss: str, draw_target: DrawTarget
) -> Reference:
    """What PyTorch computes for a batch in train mode and in eval mode, with dropout off; the module stays as it was.

    Args:
        module: The module.
        inputs: An array for each argument of the forward.
        loss: `cross-entropy` or `mse`.
        draw_target: Makes the target for an output.
    """
    import torch

    losses: dict[str, Callable[..., torch.Tensor]] = {
        "cross-entropy": torch.nn.functional.cross_entropy,
        "mse": torch.nn.functional.mse_loss,
    }
    parameters = {
        name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in module.named_parameters()
    }
    buffers = _buffers(module)
    outputs = _outputs(module, inputs, {**parameters, **buffers}, training=True)
    target = draw_target(_array(outputs[0]))
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    scalar = losses[loss](outputs[0], torch.as_tensor(target, device=outputs[0].device))
    gradients = torch.autograd.grad(scalar, list(trained.values()), allow_unused=True)
    with torch.no_grad():
        inference = _outputs(module, inputs, _buffers(module), training=False)
    return Reference(
        outputs=[_array(output) for output in outputs],
        target=target,
        gradients={
            name: _array(gradient)
            for name, gradient in zip(trained, gradients, strict=True)
            if gradient is not None
        },
        state={name: _array(buffer) for name, buffer in buffers.items()},
        inference=[_array(output) for output in inference],
    )


def _buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}


def _outputs(
    module: torch.nn.Module, inputs: Sequence[Array], tensors: dict[str, torch.Tensor], *, training: bool
) -> list[torch.Tensor]:
    """What the forward returns, with these parameters and buffers in place of its own, which it may change."""
    import torch

    with in_mode(module, training=training), quiet(), dropout_off():
        result: Any = torch.func.functional_call(module, tensors, as_tensors(module, inputs))
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
