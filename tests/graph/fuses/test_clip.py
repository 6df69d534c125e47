"""`--clip KIND=NUMBER --at PATTERN` in terms of fuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gradfuse.graph import ALL_PARAMETERS, Fuse, GradientGraph, InputError, TrainableModel
from gradfuse.graph.fuses import fuses_of, last_layer

Build = Callable[..., TrainableModel]


@pytest.mark.parametrize(
    ("clip", "at", "targets"),
    [
        ("none", None, []),
        ("value=0.5", None, ["w1", "b1", "w2", "b2"]),
        ("norm=0.5", ["w*", "h"], ["w1", "w2", "h"]),
        ("global-norm=0.5", None, [ALL_PARAMETERS]),
        ("adaptive=0.5", None, ["w1", "b1"]),
        ("adaptive=0.5", ["w2"], ["w2"]),
        ("quantile=0.5", None, [ALL_PARAMETERS]),
        ("quantile=0.5", ["w2"], ["w2"]),
        ("zscore=0.5", None, [ALL_PARAMETERS]),
    ],
)
def test_what_it_asks_for(mlp: TrainableModel, clip: str, at: list[str] | None, targets: list[str]) -> None:
    kind = clip.partition("=")[0]
    assert fuses_of(clip, at, GradientGraph.of(mlp)) == [Fuse(kind, target, 0.5) for target in targets]


@pytest.mark.parametrize(
    ("clip", "at", "message"),
    [
        ("gently", None, "unknown clip 'gently'; auto, none, value=NUMBER, .*zscore=NUMBER"),
        ("norm", None, "clip 'norm' has no threshold; a positive number, as norm=1.0"),
        ("norm=x", None, "clip 'norm=x' has no threshold"),
        (
            "global-norm=1",
            ["w1"],
            "a place for clip 'global-norm=1'; value, norm, adaptive, quantile or zscore",
        ),
        ("auto", ["w1"], "a place for clip 'auto'"),
        ("norm=1", ["w1", "nothing*"], r"no gradient flows through nothing\*; a pattern for one of w1, b1"),
        ("quantile=2", None, "a number between 0 and 1"),
    ],
)
def test_refusals(mlp: TrainableModel, clip: str, at: list[str] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fuses_of(clip, at, GradientGraph.of(mlp))


def test_the_last_layer_is_weight_and_bias_of_the_last_linear_op(build: Build, mlp: TrainableModel) -> None:
    assert set(last_layer(mlp)) == {"w2", "b2"}
    shapes = {"w": (3, 4), "v": (2, 4), "b": (2,), "s": (2,)}
    body = "h = MatMul (x, w) u = Transpose (v) z = MatMul (h, u) a = Add (z, b) y = Mul (a, s)"
    model = build(body, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    assert set(last_layer(model)) == {"v", "b", "s"}
