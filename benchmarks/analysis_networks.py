"""Random networks of several families for `benchmarks analysis`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from .sequence_networks import encoder

__all__ = ["CLASSES", "FAMILIES", "Build"]

CLASSES = 10

Build = Callable[[np.random.Generator], tuple[nn.Module, tuple[int, ...]]]


class Block(nn.Module):
    """A residual block of two normalised convolutions; ReLU after the sum."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Branch plus skip."""
        return torch.relu(self.branch(x) + self.skip(x))


class PlainBlock(nn.Module):
    """A residual block of two convolutions without normalisation; ReLU after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Branch plus skip."""
        return torch.relu(self.second(torch.relu(self.first(x))) + x)


class Recurrent(nn.Module):
    """Recurrent layers; the head reads the last step or the mean over all."""

    def __init__(self, kind: str, rng: np.random.Generator, features: int) -> None:
        super().__init__()
        hidden, layers = int(rng.integers(16, 129)), int(rng.integers(1, 3))
        self.cells = getattr(nn, kind)(features, hidden, layers, batch_first=True)
        self.head, self.mean = nn.Linear(hidden, CLASSES), bool(rng.integers(2))
        if kind == "RNN":
            gain = float(rng.uniform(0.5, 2.0))
            for layer in range(layers):
                nn.init.normal_(getattr(self.cells, f"weight_hh_l{layer}"), 0.0, gain / hidden**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a sequence `[batch, steps, features]`."""
        states, _ = self.cells(x)
        return self.head(states.mean(1) if self.mean else states[:, -1])  # type: ignore[no-any-return]


ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.SELU, nn.LeakyReLU, nn.ELU, nn.Sigmoid)


def _mlp(rng: np.random.Generator, norm: type[nn.Module] | None = None) -> tuple[nn.Module, tuple[int, ...]]:
    activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
    inputs, width = int(rng.integers(8, 65)), int(16 * 2 ** rng.uniform(0.0, 4.0))
    depth = int(rng.integers(2, 21))
    layers: list[nn.Module] = []
    for index in range(depth):
        layers.append(nn.Linear(inputs if index == 0 else width, width, bias=norm is None))
        layers += [activation()] if norm is None else [norm(width), activation()]
    if norm is None and rng.integers(2):
        _initialise(layers, float(rng.uniform(0.8, 1.8)))
    return nn.Sequential(*layers, nn.Linear(width, CLASSES)), (inputs,)


def _initialise(layers: list[nn.Module], gain: float) -> None:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, gain / layer.in_features**0.5)


def _cnn(
    rng: np.random.Generator, norm: bool = False, pooled: bool = False
) -> tuple[nn.Module, tuple[int, ...]]:
    activation = [nn.ReLU, nn.Tanh, nn.GELU][rng.integers(3)]
    side, depth, width = int(rng.choice([8, 12])), int(rng.integers(2, 7)), int(rng.integers(8, 33))
    layers: list[nn.Module] = []
    before = 3
    for index in range(depth):
        layers.append(nn.Conv2d(before, width, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers += [activation()]
        if pooled and index % 2 and index < 4:
            layers.append(nn.MaxPool2d(2))
        before = width
    if rng.integers(2):
        head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]
    else:
        reduced = side // (2 ** min(depth // 2, 2)) if pooled else side
        head = [nn.Flatten(), nn.Linear(width * reduced**2, CLASSES)]
    return nn.Sequential(*layers, *head), (3, side, side)


def _resnet(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    width, blocks = int(rng.integers(8, 25)), int(rng.integers(2, 5))
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for index in range(blocks):
        after = width * (2 if index == blocks - 1 else 1)
        layers.append(Block(width, after, 2 if after > width else 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, CLASSES)), (
        3,
        12,
        12,
    )


def _plain_resnet(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    width, blocks = int(rng.integers(8, 25)), int(rng.integers(2, 7))
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1),
        nn.ReLU(),
        *(PlainBlock(width) for _ in range(blocks)),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)]
    return nn.Sequential(*layers, *head), (3, 12, 12)


def _recurrent(rng: np.random.Generator, kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    steps, features = int(rng.integers(5, 31)), int(rng.integers(4, 33))
    return Recurrent(kind, rng, features), (steps, features)


def _sequence(rng: np.random.Generator) -> tuple[nn.Module, tuple[int, ...]]:
    """Dense layers with LayerNorm at every position, then the mean over positions."""
    length, width, depth = int(rng.integers(4, 13)), int(rng.integers(16, 65)), int(rng.integers(2, 7))
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()]
    pool = [nn.Unflatten(1, (1, length)), nn.AdaptiveAvgPool2d((1, width)), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(width, CLASSES)), (length, width)


FAMILIES: Mapping[str, Build] = {
    "MLP": _mlp,
    "MLP + BN": lambda rng: _mlp(rng, nn.BatchNorm1d),
    "MLP + LN": lambda rng: _mlp(rng, nn.LayerNorm),
    "CNN": _cnn,
    "CNN + BN": lambda rng: _cnn(rng, norm=True),
    "CNN + max-pool": lambda rng: _cnn(rng, pooled=True),
    "ResNet + BN": _resnet,
    "ResNet": _plain_resnet,
    "RNN": lambda rng: _recurrent(rng, "RNN"),
    "LSTM": lambda rng: _recurrent(rng, "LSTM"),
    "GRU": lambda rng: _recurrent(rng, "GRU"),
    "sequence + LN": _sequence,
    "pre-LN": lambda rng: encoder(rng, norm_first=True),
    "post-LN": lambda rng: encoder(rng, norm_first=False),
}
"""Builders of random networks and the shape of one of their inputs."""
