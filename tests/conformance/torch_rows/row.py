"""A row of the suite, and how one is written: a layer, or a few tensor operations, as a user would write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Tensor = torch.Tensor
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One module to convert.

    Attributes:
        name: What the table calls it.
        make: Builds the module; its forward takes one tensor for each shape.
        shapes: Shape of each input without the batch.
        labels: For an input of integers, the number of values it can take, by the input's position.
        least: The smallest batch that the module trains on.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    labels: dict[int, int] = field(default_factory=dict)
    least: int = 1


class Function(nn.Module):
    """A function of the input and of parameters of the given shapes."""

    def __init__(self, function: Callable[..., Tensor], shapes: tuple[Shape, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.weights)


def layer(name: str, make: Callable[[], nn.Module], *shapes: Shape, least: int = 1) -> Row:
    return Row(name, make, shapes, least=least)


def tokens(name: str, make: Callable[[], nn.Module]) -> Row:
    return Row(name, make, ((5,),), {0: 7})


def op(name: str, function: Callable[..., Any], shape: Shape = (4, 5), *weights: Shape) -> Row:
    return Row(name, lambda: Function(function, weights), (shape,))


def named(kind: str, *arguments: Any, **options: Any) -> Row:
    """An activation layer, by its class."""
    shown = ", ".join([*map(str, arguments), *(f"{key}={value}" for key, value in options.items())])
    return Row(
        f"{kind}({shown})" if shown else kind, lambda: getattr(nn, kind)(*arguments, **options), ((4, 6),)
    )
