"""The losses by name: each takes the model's first output and a target, and gives one number.

A loss is spelled as its name, or with parameters: `huber`, `huber(delta=0.5)`, `cross-entropy(weight=[1, 2], ignore_index=0)`.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir

from . import loss_terms
from .builder import Builder, Tensor
from .errors import InputError
from .model import TensorSpec

__all__ = ["LOSSES", "Loss", "attach_loss", "base_name", "loss_named", "parameters_of"]


@dataclass(frozen=True)
class Loss:
    """A loss function.

    Attributes:
        name: What a user writes, with the parameters that are not the default.
        target: The target's specification, given the specification of the model's output; None where there is no target.
        build: The loss as a scalar, from output and target.
        classes: Whether the target is labels of classes.
        ignored: The label of what does not count; None where there is none.
    """

    name: str
    target: Callable[[TensorSpec], TensorSpec | None]
    build: Callable[..., Tensor]
    classes: bool = False
    ignored: int | None = None


def _labels(output: TensorSpec) -> TensorSpec:
    if len(output.dims) < 2:
        raise InputError(
            f"a loss of labels on the output {output}", expected="an output [batch, classes, ...]"
        )
    return TensorSpec("target", ir.DataType.INT64, (output.dims[0], *output.dims[2:]))


def _like_output(output: TensorSpec) -> TensorSpec:
    return TensorSpec("target", output.dtype, output.dims)


def _no_target(output: TensorSpec) -> None:
    return None


LOSSES = {
    loss.name: loss
    for loss in (
        Loss("cross-entropy", _labels, loss_terms.cross_entropy, classes=True, ignored=-100),
        Loss("nll", _labels, loss_terms.nll, classes=True, ignored=-100),
        Loss("multi-margin", _labels, loss_terms.multi_margin, classes=True),
        Loss("mse", _like_output, loss_terms.mse),
        Loss("l1", _like_output, loss_terms.l1),
        Loss("smooth-l1", _like_output, loss_terms.smooth_l1),
        Loss("huber", _like_output, loss_terms.huber),
        Loss("bce", _like_output, loss_terms.bce),
        Loss("bce-with-logits", _like_output, loss_terms.bce_with_logits),
        Loss("kl", _like_output, loss_terms.kl),
        Loss("hinge", _like_output, loss_terms.hinge),
        Loss("hinge-embedding", _like_output, loss_terms.hinge_embedding),
        Loss("cosine-embedding", _like_output, loss_terms.cosine_embedding),
        Loss("output", _no_target, loss_terms.output),
    )
}
"""Every loss by name; `output` says that the model's first output is the loss (its mean, where it is not a scalar)."""

_RANGES: Mapping[str, tuple[float, float]] = {
    "label_smoothing": (0.0, 1.0),
    "beta": (1e-12, math.inf),
    "delta": (1e-12, math.inf),
    "weight": (0.0, math.inf),
    "pos_weight": (0.0, math.inf),
}


def base_name(spelled: str) -> str:
    """The loss's name without its parameters."""
    return spelled.partition("(")[0].strip()


def loss_named(spelled: str | Loss, **parameters: Any) -> Loss:
    """Look a loss up.

    Args:
        spelled: Its name, or its name and parameters as `huber(delta=0.5)`; a Loss is returned as it is.
        parameters: Further parameters, by name.

    Raises:
        InputError: There is none of that name, or it has no such parameter or not that value for it.
    """
    if isinstance(spelled, Loss):
        return spelled
    name = base_name(spelled)
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r}", expected=f"one of {', '.join(LOSSES)}")
    given = {**parameters_of(spelled), **parameters}
    loss = LOSSES[name]
    if not given:
        return loss
    _check(loss, given)
    shown = ", ".join(f"{key}={value!r}" for key, value in given.items())
    ignored = given.get("ignore_index", loss.ignored)
    return Loss(f"{name}({shown})", loss.target, partial(loss.build, **given), loss.classes, ignored)


def parameters_of(spelled: str) -> dict[str, Any]:
    """The parameters of `name(key=value, ...)`, whose values are Python literals: numbers, lists, True, ..."""
    arguments = re.fullmatch(r"[^(]*(?:\((.*)\))?\s*", spelled)
    try:
        call: Any = ast.parse(f"_({arguments[1] or ''})" if arguments else "", mode="eval").body
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("a parameter without a name")
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"the loss {spelled!r} cannot be read",
            expected="name(parameter=number, ...), as huber(delta=0.5)",
        ) from error


def _check(loss: Loss, given: Mapping[str, Any]) -> None:
    known = inspect.signature(loss.build).parameters
    options = {
        name: known[name].default for name in known if known[name].kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name, value in given.items():
        if name not in options:
            raise InputError(
                f"the loss {loss.name} has no parameter {name!r}",
                expected=f"one of {', '.join(options)}" if options else "none",
            )
        if not _fits(name, value, options[name]):
            low, high = _RANGES.get(name, (-math.inf, math.inf))
            raise InputError(
                f"{name}={value!r} for the loss {loss.name}",
                expected=f"{_kind(name, options[name])} between {low:g} and {high:g}"
                if name in _RANGES
                else _kind(name, options[name]),
            )


def _kind(name: str, default: Any) -> str:
    if isinstance(default, bool):
        return "True or False"
    if isinstance(default, int):
        return "a whole number"
    one = "a finite number"
    return {"weight": "finite numbers in brackets", "pos_weight": f"{one}, or several in brackets"}.get(
        name, one
    )


def _fits(name: str, value: Any, default: Any) -> bool:
    if isinstance(default, (bool, int)):
        return type(value) is type(default)
    several = isinstance(value, (list, tuple))
    if several != (name == "weight") and name != "pos_weight":
        return False
    low, high = _RANGES.get(name, (-math.inf, math.inf))
    numbers = value if several else [value]
    return len(numbers) > 0 and all(
        isinstance(number, (int, float))
        and not isinstance(number, bool)
        and math.isfinite(number)
        and low <= number <= high
        for number in numbers
    )


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
    with builder.scope(f"loss/{base_name(loss.name)}"):
        scalar = loss.build(tensor, tensor if value is None else builder.tensor(value))
    scalar.value.shape = ir.Shape(())
    return scalar, value
