"""Functions of PyTorch that compute something else while a module is exported, or while it is checked.

Both are done within a context, by intercepting calls: so layers and functional calls are served alike.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

__all__ = ["dropout_off", "exportable"]

_BY_FEATURE = ("dropout1d", "dropout2d", "dropout3d")
_DROPOUTS = {*_BY_FEATURE, "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


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
        if name in _RECURRENT:
            args = (*args[:5], 0.0, *args[6:])
        return function(*args, **kwargs)

    return _intercept(call)


def _without_probability(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments in which the dropout probability, the fifth argument, is 0."""
    names = ("dropout_p", "is_causal")
    return {**dict(zip(names, args[4:], strict=False)), **kwargs, "dropout_p": 0.0}


def exportable() -> contextlib.AbstractContextManager[object]:
    """Within this context, functions that the exporter takes apart so that they could not train alike are made of others."""

    def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _REPLACED.get(_name(function), function)(*args, **kwargs)

    return _intercept(call)


def _dropout_by_feature(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """`dropout(ones)` gives one number for each feature; what the exporter makes of dropout1d, 2d and 3d draws numbers."""
    from torch.nn.functional import dropout

    ones = input.new_ones((*input.shape[:2], *[1] * (input.dim() - 2)))
    return input * dropout(ones, p, training)


def _alpha_dropout(input: Any, p: float = 0.5, training: bool = False, inplace: bool = False) -> Any:
    """Kept numbers become a x + b, dropped ones a s + b, so that mean 0 and variance 1 stay (Klambauer 2017).

    s is the limit of SELU for small numbers. `dropout(ones)` tells which is which: 0 is dropped, more than 1 is kept, and 1
    stands where dropout is off.
    """
    import torch

    if not training or p == 0:
        return input
    saturation = -1.7580993408473766
    a = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * saturation**2))
    b = -a * saturation * p
    drawn = torch.nn.functional.dropout(torch.ones_like(input), p, True)
    return torch.where(drawn == 0, a * saturation + b, torch.where(drawn > 1, a * input + b, input))


def _embedding(input: Any, weight: Any, padding_idx: int | None = None, *others: Any, **options: Any) -> Any:
    """The row of `padding_idx` is read, but does not train."""
    import torch

    rows = torch.nn.functional.embedding(input, weight, None, *others, **options)
    if padding_idx is None:
        return rows
    return torch.where((input == padding_idx % weight.shape[0]).unsqueeze(-1), rows.detach(), rows)


def _embedding_bag(
    input: Any,
    weight: Any,
    offsets: Any = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Embeddings [bags, members, width], reduced over the members that are in the bag."""
    import torch

    rows: Any = torch.nn.functional.embedding(input, weight, None, max_norm, norm_type, scale_grad_by_freq)
    inside = torch.ones_like(input, dtype=torch.bool)
    if padding_idx is not None:
        inside = input != padding_idx % weight.shape[0]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if offsets is not None:
        inside = inside & _members(input.shape[0], offsets, include_last_offset)
        rows = rows.unsqueeze(0)
    return _reduced(rows, inside, mode)


def _members(count: int, offsets: Any, include_last_offset: bool) -> Any:
    """Which of `count` numbers, one after the other, lies in which bag: bool [bags, count]."""
    import torch

    places = torch.arange(count, device=offsets.device)
    starts = offsets[:-1] if include_last_offset else offsets
    ends = torch.cat([offsets[1:], offsets.new_full((0 if include_last_offset else 1,), count)])
    return (places >= starts.unsqueeze(1)) & (places < ends.unsqueeze(1))


def _reduced(rows: Any, inside: Any, mode: str) -> Any:
    """A bag without members gives 0."""
    import torch

    if mode == "max":
        largest = rows.masked_fill(~inside.unsqueeze(-1), -torch.inf).max(1).values
        return largest.masked_fill(~inside.any(1, keepdim=True), 0.0)
    summed = (inside.to(rows.dtype).unsqueeze(1) @ rows).squeeze(1)
    return summed / inside.sum(1, keepdim=True).clamp(min=1) if mode == "mean" else summed


def _instance_norm(
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """With running statistics, a batch norm: the converter marks that each example has statistics of its own."""
    from torch.nn import functional

    if running_mean is None:
        return functional.instance_norm(input, None, None, weight, bias, use_input_stats, momentum, eps)
    return functional.batch_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


_REPLACED: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_BY_FEATURE, _dropout_by_feature),
    "alpha_dropout": _alpha_dropout,
    "embedding": _embedding,
    "embedding_bag": _embedding_bag,
    "instance_norm": _instance_norm,
}
"""By the function's name, what is exported in its place."""


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
