"""Optimizers as ONNX nodes.

    sgd     g' = g + wd p,  v' = m v + g',  p' = p - lr v'  (Nesterov: p' = p - lr (g' + m v'))
    adamw   m' = b1 m + (1 - b1) g,  v' = b2 v + (1 - b2) g^2,
            p' = (1 - lr wd) p - lr (m' / (1 - b1^t)) / (sqrt(v' / (1 - b2^t)) + eps)

Both follow torch.optim (2.13): SGD with dampening 0, AdamW with decoupled weight decay (Loshchilov and Hutter 2019), t counting
from 1. Keras' SGD keeps lr inside its momentum, v' = m v - lr g, p' = p + v': the same steps as long as lr is constant, other
steps when it changes. gradfuse follows PyTorch's definition for models from either framework; Keras' is `rate_in_velocity`.

What concerns scalars only (lr, t, the powers of b1 and b2) is computed in float64, once for all parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from ..graph.builder import Tensor
from ..graph.errors import InputError

__all__ = ["OPTIMIZERS", "SGD", "AdamW", "Array", "Optimizer", "optimizer_named"]

Array: TypeAlias = "np.ndarray[Any, Any]"
Tensors: TypeAlias = "Mapping[str, Tensor]"


class Optimizer(Protocol):
    """How parameters change, given their gradients."""

    name: ClassVar[str]

    def initial_state(self, parameters: Mapping[str, Array]) -> dict[str, Array]:
        """What the optimizer remembers from step to step, before the first one."""

    def update(
        self, parameters: Tensors, gradients: Tensors, state: Tensors, learning_rate: Tensor
    ) -> dict[str, Tensor]:
        """Append the update of one step.

        Args:
            parameters: Each parameter by name.
            gradients: The gradient of each parameter, by the parameter's name.
            state: A tensor for each entry of `initial_state`.
            learning_rate: A float64 scalar.

        Returns:
            The new value of each parameter and each entry of the state.
        """


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent as torch.optim.SGD's, with dampening 0.

    Attributes:
        momentum: Share of the last step's velocity that is kept, in [0, 1); 0 keeps no state.
        weight_decay: Factor of the parameter that is added to its gradient.
        nesterov: Step along the velocity of the next step (Sutskever et al. 2013); needs momentum.
        rate_in_velocity: Scale gradients by the learning rate before they enter the velocity, as Keras does.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    rate_in_velocity: bool = False

    name: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        _check_range("momentum", self.momentum, below=1.0)
        _check_range("weight decay", self.weight_decay)
        if self.nesterov and not self.momentum:
            raise InputError("Nesterov's method without momentum", expected="a momentum above 0, as 0.9")

    def initial_state(self, parameters: Mapping[str, Array]) -> dict[str, Array]:
        """A velocity for each parameter, zero at the start."""
        return (
            {_velocity(name): np.zeros_like(value) for name, value in parameters.items()}
            if self.momentum
            else {}
        )

    def update(
        self, parameters: Tensors, gradients: Tensors, state: Tensors, learning_rate: Tensor
    ) -> dict[str, Tensor]:
        """See `Optimizer.update`."""
        new = {}
        for name, p in parameters.items():
            rate = learning_rate.cast_like(p)
            g = gradients[name] + p * self.weight_decay if self.weight_decay else gradients[name]
            step = g = g * rate if self.rate_in_velocity else g
            if self.momentum:
                v = new[_velocity(name)] = state[_velocity(name)] * self.momentum + g
                step = g + v * self.momentum if self.nesterov else v
            new[name] = p - (step if self.rate_in_velocity else step * rate)
        return new


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay, as torch.optim.AdamW's.

    Attributes:
        beta1: Decay of the mean of the gradient, in [0, 1).
        beta2: Decay of the mean of the squared gradient, in [0, 1).
        eps: Added to the root of the mean squared gradient.
        weight_decay: Factor of learning rate and parameter that is subtracted from the parameter.
        epsilon_hat: Add eps to sqrt(v') rather than to sqrt(v' / (1 - b2^t)), as Keras does (Kingma and Ba 2015, section 2).
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    epsilon_hat: bool = False

    name: ClassVar[str] = "adamw"

    def __post_init__(self) -> None:
        _check_range("beta1", self.beta1, below=1.0)
        _check_range("beta2", self.beta2, below=1.0)
        _check_range("eps", self.eps)
        _check_range("weight decay", self.weight_decay)

    def initial_state(self, parameters: Mapping[str, Array]) -> dict[str, Array]:
        """The number of steps so far, and for each parameter the decayed sums of its gradients and of their squares."""
        sums = {
            total: np.zeros_like(value)
            for name, value in parameters.items()
            for total in (_gradients(name), _squares(name))
        }
        return {_STEPS: np.array(0, np.int64), **sums}

    def update(
        self, parameters: Tensors, gradients: Tensors, state: Tensors, learning_rate: Tensor
    ) -> dict[str, Tensor]:
        """See `Optimizer.update`.

        The state holds M = m / (1 - b1) and V = v / (1 - b2), which spares two passes over every tensor: with
        s = sqrt((1 - b2^t) / (1 - b2)), the quotient of the definition is s (1 - b1) / (1 - b1^t) M / (sqrt(V) + s eps).
        """
        new = {_STEPS: state[_STEPS] + 1}
        t = new[_STEPS].cast(learning_rate.dtype)
        scale = ((1 - _power(self.beta2, t)) / (1 - self.beta2)).sqrt()
        rate = learning_rate * scale * (1 - self.beta1) / (1 - _power(self.beta1, t))
        floor = scale * self.eps / ((1 - _power(self.beta2, t)).sqrt() if self.epsilon_hat else 1)
        kept = 1 - learning_rate * self.weight_decay
        for name, p in parameters.items():
            g = gradients[name]
            m = new[_gradients(name)] = state[_gradients(name)] * self.beta1 + g
            v = new[_squares(name)] = state[_squares(name)] * self.beta2 + g.square()
            step = m / (v.sqrt() + floor.cast_like(p))
            decayed = p * kept.cast_like(p) if self.weight_decay else p
            new[name] = decayed - step * rate.cast_like(p)
        return new


OPTIMIZERS: dict[str, type[SGD] | type[AdamW]] = {kind.name: kind for kind in (SGD, AdamW)}
"""Every optimizer by name."""

_STEPS = "optimizer/steps"


def optimizer_named(name: str, **options: float) -> Optimizer:
    """The optimizer of that name with these options, as `optimizer_named("sgd", momentum=0.9)`.

    Raises:
        InputError: There is none of that name, it has no such option, or a value is out of range.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer {name!r}", expected=f"one of {', '.join(OPTIMIZERS)}")
    kind = OPTIMIZERS[name]
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := [option for option in options if option not in known]:
        raise InputError(f"{name} has no option {unknown[0]!r}", expected=f"one of {', '.join(known)}")
    return kind(**options)  # type: ignore[arg-type]  # mypy cannot see that the names were checked


def _velocity(parameter: str) -> str:
    return f"{parameter}/velocity"


def _gradients(parameter: str) -> str:
    return f"{parameter}/gradients"


def _squares(parameter: str) -> str:
    return f"{parameter}/squares"


def _power(base: float, exponent: Tensor) -> Tensor:
    """base^exponent."""
    builder = exponent.builder
    return builder.constant(base, exponent.dtype) ** exponent


def _check_range(what: str, value: float, below: float = float("inf")) -> None:
    if not 0 <= value < below:
        limit = f"in [0, {below:g})" if np.isfinite(below) else "of at least 0"
        raise InputError(f"{what} {value:g}", expected=f"a number {limit}")
