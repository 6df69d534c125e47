"""The fuse plan: nothing for a healthy model, and finite training for one that explodes."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from gradfuse.analysis import analyse
from gradfuse.analysis.recurrence import recurrences
from gradfuse.graph import ALL_PARAMETERS, Fuse, GradientGraph, evaluate, insert_fuses

from .analysis_networks import gradient_graph, mlp

Arrays = dict[str, np.ndarray[Any, Any]]


def losses(
    gradients: GradientGraph, steps: int = 12, lr: float = 0.01, momentum: float = 0.9
) -> Iterator[float]:
    """Losses of SGD with momentum, and an assertion-free look at the parameters: NaN shows in the loss."""
    rng = np.random.default_rng(0)
    initializers = gradients.onnx.graph.initializers
    values: Arrays = {name: _array(initializers[name]) for name in gradients.gradients}
    velocity: Arrays = {name: np.zeros_like(value) for name, value in values.items()}
    name = gradients.source.inputs[0].name
    for _ in range(steps):
        x, labels = rng.standard_normal((32, 16), np.float32), rng.integers(0, 10, 32)
        outputs = evaluate(gradients.onnx, {name: x, "target": labels, **values})
        yield float(outputs[gradients.loss_output])
        with np.errstate(all="ignore"):
            for parameter, gradient in gradients.gradients.items():
                velocity[parameter] = momentum * velocity[parameter] + outputs[gradient]
                values[parameter] = values[parameter] - np.float32(lr) * velocity[parameter]


def _array(value: ir.Value) -> np.ndarray[Any, Any]:
    assert value.const_value is not None
    return value.const_value.numpy()


def test_a_healthy_model_gets_no_fuse() -> None:
    torch.manual_seed(0)
    for activation, gain in ((nn.ReLU, math.sqrt(2.0)), (nn.Tanh, 1.0), (nn.GELU, None)):
        assert analyse(gradient_graph(mlp(activation, depth=6, gain=gain), (16,))).fuses == []


@pytest.mark.parametrize(("radius", "steps", "planned"), [(1.4, 30, True), (1.4, 5, False), (1.0, 30, False)])
def test_a_recurrence_that_could_explode_is_fused_at_the_predicted_norm(
    text_graph: Callable[..., GradientGraph], radius: float, steps: int, planned: bool
) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((12, 12)) / 12**0.5
    matrix *= radius / np.abs(np.linalg.eigvals(matrix)).max()
    graph = text_graph(
        "t = Transpose <perm = [1, 0, 2]> (x) hs, h = RNN <hidden_size = 12> (t, w, r) s = Squeeze (h, axis) y = MatMul (s, v)",
        x=f"float[batch,{steps},3]",
        given={"r": matrix[None].astype(np.float32), "axis": np.array([0])},
        w=(1, 12, 3),
        v=(12, 10),
    )
    report = analyse(graph)
    assert report.summary.verdict in ("stable", "vanishes")
    (found,) = recurrences(graph)
    assert (found.parameter, found.steps) == ("r", steps)
    assert found.radius == pytest.approx(radius, rel=1e-5)
    assert found.growth == pytest.approx(radius**steps, rel=1e-3)
    expected = [Fuse("global-norm", ALL_PARAMETERS, max(1.0, float(f"{report.summary.global_norm:.1e}")))]
    assert report.fuses == (expected if planned else [])
    assert all("r has a spectral radius of 1.40, which over 30 steps" in fuse.reason for fuse in report.fuses)


def test_weights_that_are_used_once_are_no_recurrence(relu_stack: Callable[..., GradientGraph]) -> None:
    assert recurrences(relu_stack(16, 3.0)) == []


def test_every_planned_fuse_has_its_reason(relu_stack: Callable[..., GradientGraph]) -> None:
    *flow, last = analyse(relu_stack(40, 5.0)).fuses
    assert all("the gradient that flows back through it has a norm of" in fuse.reason for fuse in flow)
    assert "-fold" in last.reason


def test_one_fuse_keeps_a_badly_initialised_network_finite(relu_stack: Callable[..., GradientGraph]) -> None:
    graph = relu_stack(16, 3.0)
    plan = analyse(graph).fuses
    assert plan == [Fuse("global-norm", ALL_PARAMETERS, 1.0)]
    assert not all(math.isfinite(loss) for loss in losses(graph))
    assert all(math.isfinite(loss) for loss in losses(insert_fuses(graph, plan)))


def test_more_fuses_along_the_flow_where_the_norm_itself_would_overflow(
    relu_stack: Callable[..., GradientGraph],
) -> None:
    graph = relu_stack(40, 5.0)
    report = analyse(graph)
    assert report.summary.global_norm > 1e18
    *flow, last = report.fuses
    assert last.kind == "global-norm"
    assert {(fuse.kind, fuse.threshold) for fuse in flow} == {("norm", 1.0)}
    growth = [next(e.grad_rms for e in report.profile if e.tensor == fuse.target) for fuse in flow]
    assert all(1e6 <= later / earlier < 1e8 for earlier, later in pairwise(growth))
    assert all(math.isfinite(loss) for loss in losses(insert_fuses(graph, report.fuses), steps=6))


def test_no_fuse_and_the_reason_where_the_values_overflow(text_graph: Callable[..., GradientGraph]) -> None:
    graph = text_graph(
        "h = MatMul (x, w) e = Exp (h) y = MatMul (e, v)",
        loss="cross-entropy",
        gain=40.0,
        w=(16, 32),
        v=(32, 10),
    )
    report = analyse(graph)
    assert (report.summary.verdict, report.summary.overflow_phase) == ("explodes", "forward")
    assert report.fuses == []
    assert report.plan.reason.startswith(
        "none would help: the value of e exceeds float32 in the forward pass"
    )
    assert "fuse plan: none would help" in report.render("text")
    assert "EXPLODES - values overflow float32 in the forward pass" in report.render("text")
    assert not all(math.isfinite(loss) for loss in losses(graph, steps=1))


def test_the_norm_of_the_parameters_is_the_threshold_where_only_the_gradient_explodes(
    text_graph: Callable[..., GradientGraph],
) -> None:
    layers = [f"z{i} = MatMul (h{i - 1}, w{i}) h{i} = Tanh (z{i})" for i in range(1, 30)]
    shapes = {f"w{i}": (32, 32) for i in range(2, 30)}
    body = f"h0 = Identity (x) {' '.join(layers)} y = MatMul (h29, v)"
    graph = text_graph(body, loss="cross-entropy", gain=2.5, w1=(16, 32), v=(32, 10), **shapes)
    report = analyse(graph)
    size = math.hypot(*(np.linalg.norm(_array(graph.onnx.graph.initializers[w])) for w in graph.gradients))
    assert report.summary.verdict == "explodes"
    assert report.summary.global_norm > size
    assert report.fuses == [Fuse("global-norm", ALL_PARAMETERS, float(f"{size:.1e}"))]
