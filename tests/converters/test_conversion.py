import numpy as np
import pytest
import torch

from gradfuse.converters import convert
from gradfuse.graph import InputError
from gradfuse.models import mlp


@pytest.mark.parametrize(
    ("source", "first"),
    [("gradfuse.models.mlp:pytorch", "fc1.weight"), ("gradfuse.models.mlp:keras", "fc1/kernel")],
)
def test_a_source_is_found_converted_and_checked(source, first):
    conversion = convert(source)
    assert conversion.model.parameters[0] == first
    assert conversion.model.source == source
    assert conversion.parity.error < 1e-5


def test_patterns_choose_the_parameters_of_any_source():
    assert convert(mlp.pytorch(), train=["fc2.*"]).model.parameters == ("fc2.weight", "fc2.bias")


def test_without_verification_there_is_no_parity():
    assert convert(mlp.pytorch(), verify=False).parity is None


def test_an_array_serves_as_example():
    conversion = convert(mlp.pytorch(), example_input=np.zeros((5, 64)))
    assert str(conversion.model.inputs[0]) == "input float[batch, 64]"
    assert conversion.parity.error < 1e-5


def test_a_converted_model_is_returned_as_it_is():
    model = convert(mlp.pytorch(), verify=False).model
    assert convert(model).model == model


def test_an_input_too_few_is_named_with_the_way_to_give_it():
    with pytest.raises(
        InputError, match=r"missing a required argument: 'input2'; .* return \(module, \(first, second\)\)"
    ):
        convert(torch.nn.Bilinear(2, 2, 2), example_input=np.zeros((5, 2)))


def test_what_is_no_model_is_named():
    with pytest.raises(InputError, match=r"a dict is no model; a torch.nn.Module, a keras.Model"):
        convert({})
