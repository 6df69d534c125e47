"""Recurrent layers: the cells' slopes, Gaussian expectations, and predicted against measured gradients."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis import analyse
from gradfuse.analysis.moments import Assumptions, Moments, Propagation, propagate
from gradfuse.analysis.moments.transfer.recurrent.cells import ACTIVATIONS, CELLS
from gradfuse.analysis.moments.transfer.recurrent.statistics import expectations
from gradfuse.graph import GradientGraph

INPUTS, HIDDEN, STEPS, CLASSES = 8, 24, 9, 10
GATES = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}
"""PyTorch's number of each of ONNX's gates."""


class Network(nn.Module):
    def __init__(self, kind: str, layers: int, mean: bool, both: bool = False) -> None:
        super().__init__()
        self.kind, self.layers, self.mean = kind, layers, mean
        self.directions = 2 if both else 1
        self.cells = getattr(nn, kind)(INPUTS, HIDDEN, layers, bidirectional=both)
        self.head = nn.Linear(HIDDEN * self.directions, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.cells(x)
        return self.head(states.mean(0) if self.mean else states[-1])  # type: ignore[no-any-return]

    def arrays(self) -> dict[str, np.ndarray]:
        """Parameters as ONNX has them."""
        found = {"v": self.head.weight.detach().numpy(), "c": self.head.bias.detach().numpy()}
        for layer in range(self.layers):
            ends = [f"l{layer}", f"l{layer}_reverse"][: self.directions]
            found[f"w{layer}"] = np.stack([self._gates(f"weight_ih_{end}") for end in ends])
            found[f"r{layer}"] = np.stack([self._gates(f"weight_hh_{end}") for end in ends])
            biases = [[self._gates(f"bias_{part}_{end}") for part in ("ih", "hh")] for end in ends]
            found[f"b{layer}"] = np.stack([np.concatenate(pair) for pair in biases])
        return found

    def _gates(self, name: str) -> np.ndarray:
        parts = np.split(getattr(self.cells, name).detach().numpy(), len(GATES[self.kind]))
        return np.concatenate([parts[gate] for gate in GATES[self.kind]])

    def body(self) -> str:
        direction = "bidirectional" if self.directions == 2 else "forward"
        attributes = f'hidden_size={HIDDEN}, direction="{direction}"'
        attributes += ", linear_before_reset=1" if self.kind == "GRU" else ""
        lines, x = [], "x"
        for i in range(self.layers):
            lines += [f"y{i} = {self.kind}<{attributes}>({x}, w{i}, r{i}, b{i})"]
            lines += [f"t{i} = Transpose<perm=[0,2,1,3]>(y{i}) u{i} = Reshape(t{i}, shape)"]
            x = f"u{i}"
        taken = "ReduceMean<keepdims=0>" if self.mean else "Gather<axis=0>"
        return " ".join([*lines, f"s = {taken}({x}, which) y = Gemm<transB=1>(s, v, c)"])


def graph_of(network: Network, text_graph: Callable[..., GradientGraph]) -> GradientGraph:
    given = network.arrays()
    given["shape"] = np.array([STEPS, -1, HIDDEN * network.directions])
    given["which"] = np.array([0]) if network.mean else np.array(STEPS - 1)
    return text_graph(
        network.body(),
        f"float[{STEPS},batch,{INPUTS}]",
        loss="cross-entropy",
        given=given,
        trained=tuple(network.arrays()),
    )


def measured(network: Network, batches: int = 64, batch_size: int = 32) -> dict[str, float]:
    """RMS of the gradients over batches of N(0, 1) inputs with random labels."""
    generator, squares = torch.Generator().manual_seed(1), dict[str, list[float]]()
    for _ in range(batches):
        x = torch.randn(STEPS, batch_size, INPUTS, generator=generator)
        labels = torch.randint(CLASSES, (batch_size,), generator=generator)
        network.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            kind, _, end = name.rpartition("_l")
            short = {
                "cells.weight_ih": "w",
                "cells.weight_hh": "r",
                "cells.bias_ih": "b",
                "cells.bias_hh": "b",
            }
            key = short[kind] + end[0] if kind in short else {"head.weight": "v", "head.bias": "c"}[name]
            squares.setdefault(key, []).append(parameter.grad.square().mean().item())
    return {name: math.sqrt(np.mean(values)) for name, values in squares.items()}


@pytest.mark.parametrize(
    ("kind", "layers", "mean", "both"),
    [
        ("RNN", 1, False, False),
        ("RNN", 2, True, False),
        ("RNN", 2, True, True),
        ("LSTM", 2, False, False),
        ("LSTM", 1, True, False),
        ("GRU", 2, True, False),
        ("GRU", 1, False, False),
        ("LSTM", 1, True, True),
    ],
)
@pytest.mark.parametrize("budget", [10.0, 0.0], ids=["full", "per-channel"])
def test_parameters(
    text_graph: Callable[..., GradientGraph], kind: str, layers: int, mean: bool, both: bool, budget: float
) -> None:
    torch.manual_seed(4)
    network = Network(kind, layers, mean, both)
    state = propagate(graph_of(network, text_graph), Assumptions(budget=budget))
    assert [note.text for note in state.notes] == []
    assert_near(state, measured(network), 1.25 if budget else 1.5)


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_parameters_where_the_last_states_are_read(
    text_graph: Callable[..., GradientGraph], kind: str
) -> None:
    torch.manual_seed(7)
    network = Network(kind, 1, mean=False)
    with torch.no_grad():
        network.cells.weight_hh_l0 += 0.5 * torch.eye(HIDDEN).repeat(len(GATES[kind]), 1)
    outputs = "y0, h" if kind == "RNN" else "y0, h, c"
    given = network.arrays()
    body = f"{outputs} = {kind}<hidden_size={HIDDEN}>(x, w0, r0, b0) s = Squeeze(h, first) y = Gemm<transB=1>(s, v, c0)"
    given |= {"first": np.array([0]), "c0": given.pop("c")}
    trained = tuple(name for name in given if name != "first")
    graph = text_graph(
        body, f"float[{STEPS},batch,{INPUTS}]", loss="cross-entropy", given=given, trained=trained
    )
    assert_near(propagate(graph, Assumptions()), {**measured(network), "c0": measured(network)["c"]})


def test_steps_that_share_the_recurrent_matrix_s_leading_eigenvector(
    text_graph: Callable[..., GradientGraph],
) -> None:
    """Of each channel's own covariance between steps alone, the biases come out as little as half of what they are."""
    torch.manual_seed(8)
    network = Network("RNN", 2, mean=False)
    with torch.no_grad():
        for layer in range(2):
            direction = nn.functional.normalize(torch.randn(HIDDEN), dim=0)
            weight = 0.6 * torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5
            getattr(network.cells, f"weight_hh_l{layer}").copy_(weight + torch.outer(direction, direction))
    state = propagate(graph_of(network, text_graph), Assumptions())
    assert len(state.all_steps) == 2
    assert_near(state, measured(network))


def remembering(kind: str) -> Network:
    """A network that sums up three directions of its input over all steps, as training makes it, and reads their mean."""
    torch.manual_seed(11)
    network = Network(kind, 2, mean=True)
    candidate = slice(2 * HIDDEN, 3 * HIDDEN)
    with torch.no_grad():
        kept, before = torch.linalg.qr(torch.randn(HIDDEN, 3))[0], torch.linalg.qr(torch.randn(INPUTS, 3))[0]
        network.cells.weight_ih_l0[candidate] += kept @ before.T
        network.cells.weight_ih_l1[candidate] += kept @ kept.T
        for layer in range(2):
            getattr(network.cells, f"weight_hh_l{layer}")[candidate] += 0.8 * kept @ kept.T
            getattr(network.cells, f"bias_hh_l{layer}")[:HIDDEN] += 1.0
        network.head.weight[:3] += 1.0 * kept.T
    return network


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gated_layers_that_remember_a_few_directions(
    text_graph: Callable[..., GradientGraph], kind: str
) -> None:
    """Of each channel's own covariance between steps alone, weights come out as little as half of what they are."""
    network = remembering(kind)
    state = propagate(graph_of(network, text_graph), Assumptions())
    assert len(state.all_steps) == 2
    assert_near(state, measured(network))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gated_states_of_two_steps(text_graph: Callable[..., GradientGraph], kind: str) -> None:
    """Of all channels of either layer, against 20 000 random sequences."""
    network = remembering(kind)
    state = propagate(graph_of(network, text_graph), Assumptions())
    found = {value.name: m.steps for value, m in state.values.items() if isinstance(m, Moments)}
    x = torch.randn(STEPS, 20_000, INPUTS)
    with torch.no_grad():
        for layer in range(2):
            steps = found[f"u{layer}"]
            assert steps is not None
            h, _ = first_layers(network, layer + 1)(x)
            drawn = (h - h.mean(1, keepdim=True)).numpy()
            for step, other in ((STEPS - 1, STEPS - 2), (STEPS - 1, STEPS - 4)):
                expected = drawn[step].T @ drawn[other] / len(drawn[0])
                error = np.linalg.norm(steps.across[step, other] - expected) / np.linalg.norm(expected)
                assert error < 0.15


def first_layers(network: Network, layers: int) -> nn.Module:
    cells = getattr(nn, network.kind)(INPUTS, HIDDEN, layers)
    cells.load_state_dict({name: network.cells.state_dict()[name] for name in cells.state_dict()})
    return cells


def assert_near(state: Propagation, found: dict[str, float], limit: float = 1.25) -> None:
    predicted = {value.name: math.sqrt(gradient.mean_square(32)) for value, gradient in state.shared.items()}
    factors = {name: rms / found[name or ""] for name, rms in predicted.items()}
    assert all(1 / limit < factor < limit for factor in factors.values()), factors


def test_states_of_two_steps(text_graph: Callable[..., GradientGraph]) -> None:
    """Of all channels, against 20 000 random sequences."""
    torch.manual_seed(9)
    network = Network("RNN", 1, mean=False)
    nn.init.normal_(network.cells.weight_hh_l0, 0.0, HIDDEN**-0.5)
    state = propagate(graph_of(network, text_graph), Assumptions())
    states = next(m for value, m in state.values.items() if value.name == "u0")
    assert isinstance(states, Moments)
    assert states.steps is not None
    with torch.no_grad():
        h, _ = network.cells(torch.randn(STEPS, 20_000, INPUTS))
    drawn = (h - h.mean(1, keepdim=True)).numpy()
    for step, other in ((STEPS - 1, STEPS - 2), (STEPS - 1, STEPS - 3)):
        expected = drawn[step].T @ drawn[other] / len(drawn[0])
        error = np.linalg.norm(states.steps.across[step, other] - expected) / np.linalg.norm(expected)
        assert error < 0.1


def test_states_of_every_step(text_graph: Callable[..., GradientGraph]) -> None:
    torch.manual_seed(5)
    network = Network("LSTM", 2, mean=False)
    state = propagate(graph_of(network, text_graph), Assumptions())
    states = next(m for value, m in state.values.items() if value.name == "u1")
    assert isinstance(states, Moments)
    with torch.no_grad():
        h, _ = network.cells(torch.randn(STEPS, 4000, INPUTS))
    assert states.mean == pytest.approx(h.mean(1).numpy(), abs=0.01)
    assert states.variance.mean(1) == pytest.approx(h.var(1).mean(1).numpy(), rel=0.05)


def grown(network: Network) -> float:
    """Decades from the gradient of the layer's output to that of its first state."""
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(STEPS, 512, INPUTS, generator=generator), torch.arange(512) % CLASSES
    first = torch.zeros(1, 512, HIDDEN, requires_grad=True)
    states, _ = network.cells(x, first)
    states.retain_grad()
    nn.functional.cross_entropy(network.head(states[-1]), labels).backward()
    assert first.grad is not None
    assert states.grad is not None
    return 0.5 * math.log10(first.grad.square().sum() / states.grad.square().sum())


@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_growth_through_time(text_graph: Callable[..., GradientGraph], gain: float) -> None:
    torch.manual_seed(6)
    network = Network("RNN", 1, mean=False)
    nn.init.normal_(network.cells.weight_hh_l0, 0.0, gain * HIDDEN**-0.5)
    report = analyse(graph_of(network, text_graph))
    assert sum(row.recurrence for row in report.attribution) == pytest.approx(grown(network), abs=0.15)


def test_a_recurrence_that_explodes_is_named_and_its_weights_are_mended(
    text_graph: Callable[..., GradientGraph],
) -> None:
    torch.manual_seed(6)
    network = Network("GRU", 1, mean=False)
    nn.init.normal_(network.cells.weight_hh_l0, 0.0, 20.0 * HIDDEN**-0.5)
    report = analyse(graph_of(network, text_graph))
    assert report.summary.verdict == "explodes"
    finding = report.findings[0]
    assert (finding.code, finding.op_type, finding.evidence["time_steps"]) == ("GF106", "GRU", STEPS)
    remedy = finding.remedies[0]
    assert "keras.layers.GRU" in remedy.keras
    assert remedy.cures
    nn.init.orthogonal_(network.cells.weight_hh_l0, float(remedy.pytorch.split("gain=")[1].rstrip(")")))
    assert analyse(graph_of(network, text_graph)).summary.verdict != "explodes"


@pytest.mark.parametrize("op_type", list(CELLS))
def test_slopes_of_a_cell(op_type: str) -> None:
    cell, rng = CELLS[op_type], np.random.default_rng(0)
    activations = [ACTIVATIONS[name] for name in cell.activations]
    local = rng.standard_normal((cell.locals, 5))
    _, slopes = cell.evaluate(local, activations)
    for index in range(cell.locals):
        step = np.zeros_like(local)
        step[index] = 1e-6
        above, below = (cell.evaluate(local + sign * step, activations)[0] for sign in (1.0, -1.0))
        assert slopes[:, index] == pytest.approx((above - below) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("op_type", list(CELLS))
def test_expectations_of_a_cell(op_type: str) -> None:
    """Against 200 000 random draws."""
    cell, rng = CELLS[op_type], np.random.default_rng(0)
    activations = [ACTIVATIONS[name] for name in cell.activations]
    root = 0.5 * rng.standard_normal((cell.locals, cell.locals))
    mean = 0.3 * rng.standard_normal((cell.locals, 1))
    found = expectations(cell, activations, mean, (root @ root.T)[None])
    state, slope = cell.evaluate(mean + root @ rng.standard_normal((cell.locals, 200_000)), activations)
    assert found.mean[:, 0] == pytest.approx(state.mean(1), abs=0.01)
    assert found.covariance[0] == pytest.approx(np.cov(state).reshape(found.covariance[0].shape), abs=0.01)
    assert found.slope[0] == pytest.approx(slope.mean(2), abs=0.01)
    square = np.einsum("qpn,rsn->qprs", slope, slope) / slope.shape[2]
    assert found.slope_square[0] == pytest.approx(square, abs=0.02)
    together = np.einsum("qn,rpn->qrp", state - state.mean(1, keepdims=True), slope) / slope.shape[2]
    assert found.slope_with_state[0] == pytest.approx(together, abs=0.01)
