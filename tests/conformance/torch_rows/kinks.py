"""Where the derivative does not exist, or the elements that tie share it in one way or another: PyTorch's choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .row import Row, Shape, Tensor, op

_TIES = [
    [1.0, 3.0, 3.0, 0.0, 3.0],
    [2.0, 2.0, 2.0, 2.0, 2.0],
    [0.0, 5.0, 0.0, 5.0, 1.0],
    [1.0, 3.0, 2.0, 0.0, 4.0],
]
_ZEROS = [[0.0, 2.0, 0.0, 3.0, 1.0], [2.0, 0.0, 0.0, 1.0, 1.0], [0.0] * 5, [2.0, 0.0, 1.0, 3.0, 2.0]]
_BOUNDS = [0.0, 1.0, 2.0, -1.0, 0.5]


def _at(x: Tensor, values: Any) -> Tensor:
    """`values`, with the gradient of x."""
    return x - x.detach() + torch.tensor(values)


def _kink(name: str, function: Callable[..., Any], values: Any, *weights: Shape) -> Row:
    return op(name, lambda x, *w: function(_at(x, values), *w), (4, 5), *weights)


def _ties(name: str, function: Callable[[Tensor], Any]) -> Row:
    return _kink(f"{name}, ties", function, _TIES)


def _activation(layer: nn.Module, *at: float) -> Row:
    name = type(layer).__name__
    return _kink(
        f"{name} at {' and '.join(f'{value:g}' for value in at)}", layer, [*at, *[0.3] * (5 - len(at))]
    )


KINKS = [
    *(
        _activation(layer, 0.0)
        for layer in (nn.ReLU(), nn.LeakyReLU(), nn.ELU(), nn.CELU(), nn.SELU(), nn.Softsign())
    ),
    *(_activation(layer, -3.0, 3.0) for layer in (nn.Hardsigmoid(), nn.Hardswish())),
    _activation(nn.ReLU6(), 0.0, 6.0),
    _activation(nn.Hardtanh(), -1.0, 1.0),
    _activation(nn.Threshold(0.1, 20.0), 0.1),
    _activation(nn.Softshrink(), -0.5, 0.5),
    _activation(nn.Hardshrink(), -0.5, 0.5),
    _kink("PReLU at 0", functional.prelu, 0.0, (1,)),
    _kink("abs at 0", torch.abs, 0.0),
    _kink("pow 2 and 1.5 at 0", lambda x: x**2 + x**1.5, 0.0),
    _kink("clamp at its bounds", lambda x: x.clamp(-0.5, 0.5), [-0.5, 0.5, 0.0, 1.0, -1.0]),
    _kink(
        "clamp at tensors",
        lambda x, w: torch.clamp(x, w - w.detach(), w - w.detach() + 1),
        [0.0, 1.0, 2.0, -1.0, 0.5],
        (5,),
    ),
    _kink("maximum, ties", lambda x, w: torch.maximum(x, w - w.detach()), _BOUNDS, (5,)),
    _kink("minimum, ties", lambda x, w: torch.minimum(x, w - w.detach()), _BOUNDS, (5,)),
    _kink("l1_loss at 0", lambda x: functional.l1_loss(x, torch.zeros_like(x), reduction="none"), 0.0),
    _kink(
        "smooth_l1_loss at beta",
        lambda x: functional.smooth_l1_loss(x, torch.zeros_like(x), reduction="none"),
        1.0,
    ),
    _kink(
        "huber_loss at delta", lambda x: functional.huber_loss(x, torch.zeros_like(x), reduction="none"), 1.0
    ),
    *(_kink(f"norm {p} at 0", lambda x, p=p: x.norm(p, dim=1), 0.0) for p in (1, 2, float("inf"))),
    _kink("std of equal numbers", lambda x: x.std(1), 2.0),
    _kink(
        "prod with zeros",
        lambda x: x.prod(1),
        _ZEROS,
    ),
    _kink(
        "cumprod with zeros",
        lambda x: x.cumprod(1),
        _ZEROS,
    ),
    _ties("max", lambda x: x.max(-1).values),
    _ties("min", lambda x: x.min(-1).values),
    _ties("max of all", lambda x: x * x.max()),
    _ties("amax", lambda x: x.amax(-1)),
    _ties("amin", lambda x: x.amin(-1)),
    _ties("norm inf", lambda x: x.norm(float("inf"), dim=-1)),
    _ties("sort", lambda x: x.sort(-1).values * torch.arange(5)),
    _ties("sort(descending)", lambda x: x.sort(-1, descending=True).values * torch.arange(5)),
    _ties("median", lambda x: x.median(-1).values),
    _ties("cummax", lambda x: x.cummax(-1).values),
    _ties("MaxPool1d", lambda x: functional.max_pool1d(x, 3, 1)),
    _ties("MaxPool2d", lambda x: functional.max_pool2d(x.unsqueeze(1), 2)),
    _ties("AdaptiveMaxPool1d", lambda x: functional.adaptive_max_pool1d(x, 3)),
    _ties("AdaptiveMaxPool2d", lambda x: functional.adaptive_max_pool2d(x.unsqueeze(1), (3, 2))),
]
