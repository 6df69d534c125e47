"""Each rule on a model that it must flag and one that it must not; and the pages of the rules."""

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from gradfuse.analysis import RULES, THRESHOLDS, Finding, analyse, explain, probe
from gradfuse.analysis.moments import Assumptions
from gradfuse.converters import convert
from gradfuse.graph import GradientGraph, InputError
from gradfuse.models import cnn as cnn_model
from gradfuse.models import mlp as mlp_model

from .analysis_networks import gradient_graph, mlp

PAGES = Path(__file__).parents[2] / "docs" / "rules"


class Stack(nn.Module):
    """Dense layers of a given gain with a function between them."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], depth: int, gain: float) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(depth))
        for layer in self.layers:
            nn.init.normal_(layer.weight, 0.0, gain * 24**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = self.function(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]


def findings(module: nn.Module, inputs: int, code: str) -> list[Finding]:
    return [
        finding for finding in analyse(gradient_graph(module, (inputs,))).findings if finding.code == code
    ]


def test_gf101_says_how_much_the_gradient_grows_and_what_would_help() -> None:
    torch.manual_seed(0)
    (finding,) = findings(mlp(nn.ReLU, depth=14, gain=3.0), 16, "GF101")
    assert (finding.severity, finding.phase) == ("error", "backward")
    assert finding.evidence["log10_gain"] > 2.0
    assert finding.evidence["causes"]["weight"] > finding.evidence["log10_gain"]
    kinds = [remedy.kind for remedy in finding.remedies]
    assert kinds[0] == "init"
    assert kinds[-1] == "fuse"
    init = finding.remedies[0]
    assert abs(init.predicted_log10_gain) < 0.3
    # He's gain for ReLU is sqrt(2); these weights are what chance made of a small width.
    assert float(init.text.split("deviation ")[1].split()[0]) == pytest.approx(math.sqrt(2.0), rel=0.2)
    fuse = finding.remedies[-1]
    assert fuse.predicted_log10_gain == finding.evidence["log10_gain"]
    assert "does not mend the propagation" in " ".join(fuse.text.split())


def test_the_first_remedy_of_gf101_does_what_it_promises() -> None:
    torch.manual_seed(0)
    module = mlp(nn.ReLU, depth=14, gain=3.0)
    (finding,) = findings(module, 16, "GF101")
    line = finding.remedies[0].pytorch
    for layer in module:
        if isinstance(layer, nn.Linear):
            exec(line, {"torch": torch, "w": layer.weight})
    assert not findings(module, 16, "GF101")


def test_gf101_leaves_a_well_initialised_network_alone() -> None:
    torch.manual_seed(0)
    assert findings(mlp(nn.ReLU, depth=14, gain=math.sqrt(2.0)), 16, "GF101") == []


@pytest.mark.parametrize(
    "function", [torch.exp, lambda x: x**3, lambda x: x * x * x], ids=["exp", "pow", "product"]
)
def test_gf102_names_fast_growing_activations(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(1)
    (finding,) = findings(Stack(function, 4, 1.2), 24, "GF102")
    assert finding.severity == "error"
    assert finding.evidence["growth_exponent"] > 2.0
    assert finding.evidence["log10_gain"] > 0.1
    assert [remedy.kind for remedy in finding.remedies][:1] == ["activation"]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Softplus(), nn.ELU()])
def test_gf102_leaves_activations_alone_that_grow_linearly(activation: nn.Module) -> None:
    torch.manual_seed(1)
    assert findings(Stack(activation, 6, 2.5), 24, "GF102") == []


@pytest.mark.parametrize("network", [mlp_model, cnn_model], ids=["mlp", "cnn"])
@pytest.mark.parametrize("probed", [False, True], ids=["static", "probe"])
def test_a_healthy_reference_model_gets_no_finding(network: ModuleType, probed: bool) -> None:
    graph = GradientGraph.of(convert(network.pytorch(), verify=False).model)
    measurement = probe(graph, Assumptions()) if probed else None
    assert analyse(graph, measurement=measurement).failures("warning") == []


def test_every_rule_has_its_page_under_the_fixed_headings() -> None:
    headings = ["What it sees", "Why it is bad", "Example", "Cure", "References"]
    for rule in RULES:
        page = explain(rule.code.lower())
        assert page.startswith(f"# {rule.code}: ")
        assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == headings
        assert (PAGES / f"{rule.code}.md").read_text(encoding="utf-8") == page


def test_every_threshold_stands_on_the_page_of_its_rule_with_its_default() -> None:
    for name, default in THRESHOLDS.items():
        assert f"`{name}` ({default:g})" in " ".join(explain(name.split(".")[0]).split())


def test_a_threshold_moves_the_finding_and_the_verdict() -> None:
    torch.manual_seed(0)
    graph = gradient_graph(mlp(nn.ReLU, depth=6, gain=2.1), (16,))
    assert analyse(graph).summary.verdict != "explodes"
    strict = analyse(graph, thresholds={"GF101.norm": 1.0})
    assert strict.summary.verdict == "explodes"
    assert {finding.code for finding in strict.failures()} >= {"GF101"}


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InputError, match="unknown rule 'GF000'; one of GF101, GF102"):
        explain("GF000")
