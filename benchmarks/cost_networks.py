"""The models of `benchmarks cost`: residual networks of ResNet-50's form at any width, and a transformer of any size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from .large import external

__all__ = ["ResNet50", "write_transformer"]


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, each with BatchNorm; ReLU after the sum."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.branch = nn.Sequential(
            *(nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)),
        )
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Branch plus skip."""
        return torch.relu(self.branch(x) + self.skip(x))


class ResNet50(nn.Sequential):
    """He's network of 50 layers (2016) for images of 224 x 224; `width` 64 is the published one, of 25.6 million parameters."""

    def __init__(self, width: int = 64, classes: int = 1000) -> None:
        stem = [
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        ]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32 * width, classes)]
        super().__init__(*stem, *self._blocks(width), *head)

    @staticmethod
    def _blocks(width: int) -> Iterator[nn.Module]:
        before = width
        for stage, count in enumerate((3, 4, 6, 3)):
            inner = width * 2**stage
            for index in range(count):
                yield Bottleneck(before, inner, 2 if stage and not index else 1)
                before = 4 * inner


_BLOCK = """
{i}n1 = LayerNormalization ({x}, {i}g1, {i}b1)
{i}q0 = MatMul ({i}n1, {i}query)  {i}q1 = Reshape ({i}q0, split)  {i}q = Transpose <perm = [0, 2, 1, 3]> ({i}q1)
{i}k0 = MatMul ({i}n1, {i}key)  {i}k1 = Reshape ({i}k0, split)  {i}k = Transpose <perm = [0, 2, 3, 1]> ({i}k1)
{i}v0 = MatMul ({i}n1, {i}value)  {i}v1 = Reshape ({i}v0, split)  {i}v = Transpose <perm = [0, 2, 1, 3]> ({i}v1)
{i}s0 = MatMul ({i}q, {i}k)  {i}s1 = Mul ({i}s0, scale)  {i}s = Softmax <axis = -1> ({i}s1)
{i}a0 = MatMul ({i}s, {i}v)  {i}a1 = Transpose <perm = [0, 2, 1, 3]> ({i}a0)  {i}a2 = Reshape ({i}a1, merge)
{i}a = MatMul ({i}a2, {i}out)  {i}m = Add ({x}, {i}a)
{i}n2 = LayerNormalization ({i}m, {i}g2, {i}b2)
{i}u = MatMul ({i}n2, {i}up)  {i}h = Gelu ({i}u)  {i}d = MatMul ({i}h, {i}down)  {i}x = Add ({i}m, {i}d)
"""


def write_transformer(
    path: Path, width: int, blocks: int, tokens: int, classes: int, heads: int = 16
) -> Path:
    """A pre-LN transformer that reads numbers of tokens and averages over them, its weights as external data.

    It has 12 width^2 parameters in each block, and `classes` x width in its table and again in its head.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    body, x = "x = Gather (table, numbers)", "x"
    for index in range(blocks):
        body, x = body + _BLOCK.format(i=f"t{index}", x=x), f"t{index}x"
    body += f"m = ReduceMean <keepdims = 0> ({x}, one)  y = MatMul (m, head)"
    text = f"g (int64[batch, {tokens}] numbers) => (float[batch, {classes}] y) {{ {body} }}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    fixed: dict[str, np.ndarray[Any, Any]] = {
        "split": np.array([0, tokens, heads, width // heads], np.int64),
        "merge": np.array([0, tokens, width], np.int64),
        "scale": np.array((width // heads) ** -0.5, np.float32),
        "one": np.array([1], np.int64),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in fixed.items())
    rng = np.random.default_rng(0)
    with path.with_suffix(".bin").open("wb") as file:
        for name, shape in _shapes(width, blocks, classes):
            model.graph.initializer.append(external(name, shape, file, rng))
    path.write_bytes(model.SerializeToString())
    return path


def _shapes(width: int, blocks: int, classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "table", (classes, width)
    for index in range(blocks):
        for name in ("g1", "b1", "g2", "b2"):
            yield f"t{index}{name}", (width,)
        for name in ("query", "key", "value", "out"):
            yield f"t{index}{name}", (width, width)
        yield from ((f"t{index}up", (width, 4 * width)), (f"t{index}down", (4 * width, width)))
    yield "head", (width, classes)
