import numpy as np
import pytest
import torch

from gradfuse.graph import InputError
from gradfuse.models import cnn, deep_mlp, mlp

BUILDERS = {
    "mlp": (mlp, {}),
    "mnist mlp": (mlp, {"inputs": 784}),
    "deep mlp": (deep_mlp, {}),
    "tanh mlp": (deep_mlp, {"activation": "tanh", "gain": 1.0, "depth": 3}),
    "cnn": (cnn, {}),
    "mnist cnn": (cnn, {"size": 28, "channels": 4}),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_both_frameworks_compute_the_same(name):
    model, arguments = BUILDERS[name]
    module, twin = model.pytorch(**arguments, seed=3), model.keras(**arguments, seed=3)
    x = np.random.default_rng(0).random((5, *twin.input_shape[1:])).astype(np.float32)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(
        twin(x, training=False).numpy(), expected, rtol=0, atol=1e-5 * abs(expected).max()
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_both_frameworks_train_the_same_number_of_parameters(name):
    model, arguments = BUILDERS[name]
    pytorch_count = sum(parameter.numel() for parameter in model.pytorch(**arguments).parameters())
    assert pytorch_count == sum(int(np.prod(v.shape)) for v in model.keras(**arguments).trainable_variables)


def test_the_seed_decides_the_weights_and_leaves_the_global_generators_alone():
    before = torch.get_rng_state()
    first, again, other = (mlp.pytorch(seed=seed).fc1.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_badly_initialised_network_explodes_with_a_finite_forward():
    module = deep_mlp.pytorch()
    x, labels = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10
    output = module(x)
    torch.nn.functional.cross_entropy(output, labels).backward()
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in module.parameters()])
    assert output.isfinite().all()
    assert 1e3 < norm < 1e6


def test_an_unknown_activation_is_named_with_those_that_exist():
    with pytest.raises(InputError, match=r"unknown activation 'swash'; one of elu, gelu, relu"):
        deep_mlp.pytorch(activation="swash")
