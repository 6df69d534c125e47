"""Gradients by several laws of the inputs, against one law, gradients at single inputs, and measured ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis import analyse
from gradfuse.analysis.moments import Assumptions, Propagation, mixed, propagate
from gradfuse.analysis.moments.mixture import LAWS, of_laws
from gradfuse.analysis.simplifications import simplifications

from .analysis_networks import gradient_graph, measured_rms
from .conftest import TextGraph

INPUTS, WIDTH, CLASSES = 12, 32, 10


def _gathering(
    depth: int = 4,
    norm: type[nn.Module] | None = nn.LayerNorm,
    head: float = 8.0,
    gain: float = 1.0,
    bias: bool = False,
) -> nn.Sequential:
    """Every layer brings what is near one of its codes nearer to one of the next layer's, as training teaches classifiers."""
    torch.manual_seed(0)
    codes = [torch.randn(CLASSES, n) for n in (INPUTS, *[WIDTH] * depth)]
    layers: list[nn.Module] = []
    for before, after in pairwise(codes):
        layer = nn.Linear(before.shape[1], WIDTH, bias=bias)
        weight = torch.randn(layer.weight.shape) / before.shape[1] ** 0.5 + after.T @ before / before.shape[1]
        layer.weight = nn.Parameter(gain * weight)
        layers += [layer, *([norm(WIDTH)] if norm else []), nn.Tanh()]
    last = nn.Linear(WIDTH, CLASSES)
    last.weight = nn.Parameter(head * codes[-1] / WIDTH)
    return nn.Sequential(*layers, last)


def _rms(state: Propagation, module: nn.Module) -> dict[str, float]:
    by_name = {value.name: summary for value, summary in state.shared.items()}
    size = state.assumptions.batch_size
    return {name: by_name[name].mean_square(size) ** 0.5 for name, _ in module.named_parameters()}


@pytest.mark.parametrize(
    ("depth", "norm", "gain"), [(4, nn.LayerNorm, 1.0), (8, nn.BatchNorm1d, 1.0), (8, None, 2.0)]
)
def test_gathered_examples_need_more_than_one_law(
    depth: int, norm: type[nn.Module] | None, gain: float
) -> None:
    module = _gathering(depth, norm, gain=gain)
    graph = gradient_graph(module, (INPUTS,))
    by_one = _rms(propagate(graph, Assumptions()), module)
    by_several = {entry.tensor: entry.grad_rms for entry in analyse(graph).profile}
    measured, worst = measured_rms(module, (INPUTS,)), []
    for predicted in (by_several, by_one):
        ratios = [np.log(predicted[name] / rms) for name, rms in measured.items()]
        worst.append(float(np.exp(np.max(np.abs(ratios)))))
    assert worst[0] < 1.25
    assert worst[1] > 1.25


def test_laws_that_are_alike_give_what_one_gives() -> None:
    module = _gathering(2)
    state = propagate(gradient_graph(module, (INPUTS,)), Assumptions())
    several = of_laws(state, [(state.assumptions, state.assumptions)] * 2)
    assert several.laws == 4
    for value, summary in state.shared.items():
        assert several.shared[value].means == pytest.approx(summary.means)
        assert several.shared[value].variances == pytest.approx(summary.variances)
    for value, summary in state.arrived.items():
        assert several.arrived[value].mean_square(1) == pytest.approx(summary.mean_square(1))
        assert several.arrived[value].largest == pytest.approx(summary.largest)


def test_laws_of_hardly_any_variance_give_the_mean_over_their_inputs() -> None:
    module, size = _gathering(2, norm=None), 4
    points = torch.randn(3, 2, INPUTS, generator=torch.Generator().manual_seed(1))
    state = propagate(gradient_graph(module, (INPUTS,)), Assumptions(batch_size=size))
    laws = [
        tuple(replace(state.assumptions, mean=point.double().numpy(), variance=1e-10) for point in pair)
        for pair in points
    ]
    predicted = _rms(of_laws(state, laws), module)
    gradients = {name: torch.zeros(3, 2, CLASSES, *p.shape) for name, p in module.named_parameters()}
    for index in np.ndindex(3, 2, CLASSES):
        module.zero_grad()
        nn.functional.cross_entropy(module(points[index[:2]]), torch.tensor(index[2])).backward()
        for name, parameter in module.named_parameters():
            gradients[name][index] = parameter.grad
    for name, each in gradients.items():
        pairs = each.mean((1, 2))
        # E M_a M_b of different pairs
        coherent = max(float((pairs.sum(0) ** 2 - pairs.square().sum(0)).mean()) / 6, 0.0)
        expected = ((float(each.square().mean()) - coherent) / size + coherent) ** 0.5
        assert predicted[name] == pytest.approx(expected, rel=1e-3), name


@pytest.mark.parametrize("behind", [True, False])
def test_a_batch_of_few_inputs_is_normalised_over_all_of_them(behind: bool) -> None:
    """Normalised before the activation or behind it; statistics are those of all laws, and the gradients' sums are 0."""
    module, size = _gathering(3, nn.BatchNorm1d, bias=True), 64
    if behind:
        for index in range(1, 9, 3):
            module[index], module[index + 1] = module[index + 1], module[index]
    for layer in module[::3]:
        nn.init.normal_(layer.bias)
    points = torch.randn(64, INPUTS, generator=torch.Generator().manual_seed(1))
    state = propagate(gradient_graph(module, (INPUTS,)), Assumptions(batch_size=size))
    laws = [replace(state.assumptions, mean=point.double().numpy(), variance=1e-10) for point in points]
    predicted = _rms(of_laws(state, list(zip(laws[::2], laws[1::2], strict=True))), module)
    generator, squares = torch.Generator().manual_seed(2), dict.fromkeys(predicted, 0.0)
    for _ in range(100):
        module.zero_grad()
        picks = torch.randint(len(points), (size,), generator=generator)
        labels = torch.randint(CLASSES, (size,), generator=generator)
        nn.functional.cross_entropy(module(points[picks]), labels).backward()
        for name, parameter in module.named_parameters():
            squares[name] += parameter.grad.double().square().mean().item() / 100
    for name, square in squares.items():
        if not behind and name in ("0.bias", "3.bias", "6.bias"):
            assert predicted[name] == 0.0
        else:
            assert predicted[name] == pytest.approx(square**0.5, rel=0.15), name


def test_only_trained_networks_of_vectors_and_sequences_take_several_laws() -> None:
    def laws(module: nn.Module, *shape: int) -> int:
        return mixed(propagate(gradient_graph(module, shape), Assumptions())).laws

    def drawn(head: float) -> nn.Sequential:
        """Weights of independent elements."""
        module = _gathering(2, head=head)
        for layer in module[:-1:3]:
            nn.init.normal_(layer.weight, 0.0, layer.in_features**-0.5)
        return module

    assert laws(drawn(0.5), INPUTS) == 1
    assert laws(drawn(30.0), INPUTS) == LAWS
    assert laws(drawn(300.0), INPUTS) == 1
    learned = drawn(0.5)
    with torch.no_grad():
        learned[3].weight += 0.1
    assert laws(learned, INPUTS) == LAWS
    assert laws(_gathering(2, norm=None), INPUTS) == LAWS
    tokens = nn.Sequential(*learned[:-1], nn.Flatten(), nn.Linear(3 * WIDTH, CLASSES))
    assert laws(tokens, 3, INPUTS) == LAWS
    image = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 10, CLASSES))
    assert laws(image, 1, 4, INPUTS - 5) == 1


@pytest.mark.parametrize(("budget", "laws", "said"), [(10.0, LAWS, "several laws"), (0.01, 1, "too much")])
def test_a_report_says_which_laws_it_took(budget: float, laws: int, said: str) -> None:
    state = mixed(propagate(gradient_graph(_gathering(2), (INPUTS,)), Assumptions(budget=budget)))
    assert state.laws == laws
    assert [said in note.text for note in simplifications(state)] == [True]


def test_recurrent_layers_behind_a_vector_take_several_laws(text_graph: TextGraph) -> None:
    """The graph that their moments follow is made anew for each law."""
    body = """
        h = Reshape(x, rows) a = MatMul(h, w) l = LayerNormalization(a, scale)
        t = Transpose<perm = [1, 0, 2]>(l) s, e = RNN<hidden_size = 6>(t, v, r) q = Squeeze(e, first) y = MatMul(q, u)
    """
    given = {"rows": np.array([0, 4, 4]), "scale": np.ones(8, np.float32), "first": np.array([0])}
    given["u"] = 3.0 * np.random.default_rng(1).standard_normal((6, 10)).astype(np.float32)
    graph = text_graph(body, given=given, trained=("u",), w=(4, 8), v=(1, 6, 8), r=(1, 6, 6))
    state = propagate(graph, Assumptions())
    several = of_laws(state, [(state.assumptions, state.assumptions)] * 2)
    assert mixed(state).laws == LAWS
    for value, one in state.shared.items():
        assert several.shared[value].mean_square(32) == pytest.approx(one.mean_square(32))


class Sequence(nn.Module):
    """Every token is brought near one of the codes; classes by the mean over tokens of the law N(mean, variance)."""

    def __init__(
        self, depth: int, head: float, mean: torch.Tensor | float = 0.0, variance: float = 1.0
    ) -> None:
        super().__init__()
        *layers, self.head = _gathering(depth, head=head)
        self.layers = nn.Sequential(*(nn.GELU() if isinstance(layer, nn.Tanh) else layer for layer in layers))
        self.mean, self.deviation = mean, variance**0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.mean + self.deviation * x).mean(1))


def _farthest(predicted: dict[str, float], measured: dict[str, float]) -> float:
    return float(np.exp(max(abs(np.log(predicted[name] / rms)) for name, rms in measured.items())))


def test_gathered_tokens_need_more_than_one_law() -> None:
    module = Sequence(8, head=30.0)
    graph, measured = gradient_graph(module, (5, INPUTS)), measured_rms(module, (5, INPUTS), batches=64)
    by_one = _rms(propagate(graph, Assumptions()), module)
    by_several = {entry.tensor: entry.grad_rms for entry in analyse(graph).profile}
    assert _farthest(by_several, measured) < 1.2
    assert _farthest(by_one, measured) > 1.3


def test_tokens_may_have_means_of_their_own() -> None:
    """What a LayerNorm's scale receives, a sum over tokens, depends on each one's mean, and not on their average."""
    mean = torch.randn(5, INPUTS, generator=torch.Generator().manual_seed(3))
    module, law = Sequence(1, 3.0), Assumptions(mean=mean.double().numpy(), variance=0.1)
    predicted = _rms(propagate(gradient_graph(module, (5, INPUTS)), law), module)
    measured = measured_rms(Sequence(1, 3.0, mean, 0.1), (5, INPUTS), batches=128)
    assert _farthest(predicted, measured) < 1.1


def test_recurrent_layers_of_sequences_take_one_law(text_graph: TextGraph) -> None:
    body = """
        t = Transpose<perm = [1, 0, 2]>(x) s, e = RNN<hidden_size = 8>(t, v, r) q = Squeeze(e, first)
        y = MatMul(q, u)
    """
    given = {"first": np.array([0]), "u": np.full((8, 10), 1, np.float32)}
    graph = text_graph(body, x="float[batch,5,4]", given=given, trained=("u",), v=(1, 8, 4), r=(1, 8, 8))
    assert mixed(propagate(graph, Assumptions())).laws == 1


def test_places_in_a_table_take_one_law(text_graph: TextGraph) -> None:
    body = "a = Gather(w, x) l = LayerNormalization(a, scale) p = ReduceMean<keepdims = 0>(l, one) y = MatMul(p, u)"
    given = {"scale": np.ones(8, np.float32), "one": np.array([1]), "u": np.full((8, 10), 9, np.float32)}
    graph = text_graph(body, x="int64[batch,5]", given=given, trained=("u",), w=(20, 8))
    assert mixed(propagate(graph, Assumptions())).laws == 1
