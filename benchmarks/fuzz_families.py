"""Random nodes of every family of the table of gradients, as hypothesis strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

Array = np.ndarray[Any, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

OPSETS = (18, 19, 20, 21)


@dataclass(frozen=True)
class Example:
    """A few nodes with data.

    Attributes:
        body: ONNX text from the inputs to `outputs`.
        inputs: The data; floating-point inputs are differentiated.
        outputs: What the loss is a weighted sum of.
        static: Inputs whose shape must be known: kernels, and those that are refused if they are empty.
        opset: ONNX opset.
    """

    body: str
    inputs: Mapping[str, Array]
    outputs: Sequence[str] = ("y",)
    static: Sequence[str] = ()
    opset: int = field(default=20)


def data(shape: Sequence[int], place: int = 0, low: float = -2.0, high: float = 2.0) -> Array:
    """Distinct numbers between two bounds, none near 0, 1 or another's: finite differences must meet no kink."""
    count = int(np.prod(shape))
    ranks = np.random.default_rng(17 * count + place).permutation(count)
    spread = 1.0 - 0.0317 * place
    return (low + spread * (ranks + 0.37) * (high - low) / max(count, 1)).reshape(tuple(shape))


def node(op: str, arguments: str, outputs: str = "y", **attributes: Any) -> str:
    """ONNX text of a node, with the attributes that are not None."""
    texts = [f"{name} = {_text(value)}" for name, value in attributes.items() if value is not None]
    options = f"<{', '.join(texts)}> " if texts else ""
    return f"{outputs} = {op} {options}({arguments})"


def _text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def ints(name: str, values: Sequence[int]) -> str:
    """ONNX text of a constant vector."""
    return f"{name} = Constant <value = int64[{len(values)}] {{{', '.join(map(str, values))}}}> ()\n"


sides = st.integers(1, 4)
batches = st.sampled_from((0, 1, 1, 1, 2, 2, 2, 3))
opsets = st.sampled_from(OPSETS)


@st.composite
def shapes(draw: Draw, low: int = 1, high: int = 4) -> list[int]:
    """Lengths of a few axes; now and then one is empty."""
    shape: list[int] = draw(st.lists(sides, min_size=low, max_size=high))
    if shape and draw(st.integers(0, 15)) == 0:
        shape[draw(st.integers(0, len(shape) - 1))] = 0
    return shape


def signed(draw: Draw, axis: int, rank: int) -> int:
    """An axis, counted from the front or from the back."""
    return axis - int(draw(st.sampled_from((0, rank))))


@st.composite
def broadcasting(draw: Draw) -> Example:
    """Elementwise ops of several inputs."""
    op = draw(
        st.sampled_from(
            ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Mod", "PRelu", "Where", "Clip")
        )
    )
    count = draw(st.integers(1, 3)) if op in ("Max", "Min", "Sum", "Mean") else 2
    drawn = draw(
        mutually_broadcastable_shapes(num_shapes=count, max_dims=4, min_side=0, max_side=3)
    ).input_shapes
    positive = {"Pow": (0.3, 2.0), "Div": (0.3, 2.0), "Mod": (0.6, 2.0)}.get(op, (-2.0, 2.0))
    arrays = {
        f"x{i}": data(shape, i, *(positive if i or op == "Pow" else (-2.0, 2.0)))
        for i, shape in enumerate(drawn)
    }
    if op == "Clip":
        arrays = {"x0": arrays["x0"], "x1": np.array(-0.71), "x2": np.array(0.93)}
    if op == "Where":
        condition = data(draw(st.sampled_from(drawn)), 5) > 0
        return Example(node(op, "c, x0, x1"), {"c": condition, **arrays}, opset=draw(opsets))
    if op == "PRelu":
        # The slope is broadcast to x, never x to the slope.
        whole = np.broadcast_shapes(*drawn)
        arrays = {"x0": data(whole), "x1": data(drawn[1], 1)}
    return Example(node(op, ", ".join(arrays), fmod=1 if op == "Mod" else None), arrays, opset=draw(opsets))


_DOMAINS = {
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal"), (0.3, 3.0)),
    **dict.fromkeys(("Asin", "Acos", "Atanh"), (-0.9, 0.9)),
    "Acosh": (1.2, 3.0),
    "Tan": (-1.2, 1.2),
}
_UNARY = [
    "Neg",
    "Abs",
    "Sqrt",
    "Exp",
    "Log",
    "Reciprocal",
    "Erf",
    "Sin",
    "Cos",
    "Tan",
    "Asin",
    "Acos",
    "Atan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Acosh",
    "Atanh",
    "Identity",
    "Sign",
    "Floor",
    "Ceil",
    "Round",
    "Relu",
    "LeakyRelu",
    "ThresholdedRelu",
    "Elu",
    "Selu",
    "Celu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Mish",
    "Tanh",
    "Softplus",
    "Softsign",
    "Gelu",
    "Softmax",
    "LogSoftmax",
    "Shrink",
]


@st.composite
def unary(draw: Draw) -> Example:
    """Elementwise ops of one input, and softmax."""
    op, shape = draw(st.sampled_from(_UNARY)), draw(shapes(0))
    attributes: dict[str, Any] = {}
    if op in ("LeakyRelu", "ThresholdedRelu", "Elu", "Celu", "Selu", "HardSigmoid") and draw(st.booleans()):
        attributes["alpha"] = draw(st.sampled_from((0.13, 0.7, 1.3)))
    if op == "Gelu":
        attributes["approximate"] = draw(st.sampled_from(("none", "tanh")))
    if op == "Shrink":
        attributes |= {"lambd": 0.7, "bias": 0.2}
    if op.endswith("Softmax") and shape:
        attributes["axis"] = signed(draw, draw(st.integers(0, len(shape) - 1)), len(shape))
    shape = shape or ([2] if op.endswith("Softmax") else [])
    opset = 20 if op == "Gelu" else draw(opsets)
    return Example(
        node(op, "x", **attributes), {"x": data(shape, 0, *_DOMAINS.get(op, (-2.0, 2.0)))}, opset=opset
    )


_REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"]


@st.composite
def reductions(draw: Draw) -> Example:
    """Sums, means, extrema, products, norms."""
    op = "Reduce" + draw(st.sampled_from(_REDUCTIONS))
    # Of an empty tensor onnxruntime (seen in 1.19) gives these in float64 wrong shapes, or ends; the table has cases.
    expanded = op in ("ReduceL1", "ReduceL2")
    shape = draw(st.lists(sides, max_size=4) if expanded else shapes(0))
    axes = draw(st.none() | st.lists(st.integers(0, len(shape) - 1), unique=True)) if shape else None
    keepdims, noop = draw(st.sampled_from((None, 0, 1))), draw(st.sampled_from((None, 0, 1)))
    given = "" if axes is None else ints("axes", [signed(draw, axis, len(shape)) for axis in axes])
    text = node(op, "x" if axes is None else "x, axes", keepdims=keepdims, noop_with_empty_axes=noop)
    low = 0.2 if op == "ReduceLogSum" else -2.0
    static = ("x",) if 0 in shape else ()
    return Example(given + text, {"x": data(shape, 0, low)}, static=static, opset=draw(opsets))


@st.composite
def cumulative(draw: Draw) -> Example:
    """CumSum."""
    shape = draw(shapes())
    axis = signed(draw, draw(st.integers(0, len(shape) - 1)), len(shape))
    text = node("CumSum", "x, axis", exclusive=draw(st.integers(0, 1)), reverse=draw(st.integers(0, 1)))
    return Example(f"axis = Constant <value_int = {axis}> ()\n{text}", {"x": data(shape)}, opset=draw(opsets))


@st.composite
def products(draw: Draw) -> Example:
    """MatMul and Gemm."""
    if draw(st.booleans()):
        signature = "(m?,k),(k,n?)->(m?,n?)"
        least = draw(st.sampled_from((0, 1, 1, 1)))
        drawn = mutually_broadcastable_shapes(signature=signature, max_dims=2, min_side=least, max_side=3)
        a, b = draw(drawn).input_shapes
        arrays = {"a": data(a), "b": data(b, 1)}
        return Example(
            node("MatMul", "a, b"), arrays, static=("a", "b") if _empty(arrays) else (), opset=draw(opsets)
        )
    m, k, n = draw(shapes(3, 3))
    static = ("a", "b", "c") if 0 in (m, k, n) else ()
    ta, tb = draw(st.integers(0, 1)), draw(st.integers(0, 1))
    c = draw(st.sampled_from((None, (), (1,), (n,), (1, n), (m, 1), (m, n))))
    arrays = {"a": data((k, m) if ta else (m, k)), "b": data((n, k) if tb else (k, n), 1)}
    arrays |= {} if c is None else {"c": data(c, 2)}
    text = node(
        "Gemm",
        ", ".join(arrays),
        transA=ta,
        transB=tb,
        alpha=draw(st.sampled_from((None, 0.7))),
        beta=draw(st.sampled_from((None, 1.3))),
    )
    return Example(text, arrays, static=static, opset=draw(opsets))


@st.composite
def einsums(draw: Draw) -> Example:
    """Equations of one to three terms, repeated letters and ellipses among them."""
    lengths = dict(zip("ijkl", draw(shapes(4, 4)), strict=True))
    terms = draw(st.lists(st.text("ijkl", min_size=1, max_size=3), min_size=1, max_size=3))
    letters = sorted(set("".join(terms)))
    result = "".join(draw(st.permutations(letters))[: draw(st.integers(0, len(letters)))])
    batch, size = draw(st.sampled_from(("", "..."))), draw(batches)
    equation = ",".join(batch + term for term in terms) + "->" + batch + result
    arrays = {
        f"x{i}": data([size] * bool(batch) + [lengths[letter] for letter in term], i)
        for i, term in enumerate(terms)
    }
    text = node("Einsum", ", ".join(arrays), equation=equation)
    return Example(text, arrays, static=tuple(arrays) if _empty(arrays) else (), opset=draw(opsets))


def _empty(arrays: Mapping[str, Array]) -> bool:
    return any(array.size == 0 for array in arrays.values())


@st.composite
def windows(draw: Draw) -> dict[str, list[int]]:
    """Kernel, strides, dilations and pads over one to three axes, and lengths that hold at least one window."""
    rank = draw(st.integers(1, 3))

    def drawn(low: int, high: int, count: int = rank) -> list[int]:
        return [int(draw(st.integers(low, high))) for _ in range(count)]

    kernel, strides, dilations = drawn(1, 3), drawn(1, 3), drawn(1, 2)
    pads = [min(pad, kernel[axis % rank] // 2) for axis, pad in enumerate(drawn(0, 2, 2 * rank))]
    extents = [(taps - 1) * dilation + 1 for taps, dilation in zip(kernel, dilations, strict=True)]
    lengths = [extent + extra for extent, extra in zip(extents, drawn(0, 3), strict=True)]
    return {"kernel": kernel, "strides": strides, "dilations": dilations, "pads": pads, "lengths": lengths}


@st.composite
def convolutions(draw: Draw) -> Example:
    """Conv and ConvTranspose."""
    window, group, inner = draw(windows()), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    steps = {"strides": window["strides"], "dilations": window["dilations"]}
    padding: dict[str, Any] = {"pads": window["pads"]}
    if draw(st.integers(0, 3)) == 0:
        padding = {"auto_pad": draw(st.sampled_from(("SAME_UPPER", "SAME_LOWER", "VALID")))}
    outputs, batch = draw(st.integers(1, 2)), draw(batches)
    op = draw(st.sampled_from(("Conv", "ConvTranspose")))
    kernel = [group * outputs, inner] if op == "Conv" else [group * inner, outputs]
    arrays = {
        "x": data([batch, group * inner, *window["lengths"]]),
        "w": data([*kernel, *window["kernel"]], 1),
    }
    arrays |= {"b": data([group * outputs], 2)} if draw(st.booleans()) else {}
    text = node(op, ", ".join(arrays), group=group, **steps, **padding)
    return Example(text, arrays, static=("w", "b"), opset=draw(opsets))


@st.composite
def columns(draw: Draw) -> Example:
    """Col2Im."""

    def drawn(low: int, high: int) -> list[int]:
        return [int(draw(st.integers(low, high))) for _ in range(2)]

    block, strides, dilations, begins, ends = drawn(1, 3), drawn(1, 2), drawn(1, 2), drawn(0, 1), drawn(0, 1)
    extents = [(taps - 1) * dilation + 1 for taps, dilation in zip(block, dilations, strict=True)]
    image = [extent + extra for extent, extra in zip(extents, drawn(0, 3), strict=True)]
    counts = [(image[i] + begins[i] + ends[i] - extents[i]) // strides[i] + 1 for i in range(2)]
    text = node("Col2Im", "x, image, block", strides=strides, dilations=dilations, pads=[*begins, *ends])
    x = data([draw(batches), draw(st.integers(1, 2)) * block[0] * block[1], counts[0] * counts[1]])
    return Example(ints("image", image) + ints("block", block) + text, {"x": x}, opset=draw(opsets))


@st.composite
def pools(draw: Draw) -> Example:
    """Pooling, local and global."""
    op, window = (
        draw(st.sampled_from(("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool"))),
        draw(windows()),
    )
    x = data([draw(batches), 2, *window["lengths"]])
    if op.startswith("Global"):
        return Example(node(op, "x"), {"x": x}, opset=draw(opsets))
    opset = draw(opsets)
    attributes: dict[str, Any] = {
        "kernel_shape": window["kernel"],
        "strides": window["strides"],
        "pads": window["pads"],
    }
    if op != "AveragePool" or opset >= 19:
        attributes["dilations"] = window["dilations"]
    attributes["ceil_mode"] = draw(st.sampled_from((None, None, 1)))
    if op == "AveragePool":
        # With both, onnxruntime (seen in 1.19) is no judge: it counts what lies beyond the padding. The cases ask PyTorch.
        attributes["count_include_pad"] = 0 if attributes["ceil_mode"] else draw(st.integers(0, 1))
    if op == "LpPool":
        attributes["p"] = draw(st.integers(1, 3))
    return Example(node(op, "x", **attributes), {"x": x}, opset=opset)


@st.composite
def normalizations(draw: Draw) -> Example:
    """Normalisation layers."""
    ops = (
        "LayerNormalization",
        "InstanceNormalization",
        "BatchNormalization",
        "GroupNormalization",
        "LpNormalization",
        "LRN",
        "MeanVarianceNormalization",
    )
    op = draw(st.sampled_from(ops))
    channels = draw(st.integers(1, 3)) * 2
    shape = [draw(batches), channels, *draw(st.lists(st.integers(2, 3), min_size=1, max_size=2))]
    x, opset = {"x": data(shape)}, draw(opsets)
    if op == "LayerNormalization":
        axis = draw(st.integers(0, len(shape) - 1))
        weights = {"g": data(shape[axis:], 1), "b": data(shape[axis:], 2)}
        weights = weights if draw(st.booleans()) else {"g": weights["g"]}
        return Example(
            node(op, ", ".join(x | weights), axis=signed(draw, axis, len(shape))), x | weights, opset=opset
        )
    if op == "LpNormalization":
        axis = signed(draw, draw(st.integers(0, len(shape) - 1)), len(shape))
        text = node(op, "x", axis=axis, p=draw(st.integers(1, 2)))
        return Example(text, x, static=("x",) if _empty(x) else (), opset=opset)
    if op == "LRN":
        return Example(
            node(op, "x", size=draw(st.integers(1, channels)), alpha=0.3, beta=0.6), x, opset=opset
        )
    if op == "MeanVarianceNormalization":
        axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
        return Example(node(op, "x", axes=axes), x, opset=opset)
    scale = 2 if op == "GroupNormalization" and opset < 21 else channels
    weights = {"g": data([scale], 1), "b": data([scale], 2)}
    groups = 2 if op == "GroupNormalization" else None
    if op == "BatchNormalization":
        weights |= {"m": data([channels], 3), "v": data([channels], 4, 0.5, 2.0)}
    return Example(
        node(op, ", ".join(x | weights), num_groups=groups, epsilon=1e-3), x | weights, opset=opset
    )
