from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from gradfuse.converters import convert, from_pytorch, torch_reference
from gradfuse.converters.parity import Reference, _checked_errors, check_parity
from gradfuse.graph import ParityError
from gradfuse.models import deep_mlp


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


@pytest.fixture(scope="module")
def converted(module):
    return from_pytorch(module, torch.zeros(2, 4))


@pytest.fixture
def model(converted):
    return replace(converted, onnx=converted.onnx.clone())


def check(model, module, tolerance=1e-4):
    return check_parity(
        model, partial(torch_reference.reference, module), [np.zeros((2, 4), np.float32)], tolerance=tolerance
    )


def changed(model, name, change):
    value = model.onnx.graph.initializers[name]
    array = value.const_value.numpy().copy()
    change(array)
    value.const_value = ir.tensor(array, name=name)
    return model


def test_a_faithful_conversion_passes_and_says_how_well(model, module):
    result = check(model, module)
    assert result.error < 1e-4
    assert result.compared == 1 + 6 + 2 + 1
    assert str(result).startswith("10 arrays agree: worst relative error ")


def test_a_gradient_that_is_zero_but_for_rounding_raises_no_alarm(model, module):
    assert check(model, module, tolerance=1e-5).error <= 1e-5


@pytest.mark.parametrize("name", ["0.weight", "1.weight", "3.weight", "3.bias"])
def test_one_flipped_weight_is_caught_with_both_numbers(model, module, name):
    model = changed(
        from_pytorch(module, torch.zeros(2, 4)), name, lambda array: np.negative(array, out=array)
    )
    with pytest.raises(
        ParityError, match=r"output 'linear_1' at \[\d, \d\] is -?[\d.e-]+, in pytorch -?[\d.e-]+: relative"
    ):
        check(model, module)


def test_a_wrong_gradient_is_caught_though_the_outputs_agree(model, module):
    def half_as_steep(*batch):
        reference = torch_reference.reference(module, *batch)
        gradients = {**reference.gradients, "3.weight": 0.5 * reference.gradients["3.weight"]}
        return Reference(reference.outputs, reference.target, gradients, reference.state)

    with pytest.raises(
        ParityError, match=r"the gradient of '3.weight' at \[\d, \d\] is .*relative error 1.0e\+00"
    ):
        check_parity(model, half_as_steep, [np.zeros((2, 4), np.float32)])


def test_a_wrong_momentum_is_caught(model, module):
    (bn,) = [node for node in model.onnx.graph if node.op_type == "BatchNormalization"]
    bn.attributes["momentum"] = ir.AttrFloat32("momentum", 0.5)
    with pytest.raises(ParityError, match=r"the new '1.running_mean'"):
        check(model, module)


def test_a_lost_parameter_is_caught(model, module):
    fewer = replace(model, parameters=model.parameters[1:])
    with pytest.raises(ParityError, match=r"the gradient of '0.weight' is lost; in pytorch it reaches"):
        check(fewer, module)


def test_a_wider_tolerance_accepts_a_small_difference(model, module):
    def a_little_more(array):
        array *= 1.001

    model = changed(model, "3.weight", a_little_more)
    with pytest.raises(ParityError):
        check(model, module)
    assert check(model, module, tolerance=1e-2).error > 1e-4


def test_an_exploding_model_that_overflows_on_both_sides_agrees():
    module = deep_mlp.pytorch(inputs=4, width=8, depth=60, classes=3, gain=100.0)
    result = check(from_pytorch(module, torch.zeros(2, 4)), module)
    assert result.error <= result.tolerance


def test_a_kink_that_only_a_later_draw_crosses_is_noise_and_what_no_draw_moves_is_wrong():
    pairs = [("the gradient of 'bias'", "bias_grad", np.array([1.0, 0.5]))]
    ours, still = {"bias_grad": np.array([1.0, 0.4])}, {"bias_grad": np.array([1.0, 0.4])}
    crossed = {"bias_grad": np.array([1.0, 0.5])}
    found = _checked_errors(pairs, ours, iter([still, still, crossed]), "pytorch", 1e-4)
    assert found["the gradient of 'bias'"] <= 1e-4
    with pytest.raises(ParityError, match=r"is 0\.4, in pytorch 0\.5"):
        _checked_errors(pairs, ours, iter([still, still]), "pytorch", 1e-4)


class Twofold(nn.Module):
    """A forward that doubles what it returns, or returns it twice, at inference only."""

    def __init__(self, at_inference):
        super().__init__()
        self.fc, self.at_inference = nn.Linear(4, 3), at_inference

    def forward(self, x):
        y = torch.relu(self.fc(x))
        return y if self.training else self.at_inference(y)


IN_EVAL_MODE = [
    (lambda y: 2 * y, r"output '\w+' of the inference form at \[\d, \d\] is [\d.e-]+, in pytorch [\d.e-]+: "),
    (lambda y: y[:, :2], r"output '\w+' of the inference form has shape \[5, 3\], in pytorch \[5, 2\]; "),
    (lambda y: (y, y), "the inference form has 1 outputs, in pytorch 2; "),
]


@pytest.mark.parametrize(("at_inference", "message"), IN_EVAL_MODE)
def test_a_forward_that_branches_on_its_mode_is_refused(at_inference, message):
    with pytest.raises(ParityError, match=message) as error:
        convert(Twofold(at_inference), example_input=(4,))
    assert "the graph is made of what the forward does in train mode" in str(error.value)
    assert "\n" not in str(error.value)


def test_dropout_and_running_statistics_are_no_branch_and_the_module_stays_as_it_was():
    torch.manual_seed(0)
    norm, stopped = nn.BatchNorm2d(4), nn.Dropout(0.5).eval()
    module = nn.Sequential(
        nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), stopped, nn.Linear(64, 3)
    )
    norm.running_mean[:], norm.running_var[:] = torch.randn(4), torch.rand(4) + 0.5
    modes, before = [layer.training for layer in module.modules()], norm.running_mean.clone()
    result = convert(module, example_input=(2, 6, 6)).parity
    assert result.errors["output 'linear' of the inference form"] <= result.tolerance
    assert [layer.training for layer in module.modules()] == modes
    assert not stopped.training
    assert torch.equal(norm.running_mean, before)


def test_a_module_in_eval_mode_stays_in_it():
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).eval()
    convert(module, example_input=(4,))
    assert not any(layer.training for layer in module.modules())
