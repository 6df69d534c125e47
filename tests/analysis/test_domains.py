"""Numbers that a normal law does not know: masks of -inf, and what is never negative."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.analysis.moments.overflow import overflows

from .conftest import TextGraph

MASK = np.where(np.arange(6) < 4, 0, -np.inf).astype(np.float32)


def _predicted(text_graph: TextGraph, body: str, given: dict[str, np.ndarray] | None = None) -> list[str]:
    """The notes, of a network all of whose gradients are predicted as numbers above 0."""
    shapes = {"w": (16, 6), "o": (6, 10)}
    x, y = "float[batch,5,16]", "float[batch,5,10]"
    state = propagate(text_graph(body, x, y, given=given or {}, **shapes), Assumptions())
    assert overflows(state) == ("", "")
    for value, found in state.shared.items():
        assert value.name not in shapes or 0 < math.sqrt(found.mean_square(32)) < 10, value.name
    return [note.text for note in state.notes]


@pytest.mark.parametrize(
    "masked",
    ["m = Add(h, mask)", "zero = Sub(h, h) c = Greater(h, zero) m = Where(c, h, mask)"],
    ids=["added", "chosen"],
)
def test_a_mask_of_minus_infinity_is_no_overflow(text_graph: TextGraph, masked: str) -> None:
    body = f"h = MatMul(x, w) {masked} s = Softmax<axis = -1>(m) y = MatMul(s, o)"
    _predicted(text_graph, body, {"mask": MASK})


@pytest.mark.parametrize(
    "rooted",
    ["q = Pow(h, two) s = CumSum(q, one) r = Sqrt(s)", "a = Abs(h) s = CumSum(a, one) r = Pow(s, third)"],
    ids=["root of squares", "power of magnitudes"],
)
def test_what_is_never_negative_has_a_root(text_graph: TextGraph, rooted: str) -> None:
    given = {"two": np.float32([2.0]), "one": np.int64([1]), "third": np.float32([1 / 3])}
    body = f"h = MatMul(x, w) {rooted} y = MatMul(r, o)"
    used = {name: value for name, value in given.items() if name in rooted}
    notes = _predicted(text_graph, body, used)
    assert any("a normal law gives it negative numbers" in note for note in notes)
