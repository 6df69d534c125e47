"""Fuses: nothing below the threshold, the exact formula above it, insertion that can be repeated and undone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from gradfuse.graph import (
    ALL_PARAMETERS,
    Fuse,
    GradientGraph,
    InputError,
    TrainableModel,
    evaluate,
    insert_fuses,
    list_fuses,
    remove_fuses,
)
from gradfuse.graph.fuses import fuse_bits, fuse_states

Array = np.ndarray[Any, Any]
Build = Callable[..., TrainableModel]

EVERYWHERE = [
    ("adaptive", "w1"),
    ("value", "w2"),
    ("value", "h"),
    ("norm", "b2"),
    ("norm", "z"),
    ("zscore", "b1"),
    ("quantile", ALL_PARAMETERS),
]
ELSEWHERE = [
    ("value", "w1"),
    ("quantile", "h"),
    ("quantile", "w1"),
    ("zscore", "z"),
    ("zscore", ALL_PARAMETERS),
    ("global-norm", ALL_PARAMETERS),
]


@pytest.fixture
def graph(mlp: TrainableModel) -> GradientGraph:
    return GradientGraph.of(mlp)


def _gradients(graph: GradientGraph, feeds: dict[str, Array]) -> dict[str, Array]:
    found = evaluate(graph.onnx, feeds)
    return {parameter: found[name] for parameter, name in graph.gradients.items()}


def _text(graph: GradientGraph) -> str:
    return onnx.printer.to_text(ir.serde.serialize_model(graph.onnx))


@pytest.mark.parametrize(("kind", "target"), EVERYWHERE + ELSEWHERE)
def test_below_the_threshold_no_bit_changes(
    graph: GradientGraph, batch: dict[str, Array], kind: str, target: str
) -> None:
    fused = insert_fuses(graph, [Fuse(kind, target, 0.5 if kind == "quantile" else 1e3)])
    before, after = (evaluate(g.onnx, batch) for g in (graph, fused))
    assert list(after) == [*before, *fuse_states(fused.onnx).values()]
    for name, array in before.items():
        assert after[name].tobytes() == array.tobytes(), name


def test_value_is_clip_grad_value(graph: GradientGraph, batch: dict[str, Array]) -> None:
    before = _gradients(graph, batch)
    after = _gradients(insert_fuses(graph, [Fuse("value", name, 0.01) for name in before]), batch)
    leaves = _leaves(before)
    clip_grad_value_(leaves.values(), 0.01)
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        np.testing.assert_array_equal(after[name], leaf.grad)


def test_norm_is_clip_grad_norm_of_each(graph: GradientGraph, batch: dict[str, Array]) -> None:
    before = _gradients(graph, batch)
    after = _gradients(insert_fuses(graph, [Fuse("norm", name, 0.01) for name in before]), batch)
    for name, leaf in _leaves(before).items():
        clip_grad_norm_([leaf], 0.01)
        assert leaf.grad is not None
        np.testing.assert_allclose(after[name], leaf.grad, rtol=1e-3)  # torch adds 1e-6 to the norm
        keras = before[name] * 0.01 / max(np.linalg.norm(before[name]), 0.01)
        np.testing.assert_allclose(after[name], keras, rtol=1e-6)


def test_global_norm_is_clip_grad_norm_of_all(graph: GradientGraph, batch: dict[str, Array]) -> None:
    before = _gradients(graph, batch)
    after = _gradients(insert_fuses(graph, [Fuse("global-norm", ALL_PARAMETERS, 0.25)]), batch)
    leaves = _leaves(before)
    norm = float(clip_grad_norm_(leaves.values(), 0.25))
    assert norm > 0.25
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        np.testing.assert_allclose(after[name], leaf.grad, rtol=1e-5)
        np.testing.assert_allclose(after[name], before[name] * 0.25 / norm, rtol=1e-6)
    total = np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in after.values()))
    assert total == pytest.approx(0.25, rel=1e-6)


def _leaves(gradients: dict[str, Array]) -> dict[str, torch.Tensor]:
    leaves = {name: torch.zeros(array.shape) for name, array in gradients.items()}
    for name, leaf in leaves.items():
        leaf.grad = torch.from_numpy(gradients[name].copy())
    return leaves


def test_an_activation_fuse_limits_what_flows_back_through_it(
    mlp: TrainableModel, graph: GradientGraph, batch: dict[str, Array]
) -> None:
    found = _gradients(insert_fuses(graph, [Fuse("value", "h", 0.02)]), batch)
    weights = {
        name: torch.tensor(mlp.onnx.graph.initializers[name].const_value.numpy(), requires_grad=True)
        for name in mlp.parameters
    }
    hidden = torch.relu(torch.from_numpy(batch["x"]) @ weights["w1"] + weights["b1"])
    hidden.register_hook(lambda gradient: gradient.clamp(-0.02, 0.02))
    logits = hidden @ weights["w2"] + weights["b2"]
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["target"])).backward()
    plain = _gradients(graph, batch)
    assert not np.allclose(found["w1"], plain["w1"])
    for name, weight in weights.items():
        assert weight.grad is not None
        np.testing.assert_allclose(found[name], weight.grad, rtol=1e-4, atol=1e-7)


def test_fuses_of_parameters_come_before_the_global_one(
    graph: GradientGraph, batch: dict[str, Array]
) -> None:
    fuses = [Fuse("global-norm", ALL_PARAMETERS, 0.02), Fuse("value", "w1", 0.01)]
    after = _gradients(insert_fuses(graph, fuses), batch)
    before = _gradients(graph, batch)
    before["w1"] = before["w1"].clip(-0.01, 0.01)
    norm = np.sqrt(sum(np.square(array).sum() for array in before.values()))
    for name, array in before.items():
        np.testing.assert_allclose(after[name], array * 0.02 / norm, rtol=1e-5)


def test_inserting_again_changes_nothing(graph: GradientGraph) -> None:
    fuses = [Fuse(kind, target, 0.5) for kind, target in EVERYWHERE]
    once = insert_fuses(graph, fuses)
    assert _text(insert_fuses(once, fuses)) == _text(once)
    assert _text(insert_fuses(once, [])) == _text(once)


def test_a_fuse_replaces_the_earlier_one_on_its_target(graph: GradientGraph) -> None:
    once = insert_fuses(graph, [Fuse("value", "w1", 0.5), Fuse("norm", "w2", 1.0)])
    twice = insert_fuses(once, [Fuse("norm", "w1", 2.0)])
    assert {fuse.target: fuse for fuse in list_fuses(twice.onnx)} == {
        "w1": Fuse("norm", "w1", 2.0),
        "w2": Fuse("norm", "w2", 1.0),
    }


def test_fuses_are_visible_nodes_with_names(graph: GradientGraph) -> None:
    fuses = [Fuse(kind, target, 0.5) for kind, target in EVERYWHERE]
    fused = insert_fuses(graph, fuses)
    assert sorted(node.name for node in fused.onnx.graph if node.domain == "gradfuse") == sorted(
        f.name for f in fuses
    )
    assert sorted(list_fuses(fused.onnx), key=str) == sorted(fuses, key=str)
    assert list_fuses(graph.onnx) == []


def test_removing_restores_the_graph(graph: GradientGraph, batch: dict[str, Array]) -> None:
    fused = insert_fuses(graph, [Fuse(kind, target, 0.01) for kind, target in EVERYWHERE])
    removed = remove_fuses(fused)
    assert [node.name for node in removed.onnx.graph] == [node.name for node in graph.onnx.graph]
    assert _text(removed) == _text(graph)
    before, after = (evaluate(g.onnx, batch) for g in (graph, removed))
    assert list(after) == list(before)
    for name, array in before.items():
        assert after[name].tobytes() == array.tobytes()


def test_the_unfused_graph_is_not_changed(graph: GradientGraph) -> None:
    before = _text(graph)
    insert_fuses(graph, [Fuse("value", "w1", 0.5)])
    assert _text(graph) == before


def test_a_fused_graph_survives_a_file(graph: GradientGraph, batch: dict[str, Array], tmp_path: Path) -> None:
    fused = insert_fuses(graph, [Fuse(kind, target, 0.01) for kind, target in EVERYWHERE])
    path = fused.save(tmp_path / "fused.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    loaded = ir.load(path)
    assert [fuse.target for fuse in list_fuses(loaded)] == [fuse.target for fuse in list_fuses(fused.onnx)]
    before, after = evaluate(fused.onnx, batch), evaluate(loaded, batch)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def test_a_fuse_on_a_parameter_leaves_the_backward_pass_alone(build: Build) -> None:
    """The gradient of BatchNormalization's scale and bias is used again for the gradient of its input."""
    rng = np.random.default_rng(0)
    model = build(
        "z = MatMul (x, w) y = BatchNormalization (z, scale, bias, mean, var)",
        {
            "w": rng.standard_normal((3, 2)).astype(np.float32),
            "scale": np.ones(2, np.float32),
            "bias": np.zeros(2, np.float32),
        },
        state={"mean": np.zeros(2, np.float32), "var": np.ones(2, np.float32)},
    )
    graph = GradientGraph.of(model, "mse")
    feeds = {
        name: rng.standard_normal((6, width)).astype(np.float32) for name, width in (("x", 3), ("target", 2))
    }
    before = _gradients(graph, feeds)
    after = _gradients(insert_fuses(graph, [Fuse("value", name, 1e-4) for name in ("scale", "bias")]), feeds)
    np.testing.assert_array_equal(after["w"], before["w"])
    assert max(np.abs(after[name]).max() for name in ("scale", "bias")) <= np.float32(1e-4)


@pytest.mark.parametrize(("kind", "target"), [("value", "w"), ("norm", "w"), ("global-norm", ALL_PARAMETERS)])
def test_doubles(build: Build, kind: str, target: str) -> None:
    model = build(
        "y = Gemm (x, w)", {"w": np.ones((3, 2))}, inputs="double[batch, 3] x", outputs="double[batch, 2] y"
    )
    graph = GradientGraph.of(model, "output")
    feeds = {"x": np.ones((4, 3))}
    found = _gradients(insert_fuses(graph, [Fuse(kind, target, 0.25)]), feeds)["w"]
    expected = np.full((3, 2), 0.25 if kind == "value" else 0.25 / np.sqrt(6))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_fuses_are_removed_by_pattern_from_any_graph(graph: GradientGraph, batch: dict[str, Array]) -> None:
    fuses = [Fuse(kind, target, 0.01) for kind, target in EVERYWHERE]
    model = remove_fuses(insert_fuses(graph, fuses).onnx, "[bw]*")
    assert {fuse.target for fuse in list_fuses(model)} == {"h", "z", ALL_PARAMETERS}
    kept = [fuse for fuse in fuses if fuse.target in ("h", "z", ALL_PARAMETERS)]
    expected = evaluate(insert_fuses(graph, kept).onnx, batch)
    for name, array in evaluate(model, batch).items():
        np.testing.assert_array_equal(array, expected[name])
    assert len(list_fuses(remove_fuses(model, "h"))) == 2
    with pytest.raises(InputError, match="no fuse on 'b9'; a pattern for one of h, z, global-norm"):
        remove_fuses(model, "b9")


def test_a_fuse_keeps_its_reason(graph: GradientGraph, tmp_path: Path) -> None:
    fused = insert_fuses(graph, [Fuse("norm", "h", 1.0, "the flow grows 300-fold before it")])
    assert (
        list_fuses(ir.load(fused.save(tmp_path / "fused.onnx")))[0].reason
        == "the flow grows 300-fold before it"
    )


def test_adaptive_needs_a_weight(graph: GradientGraph) -> None:
    with pytest.raises(InputError, match="an adaptive fuse on 'h'; a parameter: one of w1, b1, w2, b2"):
        insert_fuses(graph, [Fuse("adaptive", "h", 0.01)])


@pytest.mark.parametrize(("kind", "target"), EVERYWHERE + ELSEWHERE)
def test_a_fuse_says_whether_it_bit(
    graph: GradientGraph, batch: dict[str, Array], kind: str, target: str
) -> None:
    for threshold, bites in ((1e-6, kind not in ("quantile", "zscore")), (0.999, False)):
        factor = 1e3 if kind not in ("quantile", "zscore") and not bites else 1.0
        fused = insert_fuses(graph, [Fuse(kind, target, threshold * factor)])
        (bit,) = fuse_bits(fused.onnx).values()
        fused.onnx.graph.outputs.append(bit)
        assert evaluate(fused.onnx, batch)[bit.name or ""] == np.array(bites)


def test_an_unknown_target_lists_what_exists(graph: GradientGraph) -> None:
    with pytest.raises(InputError, match=r"no gradient flows through 'nothing'; one of .*w1"):
        insert_fuses(graph, [Fuse("value", "nothing", 1.0)])


def test_a_quantile_lies_between_0_and_1() -> None:
    with pytest.raises(InputError, match=r"threshold 1\.0 of fuse/w1; a number between 0 and 1"):
        Fuse("quantile", "w1", 1.0)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_must_be_positive(threshold: float) -> None:
    with pytest.raises(InputError, match=r"threshold .* of fuse/w1; a positive number"):
        Fuse("value", "w1", threshold)


@pytest.mark.parametrize(
    ("kind", "target", "why"),
    [
        ("clip", "w1", "unknown kind of fuse 'clip'; one of value, norm, global-norm"),
        (
            "value",
            ALL_PARAMETERS,
            "a value fuse on 'global-norm'; the target 'global-norm' for .*zscore only",
        ),
        ("global-norm", "w1", "a global-norm fuse on 'w1'; the target 'global-norm'"),
    ],
)
def test_a_wrong_fuse(kind: str, target: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        Fuse(kind, target, 1.0)


@pytest.mark.parametrize("kind", ["norm", "global-norm"])
def test_an_overflowing_norm_is_not_hidden(build: Build, kind: str) -> None:
    """A gradient whose norm overflows becomes 0 or NaN, as in PyTorch, never a number that looks sound."""
    model = build("y = MatMul (x, w)", {"w": np.ones((3, 2), np.float32)})
    target = ALL_PARAMETERS if kind == "global-norm" else "w"
    graph = insert_fuses(GradientGraph.of(model, "output"), [Fuse(kind, target, 1.0)])
    found = _gradients(graph, {"x": np.full((4, 3), 1e30, np.float32)})["w"]
    assert not found.any() or np.isnan(found).all()
