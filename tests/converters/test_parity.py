from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from gradfuse.converters import from_pytorch, pytorch
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
        model, partial(pytorch.reference, module), [np.zeros((2, 4), np.float32)], tolerance=tolerance
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
    assert result.compared == 1 + 6 + 2
    assert str(result).startswith("9 arrays agree: worst relative error ")


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
        reference = pytorch.reference(module, *batch)
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
