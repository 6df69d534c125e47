"""Where with a condition that depends on the example."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradfuse.analysis import probe
from gradfuse.analysis.moments import Assumptions, propagate

from .conftest import TextGraph


@pytest.mark.parametrize("otherwise", ["b", "u"])
def test_gradients_of_both_choices(text_graph: TextGraph, otherwise: str) -> None:
    """One of two branches, or a branch and a learned row that stands in for it, as for a masked token."""
    body = f"""
        s = MatMul(x, w) c = Greater(s, t) p = MatMul(x, v) a = Tanh(p) b = MatMul(x, z)
        h = Where(c, a, {otherwise}) y = MatMul(h, o)
    """
    shapes = {"v": (16, 20), "u": (20,), "o": (20, 10), **({"z": (16, 20)} if otherwise == "b" else {})}
    given = {
        "w": np.random.default_rng(5).standard_normal((16, 20)).astype(np.float32),
        "t": np.float32([0.8]),
    }
    if otherwise == "b":
        shapes.pop("u")
    else:
        body = body.replace("b = MatMul(x, z)", "")
    graph = text_graph(body, loss="cross-entropy", given=given, **shapes)
    state, measured = propagate(graph, Assumptions()), probe(graph, Assumptions()).gradients
    predicted = {value.name: math.sqrt(found.mean_square(32)) for value, found in state.shared.items()}
    for name in shapes:
        assert 0.75 < predicted[name] / measured[name] < 1.35, name
    assert [note.is_unknown for note in state.notes] == [False]


def test_a_row_for_each_step_where_the_batch_comes_second(text_graph: TextGraph) -> None:
    """What is chosen has the batch on its second axis, and so has the learned tensor, with length 1."""
    found = []
    for move, shape in (("Identity (a)", (1, 5, 12)), ("Transpose<perm = [1, 0, 2]>(a)", (5, 1, 12))):
        order = move.replace("(a)", "(h)")
        body = f"""
            a = MatMul(x, v) b = {move} s = MatMul(b, w) c = Greater(s, t)
            h = Where(c, b, u) k = {order} y = MatMul(k, o)
        """
        given = {
            "t": np.float32([0.2]),
            "u": np.random.default_rng(1).standard_normal((5, 12)).astype(np.float32),
        }
        given["u"] = given["u"].reshape(shape)
        options = {"v": (7, 12), "w": (12, 12), "o": (12, 3), "trained": ("u",)}
        graph = text_graph(body, x="float[batch,5,7]", y="float[batch,5,3]", given=given, **options)
        state = propagate(graph, Assumptions())
        found.append({v.name: math.sqrt(g.mean_square(32)) for v, g in state.shared.items()})
    assert found[1] == pytest.approx(found[0])
