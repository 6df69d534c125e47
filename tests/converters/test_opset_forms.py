"""Ops in the forms that older and newer opsets give them: each converts, computes the same, and has PyTorch's gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from gradfuse.converters import convert
from gradfuse.graph import ConversionError, GradientGraph, evaluate
from gradfuse.graph.model import FROZEN

Tensor = torch.Tensor

A, B = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.5, 1.5, 2.5])
CONSTANTS = """
    a = Constant <value = float[3] {1, -2, 3}> () b = Constant <value = float[3] {0.5, 1.5, 2.5}> ()
    scales = Constant <value = float[4] {1, 1, 2, 1.5}> () slope = Constant <value = float[3, 1, 1] {1, -2, 3}> ()
    one = Constant <value = int64[1] {1}> () two = Constant <value = int64[1] {2}> ()
    last = Constant <value = int64[1] {9223372036854775807}> () three = Constant <value = int64[1] {3}> ()
    half = Constant <value = float {0.5}> () picks = Constant <value = int64[1, 2] {1, 0}> ()
"""
IMAGE = (3, 4, 4)


def _coerced(function: Callable[[Tensor], Tensor], axis: int) -> Callable[[Tensor], Tensor]:
    """What Softmax was before opset 13: over all axes from `axis` on, together."""
    return lambda x: function(x.flatten(axis)).reshape(x.shape)


def _up(x: Tensor, mode: str, factors: tuple[float, float]) -> Tensor:
    """Resize by corners: pixel i takes the place i / factor; between two pixels it is interpolated, at the edge held."""
    for axis, factor in zip((2, 3), factors, strict=True):
        length = x.shape[axis]
        places = torch.arange(int(length * factor)) / factor
        below = places.floor().long()
        above = (below + 1).clamp(max=length - 1)
        part = (places - below) if mode == "linear" else torch.zeros_like(places)
        part = part.reshape(-1, *[1] * (3 - axis))
        x = x.index_select(axis, below) * (1 - part) + x.index_select(axis, above) * part
    return x


def _batch_norm(x: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, A, B, training=True)


def _rms(x: Tensor) -> Tensor:
    return functional.rms_norm(x, (4,), eps=1e-5) * 2.0


def _depth_to_space(x: Tensor) -> Tensor:
    blocks = x.reshape(-1, 2, 2, 1, 2, 2)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(-1, 1, 4, 4)


def _scattered(x: Tensor) -> Tensor:
    return torch.cat([torch.cat([x.new_tensor([[6.0, 5.0]]), x[:1, 2:]], 1), x[1:]])


def _grouped(x: Tensor, weight: Tensor) -> Tensor:
    return functional.group_norm(x, 2, weight, weight)


FORMS: list[tuple[int, str, tuple[int, ...], Callable[[Tensor], Tensor]]] = [
    (9, 'y = Upsample <mode = "nearest"> (x, scales)', IMAGE, lambda x: _up(x, "nearest", (2, 1.5))),
    (9, 'y = Upsample <mode = "linear"> (x, scales)', IMAGE, lambda x: _up(x, "linear", (2, 1.5))),
    (10, 'y = Resize <mode = "nearest"> (x, scales)', IMAGE, lambda x: _up(x, "nearest", (2, 1.5))),
    (10, 'y = Resize <mode = "linear"> (x, scales)', IMAGE, lambda x: _up(x, "linear", (2, 1.5))),
    (7, "y = BatchNormalization <spatial = 1> (x, a, b, mean, variance)", IMAGE, _batch_norm),
    (9, "y, m, v, n, w = BatchNormalization (x, a, b, mean, variance)", IMAGE, _batch_norm),
    (9, "y, mask = Dropout <ratio = 0.3> (x)", IMAGE, lambda x: x),
    (9, "y = Dropout <ratio = 0.3> (x)", IMAGE, lambda x: x),
    (12, "y, mask = Dropout (x, half)", IMAGE, lambda x: x),
    (9, "y = Softmax (x)", IMAGE, _coerced(lambda x: x.softmax(-1), 1)),
    (11, "y = Softmax <axis = 2> (x)", IMAGE, _coerced(lambda x: x.softmax(-1), 2)),
    (11, "y = Softmax <axis = -1> (x)", IMAGE, lambda x: x.softmax(-1)),
    (12, "y = LogSoftmax <axis = 1> (x)", IMAGE, _coerced(lambda x: x.log_softmax(-1), 1)),
    (13, "y = Softmax <axis = 1> (x)", IMAGE, lambda x: x.softmax(1)),
    (9, "y = Clip <min = -0.5, max = 0.5> (x)", IMAGE, lambda x: x.clamp(-0.5, 0.5)),
    (10, "y = Clip <min = -0.5> (x)", IMAGE, lambda x: x.clamp(min=-0.5)),
    (
        9,
        'y = Pad <mode = "constant", pads = [0, 0, 1, 0, 0, 0, 1, 2], value = 2.0> (x)',
        IMAGE,
        lambda x: functional.pad(x, (0, 2, 1, 1), value=2.0),
    ),
    (
        9,
        'y = Pad <mode = "reflect", pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x)',
        IMAGE,
        lambda x: functional.pad(x, (1, 1, 1, 1), "reflect"),
    ),
    (
        9,
        "s = Squeeze <axes = [1]> (x) y = Unsqueeze <axes = [2]> (s)",
        (1, 4),
        lambda x: x.mT,
    ),
    (9, "y = ReduceSum <axes = [1], keepdims = 0> (x)", IMAGE, lambda x: x.sum(1)),
    (12, "y = ReduceSum <axes = [-1, 1], keepdims = 1> (x)", IMAGE, lambda x: x.sum((1, 3), keepdim=True)),
    (17, "y = ReduceMean <axes = [1, -1], keepdims = 0> (x)", IMAGE, lambda x: x.mean((1, 3))),
    (17, "y = ReduceL2 <axes = [1], keepdims = 0> (x)", IMAGE, lambda x: x.norm(dim=1)),
    (13, "y = ReduceMax <axes = [2], keepdims = 0> (x)", IMAGE, lambda x: x.amax(2)),
    (9, "y = Slice <axes = [2, 3], starts = [1, 0], ends = [3, -1]> (x)", IMAGE, lambda x: x[:, :, 1:3, :-1]),
    (10, "y = Slice (x, one, last, two)", IMAGE, lambda x: x[:, :, 1:]),
    (9, "y, i = TopK <axis = 1, k = 2> (x)", IMAGE, lambda x: x.topk(2, 1).values),
    (10, "y, i = TopK <axis = 1> (x, two)", IMAGE, lambda x: x.topk(2, 1).values),
    (9, "p, q = Split <axis = 1, split = [1, 2]> (x) y = Mul (p, q)", IMAGE, lambda x: x[:, :1] * x[:, 1:]),
    (13, "p, q = Split <axis = 2> (x) y = Mul (p, q)", IMAGE, lambda x: x[:, :, :2] * x[:, :, 2:]),
    (9, "y = PRelu (x, slope)", IMAGE, lambda x: functional.prelu(x, A)),
    (
        9,
        "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)",
        IMAGE,
        lambda x: functional.max_pool2d(x, 2),
    ),
    (
        9,
        "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)",
        IMAGE,
        lambda x: functional.avg_pool2d(x, 3, 1, 1),
    ),
    (
        9,
        "y = Scatter <axis = 1> (x, picks, updates)",
        (3,),
        _scattered,
    ),
    (9, "y = DepthToSpace <blocksize = 2> (x)", (4, 2, 2), _depth_to_space),
    (
        11,
        'y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)',
        (4, 2, 2),
        lambda x: functional.pixel_shuffle(x, 2),
    ),
    (9, "y = Pow (x, exponent)", (3,), lambda x: x**2),
    (12, "e = Cast <to = 7> (exponent) y = Pow (x, e)", (3,), lambda x: x**2),
    (
        9,
        "y = InstanceNormalization (x, a, b)",
        IMAGE,
        lambda x: functional.instance_norm(x, weight=A, bias=B),
    ),
    (9, "f = Flatten (x) y = Selu (f)", IMAGE, lambda x: functional.selu(x.flatten(1))),
    (9, "y = LRN <size = 3> (x)", IMAGE, lambda x: functional.local_response_norm(x, 3)),
    (
        21,
        "g = Constant <value = float[4] {1, 2, 3, 4}> () y = GroupNormalization <num_groups = 2> (x, g, g)",
        (4, 3),
        lambda x: _grouped(x, torch.tensor([1.0, 2.0, 3.0, 4.0])),
    ),
    (22, "y = Elu (x)", (3,), functional.elu),
    (22, "y, mask = Dropout (x, half)", IMAGE, lambda x: x),
    (22, "y = BatchNormalization (x, a, b, mean, variance)", IMAGE, _batch_norm),
    (
        22,
        "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)",
        IMAGE,
        lambda x: functional.max_pool2d(x, 2),
    ),
    (23, "y = RMSNormalization (x, doubled)", (3, 4), _rms),
    (23, "y = Attention (x, x, x)", (2, 3, 4), lambda x: functional.scaled_dot_product_attention(x, x, x)),
    (
        23,
        "y = Attention <is_causal = 1> (x, x, x)",
        (2, 3, 4),
        lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    ),
    (24, "y = Swish (x)", (3,), functional.silu),
]


def _write(path: Path, opset: int, body: str, shape: tuple[int, ...], rank: int, version: int = 0) -> Path:
    """A model of one op behind a weight, of an IR version, or of that of the opset's time."""
    versions = (version for last, version in ((8, 3), (14, 7), (18, 8), (21, 10)) if opset <= last)
    text = f"""
        <ir_version: {version or next(versions, 14)}, opset_import: ["" : {opset}]>
        model (float[batch, {", ".join(map(str, shape))}] input) => (float[{", ".join("abcde"[:rank])}] y) <
            float[3] mean = {{0.5, 1.5, 2.5}}, float[3] variance = {{1, 2, 3}}, float[1, 2] updates = {{5, 6}},
            float[4] doubled = {{2, 2, 2, 2}}, float exponent = {{2}}
        > {{ {CONSTANTS} x = Mul (input, weight) {body} }}
    """
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(_weight(shape), "weight"))
    _keep_used(model)
    onnx.save(model, path)
    return path


def _weight(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def _keep_used(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    nodes = [node for node in model.graph.node if node.op_type != "Constant" or node.output[0] in used]
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)
    if model.ir_version < 4:
        for tensor in initializers:
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )


@pytest.mark.parametrize(
    ("opset", "body", "shape", "expected"), FORMS, ids=[f"{opset}: {body[:60]}" for opset, body, *_ in FORMS]
)
def test_a_form_converts_with_its_gradient(
    tmp_path: Path, opset: int, body: str, shape: tuple[int, ...], expected: Callable[[Tensor], Tensor]
) -> None:
    weight = torch.tensor(_weight(shape), requires_grad=True)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    y = expected(x * weight)
    target = torch.linspace(-1.0, 1.0, y.numel()).reshape(y.shape)
    functional.mse_loss(y, target).backward()  # type: ignore[no-untyped-call]  # torch's
    path = _write(tmp_path / "m.onnx", opset, body, shape, y.dim())
    conversion = convert(path, train=["weight"], tolerance=1e-5)
    assert conversion.parity is not None
    for node in conversion.model.onnx.graph:
        if node.op_type == "Dropout":
            node.metadata_props[FROZEN] = "true"
    graph = GradientGraph.of(conversion.model, "mse")
    results = evaluate(graph.onnx, {"input": x.numpy(), "target": target.numpy()})
    assert weight.grad is not None
    np.testing.assert_allclose(results["y"], y.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results["weight_grad"], weight.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", range(3, 15))
@pytest.mark.parametrize("opset", [9, 21, 23])
def test_each_version_of_the_format_converts(tmp_path: Path, opset: int, version: int) -> None:
    path = _write(tmp_path / "m.onnx", opset, "y = Relu (x)", (3,), 2, version)
    assert convert(path, train=["weight"]).parity is not None


@pytest.mark.parametrize("opset", [7, 9, 12, 13, 22])
def test_a_dropout_keeps_its_ratio(tmp_path: Path, opset: int) -> None:
    body = "y = Dropout <ratio = 0.5> (x)" if opset < 12 else "y = Dropout (x, half)"
    model = convert(_write(tmp_path / "m.onnx", opset, body, (3,), 2), train=["weight"]).model
    (node,) = (node for node in model.onnx.graph if node.op_type == "Dropout")
    ratio = ir.convenience.get_const_tensor(node.inputs[1])
    assert ratio is not None
    assert ratio.numpy() == 0.5


def test_an_op_without_a_counterpart_is_refused_in_one_line(tmp_path: Path) -> None:
    body = "n = Constant <value = int64[1, 3] {0, 1, 2}> () y = RotaryEmbedding (x, table, table, n)"
    path = _write(tmp_path / "m.onnx", 23, f"table = ConstantOfShape (picks) {body}", (2, 3, 4), 4)
    with pytest.raises(ConversionError, match=r"from opset 23 to 21: .*RotaryEmbedding") as caught:
        convert(path, train=["weight"])
    assert "\n" not in str(caught.value)
