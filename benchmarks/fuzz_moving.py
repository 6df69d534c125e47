"""Random nodes that move elements, pick them, or run bodies: the second half of the families."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import broadcastable_shapes

from .fuzz_families import Draw, Example, data, ints, node, opsets, shapes, sides, signed


@st.composite
def moves(draw: Draw) -> Example:
    """Transpose, Reshape, Expand, Tile, Concat, Split, Trilu, Squeeze and Unsqueeze."""
    shape, opset = draw(shapes()), draw(opsets)
    rank, x = len(shape), {"x": data(shape)}
    op = draw(
        st.sampled_from(
            ("Transpose", "Flatten", "Reshape", "Expand", "Tile", "Concat", "Split", "Trilu", "Unsqueeze")
        )
    )
    axis = draw(st.integers(0, rank - 1))
    if op == "Transpose":
        return Example(node(op, "x", perm=list(draw(st.permutations(range(rank))))), x, opset=opset)
    if op == "Flatten":
        return Example(node(op, "x", axis=draw(st.integers(-rank, rank))), x, opset=opset)
    if op == "Reshape":
        target = list(draw(st.permutations(shape)))
        return Example(ints("s", target) + node(op, "x, s", allowzero=1), x, opset=opset)
    if op == "Expand":
        target = list(draw(broadcastable_shapes(tuple(shape), min_dims=0, max_dims=5, max_side=3)))
        return Example(ints("s", target) + node(op, "x, s"), x, opset=opset)
    if op == "Tile":
        return Example(
            ints("r", draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))) + node(op, "x, r"),
            x,
            opset=opset,
        )
    if op == "Concat":
        other = [draw(sides) if index == axis else length for index, length in enumerate(shape)]
        return Example(
            node(op, "x, z, x", axis=signed(draw, axis, rank)), x | {"z": data(other, 1)}, opset=opset
        )
    if op == "Split":
        parts = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
        shape = [sum(parts) if index == axis else length for index, length in enumerate(shape)]
        names = [f"y{index}" for index in range(len(parts))]
        text = ints("s", parts) + node(op, "x, s", ", ".join(names), axis=signed(draw, axis, rank))
        return Example(text, {"x": data(shape)}, draw(st.permutations(names))[:2], opset=opset)
    if op == "Trilu":
        k = draw(st.integers(-3, 3))
        text = f"k = Constant <value_int = {k}> ()\n" + node(op, "x, k", upper=draw(st.integers(0, 1)))
        return Example(text, {"x": data([*shape, draw(sides)])}, opset=opset)
    axes = [signed(draw, axis, rank + 1)]
    return Example(ints("a", axes) + node(op, "x, a"), x, opset=opset)


@st.composite
def pads(draw: Draw) -> Example:
    """Pad in every mode."""
    shape = [draw(st.sampled_from((0, 2, 3, 4))), *draw(st.lists(st.integers(2, 4), max_size=3))]
    rank, mode, opset = (
        len(shape),
        draw(st.sampled_from(("constant", "reflect", "edge", "wrap"))),
        draw(opsets),
    )
    opset = max(opset, 19) if mode == "wrap" else opset
    axes = draw(st.none() | st.lists(st.integers(0, rank - 1), min_size=1, unique=True))
    lowest = -1 if mode == "constant" else 0
    amounts = [draw(st.integers(lowest, 1)) for _ in range(2 * len(axes or shape))]
    text, arguments = ints("p", amounts), "x, p"
    if axes is not None:
        text, arguments = text + ints("a", [signed(draw, axis, rank) for axis in axes]), "x, p, , a"
    return Example(text + node("Pad", arguments, mode=mode), {"x": data(shape)}, opset=opset)


@st.composite
def slices(draw: Draw) -> Example:
    """Slice with bounds beyond the ends and steps of either sign."""
    shape = draw(shapes())
    axes = draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    starts, ends = ([draw(st.integers(-6, 6)) for _ in axes] for _ in range(2))
    ends = [draw(st.sampled_from((end, 2**62, -(2**62)))) for end in ends]
    steps = [draw(st.sampled_from((-3, -2, -1, 1, 2, 3))) for _ in axes]
    named = [signed(draw, axis, len(shape)) for axis in axes]
    text = ints("s", starts) + ints("e", ends) + ints("a", named) + ints("t", steps)
    return Example(text + node("Slice", "x, s, e, a, t"), {"x": data(shape)}, opset=draw(opsets))


def _indices(draw: Draw, bound: int, shape: Any) -> Any:
    """Whole numbers from -bound to bound - 1."""
    count = int(np.prod(shape))
    drawn = draw(st.lists(st.integers(-bound, bound - 1), min_size=count, max_size=count))
    return np.array(drawn, np.int64).reshape(tuple(shape))


@st.composite
def gathers(draw: Draw) -> Example:
    """Gather, GatherElements and GatherND with repeated and negative indices."""
    op, shape = draw(st.sampled_from(("Gather", "GatherElements", "GatherND"))), draw(shapes())
    rank = len(shape)
    axis = draw(st.integers(0, rank - 1))
    shape[axis] = shape[axis] or 1
    x = data(shape)
    if op == "Gather":
        indices = _indices(draw, shape[axis], draw(shapes(0, 2)))
        return Example(
            node(op, "x, i", axis=signed(draw, axis, rank)), {"x": x, "i": indices}, opset=draw(opsets)
        )
    if op == "GatherElements":
        other = [draw(st.integers(0, 4 if index == axis else length)) for index, length in enumerate(shape)]
        indices = _indices(draw, shape[axis], other)
        return Example(
            node(op, "x, i", axis=signed(draw, axis, rank)), {"x": x, "i": indices}, opset=draw(opsets)
        )
    batch = axis
    depth = 1 if 0 in shape else draw(st.integers(1, rank - batch))
    leading = [*shape[:batch], *draw(st.lists(sides, max_size=1))]
    parts = [_indices(draw, length, [*leading, 1]) for length in shape[batch : batch + depth]]
    indices = np.concatenate(parts, -1)
    return Example(node(op, "x, i", batch_dims=batch), {"x": x, "i": indices}, opset=draw(opsets))


@st.composite
def scatters(draw: Draw) -> Example:
    """ScatterElements and ScatterND with every reduction."""
    op, shape = draw(st.sampled_from(("ScatterElements", "ScatterND"))), draw(shapes(1, 3))
    rank, x, reduction = len(shape), data(shape), draw(st.sampled_from(("none", "add", "max", "min", "mul")))
    if op == "ScatterND":
        depth = draw(st.integers(1, rank))
        places = np.array(list(np.ndindex(*shape[:depth])), np.int64).reshape(-1, depth)
        count = draw(st.integers(0, len(places)))
        indices = places[draw(st.permutations(range(len(places))))[:count]]
        if reduction != "none":
            indices = np.concatenate([indices, indices[:1]])
        updates = data([len(indices), *shape[depth:]], 1)
        return Example(
            node(op, "x, i, u", reduction=reduction), {"x": x, "i": indices, "u": updates}, opset=draw(opsets)
        )
    axis = draw(st.integers(0, rank - 1))
    other = [draw(st.integers(min(length, 1), length)) for length in shape]
    if 0 in shape:
        return Example(
            node(op, "x, i, u", axis=axis), {"x": x, "i": np.zeros(other, np.int64), "u": data(other, 1)}
        )
    if reduction == "none":
        # Where two updates meet, the standard leaves open which one stays.
        order = np.array(draw(st.permutations(range(shape[axis])))[: other[axis]], np.int64)
        shaped = order.reshape([len(order) if index == axis else 1 for index in range(rank)])
        indices = np.broadcast_to(shaped, other).copy()
    else:
        indices = _indices(draw, shape[axis], other)
    arrays = {"x": x, "i": indices, "u": data(other, 1)}
    return Example(
        node(op, "x, i, u", axis=signed(draw, axis, rank), reduction=reduction), arrays, opset=draw(opsets)
    )


@st.composite
def top_k(draw: Draw) -> Example:
    """TopK."""
    shape: list[int] = draw(shapes())
    axis = draw(st.integers(0, len(shape) - 1))
    k = draw(st.integers(0, shape[axis]))
    flags = {"largest": draw(st.integers(0, 1)), "sorted": 1, "axis": signed(draw, axis, len(shape))}
    text = ints("k", [k]) + node("TopK", "x, k", "y, i", **flags)
    return Example(text, {"x": data(shape)}, static=("x",) if 0 in shape else (), opset=draw(opsets))


@st.composite
def resizes(draw: Draw) -> Example:
    """Resize by scales or to sizes in every mode."""
    # For an empty batch onnxruntime (seen in 1.19) leaves the image as large as it was.
    shape = [
        draw(st.integers(1, 2)),
        draw(st.integers(1, 2)),
        *draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)),
    ]
    mode = draw(st.sampled_from(("nearest", "linear", "cubic")))
    modes = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric")
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": draw(st.sampled_from(modes)),
    }
    opset = draw(opsets)
    if attributes["coordinate_transformation_mode"] == "half_pixel_symmetric":
        opset = max(opset, 19)
    if mode == "nearest":
        nearest = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
        attributes["nearest_mode"] = draw(st.sampled_from(nearest))
    if mode == "cubic":
        attributes |= {"exclude_outside": draw(st.integers(0, 1)), "cubic_coeff_a": -0.5}
    x = {"x": data(shape)}
    if draw(st.booleans()):
        scales = [1.0, 1.0, *(draw(st.sampled_from((0.5, 1.0, 1.5, 2.0, 3.0))) for _ in shape[2:])]
        sizes = [int(length * scale) for length, scale in zip(shape, scales, strict=True)]
        if 0 in sizes:
            scales = [1.0] * len(shape)
        given = f"s = Constant <value_floats = {scales}> ()\n"
        return Example(given + node("Resize", "x, , s", **attributes), x, opset=opset)
    sizes = [*shape[:2], *(draw(st.integers(1, 6)) for _ in shape[2:])]
    return Example(ints("s", sizes) + node("Resize", "x, , , s", **attributes), x, opset=opset)


@st.composite
def losses(draw: Draw) -> Example:
    """Loss nodes with weights and labels that do not count."""
    op = draw(st.sampled_from(("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")))
    n, classes, spatial = (
        draw(st.integers(1, 3)),
        draw(st.integers(2, 4)),
        draw(st.lists(st.integers(1, 3), max_size=2)),
    )
    arrays: dict[str, Any] = {"x": data([n, classes, *spatial])}
    labels = abs(_indices(draw, classes, [n, *spatial])) % classes
    ignored = draw(st.none() | st.integers(0, classes - 1))
    arrays["t"] = labels if ignored is None or (labels != ignored).any() else (labels + 1) % classes
    if draw(st.booleans()):
        arrays["w"] = data([classes], 1, 0.3, 2.0)
    reduction = draw(st.sampled_from(("mean", "sum", "none")))
    text = node(op, ", ".join(arrays), reduction=reduction, ignore_index=ignored)
    return Example(text, arrays, opset=draw(opsets))


_CELLS = (
    "p = MatMul (s, w) q = Add (p, e) t = Tanh (q)",
    "p = Mul (s, e) q = MatMul (p, w) t = Sigmoid (q)",
    "t = Add (s, e)",
)
_RESULTS = ("o = Mul (t, e)", "o = Identity (s)", "o = MatMul (e, w)")


@st.composite
def scans(draw: Draw) -> Example:
    """A Scan with another cell, axis and direction each time."""
    steps, axis_in, axis_out = draw(sides), draw(st.integers(0, 2)), draw(st.integers(-3, 2))
    batch = draw(st.integers(1, 3))
    shape = [batch, 3]
    shape.insert(axis_in, steps)
    arrays = {"x": data(shape), "w": data([3, 3], 1), "s0": data([batch, 3], 2)}
    directions = {
        "scan_input_directions": [draw(st.integers(0, 1))],
        "scan_output_directions": [draw(st.integers(0, 1))],
    }
    body = f"b (s, e) => (t, o) {{ {draw(st.sampled_from(_CELLS))} {draw(st.sampled_from(_RESULTS))} }}"
    attributes = {
        "num_scan_inputs": 1,
        "scan_input_axes": [axis_in],
        "scan_output_axes": [axis_out],
        **directions,
    }
    options = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    text = f"h, y = Scan <{options}, body = {body}> (s0, x)"
    return Example(text, arrays, draw(st.sampled_from((("h", "y"), ("h",), ("y",)))), opset=draw(opsets))


@st.composite
def loops(draw: Draw) -> Example:
    """A Loop whose iterations the data count, or whose condition ends it early."""
    batch = draw(st.integers(1, 3))
    arrays = {
        "x": data([4, batch, 3]),
        "w": data([3, 3], 1),
        "s0": data([batch, 3], 2),
        "n": np.array(draw(st.integers(0, 4))),
    }
    cell, result = draw(st.sampled_from(_CELLS)), draw(st.sampled_from(_RESULTS))
    limit = draw(st.sampled_from((1e9, 0.0)))
    stop = f"l = Constant <value_float = {limit}> () m = CastLike (l, t) a = ReduceSum <keepdims = 0> (t) d = Less (a, m)"
    body = f"b (int64 i, bool c, s) => (d, t, o) {{ e = Gather (x, i) {cell} {result} {stop} }}"
    text = f"k = Constant <value = bool {{1}}> ()\nh, y = Loop <body = {body}> (n, k, s0)"
    return Example(text, arrays, draw(st.sampled_from((("h", "y"), ("h",)))), opset=draw(opsets))


@st.composite
def branches(draw: Draw) -> Example:
    """An If."""
    arrays = {
        "x": data([draw(st.integers(1, 3)), 3]),
        "w": data([3, 3], 1),
        "c": np.array(draw(st.booleans())),
    }
    bodies = ("MatMul (x, w)", "Tanh (x)", "Identity (x)", "Mul (x, x)")
    then, other = draw(st.sampled_from(bodies)), draw(st.sampled_from(bodies))
    text = f"y = If (c) <then_branch = a () => (p) {{ p = {then} }}, else_branch = b () => (q) {{ q = {other} }}>"
    return Example(text, arrays, opset=draw(opsets))


@st.composite
def recurrent(draw: Draw) -> Example:
    """LSTM, GRU and RNN."""
    op = draw(st.sampled_from(("RNN", "GRU", "LSTM")))
    direction = draw(st.sampled_from(("forward", "reverse", "bidirectional")))
    d, gates, batch = (
        1 + (direction == "bidirectional"),
        {"RNN": 1, "GRU": 3, "LSTM": 4}[op],
        draw(st.integers(1, 3)),
    )
    steps = draw(st.integers(1, 4))
    arrays = {"x": data([steps, batch, 2]), "w": data([d, gates * 2, 2], 1), "r": data([d, gates * 2, 2], 2)}
    if draw(st.booleans()):
        arrays["b"] = data([d, 4 * gates], 3)
    if draw(st.booleans()):
        arrays["l"] = np.array(
            draw(st.lists(st.integers(1, steps), min_size=batch, max_size=batch)), np.int32
        )
    if draw(st.booleans()):
        arrays["h"] = data([d, batch, 2], 4)
    if op == "LSTM" and draw(st.booleans()):
        arrays["p"] = data([d, 6], 5)
    order = ("x", "w", "r", "b", "l", "h", "c", "p")[: 8 if op == "LSTM" else 6]
    reset = draw(st.integers(0, 1)) if op == "GRU" else None
    arguments = ", ".join(name if name in arrays else "" for name in order).rstrip(", ")
    text = node(op, arguments, "y, z", hidden_size=2, direction=direction, linear_before_reset=reset)
    return Example(text, arrays, draw(st.sampled_from((("y", "z"), ("y",), ("z",)))), opset=draw(opsets))
