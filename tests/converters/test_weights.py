import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import gradfuse
from gradfuse.converters import from_keras, from_pytorch, to_source
from gradfuse.graph import InputError, evaluate
from gradfuse.models import cnn


def train(model):
    """Other values for every parameter and statistic, in the graph and as arrays."""
    rng, weights = np.random.default_rng(0), {}
    for name in (*model.parameters, *model.state):
        value = model.onnx.graph.initializers[name]
        array = value.const_value.numpy() + rng.uniform(0, 0.1, value.const_value.shape).astype(np.float32)
        value.const_value = ir.tensor(array, name=name)
        weights[name] = array
    return weights


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).random((5, 64)).astype(np.float32)


@pytest.fixture
def module():
    return cnn.pytorch(channels=2).eval()


def test_the_module_computes_what_the_trained_graph_computes(module, x):
    model = from_pytorch(module, x)
    to_source(train(model), module)
    (output,) = evaluate(model.onnx, {"input": x}).values()
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach(), output, rtol=1e-5, atol=1e-5)
    assert module.bn1.num_batches_tracked == 0


def test_the_keras_model_computes_what_the_trained_graph_computes(x):
    source = cnn.keras(channels=2)
    model = from_keras(source)
    to_source(train(model), source)
    (output,) = evaluate(model.onnx, {"input": x}).values()
    np.testing.assert_allclose(source(x, training=False).numpy(), output, rtol=1e-5, atol=1e-5)


def test_shared_weights_go_home_under_either_name():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    module[1].weight = module[0].weight
    to_source({"1.weight": np.eye(2, dtype=np.float32)}, module)
    torch.testing.assert_close(module[0].weight.detach(), torch.eye(2))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"fc.wait": np.zeros(1)}, "Sequential has no weight 'fc.wait'; one of conv1.weight, conv1.bias"),
        (
            {"fc.bias": np.zeros(3)},
            r"the weight 'fc.bias' has shape \[3\]; shape \[10\], as Sequential has it",
        ),
    ],
)
def test_what_does_not_fit_leaves_everything_as_it_was(module, weights, message):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(InputError, match=message):
        to_source({"conv1.bias": np.ones(2, np.float32), **weights}, module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_weights_that_do_not_fit_leave_a_keras_model_as_it_was():
    source = cnn.keras(channels=2)
    with pytest.raises(InputError, match=r"the Keras model 'sequential\w*' has no weight 'fc/weight'"):
        to_source({"conv1/bias": np.ones(2, np.float32), "fc/weight": np.zeros(1)}, source)
    assert not np.array_equal(source.get_layer("conv1").bias.numpy(), np.ones(2))


def test_only_models_take_weights():
    with pytest.raises(InputError, match=r"a list takes no weights; a torch.nn.Module or keras.Model"):
        to_source({}, [])


def test_frozen_parameters_stay_bit_identical_through_training():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    module[0].weight.requires_grad_(False)
    module[3].bias.requires_grad_(False)
    module[1].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rng = np.random.default_rng(0)
    data = rng.standard_normal((32, 4)).astype(np.float32), rng.integers(0, 3, 32)
    trained = gradfuse.train(module, data, epochs=2, optimizer="adamw", weight_decay=0.1, lr=0.1)
    trained.to_source(module)
    same = {name for name, tensor in module.state_dict().items() if torch.equal(tensor, before[name])}
    assert same == {"0.weight", "3.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    for name in ("0.weight", "3.bias", "1.running_mean"):
        value = trained.model.onnx.graph.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(value, before[name])
