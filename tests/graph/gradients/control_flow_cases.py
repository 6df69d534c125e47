"""Rows for If, Scan and Loop, each written as a Python loop in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .oracle import Case

Tensor = torch.Tensor

POSITIVE = """
    total = ReduceSum <keepdims = 0> (x) zero = Constant <value_float = 0.0> () like = CastLike (zero, total)
    c = Greater (total, like)"""


def _if(name: str, then: str, otherwise: str, sign: float, reference: Callable[..., Tensor]) -> Case:
    """y = then where the sum of x is positive, else otherwise; x [2, 3], w and v [3, 4]."""
    x = np.abs(np.random.default_rng(3).standard_normal((2, 3))) * sign
    body = f"{POSITIVE} y = If (c) <then_branch = a () => (p) {{ {then} }}, else_branch = b () => (q) {{ {otherwise} }}>"
    return Case(f"If {name}", body, {"x": x, "w": (3, 4), "v": (3, 4)}, reference)


TANH, PRODUCT = "m = MatMul (x, w) p = Tanh (m)", "q = MatMul (x, v)"
IFS = [
    _if("true", TANH, PRODUCT, 1.0, lambda x, w, v: torch.tanh(x @ w)),
    _if("false", TANH, PRODUCT, -1.0, lambda x, w, v: x @ v),
    _if("hands a value through", "p = Identity (w)", "q = MatMul (x, v)", 1.0, lambda x, w, v: w * 1),
    _if(
        "in an If",
        "p = If (c) <then_branch = d () => (r) { m = MatMul (x, w) r = Mul (m, v2) }, "
        "else_branch = e () => (s) { s = Identity (v) }>".replace("v2", "m"),
        PRODUCT,
        1.0,
        lambda x, w, v: (x @ w) ** 2,
    ),
    Case(
        "If of two outputs, of which one counts",
        f"{POSITIVE} y, z = If (c) <then_branch = a () => (p, r) {{ p = Exp (x) r = Hardmax (x) }}, "
        "else_branch = b () => (q, s) { q = Sin (x) s = Cos (x) }>",
        {"x": (2, 3)},
        lambda x: torch.exp(x) if x.sum() > 0 else torch.sin(x),
    ),
]


def _scan(x: Tensor, w: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    results = []
    for element in x:
        s = torch.tanh(s @ w + element)
        results.append(s * element)
    return s, torch.stack(results)


CELL = "p = MatMul (s, w) q = Add (p, e) s2 = Tanh (q) o = Mul (s2, e)"


def _scan_case(
    name: str,
    attributes: str,
    shape: tuple[int, ...],
    arranged: Callable[[Tensor], Tensor],
    back: Callable[[Tensor], Tensor],
) -> Case:
    """A recurrent net: the input is `arranged` before the loop, and the outputs are brought `back` after it."""

    def reference(x: Tensor, w: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        state, results = _scan(arranged(x), w, s)
        return state, back(results)

    body = f"h, y = Scan <num_scan_inputs = 1{attributes}, body = b (s, e) => (s2, o) {{ {CELL} }}> (s0, x)"
    return Case(f"Scan {name}", body, {"x": shape, "w": (3, 3), "s0": (2, 3)}, reference, outputs=("h", "y"))


def _sines(x: Tensor, w: Tensor) -> Tensor:
    s = torch.zeros_like(w)
    for element in x:
        s = torch.tanh(s * s + element * w)
    return s


def _nested(x: Tensor, w: Tensor, s: Tensor) -> Tensor:
    for row in x:
        u = s
        for element in row:
            u = torch.tanh(u * w + element)
        s = u * s
    return s


def _branching(x: Tensor, w: Tensor, s: Tensor) -> Tensor:
    for element in x:
        s = torch.tanh(s * w + element if element > 0 else s * element)
    return s


def _until(w: Tensor, s: Tensor) -> Tensor:
    while True:
        s = s * w + s
        if s.sum() >= 20:
            return s


def _loops(w: Tensor, s: Tensor) -> Tensor:
    for index in range(2):
        u = s
        for _ in range(index + 2):
            u = torch.tanh(u * w + s)
        s = u
    return s


SCANS = [
    _scan_case("forwards", "", (4, 2, 3), lambda x: x, lambda y: y),
    _scan_case("of one step", "", (1, 2, 3), lambda x: x, lambda y: y),
    _scan_case("backwards", ", scan_input_directions = [1]", (4, 2, 3), lambda x: x.flip(0), lambda y: y),
    _scan_case("prepending", ", scan_output_directions = [1]", (4, 2, 3), lambda x: x, lambda y: y.flip(0)),
    _scan_case(
        "along other axes",
        ", scan_input_axes = [1], scan_output_axes = [-1], scan_input_directions = [1]",
        (2, 4, 3),
        lambda x: x.flip(1).transpose(0, 1),
        lambda y: y.permute(1, 2, 0),
    ),
    Case(
        "Scan that counts in whole numbers beside it",
        """
        k = Constant <value_int = 0> ()
        l, h = Scan <num_scan_inputs = 1, body = b (i, s, e) => (j, s2) {
            one = Constant <value_int = 1> () j = Add (i, one) f = CastLike (j, s) p = Mul (f, e) q = Mul (p, w) s2 = Add (s, q)
        }> (k, s0, x)""",
        {"x": (3, 2), "w": (2,), "s0": (2,)},
        lambda x, w, s0: s0 + x[0] * w + 2 * x[1] * w + 3 * x[2] * w,
        outputs=("h",),
    ),
    Case(
        "Scan whose state does not vary at first",
        """
        z = Constant <value_float = 0.0> () s0 = CastLike (z, w)
        h = Scan <num_scan_inputs = 1, body = b (s, e) => (s2) {
            p = Mul (s, s) q = Mul (e, w) r = Add (p, q) s2 = Tanh (r) }> (s0, x)
        """,
        {"x": (4,), "w": ()},
        _sines,
        outputs=("h",),
        fixed=("x",),
    ),
    Case(
        "Scan in a Scan",
        """
        h = Scan <num_scan_inputs = 1, body = b (s, row) => (s2) {
            t = Scan <num_scan_inputs = 1, body = d (u, e) => (u2) { m = Mul (u, w) n = Add (m, e) u2 = Tanh (n) }> (s, row)
            s2 = Mul (t, s)
        }> (s0, x)""",
        {"x": (3, 4), "w": (), "s0": ()},
        _nested,
        outputs=("h",),
    ),
    Case(
        "Scan with an If in it",
        """
        h = Scan <num_scan_inputs = 1, body = b (s, e) => (s2) {
            zero = Constant <value_float = 0.0> () like = CastLike (zero, e) c = Greater (e, like)
            t = If (c) <then_branch = y () => (p) { m = Mul (s, w) p = Add (m, e) },
                        else_branch = n () => (q) { q = Mul (s, e) }>
            s2 = Tanh (t)
        }> (s0, x)""",
        {"x": np.array([0.5, -1.0, 2.0, -0.3]), "w": (), "s0": ()},
        _branching,
        outputs=("h",),
    ),
]


def _looped(steps: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def reference(w: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        results = []
        for index in range(steps):
            after = torch.tanh(s @ w) * (index + 1)
            results.append(s * after)
            s = after
        return s, torch.stack(results)

    return reference


LOOP = """
    h, y = Loop <body = b (i, c, s) => (d, s2, o) {
        d = Identity (c) one = Constant <value_int = 1> () j = Add (i, one) f = CastLike (j, s)
        p = MatMul (s, w) q = Tanh (p) s2 = Mul (q, f) o = Mul (s2, s)
    }> """

LOOPS = [
    Case(
        "Loop of 3 iterations",
        f"n = Constant <value_int = 3> () {LOOP} (n, , s0)",
        {"w": (3, 3), "s0": (2, 3)},
        _looped(3),
        outputs=("h", "y"),
    ),
    Case(
        "Loop as often as the data say",
        f"z = Constant <value_int = 0> () m = Mul (n, n) {LOOP} (m, , s0)",
        {"w": (3, 3), "s0": (2, 3), "n": np.array(2)},
        lambda w, s0, n: _looped(4)(w, s0),
        outputs=("h", "y"),
    ),
    Case(
        "Loop that never runs",
        f"{LOOP} (n, , s0)",
        {"w": (3, 3), "s0": (2, 3), "n": np.array(0)},
        lambda w, s0, n: s0 * 1 + 0 * w.sum(),
        outputs=("h",),
    ),
    Case(
        "Loop until the state is large",
        """
        t = Constant <value = bool {1}> ()
        h = Loop <body = b (i, c, s) => (d, s2) {
            m = Mul (s, w) s2 = Add (m, s) a = ReduceSum <keepdims = 0> (s2)
            limit = Constant <value_float = 20.0> () l = CastLike (limit, a) d = Less (a, l)
        }> (, t, s0)""",
        {"w": np.array([0.5, 0.75]), "s0": np.array([1.0, 0.5])},
        _until,
        outputs=("h",),
    ),
    Case(
        "Loop that only gives out",
        """
        n = Constant <value_int = 3> () t = Constant <value = bool {1}> ()
        y = Loop <body = b (i, c) => (d, o) { d = Identity (c) e = Gather (x, i) o = Mul (e, w) }> (n, t)""",
        {"x": (4, 2), "w": (2,)},
        lambda x, w: x[:3] * w,
    ),
    Case(
        "Loop in a Loop, and what is outside both",
        """
        n = Constant <value_int = 2> ()
        h = Loop <body = b (i, c, s) => (d, s2) {
            d = Identity (c)
            k = Add (i, n)
            s2 = Loop <body = e (j, f, u) => (g, u2) { g = Identity (f) p = Mul (u, w) q = Add (p, s) u2 = Tanh (q) }> (k, , s)
        }> (n, , s0)""",
        {"w": (), "s0": (3,)},
        _loops,
        outputs=("h",),
    ),
]


CONTROL_FLOW = [*IFS, *SCANS, *LOOPS]
