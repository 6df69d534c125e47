"""Clipped trainings, step by step beside the same trainings in PyTorch and Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

import gradfuse
from gradfuse.models import mlp
from gradfuse.runtime import SGD, StepGraph, TrainingSession

STEPS, BATCH, LR = 100, 32, 0.05

RNG = np.random.default_rng(0)
X = RNG.standard_normal((STEPS * BATCH, 64)).astype(np.float32)
Y = (X @ RNG.standard_normal((64, 10))).argmax(1)

THRESHOLDS = {"value": 0.01, "norm": 0.2, "global-norm": 0.5, "adaptive": 0.02}
"""Each bites in many steps, and not in every one on every tensor."""


def rows(step):
    return slice(step * BATCH, (step + 1) * BATCH)


def ours(source, kind):
    fused = gradfuse.fuse(gradfuse.convert(source, verify=False), clip=f"{kind}={THRESHOLDS[kind]}")
    session = TrainingSession(StepGraph.of(fused, SGD(0.9)), (X, Y), threads=1)
    results = [session.run(np.arange(BATCH) + step * BATCH, LR, step) for step in range(STEPS)]
    bits = np.array([result.bits for result in results])
    assert bits.mean() > 0.2
    return [result.loss for result in results]


def unit_norms(tensor):
    """NFNets: of each output unit, a row of PyTorch's dense weight; of a bias as a whole."""
    return tensor.norm() if tensor.dim() < 2 else tensor.flatten(1).norm(dim=1, keepdim=True)


def clip_adaptively(parameters, clipping, eps=1e-3):
    for parameter in parameters:
        norm, limit = unit_norms(parameter.grad), clipping * unit_norms(parameter.detach()).clamp(min=eps)
        parameter.grad = torch.where(
            norm < limit, parameter.grad, parameter.grad * limit / norm.clamp(min=1e-6)
        )


def clip_in_pytorch(module, kind):
    utils, parameters, threshold = torch.nn.utils, list(module.parameters()), THRESHOLDS[kind]
    if kind == "value":
        utils.clip_grad_value_(parameters, threshold)
    elif kind == "global-norm":
        utils.clip_grad_norm_(parameters, threshold)
    elif kind == "norm":
        for parameter in parameters:
            utils.clip_grad_norm_([parameter], threshold)
    else:
        clip_adaptively(parameters[:-2], threshold)  # all but the last layer


@pytest.mark.parametrize("kind", THRESHOLDS)
def test_100_clipped_steps_are_pytorchs(kind):
    module = mlp.pytorch()
    found = ours(module, kind)
    optimizer = torch.optim.SGD(module.parameters(), LR, momentum=0.9)
    expected = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            module(torch.from_numpy(X[rows(step)])), torch.from_numpy(Y[rows(step)])
        )
        loss.backward()
        clip_in_pytorch(module, kind)
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert expected[-1] < expected[0]


@pytest.mark.parametrize(
    ("kind", "option"),
    [("value", "clipvalue"), ("norm", "clipnorm"), ("global-norm", "global_clipnorm")],
)
def test_100_clipped_steps_are_kerass(kind, option):
    model = mlp.keras()
    found = ours(model, kind)
    optimizer = keras.optimizers.SGD(LR, momentum=0.9, **{option: THRESHOLDS[kind]})
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = []
    for step in range(STEPS):
        model.reset_metrics()
        expected.append(float(model.train_on_batch(X[rows(step)], Y[rows(step)])))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
