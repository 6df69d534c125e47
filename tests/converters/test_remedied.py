"""Remedies trained on the graph and brought back into PyTorch and Keras."""

from __future__ import annotations

import copy
import functools

import keras
import numpy as np
import pytest
import torch
from torch import nn

import gradfuse
from gradfuse.graph import ConversionError, InputError, evaluate

X = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
DATA = (X, (X.sum(axis=1) > 0).astype(np.int64))


def pytorch_mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2)
    )


def pytorch_cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    )


def keras_mlp():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="relu", name="a"),
            layers.Dense(8, name="b"),
            layers.ReLU(name="r"),
            layers.Dense(2, name="c"),
        ]
    )


def keras_cnn():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Reshape((2, 3, 1)),
            layers.Conv2D(4, 2, name="conv"),
            layers.Activation("relu", name="act"),
            layers.Flatten(),
            layers.Dense(2, name="c"),
        ]
    )


@functools.cache
def converted(build):
    source = build()
    return source, gradfuse.convert(source, verify=False)


def predict(model, x):
    if isinstance(model, nn.Module):
        model.eval()
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()
    return np.asarray(model(x, training=False))


REMEDIES = {
    "leaky": {"swap_activation": "relu=leaky_relu:0.2"},
    "prelu": {"swap_activation": "relu=prelu"},
    "elu": {"swap_activation": "relu=elu:0.5"},
    "tanh": {"swap_activation": "relu=tanh"},
    "before": {"insert": "batch-norm"},
    "after": {"insert": "batch-norm", "where": "after"},
    "both": {"swap_activation": "relu=prelu:0.1", "insert": "batch-norm"},
}


@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize("build", [pytorch_mlp, pytorch_cnn, keras_mlp, keras_cnn])
def test_a_trained_remedy_computes_the_same_in_a_copy_of_its_source(build, remedy):
    source, plain = converted(build)
    before = predict(source, X)
    model = gradfuse.remedy(plain, **REMEDIES[remedy])
    trained = gradfuse.train(model, DATA, epochs=3, batch_size=16, lr=0.1, threads=1)
    served = evaluate(trained.model.onnx, {model.inputs[0].name: X})[model.outputs[0].name]
    home = trained.remedied_source(source)
    np.testing.assert_allclose(predict(home, X), served, rtol=1e-4, atol=1e-5)
    assert np.abs(served - before).max() > 1e-2
    np.testing.assert_array_equal(predict(source, X), before)
    if "prelu" in REMEDIES[remedy].get("swap_activation", ""):
        slopes = [name for name in model.parameters if name not in plain.parameters and "bn" not in name]
        start = 0.1 if remedy == "both" else 0.25
        assert max(np.abs(trained.weights[name] - start).max() for name in slopes) > 1e-4
    with pytest.raises(InputError, match="which its source has not; take remedied_source"):
        trained.to_source(source)


def test_without_a_remedy_the_copy_is_the_source_with_its_weights():
    original, model = converted(pytorch_mlp)
    source, trained = copy.deepcopy(original), gradfuse.train(model, DATA, epochs=1)
    home = trained.remedied_source(source)
    trained.to_source(source)
    np.testing.assert_array_equal(predict(home, X), predict(source, X))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def test_an_activation_that_is_called_as_a_function_has_no_layer():
    trained = gradfuse.train(
        gradfuse.remedy(Functional(), swap_activation="relu=prelu", verify=False, input_shape=(6,)),
        DATA,
        epochs=1,
    )
    with pytest.raises(ConversionError, match="calls its activation as a function; one module of its own"):
        trained.remedied_source(Functional())


def test_what_is_no_remedy():
    with pytest.raises(InputError, match="nothing called 'layer-norm' to insert; batch-norm"):
        gradfuse.remedy(converted(pytorch_mlp)[1], insert="layer-norm")
