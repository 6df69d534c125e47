"""What a prediction takes for granted: inputs, label frequencies, and the budget for covariances."""

from collections.abc import Callable

import numpy as np
import pytest

from gradfuse.analysis.moments import Assumptions, Moments, propagate
from gradfuse.analysis.moments.loss import output_gradient
from gradfuse.graph import GradientGraph
from gradfuse.graph.errors import InputError

BODY = "z = MatMul(x, w) h = Relu(z) y = MatMul(h, v)"


@pytest.fixture
def graph(text_graph) -> GradientGraph:  # type: ignore[no-untyped-def]
    built: GradientGraph = text_graph(BODY, loss="cross-entropy", w=(16, 24), v=(24, 10))
    return built


def moments(graph: GradientGraph, assumptions: Assumptions, name: str) -> Moments:
    state = propagate(graph, assumptions)
    found = next(m for value, m in state.values.items() if value.name == name)
    assert isinstance(found, Moments)
    return found


def test_mean_and_variance_of_each_input_element(graph: GradientGraph) -> None:
    mean, variance = np.arange(16.0), np.linspace(0.0, 2.0, 16)
    weight = graph.source.onnx.graph.initializers["w"].const_value.numpy()
    z = moments(graph, Assumptions(mean=mean, variance=variance), "z")
    assert z.mean == pytest.approx(mean @ weight, rel=1e-5)
    assert z.variance == pytest.approx(variance @ weight**2, rel=1e-5)


def test_a_mean_of_another_shape_is_refused(graph: GradientGraph) -> None:
    with pytest.raises(InputError, match="an input mean of shape \\[3\\] does not fit x"):
        propagate(graph, Assumptions(mean=np.zeros(3)))


def test_label_frequencies_move_the_mean_of_the_logits_gradient(graph: GradientGraph) -> None:
    frequencies = np.array([0.55, *[0.05] * 9])
    means = []
    for assumed in (None, frequencies):
        state = propagate(graph, Assumptions(label_frequencies=assumed))
        y = state.values[state.output]
        assert isinstance(y, Moments)
        means.append(output_gradient("cross-entropy", y, assumed).mean)
        assert state.arrived[state.output].means == pytest.approx(np.sum(means[-1] ** 2))
    assert means[1] - means[0] == pytest.approx(0.1 - frequencies, abs=1e-9)


def test_frequencies_of_another_number_of_classes_are_refused(graph: GradientGraph) -> None:
    with pytest.raises(InputError, match="one for each of 10 classes"):
        propagate(graph, Assumptions(label_frequencies=np.full(4, 0.25)))


@pytest.mark.parametrize(("budget", "carried"), [(10.0, True), (0.0, False)])
def test_the_budget_decides_on_covariances(graph: GradientGraph, budget: float, carried: bool) -> None:
    state = propagate(graph, Assumptions(budget=budget))
    assert list(state.full_covariance.values()) == [carried, carried]
    z = next(m for value, m in state.values.items() if value.name == "z")
    assert isinstance(z, Moments)
    assert (z.covariance is not None) is carried


@pytest.mark.parametrize(
    ("seconds", "within", "all_steps"), [(1.0, True, True), (0.01, True, False), (0.0, False, False)]
)
def test_the_budget_decides_on_covariances_between_steps(
    text_graph: Callable[..., GradientGraph], seconds: float, within: bool, all_steps: bool
) -> None:
    body = "states, h = RNN<hidden_size=64>(x, w, r) y = Squeeze(h, first)"
    graph = text_graph(
        body,
        "float[8,batch,4]",
        "float[batch,64]",
        given={"first": np.array([0])},
        w=(1, 64, 4),
        r=(1, 64, 64),
    )
    state = propagate(graph, Assumptions(budget=seconds))
    assert list(state.full_covariance.values()) == [within]
    assert len(state.all_steps) == all_steps
