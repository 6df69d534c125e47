"""Fuses on what flows back from step to step, against hooks on the carried state in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from gradfuse.graph import Fuse, GradientGraph, InputError, TrainableModel, evaluate, insert_fuses
from gradfuse.graph.fuses import fuse_bits, fuses_of, list_fuses, remove_fuses

Build = Callable[..., TrainableModel]
Array = np.ndarray[Any, Any]

STEPS, BATCH, INPUTS, HIDDEN = 6, 5, 3, 4
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def network(build: Build, kind: str, steps: int | str = STEPS) -> TrainableModel:
    rng, rows = np.random.default_rng(0), GATES[kind] * HIDDEN
    shapes = {"w": (1, rows, INPUTS), "r": (1, rows, HIDDEN), "v": (HIDDEN, 2)}
    attributes = "linear_before_reset = 1, " if kind == "GRU" else ""
    outputs = "hs, h, c" if kind == "LSTM" else "hs, h"
    body = (
        f"{outputs} = {kind} <{attributes}hidden_size = {HIDDEN}> (x, w, r)"
        " s = Squeeze (hs, axis) m = ReduceMean <keepdims = 0> (s, first)"
    )
    model = build(
        f"{body} y = MatMul (m, v)",
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
        inputs=f"float[{steps}, {BATCH}, {INPUTS}] x",
        outputs=f"float[{BATCH}, 2] y",
        state={"axis": np.array([1]), "first": np.array([0])},
    )
    model.onnx.graph[0].name = "rnn"
    return model


def step(kind: str, x: torch.Tensor, r: torch.Tensor, state: list[torch.Tensor]) -> list[torch.Tensor]:
    """One step from x W' and the state, with ONNX's order of gates."""
    h = state[0]
    if kind == "RNN":
        return [torch.tanh(x + h @ r.T)]
    if kind == "GRU":
        (xz, xr, xn), (hz, hr, hn) = x.chunk(3, 1), (h @ r.T).chunk(3, 1)
        z = torch.sigmoid(xz + hz)
        return [(1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h]
    i, o, f, c = (x + h @ r.T).chunk(4, 1)
    cell = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(c)
    return [torch.sigmoid(o) * torch.tanh(cell), cell]


def clipped(gradient: torch.Tensor, limit: float) -> torch.Tensor:
    return gradient * (limit / max(float(gradient.norm()), limit))


def with_bits(model: ir.Model) -> ir.Model:
    model.graph.outputs.extend(fuse_bits(model).values())
    return model


@pytest.mark.parametrize("limit", [0.05, 1e3])
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("steps", [STEPS, "steps"], ids=["written out", "loop"])
def test_the_recurrent_gradient_is_clipped_at_every_step(
    build: Build, steps: int | str, kind: str, limit: float
) -> None:
    model = network(build, kind, steps)
    graph = GradientGraph.of(model, "mse")
    fuses = fuses_of(f"norm={limit}", ["rnn/h/*", *(["rnn/c/*"] if kind == "LSTM" else [])], graph)
    edges = range(STEPS - 1) if steps == STEPS else ["each"]
    targets = [f"rnn/{state}/{edge}" for state in ("hc" if kind == "LSTM" else "h") for edge in edges]
    assert sorted(fuses, key=str) == sorted((Fuse("norm", target, limit) for target in targets), key=str)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32)
    target = 9 * rng.standard_normal((BATCH, 2)).astype(np.float32)
    values = {
        name: torch.tensor(model.onnx.graph.initializers[name].const_value.numpy(), requires_grad=True)
        for name in model.parameters
    }
    products = torch.from_numpy(x) @ values["w"][0].T
    state = [torch.zeros(BATCH, HIDDEN)] * (2 if kind == "LSTM" else 1)
    hidden = []
    for time in range(STEPS):
        if time:
            state = [part.clone() for part in state]
            for part in state:
                part.register_hook(lambda gradient: clipped(gradient, limit))
        state = step(kind, products[time], values["r"][0], state)
        hidden.append(state[0])
    loss = torch.nn.functional.mse_loss(torch.stack(hidden).mean(0) @ values["v"], torch.from_numpy(target))
    loss.backward()
    feeds = {"x": x, "target": target}
    fused = insert_fuses(graph, fuses)
    assert sorted(list_fuses(fused.onnx), key=str) == sorted(fuses, key=str)
    found = evaluate(with_bits(fused.onnx), feeds)
    assert {bool(found[f"fuse/{target}/bit"]) for target in targets} == {limit < 1}
    plain = evaluate(graph.onnx, feeds)
    for name, value in values.items():
        assert value.grad is not None
        gradient = found[graph.gradients[name]]
        np.testing.assert_allclose(gradient, value.grad, rtol=1e-4, atol=1e-6)
        assert (gradient.tobytes() == plain[graph.gradients[name]].tobytes()) == (limit > 1 or name == "v")


@pytest.mark.parametrize("pattern", ["rnn/h/each", "rnn/c/each", "*"])
def test_fuses_in_a_loop_are_removed_without_a_trace(build: Build, pattern: str) -> None:
    graph = GradientGraph.of(network(build, "LSTM", "steps"), "mse")
    fuses = [Fuse("norm", "rnn/h/each", 0.05), Fuse("value", "rnn/c/each", 0.01)]
    left = [fuse for fuse in fuses if pattern not in ("*", fuse.target)]
    fused = remove_fuses(insert_fuses(graph, fuses), pattern)
    assert list_fuses(fused.onnx) == left
    onnx.checker.check_model(ir.to_proto(fused.onnx), full_check=True)
    expected = insert_fuses(graph, left)
    assert sorted(fused.onnx.functions) == sorted(expected.onnx.functions)
    assert fused.onnx.graph.num_nodes() == expected.onnx.graph.num_nodes()
    rng = np.random.default_rng(2)
    feeds = {
        "x": rng.standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32),
        "target": rng.standard_normal((BATCH, 2)).astype(np.float32),
    }
    found, wanted = (evaluate(with_bits(each.onnx), feeds) for each in (fused, expected))
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in wanted.items()
    }


def test_a_fuse_that_remembers_is_refused_inside_a_loop(build: Build) -> None:
    graph = GradientGraph.of(network(build, "RNN", "steps"), "mse")
    with pytest.raises(InputError, match="a quantile fuse on 'rnn/h/each', inside a loop; value or norm"):
        insert_fuses(graph, [Fuse("quantile", "rnn/h/each", 0.9)])
