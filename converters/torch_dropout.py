"""Two ways to change what dropout does in a PyTorch forward, in layers and in functional calls alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

__all__ = ["dropout_by_feature", "dropout_off"]

_BY_FEATURE = ("dropout1d", "dropout2d", "dropout3d")
_DROPOUTS = {*_BY_FEATURE, "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}


def dropout_off() -> contextlib.AbstractContextManager[object]:
    """Within this context every dropout is the identity."""

    def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = _name(function)
        if name in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if name == "multi_head_attention_forward":
            kwargs["training"] = False
        if name == "scaled_dot_product_attention":
            kwargs = _without_probability(args, kwargs)
            args = args[:4]
        return function(*args, **kwargs)

    return _intercept(call)


def _without_probability(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments in which the dropout probability, the fifth argument, is 0."""
    names = ("dropout_p", "is_causal")
    return {**dict(zip(names, args[4:], strict=False)), **kwargs, "dropout_p": 0.0}


def dropout_by_feature() -> contextlib.AbstractContextManager[object]:
    """Within this context Dropout1d, 2d and 3d drop by multiplying with `dropout(ones)`, one number for each feature.

    The exporter knows `dropout`, and takes the others apart into random numbers.
    """
    from torch.nn import functional

    def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _name(function) not in _BY_FEATURE:
            return function(*args, **kwargs)
        return drop(*args, **kwargs)

    def drop(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        ones = input.new_ones((*input.shape[:2], *[1] * (input.dim() - 2)))
        return input * functional.dropout(ones, p, training)

    return _intercept(call)


def _name(function: Callable[..., Any]) -> str:
    """`dropout` for `dropout`, for `dropout_` in place, and for `dropout.default` in a graph that torch.export made."""
    return getattr(function, "__name__", "").partition(".")[0].rstrip("_")


def _intercept(
    call: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any],
) -> contextlib.AbstractContextManager[object]:
    import torch

    class Intercept(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return call(function, args, dict(kwargs or {}))

    return Intercept()
