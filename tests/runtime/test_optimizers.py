from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.graph import InputError, evaluate
from gradfuse.graph.builder import Builder
from gradfuse.runtime.optimizers import SGD, AdamW, optimizer_named


def test_optimizers_are_found_by_name():
    assert optimizer_named("sgd", momentum=0.9, nesterov=True) == SGD(0.9, nesterov=True)
    assert optimizer_named("adamw", weight_decay=0.1) == AdamW(weight_decay=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rmsprop", {}, "unknown optimizer 'rmsprop'; one of sgd, adamw"),
        (
            "sgd",
            {"beta1": 0.9},
            "sgd has no option 'beta1'; one of momentum, weight_decay, nesterov, rate_in_velocity",
        ),
        ("sgd", {"momentum": 1.0}, "momentum 1; a number in [0, 1)"),
        ("sgd", {"momentum": float("nan")}, "momentum nan; a number in [0, 1)"),
        ("sgd", {"nesterov": True}, "Nesterov's method without momentum; a momentum above 0, as 0.9"),
        ("adamw", {"weight_decay": -1.0}, "weight decay -1; a number of at least 0"),
        ("adamw", {"beta2": 1.5}, "beta2 1.5; a number in [0, 1)"),
    ],
)
def test_errors_say_what_there_is(name, options, message):
    with pytest.raises(InputError) as error:
        optimizer_named(name, **options)
    assert str(error.value) == message


def run_steps(optimizer, gradients, learning_rates):
    """The parameter after steps with these gradients, from ones, by the optimizer's graph in float64."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 18})
    builder, values = Builder(graph), {"p": np.ones_like(gradients[0])}
    values |= optimizer.initial_state(values)
    feeds = {**values, "g": gradients[0], "learning_rate": np.array(learning_rates[0])}

    def tensor(name):
        array = feeds[name]
        graph.inputs.append(ir.val(name, ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)))
        return builder.tensor(graph.inputs[-1])

    tensors = {name: tensor(name) for name in feeds}
    state = {name: tensors[name] for name in values if name != "p"}
    new = optimizer.update({"p": tensors["p"]}, {"p": tensors["g"]}, state, tensors["learning_rate"])
    graph.outputs.extend(value.value for value in new.values())
    model = ir.Model(graph, ir_version=10)
    for gradient, rate in zip(gradients, learning_rates, strict=True):
        outputs = evaluate(model, {**feeds, "g": gradient, "learning_rate": np.array(rate)})
        feeds |= {name: outputs[value.value.name] for name, value in new.items()}
    return feeds["p"]


@pytest.mark.parametrize("hat", [False, True])
def test_adamw_is_the_formula_of_torch_or_of_keras(hat):
    """keras.optimizers.Adam.update_step (3.15) and torch.optim.adamw (2.13), gradients as small as eps."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((5, 4)) * [1, 1e-4, 1e-7, 1e-9]
    rate, beta1, beta2, eps, decay = 0.1, 0.9, 0.999, 1e-7, 0.01
    p, m, v = np.ones(4), np.zeros(4), np.zeros(4)
    for t, g in enumerate(gradients, 1):
        p = p - p * decay * rate
        m, v = m + (g - m) * (1 - beta1), v + (g**2 - v) * (1 - beta2)
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        p = p - rate * np.sqrt(c2) / c1 * m / (np.sqrt(v) + (eps if hat else eps * np.sqrt(c2)))
    ours = run_steps(AdamW(beta1, beta2, eps, decay, epsilon_hat=hat), gradients, [rate] * 5)
    np.testing.assert_allclose(ours, p, rtol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_keeps_the_rate_in_its_velocity_as_keras_does(nesterov):
    """keras.optimizers.SGD.update_step (3.15), under a rate that changes."""
    gradients, rates = np.random.default_rng(1).standard_normal((6, 4)), [0.3, 0.3, 0.1, 0.05, 0.2, 0.01]
    p, v = np.ones(4), np.zeros(4)
    for g, rate in zip(gradients, rates, strict=True):
        v = 0.9 * v - rate * g
        p = p + (0.9 * v - rate * g if nesterov else v)
    ours = run_steps(SGD(0.9, nesterov=nesterov, rate_in_velocity=True), gradients, rates)
    np.testing.assert_allclose(ours, p, rtol=1e-12)
    assert abs(run_steps(SGD(0.9, nesterov=nesterov), gradients, rates) - p).max() > 1e-2
