"""Orders of nodes."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from gradfuse.graph.rewriting import use_early


def ordered(body: str, first: int) -> list[str]:
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[3] x, bool on) => (float[3] y) {{ {body} }}'
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    use_early(model.graph, first)
    onnx.checker.check_model(ir.serde.serialize_model(model))
    return [node.outputs[0].name or "" for node in model.graph]


def test_what_is_computed_is_used_up_before_the_next_is_computed() -> None:
    body = "a = Neg (x) b = Neg (x) c = Neg (x) p = Abs (a) q = Abs (b) y = Sum (p, q, c)"
    assert ordered(body, 3) == [*"apbqcy"]


def test_a_body_waits_for_what_it_captures() -> None:
    branch = "g () => (float[3] {0}) {{ {0} = Neg (a) }}"
    body = f"a = Neg (x) y = If (on) <then_branch = {branch.format('t')}, else_branch = {branch.format('e')}>"
    assert ordered(body, 1) == ["a", "y"]
