"""The rows of the suite: a forward computation as ONNX text, and the same in PyTorch. To cover an op, add a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from .control_flow_cases import CONTROL_FLOW
from .oracle import DIMS, Array, Case, Data

Tensor = torch.Tensor


def _uniform(low: float, high: float, *shape: int) -> Array:
    return np.random.default_rng(7).uniform(low, high, shape)


def _whole(low: int, high: int, *shape: int) -> Array:
    return np.random.default_rng(7).integers(low, high, shape)


def _tied(*shape: int) -> Array:
    """Numbers of which many are equal."""
    return np.random.default_rng(7).integers(-1, 3, shape).astype(np.float64)


POSITIVE = _uniform(0.5, 2.0, 3, 4)
FAR = np.array([-1e4, -100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 100.0, 1e4])
KINK = np.array([[-2.0, -0.5, -0.0, 0.0], [0.0, 0.25, 1.0, 3.0]])


def unary(op: str, reference: Callable[[Tensor], Tensor], x: Data = (3, 4), attributes: str = "") -> Case:
    return Case(f"{op} {attributes}", f"y = {op} {attributes} (x)", {"x": x}, reference)


def binary(op: str, reference: Callable[..., Tensor], a: Data, b: Data) -> Case:
    shapes = " by ".join(
        str(list(np.shape(data) if isinstance(data, np.ndarray) else data)) for data in (a, b)
    )
    return Case(f"{op} {shapes}", f"y = {op} (a, b)", {"a": a, "b": b}, reference)


_BROADCASTS: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((1,), (3, 4)),
    ((3, 1), (1, 4)),
    ((2, 3, 4), (3, 1)),
    ((), (2, 3)),
    ((2, 1, 4), (3, 1)),
    ((1, 1), (1,)),
    ((), ()),
]


def _near_one(shape: tuple[int, ...]) -> Array:
    return np.asarray(_uniform(0.5, 2.0, *shape))


ARITHMETIC = [
    *(binary("Add", lambda a, b: a + b, a, b) for a, b in _BROADCASTS),
    *(binary("Sub", lambda a, b: a - b, a, b) for a, b in _BROADCASTS),
    *(binary("Mul", lambda a, b: a * b, a, b) for a, b in _BROADCASTS),
    *(binary("Div", lambda a, b: a / b, a, _near_one(b)) for a, b in _BROADCASTS),
    *(binary("Pow", lambda a, b: a**b, _near_one(a), b) for a, b in _BROADCASTS),
    *(binary("Max", torch.maximum, a, b) for a, b in _BROADCASTS),
    *(binary("Min", torch.minimum, a, b) for a, b in _BROADCASTS),
    binary("Max", torch.maximum, _tied(4, 5), _tied(5)),
    binary("Min", torch.minimum, _tied(4, 5), _tied(4, 1)),
    Case("Mul x by x", "y = Mul (x, x)", {"x": (3, 4)}, lambda x: x * x),
    Case("Div x by its square", "s = Mul (x, x) y = Div (x, s)", {"x": POSITIVE}, lambda x: x / x**2),
    Case("Sub x from x", "y = Sub (x, x)", {"x": (3, 4)}, lambda x: x - x),
    Case("Pow x by x", "y = Pow (x, x)", {"x": POSITIVE}, lambda x: x**x),
    Case("Max of x and x", "y = Max (x, x)", {"x": (3, 4)}, lambda x: torch.maximum(x, x)),
    *(
        Case(
            f"Pow constant {p}",
            f"p = Constant <value_float = {p}> () e = CastLike (p, x) y = Pow (x, e)",
            {"x": POSITIVE},
            lambda x, p=p: x**p,
        )
        for p in (-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 2.5)
    ),
    Case(
        "Pow constant square of zero and negatives",
        "p = Constant <value_float = 2.0> () y = Pow (x, p)",
        {"x": KINK},
        lambda x: x**2,
        dtypes=("float",),
    ),
    Case(
        "Pow constant int exponent",
        "p = Constant <value_int = 3> () y = Pow (x, p)",
        {"x": KINK},
        lambda x: x**3,
    ),
    Case(
        "Pow constant exponent that widens x",
        "p = Constant <value_floats = [2.0]> () e = CastLike (p, x) y = Pow (x, e)",
        {"x": ()},
        lambda x: (x**2).reshape(1),
    ),
    Case("Pow int tensor exponent", "y = Pow (x, p)", {"x": KINK, "p": _whole(0, 4, 4)}, lambda x, p: x**p),
    Case(
        "Pow of zero",
        "y = Pow (x, p)",
        {"x": np.array([0.0, 0.0, 2.0]), "p": np.array([0.0, 2.0, 0.0])},
        lambda x, p: x**p,
    ),
    Case("Sum of one", "y = Sum (x)", {"x": (3, 4)}, lambda x: x * 1),
    Case(
        "Sum of three", "y = Sum (a, b, c)", {"a": (3, 4), "b": (4,), "c": (3, 1)}, lambda a, b, c: a + b + c
    ),
    Case("Mean of one", "y = Mean (x)", {"x": (3, 4)}, lambda x: x * 1),
    Case(
        "Mean of three",
        "y = Mean (a, b, c)",
        {"a": (3, 4), "b": (2, 1, 1), "c": ()},
        lambda a, b, c: (a + b + c) / 3,
        dtypes=("float",),  # ONNX's reference evaluator cannot broadcast the inputs of Mean
    ),
    Case("Max of one", "y = Max (x)", {"x": (3, 4)}, lambda x: x * 1),
    Case(
        "Min of three",
        "y = Min (a, b, c)",
        {"a": (3, 4), "b": (4,), "c": (2, 3, 1)},
        lambda a, b, c: torch.minimum(torch.minimum(a, b), c),
    ),
    Case(
        "Where",
        "y = Where (c, a, b)",
        {"c": _whole(0, 2, 3, 1) > 0, "a": (3, 4), "b": (4,)},
        torch.where,
    ),
    Case(
        "Where the condition is the widest",
        "y = Where (c, a, b)",
        {"c": _whole(0, 2, 2, 3, 4) > 0, "a": (1, 4), "b": ()},
        torch.where,
    ),
    Case("Clip without bounds", "y = Clip (x)", {"x": (3, 4)}, lambda x: x * 1),
    Case(
        "Clip below only",
        "y = Clip (x, low)",
        {"x": KINK, "low": np.array(0.25)},
        lambda x, low: torch.clamp(x, min=low),
    ),
    Case(
        "Clip above only",
        "y = Clip (x, , high)",
        {"x": KINK, "high": np.array(0.0)},
        lambda x, high: torch.clamp(x, max=high),
    ),
    Case(
        "Clip at both bounds",
        "y = Clip (x, low, high)",
        {"x": KINK, "low": np.array(-0.5), "high": np.array(1.0)},
        torch.clamp,
    ),
    unary("Neg", torch.neg),
    unary("Abs", torch.abs, KINK),
    unary("Sqrt", torch.sqrt, POSITIVE),
    unary("Exp", torch.exp),
    unary("Log", torch.log, POSITIVE),
    unary("Reciprocal", torch.reciprocal, POSITIVE),
    unary("Erf", torch.erf),
    unary("Sin", torch.sin),
    unary("Cos", torch.cos),
    *(
        unary(op, reference, x)
        for op, reference, x in (
            ("Tan", torch.tan, _uniform(-1.0, 1.0, 3, 4)),
            ("Asin", torch.asin, _uniform(-0.9, 0.9, 3, 4)),
            ("Acos", torch.acos, _uniform(-0.9, 0.9, 3, 4)),
            ("Atan", torch.atan, FAR),
            ("Sinh", torch.sinh, (3, 4)),
            ("Cosh", torch.cosh, KINK),
            ("Asinh", torch.asinh, FAR),
            ("Acosh", torch.acosh, _uniform(1.1, 3.0, 3, 4)),
            ("Atanh", torch.atanh, _uniform(-0.9, 0.9, 3, 4)),
        )
    ),
    *(
        Case(
            f"Mod {list(a)} by {list(b)}",
            "y = Mod <fmod = 1> (a, b)",
            {"a": a, "b": _near_one(b)},
            lambda a, b: a - b * torch.trunc(a / b).detach(),
        )
        for a, b in (((3, 4), (4,)), ((), (2, 3)))
    ),
    unary("Identity", lambda x: x * 1),
    Case(
        "Cast to double and back",
        "d = Cast <to = 11> (x) e = Exp (d) y = Cast <to = 1> (e)",
        {"x": (3, 4)},
        lambda x: x.double().exp().float(),
        dtypes=("float",),
    ),
    *(
        Case(f"{op} passes no gradient", f"c = {op} (x) y = Mul (c, x)", {"x": (3, 4)}, reference)
        for op, reference in (
            ("Sign", lambda x: x.sign().detach() * x),
            ("Floor", lambda x: x.floor().detach() * x),
            ("Ceil", lambda x: x.ceil().detach() * x),
            ("Round", lambda x: x.round().detach() * x),
        )
    ),
]

ACTIVATIONS = [
    unary("Relu", torch.relu, KINK),
    unary("LeakyRelu", lambda x: functional.leaky_relu(x, 0.25), KINK, "<alpha = 0.25>"),
    unary("LeakyRelu", lambda x: functional.leaky_relu(x, 0.01), (2, 3, 4)),
    unary("Elu", functional.elu, KINK),
    unary("Elu", lambda x: functional.elu(x, 2.0), KINK, "<alpha = 2.0>"),
    unary("Selu", functional.selu, KINK),
    replace(unary("Celu", lambda x: functional.celu(x, 0.5), KINK, "<alpha = 0.5>"), dtypes=("float",)),
    unary("Sigmoid", torch.sigmoid),
    unary("Tanh", torch.tanh),
    unary("Softplus", functional.softplus),
    unary("Softsign", functional.softsign, KINK),
    unary("Gelu", functional.gelu),
    unary("Gelu", lambda x: functional.gelu(x, approximate="tanh"), (3, 4), '<approximate = "tanh">'),
    unary(
        "HardSigmoid",
        lambda x: torch.where((x > -2) & (x < 2), 0.25 * x + 0.5, torch.round(x.clamp(0, 1)).detach()),
        KINK,
        "<alpha = 0.25, beta = 0.5>",
    ),
    *(
        Case(f"{op} far out", f"y = {op} (x)", {"x": FAR}, reference)
        for op, reference in (
            ("Relu", torch.relu),
            ("Elu", functional.elu),
            ("Selu", functional.selu),
            ("Sigmoid", torch.sigmoid),
            ("Tanh", torch.tanh),
            ("Softplus", lambda x: torch.logaddexp(x, torch.zeros_like(x))),
            ("Softsign", functional.softsign),
            ("Gelu", functional.gelu),
        )
    ),
    *(
        Case(
            f"PRelu slope {list(slope)}", "y = PRelu (x, slope)", {"x": (2, 3, 4), "slope": slope}, reference
        )
        for slope, reference in (
            ((1,), lambda x, slope: torch.where(x > 0, x, slope * x)),
            ((3, 1), lambda x, slope: torch.where(x > 0, x, slope * x)),
            ((2, 3, 4), lambda x, slope: torch.where(x > 0, x, slope * x)),
        )
    ),
    Case("PRelu at 0", "y = PRelu (x, s)", {"x": KINK, "s": (1,)}, functional.prelu),
    *(
        Case(f"{op} axis {axis}", f"y = {op} <axis = {axis}> (x)", {"x": (2, 3, 4)}, reference)
        for axis in (0, 1, 2, -1, -2)
        for op, reference in (
            ("Softmax", lambda x, axis=axis: torch.softmax(x, axis)),
            ("LogSoftmax", lambda x, axis=axis: torch.log_softmax(x, axis)),
        )
    ),
    unary("Softmax", lambda x: torch.softmax(x, -1), FAR[None]),
    unary("LogSoftmax", lambda x: torch.log_softmax(x, -1), FAR[None]),
]


def _gemm(
    name: str, a: Data, b: Data, c: Data | None, reference: Callable[..., Tensor], attributes: str
) -> Case:
    inputs = {"a": a, "b": b} | ({} if c is None else {"c": c})
    return Case(f"Gemm {name}", f"y = Gemm {attributes} ({', '.join(inputs)})", inputs, reference)


LINEAR = [
    *(
        binary("MatMul", torch.matmul, a, b)
        for a, b in (
            ((2, 3), (3, 4)),
            ((3,), (3,)),
            ((3,), (3, 4)),
            ((2, 3), (3,)),
            ((3,), (2, 3, 4)),
            ((2, 2, 3), (3,)),
            ((5, 2, 3), (3, 4)),
            ((2, 3), (5, 3, 4)),
            ((5, 2, 3), (5, 3, 4)),
            ((5, 2, 3), (1, 3, 4)),
            ((1, 2, 3), (5, 3, 4)),
            ((6, 1, 2, 3), (5, 3, 4)),
            ((6, 5, 2, 3), (3, 4)),
            ((2, 1, 1, 3), (1, 2, 3, 1)),
            ((1, 3), (3, 1)),
        )
    ),
    Case("MatMul of x by x", "y = MatMul (x, x)", {"x": (3, 3)}, lambda x: x @ x),
    *(
        _gemm(
            f"transA={ta} transB={tb} c={c}",
            (3, 2) if ta else (2, 3),
            (4, 3) if tb else (3, 4),
            c,
            lambda a, b, c=0.0, ta=ta, tb=tb: 0.5 * (a.T if ta else a) @ (b.T if tb else b) + 2.0 * c,
            f"<transA = {ta}, transB = {tb}, alpha = 0.5, beta = 2.0>",
        )
        for ta in (0, 1)
        for tb in (0, 1)
        for c in (None, (4,), (2, 4))
    ),
    *(
        _gemm(f"c={list(c)}", (2, 3), (3, 4), c, lambda a, b, c: a @ b + c, "")
        for c in ((), (1,), (1, 4), (2, 1), (1, 1), (4,))
    ),
    _gemm("of one row c=[1]", (1, 3), (3, 1), (1,), lambda a, b, c: a @ b + c, ""),
    Case(
        "Gemm tied weights",
        "h = Gemm (x, w, b) t = Tanh (h) y = Gemm <transB = 1> (t, w, b)",
        {"x": (2, 3), "w": (3, 3), "b": (3,)},
        lambda x, w, b: torch.tanh(x @ w + b) @ w.T + b,
    ),
]


def same_pads(
    x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], lower: bool
) -> Tensor:
    """`x` padded as auto_pad=SAME_UPPER or SAME_LOWER says."""
    pads: list[int] = []
    for length, taps, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((-(-length // stride) - 1) * stride + (taps - 1) * dilation + 1 - length, 0)
        small, large = total // 2, total - total // 2
        pads = [*((large, small) if lower else (small, large)), *pads]
    return functional.pad(x, pads)


_CONVOLUTION = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def conv(
    x: tuple[int, ...],
    w: tuple[int, ...],
    *,
    strides: Sequence[int] = (),
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    group: int = 1,
    bias: bool = False,
    auto_pad: str = "NOTSET",
    dims: tuple[str, ...] = DIMS,
) -> Case:
    """A row for Conv; the channels of x follow from w."""
    rank = len(w) - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    begins, ends = (pads or (0, 0) * rank)[:rank], (pads or (0, 0) * rank)[rank:]
    padding = [n for pair in list(zip(begins, ends, strict=True))[::-1] for n in pair]

    def reference(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if auto_pad.startswith("SAME"):
            x = same_pads(x, w.shape[2:], strides, dilations, auto_pad == "SAME_LOWER")
        return _CONVOLUTION[rank](
            functional.pad(x, padding), w, b, stride=strides, dilation=dilations, groups=group
        )

    attributes = f"strides = {list(strides)}, dilations = {list(dilations)}, group = {group}, "
    attributes += f"pads = {list(pads)}" if pads else f'auto_pad = "{auto_pad}"'
    inputs: dict[str, Data] = {"x": x, "w": w} | ({"b": (w[0],)} if bias else {})
    return Case(
        f"Conv {list(x)} by {list(w)} {attributes}",
        f"y = Conv <{attributes}> ({', '.join(inputs)})",
        inputs,
        reference,
        static=("w", "b"),
        dims=dims,
        dtypes=_in_groups(group, w[0] // group),
    )


def conv_transpose(
    x: tuple[int, ...],
    w: tuple[int, ...],
    *,
    strides: Sequence[int] = (),
    dilations: Sequence[int] = (),
    pads: Sequence[int] = (),
    output_padding: Sequence[int] = (),
    group: int = 1,
    bias: bool = False,
) -> Case:
    """A row for ConvTranspose; `pads` may be asymmetric."""
    rank = len(w) - 2
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    pads, extra = pads or (0, 0) * rank, output_padding or (0,) * rank

    def reference(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        y = _TRANSPOSED[rank](x, w, None, stride=strides, dilation=dilations, groups=group)
        y = functional.pad(y, [n for amount in extra[::-1] for n in (0, amount)])
        for axis in range(rank):
            y = y.narrow(axis + 2, pads[axis], y.shape[axis + 2] - pads[axis] - pads[rank + axis])
        return y if b is None else y + b.reshape(-1, *[1] * rank)

    attributes = (
        f"strides = {list(strides)}, dilations = {list(dilations)}, group = {group}, pads = {list(pads)}"
    )
    attributes += f", output_padding = {list(extra)}" if any(extra) else ""
    inputs: dict[str, Data] = {"x": x, "w": w} | ({"b": (w[1] * group,)} if bias else {})
    return Case(
        f"ConvTranspose {list(x)} by {list(w)} {attributes}",
        f"y = ConvTranspose <{attributes}> ({', '.join(inputs)})",
        inputs,
        reference,
        static=("w", "b"),
        dtypes=_in_groups(group, w[1]) if max(dilations) <= max(strides) else ("float",),
    )


def _in_groups(group: int, outputs: int) -> tuple[str, ...]:
    """onnxruntime has no convolution of doubles, and ONNX's reference fails on groups of several output channels."""
    return ("float",) if group > 1 and outputs > 1 else ("float", "double")


def column_to_image(
    channels: int,
    image: Sequence[int],
    block: Sequence[int],
    *,
    strides: Sequence[int] = (1, 1),
    dilations: Sequence[int] = (1, 1),
    pad: int = 0,
) -> Case:
    """A row for Col2Im, which PyTorch calls fold."""
    windows = [
        (length + 2 * pad - (taps - 1) * dilation - 1) // stride + 1
        for length, taps, stride, dilation in zip(image, block, strides, dilations, strict=True)
    ]
    attributes = f"strides = {list(strides)}, dilations = {list(dilations)}, pads = {[pad] * 4}"
    return Case(
        f"Col2Im {list(image)} from {list(block)} {attributes}",
        f"i = Constant <value_ints = {list(image)}> () b = Constant <value_ints = {list(block)}> () "
        f"y = Col2Im <{attributes}> (x, i, b)",
        {"x": (2, channels * math.prod(block), math.prod(windows))},
        lambda x: functional.fold(x, image, block, dilations, pad, strides),
    )


CONVOLUTIONS = [
    column_to_image(3, (4, 5), (2, 2)),
    column_to_image(2, (5, 5), (3, 2), strides=(2, 1), pad=1),
    column_to_image(1, (7, 8), (2, 3), dilations=(2, 2)),
    column_to_image(2, (4, 6), (2, 2), strides=(2, 2)),
    column_to_image(2, (3, 4), (1, 1)),
    conv((2, 3, 7), (4, 3, 3), bias=True),
    conv((2, 3, 7), (4, 3, 3), strides=[2], pads=[1, 0]),
    conv((2, 3, 6, 5), (4, 3, 3, 2), bias=True),
    conv((2, 3, 6, 6), (4, 3, 3, 3), pads=[1, 1, 1, 1], bias=True),
    conv((2, 3, 7, 8), (4, 3, 3, 3), strides=[2, 3], pads=[1, 0, 2, 1]),
    conv((2, 3, 8, 8), (4, 3, 3, 3), strides=[2, 2]),
    conv((2, 2, 9, 9), (2, 2, 3, 3), dilations=[2, 3], pads=[2, 3, 2, 3]),
    conv((2, 2, 9, 10), (2, 2, 2, 3), dilations=[2, 1], strides=[3, 2], pads=[0, 1, 1, 0], bias=True),
    conv((2, 4, 5, 5), (6, 2, 3, 3), group=2, pads=[1, 1, 1, 1], bias=True),
    conv((2, 4, 5, 5), (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1], bias=True),
    conv((2, 4, 5, 5), (8, 1, 3, 3), group=4, strides=[2, 2]),
    conv((2, 3, 5, 5), (4, 3, 1, 1), bias=True),
    conv((2, 3, 6, 6), (4, 3, 1, 1), strides=[2, 2]),
    conv((2, 3, 5, 5), (4, 3, 5, 5)),
    conv((1, 1, 9, 9), (2, 1, 7, 7), pads=[3, 3, 3, 3], bias=True),
    conv((2, 3, 11, 12), (4, 3, 5, 5), strides=[2, 3], pads=[1, 2, 2, 1], bias=True),
    conv((2, 2, 11, 12), (3, 2, 5, 5), strides=[2, 1], dilations=[1, 2]),
    conv((2, 3, 8, 9), (3, 1, 5, 5), group=3, strides=[2, 1], pads=[2, 2, 2, 2], bias=True),
    conv((2, 4, 7, 7), (4, 2, 5, 5), group=2, pads=[2, 2, 2, 2]),
    conv((2, 2, 4, 5, 6), (3, 2, 2, 3, 2), strides=[1, 2, 2], pads=[0, 1, 0, 1, 0, 1], bias=True),
    conv((2, 3, 7, 7), (4, 3, 3, 3), auto_pad="VALID", strides=[2, 2]),
    conv((2, 3, 6, 6), (4, 3, 3, 3), auto_pad="SAME_UPPER", bias=True),
    conv((2, 3, 6, 7), (4, 3, 4, 2), auto_pad="SAME_LOWER"),
    conv((2, 3, 7, 6), (4, 3, 3, 2), auto_pad="SAME_UPPER", strides=[2, 3], dims=("static",)),
    conv((2, 3, 7, 6), (4, 3, 2, 3), auto_pad="SAME_LOWER", strides=[2, 3], dims=("static",)),
    conv((2, 3, 7, 6), (4, 3, 3, 3), auto_pad="SAME_UPPER", dilations=[2, 1]),
    conv((2, 3, 7, 6), (4, 3, 1, 1), auto_pad="SAME_UPPER", strides=[2, 2], dims=("static",)),
    conv_transpose((2, 3, 5), (3, 4, 3), bias=True),
    conv_transpose((2, 3, 4, 5), (3, 4, 3, 3), bias=True),
    conv_transpose((2, 3, 4, 5), (3, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    conv_transpose((2, 3, 4, 5), (3, 4, 2, 3), strides=[2, 3], pads=[0, 1, 1, 0], bias=True),
    conv_transpose(
        (2, 3, 4, 5), (3, 4, 3, 3), strides=[3, 2], pads=[0, 0, 1, 0], output_padding=[2, 1], bias=True
    ),
    conv_transpose((2, 3, 4), (3, 2, 2), strides=[1], dilations=[3], output_padding=[2]),
    conv_transpose((2, 3, 4, 5), (3, 2, 5, 5), strides=[2, 3], pads=[1, 2, 2, 1], output_padding=[1, 2]),
    conv_transpose((2, 3, 4, 5), (3, 1, 5, 5), group=3, strides=[2, 1], pads=[1, 0, 2, 1]),
    conv_transpose((2, 4, 4, 4), (4, 3, 3, 3), group=2, strides=[2, 1], bias=True),
    conv_transpose((2, 4, 4, 4), (4, 1, 3, 3), group=4, dilations=[2, 1]),
    conv_transpose((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), strides=[2, 2, 2]),
]

_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def max_pool(
    x: Data, kernel: Sequence[int], strides: Sequence[int] = (), pads: Sequence[int] = (), dilation: int = 1
) -> Case:
    """A row for MaxPool; padding is with -inf and may be asymmetric."""
    rank = len(kernel)
    strides, pads = strides or (1,) * rank, pads or (0, 0) * rank
    padding = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[rank + axis])]

    def reference(x: Tensor) -> Tensor:
        padded = functional.pad(x, padding, value=-torch.inf)
        return _MAX_POOL[rank](padded, kernel, strides, dilation=dilation)

    attributes = f"kernel_shape = {list(kernel)}, strides = {list(strides)}, pads = {list(pads)}"
    attributes += f", dilations = {[dilation] * rank}" if dilation > 1 else ""
    shape = list(np.shape(x) if isinstance(x, np.ndarray) else x)
    tied = " tied" if isinstance(x, np.ndarray) else ""
    return Case(f"MaxPool {shape}{tied} {attributes}", f"y = MaxPool <{attributes}> (x)", {"x": x}, reference)


def average_pool(
    x: tuple[int, ...],
    kernel: Sequence[int],
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    count_include_pad: int = 0,
) -> Case:
    """A row for AveragePool; `pads` may be asymmetric."""
    rank = len(kernel)
    strides, pads = strides or (1,) * rank, pads or (0, 0) * rank
    padding = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[rank + axis])]

    def reference(x: Tensor) -> Tensor:
        pool = _AVERAGE_POOL[rank]
        ones = torch.ones_like(x) if not count_include_pad else torch.ones_like(functional.pad(x, padding))
        covered = pool(ones if count_include_pad else functional.pad(ones, padding), kernel, strides)
        return pool(functional.pad(x, padding), kernel, strides) / covered

    attributes = f"kernel_shape = {list(kernel)}, strides = {list(strides)}, pads = {list(pads)}"
    attributes += f", count_include_pad = {count_include_pad}"
    name = f"AveragePool {list(x)} {attributes}"
    return Case(name, f"y = AveragePool <{attributes}> (x)", {"x": x}, reference)


def resized(
    x: tuple[int, ...], to: tuple[int, ...], attributes: str, by: str = "sizes", **options: Any
) -> Case:
    """A row for Resize of the axes after the first two; options are those of torch's interpolate."""
    rank = len(x) - 2
    if by == "sizes":
        constant = f"t = Constant <value_ints = {[*x[:2], *to]}> () y = Resize <{attributes}> (x, , , t)"
    else:
        scales = [1.0, 1.0, *(new / old for new, old in zip(to, x[2:], strict=True))]
        constant = f"t = Constant <value_floats = {scales}> () y = Resize <{attributes}> (x, , t)"
    return Case(
        f"Resize {list(x)} {by} {list(to)} {attributes}",
        constant,
        {"x": x},
        lambda x: functional.interpolate(x, size=to, **options),
        dims=("static",) if rank == 1 or by == "sizes" else ("static", "batch", "symbolic"),
        dtypes=("float",),  # onnxruntime and ONNX's reference disagree on doubles
    )


_HALF_PIXEL = 'coordinate_transformation_mode = "half_pixel"'
_CORNERS = 'coordinate_transformation_mode = "align_corners"'
_FLOOR = 'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'

RESIZES = [
    *(
        resized(x, to, _FLOOR, by, mode="nearest")
        for by in ("sizes", "scales")
        for x, to in (
            ((2, 3, 4), (8,)),
            ((2, 3, 4, 5), (8, 10)),
            ((2, 3, 4, 6), (2, 3)),
            ((1, 2, 2, 3, 2), (4, 6, 6)),
        )
    ),
    *(
        resized(x, to, f'mode = "linear", {_HALF_PIXEL}', by, mode="bilinear")
        for by, x, to in (
            ("scales", (2, 3, 4, 5), (8, 10)),
            ("sizes", (2, 3, 4, 5), (7, 3)),
            ("sizes", (2, 3, 4, 5), (4, 9)),
            ("scales", (2, 3, 4, 6), (2, 9)),
        )
    ),
    resized((2, 3, 4, 5), (7, 9), f'mode = "linear", {_CORNERS}', mode="bilinear", align_corners=True),
    resized((1, 2, 2, 3, 2), (4, 5, 3), f'mode = "linear", {_HALF_PIXEL}', mode="trilinear"),
    resized(
        (2, 3, 4, 5),
        (8, 10),
        f'mode = "cubic", cubic_coeff_a = -0.75, {_HALF_PIXEL}',
        "scales",
        mode="bicubic",
    ),
    resized(
        (2, 3, 4, 5),
        (7, 9),
        f'mode = "cubic", cubic_coeff_a = -0.75, {_CORNERS}',
        mode="bicubic",
        align_corners=True,
    ),
    Case(
        "Resize axes",
        f"s = Constant <value_floats = [2.0]> () y = Resize <axes = [2], {_FLOOR}> (x, , s)",
        {"x": (2, 3, 4)},
        lambda x: x.repeat_interleave(2, -1),
        dtypes=("float",),
    ),
]


def einsum(equation: str, *shapes: tuple[int, ...]) -> Case:
    """A row for Einsum."""
    names = "abcd"[: len(shapes)]
    return Case(
        f"Einsum {equation} {[list(shape) for shape in shapes]}",
        f'y = Einsum <equation = "{equation}"> ({", ".join(names)})',
        dict(zip(names, shapes, strict=True)),
        lambda *operands: torch.einsum(equation, *operands),
    )


EINSUMS = [
    einsum("ij,jk->ik", (2, 3), (3, 4)),
    einsum("bij, bkj -> bik", (2, 3, 4), (2, 5, 4)),
    einsum("bhqd,hde->bqhe", (2, 3, 4, 2), (3, 2, 5)),
    einsum("i,j->ij", (2,), (3,)),
    einsum("i,i", (3,), (3,)),
    einsum("ji", (2, 3)),
    einsum("ij->j", (2, 3)),
    einsum("ij,j->i", (2, 3), (3,)),
    einsum("ij,k->k", (2, 3), (4,)),
    einsum("ij,ij->", (2, 3), (2, 3)),
    einsum("bii->bi", (2, 3, 3)),
    einsum("ii->", (3, 3)),
    einsum("iij,j->i", (3, 3, 2), (2,)),
    einsum("...ij,...jk->...ik", (2, 3, 4), (2, 4, 5)),
    einsum("...ij,...jk->...ik", (6, 1, 3, 4), (6, 2, 4, 5)),
    einsum("...ij,jk->...ik", (6, 2, 3, 4), (4, 5)),
    einsum("ij...->...", (2, 3, 4)),
    einsum("ab,bc,cd->ad", (2, 3), (3, 4), (4, 5)),
]

POOLS = [
    *(
        Case(
            f"GlobalLpPool p={p}",
            f"y = GlobalLpPool <p = {p}> (x)",
            {"x": (2, 3, 4, 5)},
            lambda x, p=p: x.abs().pow(p).sum((2, 3), keepdim=True).pow(1 / p),
            dtypes=("float",),
        )
        for p in (1, 2, 3)
    ),
    max_pool((2, 3, 8), [2], [2]),
    max_pool((2, 3, 8, 6), [2, 2], [2, 2]),
    max_pool(_tied(2, 3, 8, 6), [2, 2], [2, 2]),
    max_pool(_tied(2, 3, 9, 6), [3, 2], [3, 2]),
    max_pool(np.zeros((1, 2, 6, 6)), [3, 3], [3, 3]),
    max_pool((2, 3, 7, 7), [2, 2], [2, 2]),
    max_pool((2, 3, 8, 8), [3, 3], [2, 2], [1, 1, 1, 1]),
    max_pool(_tied(2, 3, 8, 8), [3, 3], [1, 2], [1, 0, 0, 1]),
    max_pool((2, 3, 8, 8), [2, 3], [3, 3]),
    max_pool((2, 3, 8, 8), [2, 2], dilation=2),
    max_pool((1, 2, 4, 4, 4), [2, 2, 2], [2, 2, 2]),
    max_pool(_tied(1, 2, 4, 4, 6), [2, 2, 3], [2, 2, 3]),
    Case(
        "MaxPool auto_pad SAME_UPPER",
        'y = MaxPool <kernel_shape = [3, 2], strides = [2, 1], auto_pad = "SAME_UPPER"> (x)',
        {"x": _uniform(0.0, 1.0, 2, 3, 7, 6)},
        lambda x: functional.max_pool2d(same_pads(x, [3, 2], [2, 1], [1, 1], False), [3, 2], [2, 1]),
        dims=("static",),
    ),
    *(
        Case(
            f"AveragePool ceil_mode {x} strides {stride} pad {pad} count_include_pad {count}",
            f"y = AveragePool <ceil_mode = 1, kernel_shape = [3, 2], strides = [{stride}, {stride}], "
            f"pads = [{pad}, {pad}, {pad}, {pad}], count_include_pad = {count}> (x)",
            {"x": x},
            lambda x, stride=stride, pad=pad, count=count: functional.avg_pool2d(
                x, (3, 2), stride, pad, ceil_mode=True, count_include_pad=bool(count)
            ),
            dims=("static", "batch"),
            dtypes=("float",),
        )
        for x, stride, pad in (
            ((2, 3, 8, 7), 2, 0),
            ((2, 3, 8, 6), 2, 1),
            ((2, 3, 6, 6), 3, 1),
            ((2, 3, 7, 9), 4, 0),
        )
        for count in (0, 1)
    ),
    *(
        Case(
            f"LpPool p {p} {x} strides {strides} pads {pads}",
            f"y = LpPool <p = {p}, kernel_shape = [3, 2], strides = {strides}, pads = {pads}> (x)",
            {"x": x},
            lambda x, p=p, strides=strides, pads=pads: (
                (
                    functional.avg_pool2d(
                        functional.pad(x, (pads[1], pads[3], pads[0], pads[2])).abs() ** p, (3, 2), strides
                    )
                    * 6
                )
                ** (1 / p)
            ),
            dtypes=("float",),
        )
        for p in (1, 2, 3)
        for x, strides, pads in (((2, 3, 6, 6), [3, 2], [0, 0, 0, 0]), ((2, 3, 7, 6), [2, 1], [1, 0, 2, 1]))
    ),
    Case(
        "LpPool of zeros",
        "y = LpPool <kernel_shape = [2], strides = [2]> (x)",
        {"x": np.array([[[0.0, 0.0, 3.0, 4.0]]])},
        lambda x: torch.stack((x[..., 0] * 0.0, x[..., 2:].norm(dim=-1)), -1),
        dtypes=("float",),
    ),
    average_pool((2, 3, 8), [2], [2]),
    average_pool((2, 3, 8, 6), [2, 3], [2, 3]),
    average_pool((2, 3, 7, 7), [3, 3], [2, 2]),
    average_pool((2, 3, 8, 7), [3, 2], [2, 2], [1, 1, 1, 1], 1),
    average_pool((2, 3, 8, 7), [3, 2], [2, 2], [1, 1, 1, 1], 0),
    average_pool((2, 3, 8, 7), [3, 2], [1, 1], [1, 0, 0, 1], 0),
    average_pool((2, 3, 8, 8), [2, 2], [3, 3]),
    average_pool((1, 2, 4, 4, 5), [2, 2, 2], [2, 2, 1]),
    Case(
        "AveragePool auto_pad SAME_LOWER",
        'y = AveragePool <kernel_shape = [3, 3], auto_pad = "SAME_LOWER"> (x)',
        {"x": (2, 3, 5, 6)},
        lambda x: functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    ),
    *(
        Case(f"{op} rank {len(shape)}", f"y = {op} (x)", {"x": shape}, reference, dtypes=dtypes)
        for shape in ((2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 4))
        for op, reference, dtypes in (
            (
                "GlobalAveragePool",
                lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
                ("float", "double"),
            ),
            # ONNX's reference evaluator gives GlobalMaxPool's output the wrong shape.
            ("GlobalMaxPool", lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True), ("float",)),
        )
    ),
    Case(
        "GlobalMaxPool tied",
        "y = GlobalMaxPool (x)",
        {"x": _tied(2, 3, 4, 4)},
        lambda x: x.amax((2, 3), True),
    ),
]


def layer_norm(shape: tuple[int, ...], axis: int, bias: bool, epsilon: float = 1e-5) -> Case:
    normalized = shape[axis:]
    inputs: dict[str, Data] = {"x": shape, "s": normalized} | ({"b": normalized} if bias else {})
    return Case(
        f"LayerNormalization {list(shape)} axis {axis} bias {bias}",
        f"y = LayerNormalization <axis = {axis}, epsilon = {epsilon}> ({', '.join(inputs)})",
        inputs,
        lambda x, s, b=None: functional.layer_norm(x, normalized, s, b, np.float32(epsilon).item()),
    )


_EPSILON = np.float32(1e-5).item()

NORMALIZATION = [
    *(
        Case(
            f"BatchNormalization with given statistics rank {len(shape)}",
            "y = BatchNormalization (x, s, b, m, v)",
            {"x": shape, "s": (3,), "b": (3,), "m": (3,), "v": _uniform(0.5, 2.0, 3)},
            lambda x, s, b, m, v: (
                (x - _channels(m, x)) * _channels((v + _EPSILON).rsqrt() * s, x) + _channels(b, x)
            ),
        )
        for shape in ((4, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2))
    ),
    layer_norm((3, 5), -1, True),
    layer_norm((3, 5), -1, False),
    layer_norm((2, 3, 4), 2, True),
    layer_norm((2, 3, 4), -2, True),
    layer_norm((2, 3, 4), 1, True, 0.1),
    layer_norm((2, 3, 4, 2), -3, False),
    *(
        Case(
            f"InstanceNormalization rank {len(shape)}",
            "y = InstanceNormalization <epsilon = 0.01> (x, s, b)",
            {"x": shape, "s": (3,), "b": (3,)},
            lambda x, s, b: functional.instance_norm(x, weight=s, bias=b, eps=np.float32(0.01).item()),
        )
        for shape in ((2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2))
    ),
    *(
        Case(
            f"LpNormalization p {p} axis {axis}",
            f"y = LpNormalization <p = {p}, axis = {axis}> (x)",
            {"x": (2, 3, 4)},
            lambda x, p=p, axis=axis: x / x.norm(p, axis, keepdim=True),
        )
        for p in (1, 2)
        for axis in (0, -1)
    ),
    Case(
        "LpNormalization of zeros",
        "y = LpNormalization (x)",
        {"x": np.array([[0.0, 0.0], [3.0, 4.0]])},
        lambda x: torch.stack((x[0] * 0.0, x[1] / x[1].norm())),
        dtypes=("float",),
    ),
    *(
        Case(
            f"LRN size {size} shape {list(shape)}",
            f"y = LRN <size = {size}, alpha = 0.5, beta = 0.75, bias = 2.0> (x)",
            {"x": shape},
            lambda x, size=size: functional.local_response_norm(x, size, 0.5, 0.75, 2.0),
            dims=("static", "batch"),
            dtypes=("float",),  # ONNX's reference evaluator normalises as many channels as the batch is long
        )
        for size in (1, 3, 5)
        for shape in ((2, 4, 3, 3),)
    ),
    Case("Dropout in inference", "y = Dropout (x)", {"x": (3, 4)}, lambda x: x * 1),
    Case(
        "Dropout of nothing",
        "r = Constant <value_float = 0.0> () t = Constant <value_int = 1> () b = Cast <to = 9> (t) "
        "y = Dropout (x, r, b)",
        {"x": (3, 4)},
        lambda x: x * 1,
    ),
]


def _channels(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def _all_axes(x: Tensor, axes: tuple[int, ...] | None) -> tuple[int, ...]:
    return tuple(range(x.ndim)) if axes is None else axes


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceProd": _product,
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
}


def reduction(op: str, x: Data, axes: tuple[int, ...] | None, keep: int) -> Case:
    """A row for a reduction; `axes` None leaves the input out."""
    constant, given = (
        ("", "") if axes is None else (f"axes = Constant <value_ints = {list(axes)}> ()", ", axes")
    )
    return Case(
        f"{op} {list(np.shape(x))} axes {axes} keepdims {keep}",
        f"{constant} y = {op} <keepdims = {keep}> (x{given})",
        {"x": x},
        lambda x: _REDUCTIONS[op](x, _all_axes(x, axes), bool(keep)),
    )


REDUCTIONS = [
    *(
        reduction(op, _uniform(0.5, 2.0, 2, 3, 4), axes, keep)
        for op in _REDUCTIONS
        for axes in (None, (0,), (-1,), (2, 0), (-2, -1))
        for keep in (0, 1)
    ),
    reduction("ReduceMax", _tied(3, 4), (1,), 0),
    reduction("ReduceMin", _tied(3, 4), None, 1),
    *(
        reduction("ReduceProd", np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [1.0, -2.0, 0.5]]), axes, 0)
        for axes in (None, (0,), (1,))
    ),
    *(
        Case(
            f"CumSum axis {axis} exclusive {exclusive} reverse {reverse}",
            f"a = Constant <value_int = {axis}> () y = CumSum <exclusive = {exclusive}, reverse = {reverse}> (x, a)",
            {"x": (2, 3, 4)},
            lambda x, axis=axis, exclusive=exclusive, reverse=reverse: _cumulative(
                x, axis, exclusive, reverse
            ),
        )
        for axis in (0, -1)
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
    reduction("ReduceL1", KINK, (0,), 0),
    reduction("ReduceL2", np.array([[0.0, 0.0], [3.0, 4.0]]), (1,), 1),
    reduction("ReduceLogSumExp", FAR[None], (1,), 0),
    Case("ReduceSum of a scalar", "y = ReduceSum (x)", {"x": ()}, lambda x: x * 1),
]


def _cumulative(x: Tensor, axis: int, exclusive: int, reverse: int) -> Tensor:
    directed = x.flip(axis) if reverse else x
    total = directed.cumsum(axis) - (directed if exclusive else 0.0)
    return total.flip(axis) if reverse else total


def _shape(name: str, body: str, x: Data, reference: Callable[..., Any], **options: Any) -> Case:
    return Case(name, body, {"x": x}, reference, **options)


SHAPES = [
    Case(
        "ReverseSequence",
        "y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, n)",
        {"x": (3, 4, 2), "n": np.array([1, 3, 4])},
        lambda x, n: torch.stack([torch.cat([e[:k].flip(0), e[k:]]) for e, k in zip(x, n, strict=True)]),
        dims=("static", "symbolic"),
    ),
    _shape(
        "Reshape",
        "s = Constant <value_ints = [0, -1]> () y = Reshape (x, s)",
        (2, 3, 4),
        lambda x: x.reshape(2, 12),
    ),
    _shape(
        "Reshape to a scalar",
        "o = Constant <value_ints = [1]> () z = Sub (o, o) s = Shape <start = 1> (z) y = Reshape (x, s)",
        (1, 1),
        lambda x: x.reshape(()),
    ),
    _shape("Flatten axis 2", "y = Flatten <axis = 2> (x)", (2, 3, 4), lambda x: x.reshape(6, 4)),
    _shape("Flatten axis 0", "y = Flatten <axis = 0> (x)", (2, 3), lambda x: x.reshape(1, 6)),
    _shape(
        "Squeeze",
        "a = Constant <value_ints = [-1, 0]> () y = Squeeze (x, a)",
        (1, 3, 1),
        lambda x: x[0, :, 0],
    ),
    _shape("Squeeze all", "y = Squeeze (x)", (1, 3, 1), lambda x: x[0, :, 0]),
    _shape(
        "Unsqueeze",
        "a = Constant <value_ints = [0, -1]> () y = Unsqueeze (x, a)",
        (2, 3),
        lambda x: x[None, :, :, None],
    ),
    _shape("Transpose", "y = Transpose (x)", (2, 3, 4), lambda x: x.permute(2, 1, 0)),
    _shape("Transpose perm", "y = Transpose <perm = [1, 2, 0]> (x)", (2, 3, 4), lambda x: x.permute(1, 2, 0)),
    *(
        _shape(
            f"Expand {list(shape)} to {to}",
            f"s = Constant <value_ints = {to}> () y = Expand (x, s)",
            shape,
            lambda x, to=to: x * torch.ones(to, dtype=x.dtype),
        )
        for shape, to in (
            ((3, 1), [2, 3, 4]),
            ((4,), [3, 4]),
            ((3, 4), [1, 1]),
            ((), [2]),
            ((1, 3), [3]),
            ((1,), [1, 1]),
        )
    ),
    Case(
        "Expand to a shape of the run",
        "s = Shape (t) y = Expand (x, s)",
        {"x": (3, 1), "t": (2, 3, 4)},
        lambda x, t: x.expand(t.shape),
        fixed=("t",),
    ),
    _shape(
        "Tile",
        "r = Constant <value_ints = [2, 1, 3]> () y = Tile (x, r)",
        (2, 3, 2),
        lambda x: x.repeat(2, 1, 3),
    ),
    Case(
        "Tile by the lengths of the run",
        "s = Shape (t) y = Tile (x, s)",
        {"x": (3, 2), "t": (2, 3)},
        lambda x, t: x.repeat(t.shape),
        fixed=("t",),
    ),
    Case(
        "Concat axis 1",
        "y = Concat <axis = 1> (a, b, c)",
        {"a": (2, 1), "b": (2, 3), "c": (2, 2)},
        lambda a, b, c: torch.cat((a, b, c), 1),
    ),
    Case(
        "Concat axis -2",
        "y = Concat <axis = -2> (a, b)",
        {"a": (2, 1, 3), "b": (2, 3, 3)},
        lambda a, b: torch.cat((a, b), -2),
    ),
    Case("Concat of one", "y = Concat <axis = 0> (a)", {"a": (2, 1)}, lambda a: a * 1),
    Case("Concat of x and x", "y = Concat <axis = 0> (x, x)", {"x": (2, 3)}, lambda x: torch.cat((x, x))),
    Case(
        "Split",
        "s = Constant <value_ints = [1, 3]> () y, z = Split <axis = 1> (x, s)",
        {"x": (2, 4)},
        lambda x: x.split((1, 3), 1),
        outputs=("y", "z"),
    ),
    Case(
        "Split with an unused output",
        "s = Constant <value_ints = [1, 3, 2]> () y, u, z = Split <axis = -1> (x, s)",
        {"x": (2, 6)},
        lambda x: x.split((1, 3, 2), 1)[::2],
        outputs=("y", "z"),
    ),
    Case(
        "Split in equal parts, only the last used",
        "u, y = Split <num_outputs = 2> (x)",
        {"x": (4, 3)},
        lambda x: x[2:],
    ),
    Case(
        "Split in unequal parts by number",
        "y, z = Split <num_outputs = 2> (x)",
        {"x": (5, 3)},
        lambda x: (x[:3], x[3:]),
        outputs=("y", "z"),
    ),
    _shape(
        "Pad",
        "p = Constant <value_ints = [1, 0, 0, 2]> () y = Pad (x, p)",
        (2, 3),
        lambda x: functional.pad(x, (0, 2, 1, 0)),
    ),
    _shape(
        "Pad crops",
        "p = Constant <value_ints = [-1, 1, 0, -2]> () y = Pad (x, p)",
        (3, 4),
        lambda x: functional.pad(x, (1, -2, -1, 0)),
    ),
    _shape(
        "Pad axes",
        "p = Constant <value_ints = [2, 1]> () a = Constant <value_ints = [-1]> () y = Pad (x, p, , a)",
        (2, 3),
        lambda x: functional.pad(x, (2, 1)),
    ),
    *(
        _shape(
            f"Pad {mode} {pads}",
            f'p = Constant <value_ints = {pads}> () y = Pad <mode = "{mode}"> (x, p)',
            (2, 3, 4, 5),
            lambda x, pads=pads, mode=mode: functional.pad(
                x,
                (pads[3], pads[7], pads[2], pads[6]),
                mode={"edge": "replicate", "wrap": "circular"}.get(mode, mode),
            ),
        )
        for mode in ("reflect", "edge", "wrap")
        for pads in ([0, 0, 1, 0, 0, 0, 2, 0], [0, 0, 2, 3, 0, 0, 1, 4])
    ),
    _shape(
        "Pad reflect axes",
        'p = Constant <value_ints = [2, 1]> () a = Constant <value_ints = [-1]> () y = Pad <mode = "reflect"> (x, p, , a)',
        (2, 3),
        lambda x: functional.pad(x, (2, 1), mode="reflect"),
    ),
    Case(
        "Pad by amounts of the run",
        'y = Pad <mode = "edge"> (x, p)',
        {"x": (2, 3), "p": np.array([0, 2, 0, 1])},
        lambda x, p: functional.pad(x, (2, 1), mode="replicate"),
    ),
    *(
        _shape(
            f"Trilu upper {upper} k {k}",
            f"k = Constant <value_int = {k}> () y = Trilu <upper = {upper}> (x, k)",
            (2, 3, 4),
            lambda x, upper=upper, k=k: (torch.triu if upper else torch.tril)(x, k),
        )
        for upper in (0, 1)
        for k in (-1, 0, 2)
    ),
    _shape("Trilu without k", "y = Trilu (x)", (3, 4), torch.triu),
    _shape(
        "DepthToSpace CRD",
        'y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)',
        (2, 8, 3, 2),
        lambda x: functional.pixel_shuffle(x, 2),
    ),
    _shape(
        "DepthToSpace DCR",
        "y = DepthToSpace <blocksize = 3> (x)",
        (2, 18, 2, 3),
        lambda x: _blocks_first(x, 3),
    ),
    _shape(
        "SpaceToDepth",
        "y = SpaceToDepth <blocksize = 2> (x)",
        (2, 3, 4, 6),
        lambda x: x.reshape(2, 3, 2, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 12, 2, 3),
    ),
    _shape("Pad nothing", "p = Constant <value_ints = [0, 0]> () y = Pad (x, p)", (3,), lambda x: x * 1),
]


def _blocks_first(x: Tensor, size: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // size**2, h * size, w * size)


def slicing(
    x: tuple[int, ...],
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Case:
    """A row for Slice with constant bounds."""
    vectors = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    body = " ".join(
        f"{n} = Constant <value_ints = {list(v)}> ()" for n, v in vectors.items() if v is not None
    )
    given = [name if value is not None else "" for name, value in vectors.items()]
    while not given[-1]:
        given.pop()
    return Case(
        f"Slice {list(x)} [{list(starts)}:{list(ends)}:{steps}] axes {axes}",
        f"{body} y = Slice (x, {', '.join(given)})",
        {"x": x},
        lambda x: _sliced(x, starts, ends, axes or range(len(starts)), steps or [1] * len(starts)),
    )


def _sliced(
    x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> Tensor:
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -x.shape[axis] else end
        picked = list(range(x.shape[axis]))[slice(start, stop, step)]
        x = x.index_select(axis, torch.tensor(picked, dtype=torch.int64))
    return x


_LAST = 2**63 - 1

INDEXING = [
    slicing((6, 5), [1], [4]),
    slicing((6, 5), [1, -4], [4, -1]),
    slicing((6, 5), [-3], [_LAST], [-1]),
    slicing((6, 5), [0], [_LAST], [0], [2]),
    slicing((6, 5), [1, 0], [6, 5], [1, 0], [3, 2]),
    slicing((6, 5), [-1], [-_LAST], [0], [-1]),
    slicing((6, 5), [4, 3], [0, -100], [0, 1], [-2, -1]),
    slicing((6, 5), [100], [-100], [1], [-3]),
    slicing((6, 5), [-100], [100], [0], [1]),
    slicing((2, 3, 4), [1], [3], [2]),
    Case(
        "Slice with bounds of the run and constant axes",
        "a = Constant <value_ints = [0, 1]> () y = Slice (x, s, e, a)",
        {"x": (6, 5), "s": np.array([2, 1]), "e": np.array([-1, 5])},
        lambda x, s, e: x[2:-1, 1:5],
        static=("s", "e"),
    ),
    *(
        Case(
            f"Gather axis {axis} indices {indices.tolist()}",
            f"y = Gather <axis = {axis}> (x, i)",
            {"x": (3, 4, 2), "i": indices},
            lambda x, i, axis=axis: _gathered(x, i, axis),
        )
        for axis, indices in (
            (0, np.array([0, 2, 0, 0])),
            (1, np.array([-1, 3, 2])),
            (-1, np.array([[0, 1], [1, -2]])),
            (1, np.array(2)),
            (0, np.array([[1], [1]])),
        )
    ),
    Case(
        "Gather int32 indices",
        "y = Gather (x, i)",
        {"x": (3, 4), "i": np.array([0, -1, 0], np.int32)},
        lambda x, i: _gathered(x, i.long(), 0),
    ),
    *(
        Case(
            f"GatherElements axis {axis}",
            f"y = GatherElements <axis = {axis}> (x, i)",
            {"x": (3, 4), "i": indices},
            lambda x, i, axis=axis: torch.gather(x, axis, i % x.shape[axis]),
        )
        for axis, indices in (
            (0, np.array([[0, -1, 0, 2], [0, 1, 1, 2]])),
            (1, np.array([[0, 0], [3, -2], [1, 1]])),
            (-1, np.array([[0], [3], [-4]])),
        )
    ),
    Case(
        "GatherND",
        "y = GatherND (x, i)",
        {"x": (3, 4, 2), "i": np.array([[0, 1], [2, 3], [0, 1]])},
        lambda x, i: x[i[:, 0], i[:, 1]],
    ),
    Case(
        "GatherND negative",
        "y = GatherND (x, i)",
        {"x": (3, 4), "i": np.array([[[-1]], [[0]]])},
        lambda x, i: x[i[..., 0]],
    ),
    *(
        Case(
            f"GatherND batch_dims {batch_dims} indices {list(indices.shape)}",
            f"y = GatherND <batch_dims = {batch_dims}> (x, i)",
            {"x": (2, 3, 4), "i": indices},
            reference,
        )
        for batch_dims, indices, reference in (
            (
                1,
                np.array([[[0, 1], [2, -1]], [[1, 1], [1, 1]]]),
                lambda x, i: x[[[0], [1]], i[..., 0], i[..., 1]],
            ),
            (1, np.array([[1], [2]]), lambda x, i: x[[0, 1], i[..., 0]]),
            (
                2,
                np.array([[[0], [1], [2]], [[3], [3], [0]]]),
                lambda x, i: torch.gather(x, 2, i)[..., 0],
            ),
        )
    ),
    *(
        Case(
            f"ScatterElements {reduction} axis {axis}",
            f'y = ScatterElements <axis = {axis}, reduction = "{reduction}"> (x, i, u)',
            {"x": (3, 4), "i": indices, "u": indices.shape},
            lambda x, i, u, reduction=reduction, axis=axis: _SCATTER[reduction](
                x, axis, i % x.shape[axis], u
            ),
        )
        for axis, indices in (
            (0, np.array([[0, -1, 1, 2], [1, 0, 2, 0]])),
            (-1, np.array([[0, 1], [3, -2], [1, 0]])),
        )
        for reduction in ("none", "add", "max", "min")
    ),
    *(
        Case(
            f"ScatterElements {reduction} tied",
            f'y = ScatterElements <axis = 1, reduction = "{reduction}"> (x, i, u)',
            {"x": _tied(3, 4), "i": np.array([[0, 0, 1], [3, 3, 3], [1, 2, 1]]), "u": _tied(3, 3)},
            lambda x, i, u, reduction=reduction: _SCATTER[reduction](x, 1, i, u),
        )
        for reduction in ("add", "max", "min")
    ),
    *(
        Case(
            f"ScatterND {reduction}",
            f'y = ScatterND <reduction = "{reduction}"> (x, i, u)',
            {"x": (3, 4, 2), "i": np.array([[0, 1], [2, -1], [1, 1]]), "u": (3, 2)},
            lambda x, i, u, reduction=reduction: _scatter_rows(x, i, u, reduction),
        )
        for reduction in ("none", "add", "max", "min")
    ),
    Case(
        "ScatterND adds twice at one place",
        'y = ScatterND <reduction = "add"> (x, i, u)',
        {"x": (3, 4), "i": np.array([[[0], [0]]]), "u": (1, 2, 4)},
        lambda x, i, u: x.index_add(0, i.flatten(), u.reshape(2, 4)),
    ),
    *(
        Case(
            f"TopK axis {axis} largest {largest}",
            f"k = Constant <value_ints = [2]> () y, i = TopK <axis = {axis}, largest = {largest}> (x, k)",
            {"x": (3, 4, 3)},
            lambda x, axis=axis, largest=largest: x.topk(2, axis, bool(largest)).values,
        )
        for axis in (0, -1)
        for largest in (0, 1)
    ),
]


_SCATTER: dict[str, Callable[[Tensor, int, Tensor, Tensor], Tensor]] = {
    "none": torch.scatter,
    "add": torch.scatter_add,
    "max": lambda x, axis, i, u: x.scatter_reduce(axis, i, u, "amax"),
    "min": lambda x, axis, i, u: x.scatter_reduce(axis, i, u, "amin"),
}


def _scatter_rows(x: Tensor, i: Tensor, u: Tensor, reduction: str) -> Tensor:
    """Tuples of the two leading axes, as one index of rows."""
    rows = (i[:, 0] * x.shape[1] + i[:, 1] % x.shape[1])[:, None].expand_as(u)
    return _SCATTER[reduction](x.flatten(0, 1), 0, rows, u).reshape(x.shape)


def _gathered(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    axis = axis % x.ndim
    flat = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
    return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _labels(ignored: int | None, shape: tuple[int, ...]) -> Array:
    labels = _whole(0, 3, shape[0], *shape[2:])
    if ignored is not None and ignored < 0:
        labels.flat[::3] = ignored
    return labels


def _weighted_loss(
    log_probabilities: Tensor, t: Tensor, w: Tensor | None, ignored: int | None, reduction: str
) -> Tensor:
    """What torch's nll_loss computes, with a gradient for the weights too."""
    kept = t != (-1 if ignored is None else ignored)
    labels = torch.where(kept, t, 0)
    weights = (torch.ones(3, dtype=log_probabilities.dtype) if w is None else w)[labels] * kept
    losses = -weights * log_probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    return {"mean": losses.sum() / weights.sum(), "sum": losses.sum(), "none": losses}[reduction]


_SCE = "SoftmaxCrossEntropyLoss"

LOSSES = [
    *(
        Case(
            f"{_SCE} {reduction} rank {len(shape)}",
            f'y = {_SCE} <reduction = "{reduction}"> (x, t)',
            {"x": shape, "t": _whole(0, 3, shape[0], *shape[2:])},
            lambda x, t, reduction=reduction: functional.cross_entropy(x, t, reduction=reduction),
        )
        for reduction in ("mean", "sum", "none")
        for shape in ((4, 3), (2, 3, 5), (2, 3, 2, 4))
    ),
    *(
        Case(
            f"{op} {reduction} rank {len(shape)} weight {weighted} ignore_index {ignored}",
            f'y = {op} <reduction = "{reduction}"{"" if ignored is None else f", ignore_index = {ignored}"}> '
            f"(x, t{', w' if weighted else ''})",
            {"x": shape, "t": _labels(ignored, shape)} | ({"w": _uniform(0.5, 2.0, 3)} if weighted else {}),
            lambda x, t, w=None, op=op, reduction=reduction, ignored=ignored: _weighted_loss(
                x.log_softmax(1) if op == _SCE else x, t, w, ignored, reduction
            ),
        )
        for op in (_SCE, "NegativeLogLikelihoodLoss")
        for reduction in ("mean", "sum", "none")
        for shape in ((4, 3), (2, 3, 5))
        for weighted, ignored in ((False, 1), (True, None), (True, 0), (True, -100))
    ),
    Case(
        f"{_SCE} of huge logits",
        f"y = {_SCE} (x, t)",
        {"x": 1e4 * KINK, "t": np.array([0, 3])},
        functional.cross_entropy,
    ),
    Case(
        f"{_SCE} int32 labels",
        f"y = {_SCE} (x, t)",
        {"x": (4, 3), "t": _whole(0, 3, 4).astype(np.int32)},
        lambda x, t: functional.cross_entropy(x, t.long()),
    ),
]

COMPOSITIONS = [
    Case(
        "Add of a value with three consumers",
        "a = Tanh (x) b = Sigmoid (a) c = Mul (a, b) y = Add (c, a)",
        {"x": (3, 4)},
        lambda x: x.tanh() * x.tanh().sigmoid() + x.tanh(),
    ),
    Case("Add the same value thrice", "a = Add (x, x) y = Add (a, x)", {"x": (3, 4)}, lambda x: 3 * x),
    Case(
        "Mul of a value by its own reduction",
        "m = ReduceMax (x) d = Sub (x, m) y = Exp (d)",
        {"x": (3, 4)},
        lambda x: (x - x.amax()).exp(),
    ),
    Case(
        "Relu after ArgMax",
        "i = ArgMax <axis = 1> (x) f = CastLike (i, x) y = Mul (f, x)",
        {"x": (3, 4)},
        lambda x: x.argmax(1, keepdim=True) * x,
    ),
    Case(
        "Mul by a shape",
        "s = Shape (x) f = CastLike (s, x) y = Mul (x, f)",
        {"x": (3, 2)},
        lambda x: x * torch.tensor([3.0, 2.0], dtype=x.dtype),
    ),
]

LOWERED = [
    unary("HardSwish", lambda x: x * ((x / 6 + 0.5).clamp(0, 1)), (3, 4)),
    unary("Mish", functional.mish),
    unary("ThresholdedRelu", lambda x: torch.where(x > 0.25, x, 0.0), KINK, "<alpha = 0.25>"),
    unary(
        "Shrink",
        lambda x: torch.where(x < -0.25, x + 0.5, torch.where(x > 0.25, x - 0.5, 0.0)),
        (3, 4),
        "<lambd = 0.25, bias = 0.5>",
    ),
    Case(
        "GroupNormalization",
        "y = GroupNormalization <num_groups = 2> (x, s, b)",
        {"x": (2, 4, 3, 3), "s": (4,), "b": (4,)},
        lambda x, s, b: functional.group_norm(x, 2, s, b, _EPSILON),
        opset=21,
        static=("s", "b"),
        dtypes=("float",),
    ),
    Case(
        "MeanVarianceNormalization",
        "y = MeanVarianceNormalization (x)",
        {"x": (2, 3, 4, 4)},
        lambda x: (
            (x - x.mean((0, 2, 3), True)) / (x.var((0, 2, 3), correction=0, keepdim=True).sqrt() + 1e-9)
        ),
        dtypes=("float",),
    ),
    Case(
        "CastLike",
        "c = CastLike (x, z) y = Mul (c, x)",
        {"x": (3, 4), "z": (1,)},
        lambda x, z: x * x,
        fixed=("z",),
    ),
    Case(
        "a model-local function",
        "h = local.Twice <times = 2.0> (x) y = local.Twice <times = 3.0> (h)",
        {"x": (3, 4)},
        lambda x: torch.tanh(torch.tanh(x * 2) * 3),
        functions="""
        <opset_import: ["" : 20], domain: "local">
        Twice <times> (x) => (y) {
            c = Constant <value_float: float = @times> ()
            t = CastLike (c, x)
            p = Mul (x, t)
            y = Tanh (p)
        }
        """,
    ),
]

_TORCH_ORDER = {"LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2], "RNN": [0]}
"""Where PyTorch's gates (LSTM i f c o, GRU r z n) stand among those of ONNX (LSTM i o f c, GRU z r n)."""


def recurrent(op: str, directions: int = 1, steps: int = 3, attributes: str = "") -> Case:
    """A row for a recurrent node of 2 hidden units on 3 inputs, with biases and a given state."""
    order = _TORCH_ORDER[op]
    rows = 2 * len(order)
    inputs: dict[str, Data] = {
        "x": (steps, 2, 3),
        "w": (directions, rows, 3),
        "r": (directions, rows, 2),
        "b": (directions, 2 * rows),
        "h": (directions, 2, 2),
    } | ({"c": (directions, 2, 2)} if op == "LSTM" else {})

    def reference(x: Tensor, w: Tensor, r: Tensor, b: Tensor, *state: Tensor) -> Sequence[Tensor]:
        def reordered(gates: Tensor) -> Tensor:
            return torch.cat([gates.chunk(len(order))[index] for index in order])

        weights = [
            reordered(part)
            for d in range(directions)
            for part in (w[d], r[d], b[d].chunk(2)[0], b[d].chunk(2)[1])
        ]
        run = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}[op]
        given = state if op == "LSTM" else state[0]
        y, *last = run(x, given, weights, True, 1, 0.0, False, directions == 2, False)
        return [y.reshape(steps, 2, directions, 2).transpose(1, 2), *last]

    outputs = ("y", "yh", "yc")[: 2 + (op == "LSTM")]
    attributes = "hidden_size = 2" + (', direction = "bidirectional"' if directions == 2 else "") + attributes
    arguments = "x, w, r, b, , h" + (", c" if op == "LSTM" else "")
    return Case(
        f"{op} of {steps} steps in {directions} directions",
        f"{', '.join(outputs)} = {op} <{attributes}> ({arguments})",
        inputs,
        reference,
        outputs=outputs,
    )


RECURRENT = [
    *(
        recurrent(op, directions, steps, ", linear_before_reset = 1" if op == "GRU" else "")
        for op in _TORCH_ORDER
        for directions in (1, 2)
        for steps in (1, 3)
    ),
    Case(
        "GRU reset before the product",
        'y, yh = GRU <hidden_size = 1, direction = "reverse"> (x, w, r)',
        {"x": (2, 3, 2), "w": (1, 3, 2), "r": (1, 3, 1)},
        lambda x, w, r: _reset_first(x.flip(0), w[0], r[0]),
        outputs=("yh",),
    ),
]


def _reset_first(x: Tensor, w: Tensor, r: Tensor) -> Tensor:
    """A GRU of one unit that starts at 0 and multiplies the state with the reset gate first."""
    h = torch.zeros_like(x[0, :, :1])
    for step in x:
        z, reset = torch.sigmoid(step @ w[:2].T + h @ r[:2].T).split(1, 1)
        new = torch.tanh(step @ w[2:].T + (reset * h) @ r[2:].T)
        h = (1 - z) * new + z * h
    return h[None]


# onnxruntime (seen in 1.19) trips over its own optimizations where a length is known to be 0.
_OPEN = ("symbolic", "anonymous")

EMPTY = [
    *(
        reduction(op, x, None, keep)
        for op in ("ReduceL1", "ReduceL2")
        for x, keep in ((np.zeros((0, 3)), 0), (np.zeros((2, 0)), 1))
    ),
    *(
        replace(case, dims=_OPEN, dtypes=("float",))
        for case in (
            conv((0, 2, 6, 6), (3, 2, 5, 5)),
            conv_transpose((0, 3, 4, 4, 4), (3, 2, 3, 3, 3), strides=[2, 1, 1]),
            Case(
                "Tile of nothing",
                "r = Constant <value_ints = [2, 3]> () y = Tile (x, r)",
                {"x": (0, 3)},
                lambda x: x.repeat(2, 3),
            ),
        )
    ),
]


CASES = [
    *ARITHMETIC,
    *ACTIVATIONS,
    *LINEAR,
    *CONVOLUTIONS,
    *POOLS,
    *NORMALIZATION,
    *REDUCTIONS,
    *SHAPES,
    *INDEXING,
    *LOSSES,
    *COMPOSITIONS,
    *LOWERED,
    *RECURRENT,
    *RESIZES,
    *EINSUMS,
    *EMPTY,
    *CONTROL_FLOW,
]
