import numpy as np
import pytest

from gradfuse.converters import convert
from gradfuse.converters.frameworks import require
from gradfuse.graph import InputError, UnsupportedError, evaluate

keras, tf = require("tensorflow", "keras"), require("tensorflow")

SIGNATURE = [tf.TensorSpec((None, 6), tf.float32, name="x")]


class Network(tf.Module):
    """Two variables of one name, and one that does not train."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.first = tf.Variable(rng.standard_normal((6, 4)), name="weight", dtype=tf.float32)
        self.second = tf.Variable(rng.standard_normal((4, 3)), name="weight", dtype=tf.float32)
        self.bias = tf.Variable(rng.standard_normal(3), name="bias", trainable=False, dtype=tf.float32)

    @tf.function(input_signature=SIGNATURE)
    def serve(self, x):
        return {"logits": tf.tanh(x @ self.first) @ self.second + self.bias}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    network = Network()
    tf.saved_model.save(network, str(path))
    return path, network


def test_a_saved_module_trains_its_variables(folder):
    path, network = folder
    conversion = convert(path)
    model, x = conversion.model, np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    assert sorted(model.parameters) == ["weight", "weight_2"]
    assert "bias" in model.onnx.graph.initializers
    assert [str(spec) for spec in (*model.inputs, *model.outputs)] == [
        "x float[batch, 6]",
        "logits float[batch, 3]",
    ]
    assert conversion.parity.error <= 1e-4
    np.testing.assert_allclose(
        evaluate(model.onnx, {"x": x})["logits"], network.serve(x)["logits"].numpy(), atol=1e-5
    )


def test_a_module_that_is_given_needs_no_folder():
    conversion = convert(Network())
    assert len(conversion.model.parameters) == 2
    assert conversion.parity.error <= 1e-4


def test_a_keras_model_exported_as_saved_model(tmp_path):
    keras.utils.set_random_seed(0)
    source = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(4, activation="gelu"), keras.layers.BatchNormalization()]
    )
    source.export(tmp_path, verbose=False)
    conversion = convert(tmp_path)
    names = {variable.path for variable in source.trainable_variables}
    assert set(conversion.model.parameters) == names
    assert conversion.parity.error <= 1e-4


def _save(path, function):
    module = tf.Module()
    module.serve = tf.function(function, input_signature=SIGNATURE)
    tf.saved_model.save(module, str(path))


@pytest.mark.parametrize(
    "act",
    [
        tf.io.read_file,
        lambda secret: (tf.io.write_file(secret, "x"), tf.constant(secret))[1],
        tf.io.matching_files,
        lambda secret: tf.py_function(lambda: "x", [], tf.string),
    ],
    ids=["read", "write", "list", "python"],
)
def test_a_graph_that_could_touch_a_file_is_refused_and_not_run(tmp_path, act):
    secret = tmp_path / "secret"

    @tf.function
    def inner(x):
        length = tf.strings.length(tf.strings.reduce_join(act(str(secret))))
        return x * tf.cast(length, tf.float32)

    _save(tmp_path / "m", lambda x: {"y": inner(x)})
    secret.write_text("untouched")
    with pytest.raises(
        UnsupportedError, match=r"holds the op \w+ .*which may do more than compute"
    ) as caught:
        convert(tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert secret.read_text() == "untouched"


def test_a_damaged_folder_is_one_line(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x03abc")
    with pytest.raises(InputError, match="is no SavedModel that can be read") as caught:
        convert(tmp_path)
    assert "\n" not in str(caught.value)
