import numpy as np
import pytest
import torch

from gradfuse.graph import InputError
from gradfuse.models import adding, cnn, deep_mlp, exponential, lstm, mlp, post_ln, pre_ln, resnet, rnn

BUILDERS = {
    "mlp": (mlp, {}),
    "mnist mlp": (mlp, {"inputs": 784}),
    "deep mlp": (deep_mlp, {}),
    "tanh mlp": (deep_mlp, {"activation": "tanh", "gain": 1.0, "depth": 3}),
    "cnn": (cnn, {}),
    "leaky mlp": (mlp, {"activation": "leaky_relu"}),
    "prelu and batch norm mlp": (mlp, {"activation": "prelu", "batch_norm": True}),
    "mnist cnn": (cnn, {"size": 28, "channels": 4}),
    "prelu cnn without batch norm": (cnn, {"activation": "prelu", "batch_norm": False}),
    "exponential": (exponential, {"gain": 0.3}),
    "resnet": (resnet, {}),
    "prelu resnet without batch norm": (resnet, {"activation": "prelu", "batch_norm": False}),
    "rnn": (rnn, {}),
    "lstm": (lstm, {"hidden": 16}),
    "pre-LN transformer": (pre_ln, {}),
    "post-LN transformer": (post_ln, {"layers": 2}),
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
    module = model.pytorch(**arguments)
    pytorch_count = sum(p.numel() for p in module.parameters() if p.requires_grad)
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
    with pytest.raises(InputError, match=r"unknown activation 'swash'; one of elu, exponential, gelu"):
        deep_mlp.pytorch(activation="swash")


def test_the_exponential_network_does_not_survive_its_first_steps():
    module = exponential.pytorch()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        x, labels = torch.randn(64, 64, generator=generator), torch.arange(64) % 10
        loss = torch.nn.functional.cross_entropy(module(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not loss.isfinite()


def test_the_adding_problem_marks_two_values_and_asks_for_their_sum():
    x, target = adding.data(examples=50, length=9, seed=4)
    values, marks = x[..., 0], x[..., 1]
    assert x.shape == (50, 9, 2)
    assert (marks[:, :4].sum(1) == 1).all()
    assert (marks[:, 4:].sum(1) == 1).all()
    np.testing.assert_allclose(target[:, 0], (values * marks).sum(1), rtol=1e-6)
    assert not np.array_equal(x, adding.data(examples=50, length=9, seed=5)[0])


def test_the_recurrence_has_the_spectral_radius_asked_for():
    weight = rnn.pytorch(radius=1.25).cell.weight_hh_l0.detach().numpy()
    np.testing.assert_allclose(abs(np.linalg.eigvals(weight)).max(), 1.25, rtol=1e-5)
