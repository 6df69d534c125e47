"""The whole gradient graph: its signature, names and metadata, and what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from gradfuse.graph import GradientGraph, InputError, TrainableModel, UnsupportedError, evaluate
from gradfuse.graph.gradients import DIFFERENTIATES
from gradfuse.graph.model import OPEN_INTERVAL, STOP_GRADIENT

Array = np.ndarray[Any, Any]
Build = Callable[..., TrainableModel]
ONE = {"w": np.ones((3, 2), np.float32)}


def test_signature(mlp: TrainableModel) -> None:
    gradients = GradientGraph.of(mlp)
    graph = gradients.onnx.graph
    assert [value.name for value in graph.inputs] == ["x", "target", "w1", "b1", "w2", "b2"]
    assert [value.name for value in graph.outputs] == [
        "loss",
        "y",
        "w1_grad",
        "b1_grad",
        "w2_grad",
        "b2_grad",
    ]
    assert gradients.gradients == {name: f"{name}_grad" for name in mlp.parameters}
    assert str(gradients.target) == "target int64[batch]"
    assert gradients.new_state == {}


def test_gradients_are_those_of_pytorch(mlp: TrainableModel, batch: dict[str, Array]) -> None:
    found = evaluate(GradientGraph.of(mlp).onnx, batch)
    weights = {
        name: torch.tensor(mlp.onnx.graph.initializers[name].const_value.numpy(), requires_grad=True)
        for name in mlp.parameters
    }
    hidden = torch.relu(torch.from_numpy(batch["x"]) @ weights["w1"] + weights["b1"])
    logits = hidden @ weights["w2"] + weights["b2"]
    loss = functional.cross_entropy(logits, torch.from_numpy(batch["target"]))
    loss.backward()
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for name, weight in weights.items():
        assert weight.grad is not None
        np.testing.assert_allclose(found[f"{name}_grad"], weight.grad, rtol=1e-4, atol=1e-6)


def test_every_backward_node_says_what_it_differentiates(mlp: TrainableModel) -> None:
    gradients = GradientGraph.of(mlp)
    nodes = list(gradients.onnx.graph)
    names = {node.name for node in nodes}
    backward = [node for node in nodes if (node.name or "").startswith("grad/")]
    assert len(backward) >= 6
    assert {node.metadata_props[DIFFERENTIATES] for node in backward} <= names


def test_every_value_has_a_gradient_of_its_own(mlp: TrainableModel) -> None:
    gradients = GradientGraph.of(mlp)
    names = gradients.activation_gradients
    assert {"z", "h", "y", "w1", "b1", "w2", "b2"} <= set(names)
    assert max(Counter(names.values()).values()) == 1
    values = {value.name for node in gradients.onnx.graph for value in node.outputs}
    assert set(names.values()) <= values


def test_names_of_nodes_and_values_are_unique(mlp: TrainableModel) -> None:
    graph = GradientGraph.of(mlp).onnx.graph
    assert max(Counter(node.name for node in graph).values()) == 1
    values = [value.name for node in graph for value in node.outputs if value.name]
    values += [value.name for value in graph.inputs] + [n for n in graph.initializers if n not in values]
    assert max(Counter(values).values()) <= 2  # a parameter is an input and an initializer


def test_the_full_checker_accepts_the_graph(mlp: TrainableModel) -> None:
    onnx.checker.check_model(ir.serde.serialize_model(GradientGraph.of(mlp).onnx), full_check=True)


def test_the_model_itself_is_not_changed(mlp: TrainableModel) -> None:
    before = ir.serde.serialize_model(mlp.onnx).SerializeToString(deterministic=True)
    GradientGraph.of(mlp)
    assert ir.serde.serialize_model(mlp.onnx).SerializeToString(deterministic=True) == before


def test_a_parameter_beside_the_path_has_a_gradient_of_zeros(build: Build) -> None:
    unused = {"v": np.ones((2, 2), np.float32)}
    model = build("y = MatMul (x, w) z = MatMul (y, v)", {**ONE, **unused})
    x = np.ones((4, 3), np.float32)
    found = evaluate(GradientGraph.of(model, "output").onnx, {"x": x})
    assert found["v_grad"].tolist() == [[0, 0], [0, 0]]
    assert found["w_grad"].tolist() == [[0.5, 0.5]] * 3


def test_tied_weights_add_up(build: Build) -> None:
    square = {"w": np.eye(3, dtype=np.float32) * 2}
    model = build("h = MatMul (x, w) y = MatMul (h, w)", square, outputs="float[batch, 3] y")
    found = evaluate(GradientGraph.of(model, "output").onnx, {"x": np.eye(3, dtype=np.float32)})
    weight = (torch.eye(3) * 2).requires_grad_()
    (weight @ weight).mean().backward()
    assert weight.grad is not None
    np.testing.assert_allclose(found["w_grad"], weight.grad, rtol=1e-6)


def test_names_that_the_model_has_taken(build: Build) -> None:
    body = "loss = MatMul (x, w) w_grad = Relu (loss) target = Tanh (w_grad) y = Identity (target)"
    gradients = GradientGraph.of(build(body, ONE), "mse")
    assert gradients.target is not None
    x, zeros = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
    found = evaluate(gradients.onnx, {"x": x, gradients.target.name: zeros})
    assert found[gradients.loss_output].shape == ()
    assert found[gradients.gradients["w"]].shape == (3, 2)


def test_an_unknown_op_is_named_with_its_layer(build: Build) -> None:
    model = build("h = MatMul (x, w) y = Det (h)", ONE)
    node = next(node for node in model.onnx.graph if node.op_type == "Det")
    node.name, node.metadata_props["gradfuse.layer"] = "determinant", "encoder.head"
    with pytest.raises(
        UnsupportedError, match=r"no gradient for Det node 'determinant' \(layer encoder\.head\)"
    ):
        GradientGraph.of(model, "output")


def test_an_op_of_an_unknown_domain_is_named(build: Build) -> None:
    model = build("h = MatMul (x, w) y = Relu (h)", ONE)
    next(node for node in model.onnx.graph if node.op_type == "Relu").domain = "com.example"
    with pytest.raises(UnsupportedError, match=r"com\.example\.Relu"):
        GradientGraph.of(model, "output")


def test_an_op_without_gradient_beside_the_path_does_no_harm(build: Build) -> None:
    model = build("d = NonZero (x) y = MatMul (x, w)", ONE)
    assert GradientGraph.of(model, "output").gradients == {"w": "w_grad"}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("h = MatMul (x, w) a = Hardmax (h) y = Relu (a)", "Hardmax"),
        ("h = MatMul (x, w) s = Shape (x) y = ReduceSum (h, s)", "axes are computed at run time"),
        ("h = MatMul (x, w) y, l = SoftmaxCrossEntropyLoss (h, labels)", "secondary"),
    ],
)
def test_what_has_no_gradient_says_why(build: Build, body: str, why: str) -> None:
    data = {"labels": np.zeros(4, np.int64)}
    outputs = "float y" if "Loss" not in body else "float l"
    model = build(
        body, ONE, state={name: array for name, array in data.items() if name in body}, outputs=outputs
    )
    with pytest.raises(UnsupportedError, match=why):
        GradientGraph.of(model, "output")


def test_no_gradient_flows_through_a_node_that_stops_it(build: Build) -> None:
    model = build("h = MatMul (x, w) s = Identity (h) y = Mul (h, s)", ONE)
    next(node for node in model.onnx.graph if node.op_type == "Identity").metadata_props[STOP_GRADIENT] = (
        "true"
    )
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    found = evaluate(GradientGraph.of(model, "output").onnx, {"x": x})
    np.testing.assert_allclose(found["w_grad"], np.tile(x.T * found["y"].mean() ** 0.5 / 2, 2))


@pytest.mark.parametrize(("mark", "at_bound"), [((), 1.0), ((OPEN_INTERVAL,), 0.0)])
def test_the_bounds_of_an_open_interval_pass_no_gradient(
    build: Build, mark: tuple[str, ...], at_bound: float
) -> None:
    model = build(
        "y = Clip (w, low, high)",
        {"w": np.array([-1, 0, 0.5, 6, 7], np.float32)},
        outputs="float[5] y",
        state={"low": np.array(0, np.float32), "high": np.array(6, np.float32)},
    )
    next(iter(model.onnx.graph)).metadata_props.update(dict.fromkeys(mark, "true"))
    found = evaluate(GradientGraph.of(model, "output").onnx, {"x": np.zeros((1, 3), np.float32)})
    np.testing.assert_allclose(5 * found["w_grad"], [0, at_bound, 1, at_bound, 0])


def test_a_model_without_outputs(build: Build) -> None:
    model = build("y = MatMul (x, w)", ONE)
    model.onnx.graph.outputs.clear()
    with pytest.raises(InputError, match="no output"):
        GradientGraph.of(model)


def test_an_output_of_whole_numbers_has_no_loss(build: Build) -> None:
    model = build("h = MatMul (x, w) y = ArgMax <axis = 1> (h)", ONE, outputs="int64[batch, 1] y")
    with pytest.raises(InputError, match="int64"):
        GradientGraph.of(model, "mse")


def test_a_parameter_of_whole_numbers(build: Build) -> None:
    with pytest.raises(InputError, match=r"'w'.*int64"):
        build("f = Cast <to = 1> (w) y = MatMul (x, f)", {"w": np.ones((3, 2), np.int64)})


_IF = """
    h = MatMul (x, w)
    y = If (condition) <then_branch = a () => (float[batch, 2] p) { THEN },
                        else_branch = b () => (float[batch, 2] q) { q = Neg (h) }>
    """


@pytest.mark.parametrize(("condition", "gradient"), [(True, 1.5), (False, -0.5)])
def test_a_branch_is_differentiated(build: Build, condition: bool, gradient: float) -> None:
    body = _IF.replace("THEN", "t = Constant <value_float = 3.0> () p = Mul (h, t)")
    model = build(body, ONE, state={"condition": np.array(condition)})
    gradients = GradientGraph.of(model, "output")
    onnx.checker.check_model(ir.serde.serialize_model(gradients.onnx), full_check=True)
    found = evaluate(gradients.onnx, {"x": np.ones((4, 3), np.float32)})
    np.testing.assert_allclose(found["w_grad"], np.full((3, 2), gradient), rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("p = Hardmax (h)", "no gradient for Hardmax node"),
        (
            "p = Dropout (h)",
            "If node .*: its body contains Dropout node .*, which acts differently in each run",
        ),
        ("n = RandomNormalLike (h) p = Add (h, n)", "its body contains RandomNormalLike node"),
    ],
)
def test_bodies_that_have_no_gradient_say_why(build: Build, body: str, why: str) -> None:
    model = build(_IF.replace("THEN", body), ONE, state={"condition": np.array(True)})
    with pytest.raises(UnsupportedError, match=why):
        GradientGraph.of(model, "output")
