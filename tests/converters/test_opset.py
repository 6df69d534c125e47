import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gradfuse.converters.opset import to_opset
from gradfuse.graph.model import FROZEN
from gradfuse.graph.source import LAYER

TEXT = """
<ir_version: 8, opset_import: ["" : 13]>
g (float[batch, 2] x) => (float[batch, 2] y)
<float[2] scale = {1, 2}, float[2] shift = {0, 1}, float[2] mean = {0, 0}, float[2] variance = {1, 1}>
{ n = BatchNormalization (x, scale, shift, mean, variance) y = Relu (n) }
"""


@pytest.fixture
def model():
    model = ir.serde.deserialize_model(onnx.parser.parse_model(TEXT))
    for index, node in enumerate(model.graph):
        node.metadata_props.update({FROZEN: "true", LAYER: f"layer{index}"})
    return model


@pytest.mark.parametrize("opset", [18, 21])
def test_marks_and_layers_survive(model, opset):
    converted = to_opset(model, opset)
    assert converted.opset_imports[""] == opset
    assert [node.metadata_props for node in converted.graph] == [node.metadata_props for node in model.graph]
    assert [node.metadata_props[LAYER] for node in converted.graph] == ["layer0", "layer1"]


def test_the_given_model_stays_as_it_was(model):
    before = ir.serde.serialize_model(model).SerializeToString()
    to_opset(model, 18)
    assert ir.serde.serialize_model(model).SerializeToString() == before


def test_a_large_weight_is_the_same_object_afterwards(model):
    weight = ir.tensor(np.zeros(4096, np.float32), name="large")
    model.graph.register_initializer(ir.val("large", const_value=weight))
    assert to_opset(model, 18).graph.initializers["large"].const_value is weight


def test_nothing_happens_at_the_same_opset(model):
    assert to_opset(model, 13) is model
