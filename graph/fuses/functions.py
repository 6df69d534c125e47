"""The ONNX function of each kind of fuse.

    (gradients..., [weight], [state]) -> (clipped gradients..., whether it bit, [new state])

The norm kinds share their head and their tail: the norm n of the gradients, a limit on it, and the factor
limit / max(n, limit), which is exactly 1 where n is within the limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from .fuse import Fuse

__all__ = ["ADAPTIVE_EPSILON", "DOMAIN", "WARM_UP", "WINDOW", "Form", "form_named", "form_of", "function"]

DOMAIN = "gradfuse"

WINDOW = 100
"""Past norms that `quantile` remembers."""

WARM_UP = 25
"""First steps, in which `zscore` only takes the mean and the variance of the norms."""

_KEPT = 0.97
"""Share of the mean and the variance that `zscore` keeps in each later step."""

ADAPTIVE_EPSILON = 1e-3
"""The norm that `adaptive` takes a smaller weight to have."""

_HUGE, _TINY = float(np.finfo(np.float32).max), 1e-30
"""A limit that bites at an infinite norm only, and one that is safe to divide by."""

_VALUE = """
    limit = Constant <value_float: float = @threshold> ()
    high = CastLike (limit, gradient_0)
    low = Neg (high)
    clipped_0 = Clip (gradient_0, low, high)
    size = Abs (gradient_0)
    largest = ReduceMax <keepdims = 0> (size)
    bit = Greater (largest, high)
"""

_ADAPTIVE = f"""
    axes = Constant <value_ints: ints = @axes> ()
    squares = ReduceSumSquare <keepdims = 1> (gradient_0, axes)
    norm = Sqrt (squares)
    weight_squares = ReduceSumSquare <keepdims = 1> (weight, axes)
    weight_norm = Sqrt (weight_squares)
    epsilon = Constant <value_float = {ADAPTIVE_EPSILON}> ()
    least = CastLike (epsilon, norm)
    size = Max (weight_norm, least)
    threshold = Constant <value_float: float = @threshold> ()
    ratio = CastLike (threshold, norm)
    limit = Mul (size, ratio)
    larger = Max (norm, limit)
    scale = Div (limit, larger)
    clipped_0 = Mul (gradient_0, scale)
    above = Greater (norm, limit)
    counted = Cast <to = 1> (above)
    most = ReduceMax <keepdims = 0> (counted)
    bit = Cast <to = 9> (most)
"""

_FIXED_LIMIT = """
    threshold = Constant <value_float: float = @threshold> ()
    limit = CastLike (threshold, norm)
"""

_QUANTILE_LIMIT = f"""
    length = Constant <value = int64[1] {{{WINDOW}}}> ()
    sorted, order = TopK <axis = 0, largest = 0> (state, length)
    quantile = Constant <value_float: float = @threshold> ()
    last = Constant <value_float = {WINDOW - 1}.0> ()
    position = Mul (quantile, last)
    below = Floor (position)
    index = Cast <to = 7> (below)
    one = Constant <value_int = 1> ()
    following = Add (index, one)
    end = Constant <value_int = {WINDOW - 1}> ()
    next = Min (following, end)
    lower = Gather (sorted, index)
    upper = Gather (sorted, next)
    distance = Sub (position, below)
    share = CastLike (distance, norm)
    gap = Sub (upper, lower)
    part = Mul (gap, share)
    found = Add (lower, part)
    smallest = Constant <value_float = {_TINY}> ()
    tiny = CastLike (smallest, norm)
    limit = Max (found, tiny)
    biggest = Constant <value_float = {_HUGE}> ()
    huge = CastLike (biggest, norm)
    finite = LessOrEqual (norm, huge)
    entered = Where (finite, norm, huge)
    front = Constant <value_ints = [0]> ()
    entry = Unsqueeze (entered, front)
    from = Constant <value_ints = [1]> ()
    kept = Slice (state, from, length, front)
    state_new = Concat <axis = 0> (kept, entry)
"""
"""The window starts full of _HUGE, so that the limit stays there until enough norms have come in."""

_ZSCORE_LIMIT = f"""
    first = Constant <value_int = 0> ()
    second = Constant <value_int = 1> ()
    third = Constant <value_int = 2> ()
    mean = Gather (state, first)
    variance = Gather (state, second)
    steps = Gather (state, third)
    deviation = Sqrt (variance)
    raised = Sub (norm, mean)
    epsilon = Constant <value_float = 1e-6> ()
    least = CastLike (epsilon, norm)
    divisor = Add (deviation, least)
    z = Div (raised, divisor)
    score = Constant <value_float: float = @threshold> ()
    most = CastLike (score, norm)
    warm_up = Constant <value_float = {WARM_UP}.0> ()
    enough = CastLike (warm_up, norm)
    warm = GreaterOrEqual (steps, enough)
    outlying = Greater (z, most)
    spike = And (warm, outlying)
    reach = Mul (most, most)
    allowed = Mul (reach, deviation)
    excess = Div (allowed, z)
    target = Add (mean, excess)
    smallest = Constant <value_float = {_TINY}> ()
    tiny = CastLike (smallest, norm)
    safe = Max (target, tiny)
    biggest = Constant <value_float = {_HUGE}> ()
    huge = CastLike (biggest, norm)
    limit = Where (spike, safe, huge)
    passed = Min (norm, limit)
    unit = Constant <value_float = 1.0> ()
    one = CastLike (unit, norm)
    counted = Add (steps, one)
    steady = Constant <value_float = {_KEPT}> ()
    usual = CastLike (steady, norm)
    growing = Div (steps, counted)
    kept = Where (warm, usual, growing)
    taken = Sub (one, kept)
    before = Sub (passed, mean)
    moved = Mul (taken, before)
    mean_new = Add (mean, moved)
    after = Sub (passed, mean_new)
    other = Where (warm, after, before)
    product = Mul (after, other)
    added = Mul (taken, product)
    remaining = Mul (kept, variance)
    variance_new = Add (remaining, added)
    steps_new = Min (counted, enough)
    front = Constant <value_ints = [0]> ()
    parts_0 = Unsqueeze (mean_new, front)
    parts_1 = Unsqueeze (variance_new, front)
    parts_2 = Unsqueeze (steps_new, front)
    updated = Concat <axis = 0> (parts_0, parts_1, parts_2)
    finite = LessOrEqual (norm, huge)
    state_new = Where (finite, updated, state)
"""
"""Mean and variance are the plain ones of the first WARM_UP norms (Welford 1962), then exponential averages of the norms
as they left the fuse. A norm that is not finite changes neither."""


@dataclass(frozen=True)
class Form:
    """How the function of a fuse looks.

    Attributes:
        name: Its name in the domain `gradfuse`.
        kind: The kind of fuse.
        body: All of it (`value`, `adaptive`), or what turns the norm into a limit.
        is_global: Whether it takes all parameters' gradients together.
        state: The state before the first step; empty where there is none.
    """

    name: str
    kind: str
    body: str
    is_global: bool = False
    state: tuple[float, ...] = ()

    def gradients(self, node: ir.Node) -> int:
        """How many gradients the node takes."""
        return len(node.outputs) - 1 - bool(self.state)


_WINDOW_STATE, _MOMENTS_STATE = (_HUGE,) * WINDOW, (0.0,) * 3

_FORMS = (
    Form("ValueFuse", "value", _VALUE),
    Form("NormFuse", "norm", _FIXED_LIMIT),
    Form("GlobalNormFuse", "global-norm", _FIXED_LIMIT, True),
    Form("AdaptiveFuse", "adaptive", _ADAPTIVE),
    Form("QuantileFuse", "quantile", _QUANTILE_LIMIT, False, _WINDOW_STATE),
    Form("GlobalQuantileFuse", "quantile", _QUANTILE_LIMIT, True, _WINDOW_STATE),
    Form("ZScoreFuse", "zscore", _ZSCORE_LIMIT, False, _MOMENTS_STATE),
    Form("GlobalZScoreFuse", "zscore", _ZSCORE_LIMIT, True, _MOMENTS_STATE),
)


def form_of(fuse: Fuse) -> Form:
    """The form of a fuse."""
    return next(form for form in _FORMS if (form.kind, form.is_global) == (fuse.kind, fuse.is_global))


def form_named(node: ir.Node) -> Form | None:
    """The form of a node; None where it is no fuse."""
    if node.domain != DOMAIN:
        return None
    return next((form for form in _FORMS if form.name == node.op_type), None)


def function(form: Form, count: int, opset: int) -> ir.Function:
    """The function of a form for so many gradients."""
    gradients, clipped = ([f"{stem}_{index}" for index in range(count)] for stem in ("gradient", "clipped"))
    state = ["state"] if form.state else []
    inputs = [*gradients, *(["weight"] if form.kind == "adaptive" else []), *state]
    outputs = [*clipped, "bit", *(f"{name}_new" for name in state)]
    attributes = "threshold, axes" if form.kind == "adaptive" else "threshold"
    body = form.body if form.kind in ("value", "adaptive") else _limit_norm(form.body, count)
    text = (
        f'<opset_import: ["" : {opset}], domain: "{DOMAIN}">\n'
        f"{form.name} <{attributes}> ({', '.join(inputs)}) => ({', '.join(outputs)}) {{{body}}}"
    )
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def _limit_norm(limit: str, count: int) -> str:
    indices = range(count)
    return "\n".join(
        [
            *(f"square_{i} = ReduceSumSquare <keepdims = 0> (gradient_{i})" for i in indices),
            f"squares = Sum ({', '.join(f'square_{i}' for i in indices)})",
            "norm = Sqrt (squares)",
            limit,
            "larger = Max (norm, limit)",
            "scale = Div (limit, larger)",
            *(f"clipped_{i} = Mul (gradient_{i}, scale)" for i in indices),
            "bit = Greater (norm, limit)",
        ]
    )
