"""Products of lengths that do not meet are refused; what meets, or is not known, is not."""

import onnx_ir as ir
import pytest

from gradfuse.converters.contradictions import refuse_contradictions
from gradfuse.graph import InputError


def model(node: str, x: str, w: str) -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 18]>\nnet ({x} x, {w} w) => (float y) {{ y = {node}(x, w) }}'
    return ir.from_onnx_text(text)


CONTRADICTIONS = [
    ("MatMul", "float[batch,16]", "float[8,10]"),
    ("MatMul", "float[batch,6,16]", "float[15]"),
    ("Gemm", "float[batch,16]", "float[10,16]"),
    ("Gemm<transB=1>", "float[batch,16]", "float[16,10]"),
    ("Conv", "float[batch,3,8,8]", "float[4,5,3,3]"),
    ("Conv<group=2>", "float[batch,4,8,8]", "float[4,4,3,3]"),
]
SOUND = [
    ("MatMul", "float[batch,16]", "float[16,10]"),
    ("MatMul", "float[batch,6,16]", "float[16]"),
    ("MatMul", "float[batch,n]", "float[8,10]"),
    ("MatMul", "float", "float[8,10]"),
    ("Gemm<transB=1>", "float[batch,16]", "float[10,16]"),
    ("Gemm<transA=1>", "float[16,batch]", "float[16,10]"),
    ("Conv<group=4>", "float[batch,4,8,8]", "float[4,1,3,3]"),
]


@pytest.mark.parametrize(("node", "x", "w"), CONTRADICTIONS)
def test_lengths_that_differ_are_refused_in_one_line(node: str, x: str, w: str) -> None:
    with pytest.raises(InputError, match="whose inner lengths") as raised:
        refuse_contradictions(model(node, x, w))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("node", "x", "w"), SOUND)
def test_lengths_that_meet_or_are_not_known_are_let_through(node: str, x: str, w: str) -> None:
    refuse_contradictions(model(node, x, w))
