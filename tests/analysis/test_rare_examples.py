"""What rare examples add where activations grow fast, against draws of the network itself."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis import THRESHOLDS, analyse
from gradfuse.analysis.moments import Assumptions
from gradfuse.analysis.prediction import Prediction, predict
from gradfuse.analysis.rare_examples import rare_examples

from .analysis_networks import gradient_graph

WIDTH = 24


class Powers(nn.Module):
    """Dense layers of a given gain with a power between them."""

    def __init__(self, power: int, depth: int, gain: float) -> None:
        super().__init__()
        self.power = power
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(depth + 1))
        for layer in self.layers:
            nn.init.normal_(layer.weight, 0.0, gain * WIDTH**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = layer(x) ** self.power
        return self.layers[-1](x)  # type: ignore[no-any-return]


def predicted(power: int, depth: int, gain: float) -> tuple[Powers, Prediction]:
    torch.manual_seed(3)
    module = Powers(power, depth, gain)
    return module, predict(gradient_graph(module, (WIDTH,)), Assumptions(), THRESHOLDS)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.GELU()])
def test_they_add_nothing_where_activations_grow_linearly(activation: nn.Module) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH), activation, nn.Linear(WIDTH, WIDTH), activation, nn.Linear(WIDTH, 10)]
    prediction = predict(gradient_graph(nn.Sequential(*layers), (WIDTH,)), Assumptions(), THRESHOLDS)
    assert prediction.summary.rare_log10 == 0.0


@pytest.mark.parametrize(("power", "depth"), [(2, 3), (3, 2), (3, 3)])
def test_the_outputs_of_a_few_hundred_examples_are_larger_by_what_they_add(power: int, depth: int) -> None:
    module, prediction = predicted(power, depth, 0.5)
    rare = rare_examples(prediction.state, prediction.steps, THRESHOLDS)
    moments = prediction.state.values[prediction.state.output]
    usual = math.sqrt(np.mean(moments.second))  # type: ignore[union-attr]
    drawn = torch.randn(20, 512, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        measured = module.double()(drawn.double()).square().mean((1, 2)).sqrt()
    # In decades: the degree of the whole is 8 to 27, and without them the prediction is 0.6 to 4.3 decades short.
    decades = float(torch.log10(measured / usual).median())
    assert decades > 0.5
    assert rare.norm == pytest.approx(decades, abs=0.5, rel=0.35)


def test_a_network_whose_ordinary_examples_vanish_is_called_by_its_rare_ones() -> None:
    torch.manual_seed(3)
    report = analyse(gradient_graph(Powers(3, 5, 0.6), (WIDTH,)))
    assert report.summary.log10_gain < 0
    assert report.summary.verdict == "explodes"
    messages = {finding.code: finding.message for finding in report.findings}
    assert "rare examples of the first steps" in messages["GF101"]
    assert "GF102" in messages
