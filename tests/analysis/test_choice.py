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
