"""Small models as ONNX text, and data to train them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gradfuse.graph import TrainableModel
from gradfuse.graph.model import UNBIASED_VARIANCE

Array = np.ndarray[Any, Any]

MLP = """
<ir_version: 10, opset_import: ["" : 18]>
mlp (float[batch, 64] x) => (float[batch, 10] y) {
    z = Gemm <transB = 1> (x, fc1_weight, fc1_bias)
    h = Relu (z)
    y = Gemm <transB = 1> (h, fc2_weight, fc2_bias)
}
"""

CNN = """
<ir_version: 10, opset_import: ["" : 18]>
cnn (float[batch, 1, 8, 8] x) => (float[batch, 10] y) {
    c = Conv <pads = [1, 1, 1, 1], kernel_shape = [3, 3]> (x, conv_weight)
    n = BatchNormalization <epsilon = 1e-5> (c, bn_weight, bn_bias, bn_running_mean, bn_running_var)
    r = Relu (n)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, fc_weight, fc_bias)
}
"""

DROPOUT = """
<ir_version: 10, opset_import: ["" : 18]>
net (float[batch, 64] x) => (float[batch, 10] y) {
    z = Gemm <transB = 1> (x, fc1_weight, fc1_bias)
    n = BatchNormalization <epsilon = 1e-5> (z, bn_weight, bn_bias, bn_running_mean, bn_running_var)
    h = Relu (n)
    ratio = Constant <value_float = 0.25> ()
    d = Dropout (h, ratio)
    y = Gemm <transB = 1> (d, fc2_weight, fc2_bias)
}
"""

_SHAPES = {
    "mlp": {"fc1_weight": (32, 64), "fc1_bias": (32,), "fc2_weight": (10, 32), "fc2_bias": (10,)},
    "cnn": {
        "conv_weight": (6, 1, 3, 3),
        "bn_weight": (6,),
        "bn_bias": (6,),
        "fc_weight": (10, 96),
        "fc_bias": (10,),
    },
    "dropout": {
        "fc1_weight": (32, 64),
        "fc1_bias": (32,),
        "bn_weight": (32,),
        "bn_bias": (32,),
        "fc2_weight": (10, 32),
        "fc2_bias": (10,),
    },
}
_TEXTS = {"mlp": MLP, "cnn": CNN, "dropout": DROPOUT}


def _initial(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if name.startswith("bn"):
        return (np.zeros if name in ("bn_bias", "bn_running_mean") else np.ones)(shape, np.float32)
    bound = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def build(name: str) -> TrainableModel:
    rng = np.random.default_rng(0)
    shapes = dict(_SHAPES[name])
    statistics = {
        key: shapes["bn_bias"] for key in ("bn_running_mean", "bn_running_var") if "bn_bias" in shapes
    }
    proto = onnx.parser.parse_model(_TEXTS[name])
    for key, shape in {**shapes, **statistics}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(_initial(key, shape, rng), key))
    model = ir.serde.deserialize_model(proto)
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            node.metadata_props[UNBIASED_VARIANCE] = "true"
    return TrainableModel(model, tuple(shapes))


@pytest.fixture
def model() -> Callable[[str], TrainableModel]:
    """Builds `mlp`, `cnn` (with batch normalisation) or `dropout` (with batch normalisation too)."""
    return build


@pytest.fixture
def examples() -> Callable[..., tuple[Array, Array]]:
    """Makes data that are hard to tell apart: ten noisy prototypes and their labels."""

    def make(count: int = 256, *shape: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(1)
        prototypes = rng.standard_normal((10, *(shape or (64,))))
        labels = rng.integers(0, 10, count)
        x = prototypes[labels] + 2.0 * rng.standard_normal((count, *(shape or (64,))))
        return x.astype(np.float32), labels

    return make
