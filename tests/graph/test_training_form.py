"""BatchNormalization and Dropout in training: batch statistics, running statistics, frozen nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from gradfuse.graph import GradientGraph, TrainableModel, UnsupportedError, evaluate
from gradfuse.graph.model import FROZEN, PER_INSTANCE, UNBIASED_VARIANCE

Array = np.ndarray[Any, Any]
Build = Callable[..., TrainableModel]

NORM = "y = BatchNormalization <momentum = 0.75, epsilon = 0.001> (x, scale, bias, mean, var)"
SHAPES = ((5, 3), (4, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2))


def _norm(build: Build, rank: int, body: str = NORM, marks: tuple[str, ...] = ()) -> TrainableModel:
    rng = np.random.default_rng(0)
    dims = ", ".join(["batch", "3", *(f"s{axis}" for axis in range(2, rank))])
    model = build(
        body,
        {name: rng.uniform(0.5, 2, 3).astype(np.float32) for name in ("scale", "bias")},
        state={name: rng.uniform(0.5, 2, 3).astype(np.float32) for name in ("mean", "var")},
        inputs=f"float[{dims}] x",
        outputs=f"float[{dims}] y",
    )
    for node in model.onnx.graph:
        node.metadata_props.update(dict.fromkeys(marks, "true"))
    return model


def _torch(model: TrainableModel, rank: int) -> torch.nn.Module:
    kind = {
        2: torch.nn.BatchNorm1d,
        3: torch.nn.BatchNorm1d,
        4: torch.nn.BatchNorm2d,
        5: torch.nn.BatchNorm3d,
    }
    module = kind[rank](3, eps=np.float32(0.001).item(), momentum=0.25)
    values = {
        n: torch.from_numpy(v.const_value.numpy().copy()) for n, v in model.onnx.graph.initializers.items()
    }
    module.load_state_dict(
        {
            "weight": values["scale"],
            "bias": values["bias"],
            "running_mean": values["mean"],
            "running_var": values["var"],
            "num_batches_tracked": torch.tensor(0),
        }
    )
    return module


def _feeds(shape: tuple[int, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal(shape).astype(np.float32) * 3 + 1,
        "target": rng.standard_normal(shape).astype(np.float32),
    }


@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_is_that_of_pytorch(build: Build, shape: tuple[int, ...], training: bool) -> None:
    rank = len(shape)
    model = _norm(build, rank, marks=(UNBIASED_VARIANCE,) if training else (FROZEN,))
    module, feeds = _torch(model, rank).train(training), _feeds(shape)
    found = evaluate(GradientGraph.of(model, "mse").onnx, feeds)
    y = module(torch.from_numpy(feeds["x"]))
    torch.nn.functional.mse_loss(y, torch.from_numpy(feeds["target"])).backward()
    np.testing.assert_allclose(found["y"], y.detach(), rtol=1e-4, atol=1e-5)
    for name, parameter in (("scale", module.weight), ("bias", module.bias)):
        np.testing.assert_allclose(found[f"{name}_grad"], parameter.grad, rtol=1e-4, atol=1e-6)
    if training:
        np.testing.assert_allclose(found["mean_new"], module.running_mean, rtol=1e-5)
        np.testing.assert_allclose(found["var_new"], module.running_var, rtol=1e-5)
    else:
        assert "mean_new" not in found


def test_the_input_gradient_goes_through_the_statistics(build: Build) -> None:
    rng = np.random.default_rng(0)
    shape = (2, 3, 4, 5)
    weight = rng.standard_normal(shape).astype(np.float32)
    model = build(
        "z = Mul (x, w) " + NORM.replace("(x,", "(z,"),
        {"w": weight, "scale": np.ones(3, np.float32), "bias": np.zeros(3, np.float32)},
        state={"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)},
        inputs="float[2, 3, 4, 5] x",
        outputs="float[2, 3, 4, 5] y",
    )
    feeds = _feeds(shape)
    found = evaluate(GradientGraph.of(model, "mse").onnx, feeds)
    leaf = torch.from_numpy(weight).requires_grad_()
    y = torch.nn.functional.batch_norm(
        torch.from_numpy(feeds["x"]) * leaf, None, None, torch.ones(3), torch.zeros(3), True, eps=0.001
    )
    torch.nn.functional.mse_loss(y, torch.from_numpy(feeds["target"])).backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(found["w_grad"], leaf.grad, rtol=1e-3, atol=1e-7)


def test_the_running_variance_of_onnx_is_biased(build: Build) -> None:
    feeds = _feeds((5, 3))
    model = _norm(build, 2)
    found = evaluate(GradientGraph.of(model, "mse").onnx, feeds)
    old = model.onnx.graph.initializers["var"].const_value.numpy()
    np.testing.assert_allclose(found["var_new"], 0.75 * old + 0.25 * feeds["x"].var(0), rtol=1e-5)


def test_a_layer_that_is_applied_twice_moves_its_statistics_twice(build: Build) -> None:
    twice = NORM.replace("y =", "h =") + NORM.replace("(x,", "(h,")
    model = _norm(build, 2, twice, (UNBIASED_VARIANCE,))
    module, feeds = _torch(model, 2).train(), _feeds((5, 3))
    found = evaluate(GradientGraph.of(model, "mse").onnx, feeds)
    y = module(module(torch.from_numpy(feeds["x"])))
    torch.nn.functional.mse_loss(y, torch.from_numpy(feeds["target"])).backward()
    np.testing.assert_allclose(found["mean_new"], module.running_mean, rtol=1e-5)
    np.testing.assert_allclose(found["var_new"], module.running_var, rtol=1e-5)
    np.testing.assert_allclose(found["scale_grad"], module.weight.grad, rtol=1e-4, atol=1e-6)


def test_the_inputs_are_not_written_to(build: Build) -> None:
    feeds = _feeds((5, 3)) | {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}
    before = {name: array.copy() for name, array in feeds.items()}
    evaluate(GradientGraph.of(_norm(build, 2), "mse").onnx, feeds)
    for name, array in feeds.items():
        np.testing.assert_array_equal(array, before[name])


def test_an_input_of_unknown_rank_is_refused(build: Build) -> None:
    model = _norm(build, 2)
    model.onnx.graph.inputs[0].shape = None
    for value in model.onnx.graph.outputs:
        value.shape = None
    with pytest.raises(UnsupportedError, match=r"BatchNormalization node .* unknown rank"):
        GradientGraph.of(model, "mse")


DROPOUT = "h = Mul (x, w) r = Constant <value_float = 0.25> () y = Dropout (h, r)"


def _dropout(build: Build, marks: tuple[str, ...] = ()) -> TrainableModel:
    model = build(DROPOUT, {"w": np.full(3, 2, np.float32)}, outputs="float[batch, 3] y")
    for node in model.onnx.graph:
        node.metadata_props.update(dict.fromkeys(marks, "true"))
    return model


def test_dropout_drops_in_training_and_its_gradient_with_it(build: Build) -> None:
    onnxruntime.set_seed(3)
    found = evaluate(GradientGraph.of(_dropout(build), "output").onnx, {"x": np.ones((400, 3), np.float32)})
    kept = found["y"] != 0
    assert 0.70 < kept.mean() < 0.80
    np.testing.assert_allclose(found["y"][kept], 2 / 0.75, rtol=1e-6)
    np.testing.assert_allclose(found["w_grad"], kept.sum(0) / 0.75 / kept.size, rtol=1e-5)


def test_frozen_dropout_drops_nothing(build: Build) -> None:
    model = _dropout(build, (FROZEN,))
    found = evaluate(GradientGraph.of(model, "output").onnx, {"x": np.ones((4, 3), np.float32)})
    assert (found["y"] == 2).all()
    np.testing.assert_allclose(found["w_grad"], np.full(3, 1 / 3), rtol=1e-6)


def test_a_node_in_training_mode_becomes_the_same_training_form(build: Build) -> None:
    feeds = _feeds((5, 3))
    body = NORM.replace("y =", "y, m, v =").replace("<", "<training_mode = 1, ")
    plain, training = (
        evaluate(GradientGraph.of(_norm(build, 2, text), "mse").onnx, feeds) for text in (NORM, body)
    )
    for name in ("loss", "scale_grad", "mean_new", "var_new"):
        np.testing.assert_allclose(training[name], plain[name], rtol=1e-6)


def test_a_node_in_training_mode_whose_statistics_are_used_is_refused(build: Build) -> None:
    body = NORM.replace("y =", "n, m, v =").replace("<", "<training_mode = 1, ") + " y = Mul (n, m)"
    with pytest.raises(UnsupportedError, match="running statistics are used"):
        GradientGraph.of(_norm(build, 2, body), "mse")


def test_a_frozen_node_in_training_mode_is_refused(build: Build) -> None:
    body = NORM.replace("<", "<training_mode = 1, ")
    with pytest.raises(UnsupportedError, match="training_mode"):
        GradientGraph.of(_norm(build, 2, body, (FROZEN,)), "mse")


def test_a_dropout_before_every_parameter_keeps_its_mask_in_use(build: Build) -> None:
    """Otherwise onnxruntime 1.32 removes it; the node that reads the mask changes nothing."""
    body = """
        half = Constant <value_float = 0.5> ()
        s = Sqrt (x)
        d = Dropout (s, half)
        m = MatMul (d, w)
        y = Dropout (m, half)
    """
    graph = GradientGraph.of(build(body, {"w": np.eye(3, 2, dtype=np.float32)})).onnx
    early, late = (node for node in graph.graph if node.op_type == "Dropout")
    ((reader, _),) = early.outputs[1].uses()
    assert reader.op_type == "Where"
    assert all(user.op_type != "Where" for user, _ in late.outputs[1].uses())
    graph.graph.outputs.extend([early.outputs[0], reader.outputs[0]])
    results = evaluate(graph, {"x": np.ones((16, 3), np.float32), "target": np.zeros(16, np.int64)})
    dropped = results[reader.outputs[0].name or ""]
    np.testing.assert_array_equal(results[early.outputs[0].name or ""], dropped)
    assert sorted(set(np.unique(dropped))) == pytest.approx([0.0, 2.0])


@pytest.mark.parametrize("rank", [3, 4])
def test_statistics_per_instance_are_those_of_instance_norm(build: Build, rank: int) -> None:
    model = _norm(build, rank, marks=(PER_INSTANCE, UNBIASED_VARIANCE))
    kind = {3: torch.nn.InstanceNorm1d, 4: torch.nn.InstanceNorm2d}[rank]
    module = kind(3, eps=np.float32(0.001).item(), momentum=0.25, affine=True, track_running_stats=True)
    module.load_state_dict(_torch(model, rank).state_dict())
    x = np.random.default_rng(3).standard_normal(SHAPES[rank - 2]).astype(np.float32)
    found = evaluate(GradientGraph.of(model, "output").onnx, {"x": x})
    y = module(torch.from_numpy(x))
    y.mean().backward()
    np.testing.assert_allclose(found["y"], y.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["bias_grad"], module.bias.grad, rtol=1e-5)
    np.testing.assert_allclose(found["mean_new"], module.running_mean, rtol=1e-5)
    np.testing.assert_allclose(found["var_new"], module.running_var, rtol=1e-5)
