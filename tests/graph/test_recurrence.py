"""LSTM, GRU and RNN nodes written in other ops compute what onnxruntime's own kernels compute, whatever the node has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gradfuse.graph import UnsupportedError, evaluate
from gradfuse.graph.builder import Builder
from gradfuse.graph.gradients import TABLE, differentiate
from gradfuse.graph.lowering import lower

Array = np.ndarray[Any, Any]

STEPS, BATCH, FEATURES, HIDDEN = 4, 3, 2, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OUTPUTS = {"LSTM": ("y", "h", "c"), "GRU": ("y", "h"), "RNN": ("y", "h")}
LENGTHS = np.array([4, 1, 2], np.int32)

VARIANTS = [
    *((op, direction, "") for op in GATES for direction in ("forward", "reverse", "bidirectional")),
    ("GRU", "forward", "linear_before_reset = 1"),
    ("GRU", "bidirectional", 'activations = ["HardSigmoid", "Softsign", "Sigmoid", "Relu"]'),
    ("LSTM", "reverse", 'activations = ["HardSigmoid", "Relu", "Softsign"]'),
    ("RNN", "bidirectional", 'activations = ["Relu", "Softsign"]'),
    ("RNN", "bidirectional", 'activations = ["LeakyRelu", "Elu"], activation_alpha = [0.3, 0.7]'),
    ("RNN", "forward", 'activations = ["Affine"], activation_alpha = [0.5], activation_beta = [0.1]'),
    ("RNN", "forward", 'activations = ["ScaledTanh"], activation_alpha = [1.7], activation_beta = [0.6]'),
    ("RNN", "forward", 'activations = ["ThresholdedRelu"], activation_alpha = [0.2]'),
    (
        "LSTM",
        "forward",
        'activations = ["HardSigmoid", "Tanh", "Softplus"], activation_alpha = [0.3], activation_beta = [0.4]',
    ),
    ("LSTM", "bidirectional", "clip = 0.4"),
    ("GRU", "bidirectional", "clip = 0.4, linear_before_reset = 1"),
    ("GRU", "forward", "clip = 0.4"),
    ("RNN", "forward", "clip = 0.4"),
    ("LSTM", "bidirectional", "input_forget = 1"),
]


def _node(
    op: str, direction: str, attributes: str = "", optional: str = "blhp"
) -> tuple[str, dict[str, Array]]:
    """The text of a node and data for its inputs: `optional` names biases, lengths, states (h) and peepholes among them."""
    d, rows = 1 + (direction == "bidirectional"), HIDDEN * GATES[op]
    rng = np.random.default_rng(0)
    shapes = {"x": (STEPS, BATCH, FEATURES), "w": (d, rows, FEATURES), "r": (d, rows, HIDDEN)}
    shapes |= {"b": (d, 2 * rows)} if "b" in optional else {}
    shapes |= {"h0": (d, BATCH, HIDDEN)} if "h" in optional else {}
    shapes |= {"c0": (d, BATCH, HIDDEN)} if "h" in optional and op == "LSTM" else {}
    shapes |= {"p": (d, 3 * HIDDEN)} if "p" in optional and op == "LSTM" else {}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds |= {"l": LENGTHS} if "l" in optional else {}
    order = ("x", "w", "r", "b", "l", "h0", "c0", "p")[: 8 if op == "LSTM" else 6]
    arguments = ", ".join(name if name in feeds else "" for name in order).rstrip(", ")
    options = ", ".join(
        part for part in (f"hidden_size = {HIDDEN}", f'direction = "{direction}"', attributes) if part
    )
    return f"{', '.join(OUTPUTS[op])} = {op} <{options}> ({arguments})", feeds


def _model(body: str, feeds: dict[str, Array], outputs: str, dynamic: bool) -> ir.Model:
    kinds = {"float32": "float", "float64": "double", "int32": "int32", "int64": "int64"}
    shapes = {
        name: ["t", "n", str(FEATURES)]
        if name == "x" and dynamic
        else [str(length) for length in array.shape]
        for name, array in feeds.items()
    }
    declared = ", ".join(f"{kinds[a.dtype.name]}[{', '.join(shapes[n])}] {n}" for n, a in feeds.items())
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]>\nm ({declared}) => ({outputs}) {{ {body} }}'
    )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("optional", ["", "bh", "blhp"])
@pytest.mark.parametrize(("op", "direction", "attributes"), VARIANTS)
def test_it_computes_what_the_kernel_computes(
    op: str, direction: str, attributes: str, optional: str, dynamic: bool
) -> None:
    body, feeds = _node(op, direction, attributes, optional)
    ranks = {"y": 4, "h": 3, "c": 3}
    outputs = ", ".join(
        f"float[{', '.join(f'{name}{axis}' for axis in range(ranks[name]))}] {name}" for name in OUTPUTS[op]
    )
    model = _model(body, feeds, outputs, dynamic)
    before = evaluate(model, feeds)
    lower(model)
    found = {node.op_type for node in model.graph}
    assert op not in found
    assert ("Scan" in found) == dynamic
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    after = evaluate(model, feeds)
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def _gradients(body: str, feeds: dict[str, Array], names: tuple[str, ...], dynamic: bool) -> ir.Model:
    sums = "\n".join(f"s{name} = Sin ({name}) t{name} = ReduceSum <keepdims = 0> (s{name})" for name in names)
    total = f"loss = Sum ({', '.join(f't{name}' for name in names)})"
    model = _model(f"{body}\n{sums}\n{total}", feeds, "float loss", dynamic)
    lower(model)
    builder, values = Builder(model.graph), list(model.graph.inputs)
    wrt = [value for value in values if value.dtype == ir.DataType.FLOAT]
    found = differentiate(builder, model.graph.outputs[0], wrt, TABLE)
    for value in wrt:
        found[value].value.name = f"{value.name}_grad"
        model.graph.outputs.append(found[value].value)
    return model


@pytest.mark.parametrize("optional", ["bh", "blhp"])
@pytest.mark.parametrize(("op", "direction", "attributes"), VARIANTS)
def test_the_gradient_of_the_scan_is_that_of_the_steps(
    op: str, direction: str, attributes: str, optional: str
) -> None:
    body, feeds = _node(op, direction, attributes, optional)
    steps, scan = (
        evaluate(_gradients(body, feeds, OUTPUTS[op], dynamic), feeds) for dynamic in (False, True)
    )
    assert set(steps) >= {f"{name}_grad" for name in feeds if name != "l"}
    for name, array in steps.items():
        np.testing.assert_allclose(scan[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("op", GATES)
def test_gradients_against_finite_differences(op: str) -> None:
    body, feeds = _node(op, "bidirectional")
    model = _gradients(body, feeds, OUTPUTS[op], dynamic=True)
    found = evaluate(model, feeds)
    rng = np.random.default_rng(1)
    for name in (name for name in feeds if name != "l"):
        direction = rng.standard_normal(feeds[name].shape).astype(np.float32)
        ends = [
            evaluate(model, feeds | {name: feeds[name] + sign * 3e-3 * direction})["loss"] for sign in (1, -1)
        ]
        slope = float(ends[0] - ends[1]) / 6e-3
        assert float((found[f"{name}_grad"] * direction).sum()) == pytest.approx(slope, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize("op", GATES)
def test_the_batch_on_the_first_axis(op: str) -> None:
    body, feeds = _node(op, "bidirectional")
    swapped = {"x": (1, 0, 2), "h0": (1, 0, 2), "c0": (1, 0, 2)}
    first = {
        name: array.transpose(swapped[name]) if name in swapped else array for name, array in feeds.items()
    }
    outputs = ", ".join(f"float {name}" for name in OUTPUTS[op])
    model = _model(body.replace("<", "<layout = 1, ", 1), first, outputs, dynamic=True)
    for value in model.graph.outputs:
        value.shape = None
    expected = _model(body, feeds, outputs, dynamic=False)
    for value in expected.graph.outputs:
        value.shape = None
    lower(model)
    wanted, found = evaluate(expected, feeds), evaluate(model, first)
    for name, perm in (("y", (2, 0, 1, 3)), ("h", (1, 0, 2))):
        np.testing.assert_allclose(found[name], wanted[name].transpose(perm), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("RNN", 'activations = ["Sine"]', "the activation Sine; one of Relu"),
        ("GRU", 'activations = ["Tanh"]', "contradict the ONNX standard"),
    ],
)
def test_what_is_refused(op: str, attributes: str, reason: str) -> None:
    body, feeds = _node(op, "forward", attributes)
    with pytest.raises(UnsupportedError, match=reason):
        lower(_model(body, feeds, ", ".join(f"float {name}" for name in OUTPUTS[op]), dynamic=False))


def test_a_direction_that_does_not_exist_is_refused() -> None:
    body, feeds = _node("RNN", "sideways")
    with pytest.raises(UnsupportedError, match="contradict the ONNX standard"):
        lower(_model(body, feeds, "float y, float h", dynamic=False))


def test_a_long_sequence_becomes_a_scan() -> None:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        m (float[100, 2, 3] x, float[1, 2, 3] w, float[1, 2, 2] r) => (float[100, 1, 2, 2] y)
        { y = RNN <hidden_size = 2> (x, w, r) }"""
    )
    lower(model)
    assert [node.op_type for node in model.graph].count("Scan") == 1
