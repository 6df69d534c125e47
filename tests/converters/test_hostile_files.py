"""Files that are wrong, by accident or on purpose: one clear line, exit code 2, and never an abort of the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from gradfuse.cli import main
from gradfuse.converters import convert
from gradfuse.graph import GradfuseError

from .conftest import WriteModel

DAMAGED = Path(__file__).with_name("damaged_models.py")

MLP = "g (float[batch, 4] x) => (float[batch, 3] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }"
WEIGHTS = {"w": (4, 5), "v": (5, 3)}


def _changed(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def _rename(old: str, new: str) -> Any:
    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]

    return change


def _swap_nodes(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0], model.graph.node[1].output[0] = "r", "r"


def _set_dims(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]


def _huge_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 50


def _shorten(model: onnx.ModelProto) -> None:
    weight = np.ones((3, 5), np.float32)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))


def _reach_too_far(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(5, 99), "places"))
    model.graph.node[1].CopyFrom(onnx.helper.make_node("Gather", ["h", "places"], ["r"], axis=1))


def _outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "../../secret.bin")
    tensor.ClearField("raw_data")


CHANGES = [
    (_swap_nodes, "not a valid ONNX model: Nodes in a graph must be topologically sorted"),
    (_rename("x", "missing"), "not a valid ONNX model: Nodes in a graph must be topologically sorted"),
    (_rename("h", "y"), "not a valid ONNX model: Output 'y' is redeclared"),
    (_rename("h", "\x1b[31mred"), r"the name '\\x1b\[31mred' holds control characters"),
    (_rename("h", "two\nlines"), "holds control characters"),
    (_rename("h", "h" * 100_000), "more than 4096"),
    (_set_dims, "does not fit its type and shape"),
    (_huge_input, "is too large to try"),
    (_shorten, "whose inner lengths 4 and 3 differ"),
    (_reach_too_far, "does not run, so that nothing can be compared with it"),
    (_outside, "lies outside the model's folder"),
    (lambda model: model.graph.ClearField("output"), "is not an ONNX model"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=range(len(CHANGES)))
def test_it_is_refused_in_one_line(write_model: WriteModel, change: Any, reason: str) -> None:
    with pytest.raises(GradfuseError, match=reason) as caught:
        convert(_changed(write_model(MLP, WEIGHTS), change))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_names_with_markup_are_shown_as_they_are(
    write_model: WriteModel, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _changed(write_model(MLP, WEIGHTS), _rename("w", "[bold]w[/bold]"))
    path = _changed(path, lambda model: setattr(model.graph.initializer[0], "name", "[bold]w[/bold]"))
    assert main(["report", str(path), "--fail-on", "never"]) == 0
    assert "[bold]w[/bold]" in capsys.readouterr().out


@pytest.mark.parametrize("op_type", ["Div", "Mod"])
def test_integer_division_by_zero_does_not_end_the_process(write_model: WriteModel, op_type: str) -> None:
    text = """
        g (float[batch, 4] x, int64[batch, 3] n) => (float[batch, 3] y) {
            h = MatMul (x, w) q = OP (n, DIVISOR) c = Cast <to = 1> (q) y = Add (h, c)
        }
    """.replace("OP", op_type)
    with pytest.raises(GradfuseError, match=rf"{op_type} node '.*' divides by zero"):
        convert(write_model(text.replace("DIVISOR", "zero"), {"w": (4, 3), "zero": np.array([1, 0, 1])}))
    assert convert(write_model(text.replace("DIVISOR", "n"), {"w": (4, 3)})).parity is not None


@pytest.mark.parametrize(
    "node",
    [
        "Conv <strides = [0, 1]> (x, w)",
        "Conv <group = 0> (x, w)",
        "MaxPool <kernel_shape = [2, 2], strides = [1, 0]> (x)",
        "AveragePool <kernel_shape = [0, 2]> (x)",
        "DepthToSpace <blocksize = 1099511627776> (x)",
        "Col2Im <pads = [-7, -7, -7, -7]> (x, size, size)",
        "Conv <dilations = [1, 4294967296]> (x, w)",
    ],
)
def test_numbers_that_a_kernel_takes_unseen_are_in_range(write_model: WriteModel, node: str) -> None:
    """onnxruntime ends the process, or does not return."""
    text = (
        f"g (float[batch, 1, 6, 6] x) => (float[batch, n] y) {{ c = {node} f = Flatten (c) y = Mul (f, v) }}"
    )
    path = write_model(text, {"w": (2, 1, 3, 3), "v": (1,), "size": np.array([6, 6])})
    with pytest.raises(GradfuseError, match=r"is not a valid ONNX model: \w+ node '.*' has \w+ \["):
        convert(path)


def test_outputs_that_are_no_tensors_are_refused(write_model: WriteModel) -> None:
    text = "g (float[batch, 4] x) => (seq(float[batch, 1]) y) { h = MatMul (x, w) y = SplitToSequence <axis = 1> (h) }"
    with pytest.raises(GradfuseError, match="'y' is a sequence, not a tensor; tensors as inputs and outputs"):
        convert(write_model(text, {"w": (4, 3)}))


def test_a_few_lines_that_become_a_trillion_nodes_are_refused(write_model: WriteModel) -> None:
    calls = "\n".join(
        f'<opset_import: ["" : 18, "local" : 1], domain: "local"> f{i} (a) => (b) '
        f"{{ c = local.f{i + 1} (a) b = local.f{i + 1} (c) }}"
        for i in range(40)
    )
    last = '<opset_import: ["" : 18], domain: "local"> f40 (a) => (b) { b = Relu (a) }'
    text = "g (float[n, 4] x) => (float[n, 4] y) { h = MatMul (x, w) y = local.f0 (h) }\n"
    with pytest.raises(GradfuseError, match=r"has 1e\+12 nodes once its functions are written out"):
        convert(write_model(text + calls + last, {"w": (4, 4)}, imports=', "local" : 1'))


def test_functions_that_call_themselves_are_refused(write_model: WriteModel) -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) { h = MatMul (x, w) y = local.f (h) }
        <opset_import: ["" : 18, "local" : 1], domain: "local"> f (a) => (b) { b = local.g (a) }
        <opset_import: ["" : 18, "local" : 1], domain: "local"> g (a) => (b) { b = local.f (a) }
    """
    with pytest.raises(GradfuseError):
        convert(write_model(text, {"w": (4, 4)}, imports=', "local" : 1'))


def test_branches_within_branches_within_branches_are_refused(write_model: WriteModel) -> None:
    path = write_model(MLP, WEIGHTS)
    model = onnx.load(path)
    graph = onnx.helper.make_graph([], "inner", [], [])
    data = graph.SerializeToString()
    for _ in range(2000):
        # Field 6 of an attribute is a graph, 5 of a node an attribute, 1 of a graph a node; protobuf writes no such depth.
        for field in (6, 5, 1):
            data = bytes([field << 3 | 2]) + _varint(len(data)) + data
    body = model.graph.SerializeToString() + data
    model.ClearField("graph")
    path.write_bytes(model.SerializeToString() + bytes([7 << 3 | 2]) + _varint(len(body)) + body)
    with pytest.raises(GradfuseError, match="is not an ONNX file or is truncated"):
        convert(path)


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def test_a_shape_of_terabytes_is_not_computed_in_advance(write_model: WriteModel) -> None:
    text = """
        g (float[n, 4] x) => (float[n, 4] y) {
            z = ConstantOfShape <value = int64[1] {0}> (lengths) s = ReduceSum <keepdims = 0> (z)
            c = Cast <to = 1> (s) h = MatMul (x, w) y = Add (h, c)
        }
    """
    with pytest.raises(GradfuseError):
        convert(write_model(text, {"w": (4, 4), "lengths": np.array([1 << 30, 1 << 30])}))


def test_whatever_is_damaged_trains_or_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, DAMAGED, "0", "300", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = {what: int(times) for times, what in (line.split(" ", 1) for line in done.stdout.splitlines())}
    assert set(outcomes) == {"refused", "trained"}
    assert min(outcomes.values()) > 10
