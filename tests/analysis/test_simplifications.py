"""What a prediction simplifies is said once for each kind, and of no network that it does not hold of."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from gradfuse.analysis import analyse
from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.graph import GradientGraph

TextGraph = Callable[..., GradientGraph]


def said(graph: GradientGraph) -> dict[str, str]:
    """First op of each note, and what it says."""
    findings = [finding for finding in analyse(graph).findings if finding.code == "GF901"]
    return {finding.op_type: finding.message.split(": ", 1)[1] for finding in findings}


@pytest.mark.parametrize(
    ("body", "op", "expected"),
    [
        ("h = MatMul(x, a) r = Tanh(h) s = Add(r, x) y = MatMul(s, b)", "Add", "its summands"),
        ("h = MatMul(x, a) g = Sigmoid(h) s = Mul(g, x) y = MatMul(s, b)", "Mul", "its factors"),
        ("h = MatMul(x, a) s = Concat<axis=1>(h, x) y = MatMul(s, wide)", "Concat", "its parts"),
        ("h = MatMul(x, a) r = Tanh(h) s = MatMul(r, a) y = MatMul(s, b)", "MatMul", "other nodes read its weight"),
    ],
)  # fmt: skip
def test_simplifications(text_graph: TextGraph, body: str, op: str, expected: str) -> None:
    shapes: Mapping[str, tuple[int, int]] = {"a": (16, 16), "b": (16, 10), "wide": (32, 10)}
    shapes = {name: shape for name, shape in shapes.items() if f" {name})" in body}
    graph = text_graph(body, gain=0.5, **shapes)
    messages = said(graph)
    assert list(messages) == [op]
    assert messages[op].startswith(expected)


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul(x, a) r = Tanh(h) y = MatMul(r, b)",
        "h = MatMul(x, a) g = Sigmoid(h) s = Mul(h, g) t = Add(s, h) y = MatMul(t, b)",
    ],
    ids=["plain", "functions of one tensor"],
)
def test_what_is_followed_in_full_is_not_noted(text_graph: TextGraph, body: str) -> None:
    assert said(text_graph(body, gain=0.5, a=(16, 16), b=(16, 10))) == {}


def test_one_note_for_all_nodes_of_a_kind(text_graph: TextGraph) -> None:
    body = "h = MatMul(x, a) s = Add(h, x) g = MatMul(s, c) t = Add(g, s) y = MatMul(t, b)"
    graph = text_graph(body, gain=0.5, a=(16, 16), b=(16, 10), c=(16, 16))
    (note,) = (finding for finding in analyse(graph).findings if finding.code == "GF901")
    assert "and 1 more: its summands" in note.message
    assert note.evidence["nodes"] == ["Add_1", "Add_3"]


@pytest.mark.parametrize(
    ("op", "rows", "both", "budget", "expected"),
    [
        ("RNN", 1, False, 1.0, []),
        ("RNN", 1, True, 1.0, ["two directions"]),
        ("LSTM", 4, False, 1.0, []),
        ("LSTM", 4, False, 0.0, ["different channels"]),
    ],
)
def test_recurrent_layers(
    text_graph: TextGraph, op: str, rows: int, both: bool, budget: float, expected: list[str]
) -> None:
    sides, direction = 2 if both else 1, "bidirectional" if both else "forward"
    states = "s, h" if op == "RNN" else "s, h, c"
    body = f'{states} = {op}<hidden_size=8, direction="{direction}">(x, w, r) g = Gather<axis=0>(h, first) y = MatMul(g, b)'
    graph = text_graph(
        body, "float[5,batch,4]", given={"first": np.array(0)},
        w=(sides, 8 * rows, 4), r=(sides, 8 * rows, 8), b=(8, 10),
    )  # fmt: skip
    findings = analyse(graph, Assumptions(budget=budget)).findings
    texts = [finding.message for finding in findings if finding.code == "GF901"]
    assert len(texts) == len(expected)
    assert all(part in text for part, text in zip(expected, texts, strict=True))


def test_losses_over_positions(text_graph: TextGraph) -> None:
    graph = text_graph(
        "y = Conv(x, w)", "float[batch,3,6,6]", "float[batch,5,4,4]", loss="cross-entropy", w=(5, 3, 3, 3)
    )
    assert "positions" in said(graph)["Conv"]


@pytest.mark.parametrize(("perm", "lost"), [("0, 2, 1", True), ("0, 1, 2", False)])
def test_where_positions_lose_their_correlation(text_graph: TextGraph, perm: str, lost: bool) -> None:
    body = f"c = Conv(x, w) t = Transpose<perm = [{perm}]>(c) f = Flatten(t) y = MatMul(f, u)"
    graph = text_graph(body, x="float[batch,3,8]", w=(4, 3, 3), u=(24, 10))
    notes = [note.text for note in propagate(graph, Assumptions()).notes]
    assert notes == ["the positions that it moves are taken as uncorrelated"] * lost
