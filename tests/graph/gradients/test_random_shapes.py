"""Gradients for random shapes, broadcasts, axes and geometries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from . import cases
from .oracle import DIMS, Case, check

FEW = settings(max_examples=40, deadline=None, derandomize=True, database=None)

Draw = Any
declared = st.sampled_from(DIMS)
small = st.integers(1, 4)


@FEW
@given(mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=3), declared)
def test_broadcasting(shapes: Any, dims: str) -> None:
    check(cases.binary("Mul", lambda a, b: a * b, *shapes.input_shapes), dims)


@FEW
@given(mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3), declared)
def test_broadcasting_of_three(shapes: Any, dims: str) -> None:
    a, b, c = shapes.input_shapes
    check(Case("Sum", "y = Sum (a, b, c)", {"a": a, "b": b, "c": c}, lambda a, b, c: a + b + c), dims)


@FEW
@given(mutually_broadcastable_shapes(signature="(m?,k),(k,n?)->(m?,n?)", max_dims=2, max_side=3), declared)
def test_matmul(shapes: Any, dims: str) -> None:
    check(cases.binary("MatMul", lambda a, b: a @ b, *shapes.input_shapes), dims)


@st.composite
def reductions(draw: Draw) -> Case:
    shape = tuple(draw(st.lists(small, min_size=1, max_size=4)))
    rank = len(shape)
    axes = draw(st.none() | st.lists(st.integers(0, rank - 1), min_size=1, unique=True))
    signed = None if axes is None else tuple(axis - draw(st.sampled_from((0, rank))) for axis in axes)
    op = draw(st.sampled_from(("ReduceSum", "ReduceMean", "ReduceL2", "ReduceMax", "ReduceLogSumExp")))
    return cases.reduction(op, shape, signed, draw(st.integers(0, 1)))


@FEW
@given(reductions(), declared)
def test_reductions(case: Case, dims: str) -> None:
    check(case, dims)


@st.composite
def geometries(draw: Draw) -> dict[str, Any]:
    """Kernel, strides, dilations and pads of a window over one to three axes, and lengths that hold at least one window."""
    rank = draw(st.integers(1, 3))

    def drawn(low: int, high: int, count: int = rank) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(count)]

    kernel, strides, dilations = drawn(1, 3), drawn(1, 3), drawn(1, 2)
    pads = [min(pad, kernel[axis % rank] - 1) for axis, pad in enumerate(drawn(0, 2, 2 * rank))]
    extents = [(taps - 1) * dilation + 1 for taps, dilation in zip(kernel, dilations, strict=True)]
    lengths = [extent + extra for extent, extra in zip(extents, drawn(0, 4), strict=True)]
    return {"kernel": kernel, "strides": strides, "dilations": dilations, "pads": pads, "lengths": lengths}


@FEW
@given(geometries(), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.booleans(), declared)
def test_conv(window: dict[str, Any], group: int, inputs: int, outputs: int, bias: bool, dims: str) -> None:
    case = cases.conv(
        (2, group * inputs, *window["lengths"]),
        (group * outputs, inputs, *window["kernel"]),
        strides=window["strides"],
        dilations=window["dilations"],
        pads=window["pads"],
        group=group,
        bias=bias,
    )
    check(case, dims)


@FEW
@given(geometries(), st.integers(1, 2), st.data(), declared)
def test_conv_transpose(window: dict[str, Any], group: int, data: Any, dims: str) -> None:
    extra = [
        data.draw(st.integers(0, max(stride, dilation) - 1))
        for stride, dilation in zip(window["strides"], window["dilations"], strict=True)
    ]
    case = cases.conv_transpose(
        (2, 2 * group, *window["lengths"]),
        (2 * group, 2, *window["kernel"]),
        strides=window["strides"],
        dilations=window["dilations"],
        pads=window["pads"],
        output_padding=extra,
        group=group,
    )
    check(case, dims)


@FEW
@given(geometries(), st.booleans(), declared)
def test_max_pool(window: dict[str, Any], tied: bool, dims: str) -> None:
    shape = (2, 2, *window["lengths"])
    x = np.random.default_rng(0).integers(-1, 2, shape).astype(np.float64) if tied else shape
    check(cases.max_pool(x, window["kernel"], window["strides"], _below_half(window)), dims)


@FEW
@given(geometries(), st.integers(0, 1), declared)
def test_average_pool(window: dict[str, Any], count_include_pad: int, dims: str) -> None:
    shape = (2, 2, *window["lengths"])
    case = cases.average_pool(
        shape, window["kernel"], window["strides"], _below_half(window), count_include_pad
    )
    check(case, dims)


def _below_half(window: dict[str, Any]) -> list[int]:
    kernel = window["kernel"]
    return [min(pad, kernel[axis % len(kernel)] // 2) for axis, pad in enumerate(window["pads"])]


@st.composite
def slices(draw: Draw) -> Case:
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    starts, ends, steps = [], [], []
    for axis in axes:
        length = shape[axis]
        step = draw(st.sampled_from((-3, -2, -1, 1, 2, 3)))
        first = draw(st.integers(0, length - 1))
        end = draw(st.integers(first + 1, length + 2)) if step > 0 else draw(st.integers(-1, first - 1))
        starts.append(first - draw(st.sampled_from((0, length))))
        ends.append(end if end >= 0 else -length - 1)
        steps.append(step)
    return cases.slicing(shape, starts, ends, axes, steps)


@FEW
@given(slices(), declared)
def test_slices(case: Case, dims: str) -> None:
    check(case, dims)


@FEW
@given(st.lists(small, min_size=1, max_size=3), st.data(), declared)
def test_gather(shape: list[int], data: Any, dims: str) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    length = shape[axis]
    indices = np.array(data.draw(st.lists(st.integers(-length, length - 1), min_size=1, max_size=6)))
    body = f"y = Gather <axis = {axis}> (x, i)"
    case = Case(
        "Gather", body, {"x": tuple(shape), "i": indices}, lambda x, i: x.index_select(axis, i % length)
    )
    check(case, dims)


@FEW
@given(st.lists(small, min_size=2, max_size=4), st.data(), declared)
def test_transpose_then_softmax(shape: list[int], data: Any, dims: str) -> None:
    perm, axis = data.draw(st.permutations(range(len(shape)))), data.draw(st.integers(0, len(shape) - 1))
    body = f"t = Transpose <perm = {list(perm)}> (x) y = Softmax <axis = {axis}> (t)"
    check(Case("Softmax", body, {"x": tuple(shape)}, lambda x: torch.softmax(x.permute(*perm), axis)), dims)
