import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tensorflow as tf

import gradfuse
from gradfuse.converters import convert, from_keras
from gradfuse.converters.frameworks import require
from gradfuse.graph import ConversionError, GradientGraph, InputError, ParityError, UnsupportedError, evaluate
from gradfuse.graph.model import FROZEN, UNBIASED_VARIANCE
from gradfuse.graph.source import source_layer
from gradfuse.models import cnn

keras = require("tensorflow", "keras")
layers = keras.layers


@pytest.fixture(scope="module")
def source():
    """Everything that a converter can lose: BatchNorm on any axis, dropout of every kind, frozen layers, two outputs."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 5), name="sequence")
    h = layers.BatchNormalization(axis=1, momentum=0.7, epsilon=0.02, scale=False, name="rows")(x)
    h = layers.Dense(4, activation="gelu", name="wide")(h)
    h = layers.BatchNormalization(center=False, momentum=0.8, name="columns")(h)
    h = layers.SpatialDropout1D(0.3, name="spatial")(h)
    h = layers.Dropout(0.2, noise_shape=(None, 6, 1), name="rowwise")(h)
    h = layers.BatchNormalization(name="frozen")(h)
    h = layers.LayerNormalization(name="norm")(h)
    h = layers.Dropout(0.1, name="plain")(layers.Flatten()(h))
    h = layers.Dense(4, activation="tanh", trainable=False, name="fixed")(h)
    model = keras.Model(
        x, [layers.Dense(3, name="logits")(h), layers.Dense(2, activation="softmax", name="aux")(h)]
    )
    model.get_layer("frozen").trainable = False
    for name in ("rows", "columns", "frozen"):
        bn = model.get_layer(name)
        bn.moving_mean.assign(np.linspace(-1, 1, bn.moving_mean.shape[0]))
        bn.moving_variance.assign(np.linspace(0.5, 2, bn.moving_mean.shape[0]))
    return model


@pytest.fixture(scope="module")
def conversion(source):
    return convert(source)


@pytest.fixture(scope="module")
def model(conversion):
    return conversion.model


def nodes(model, op_type):
    return [node for node in model.onnx.graph if node.op_type == op_type]


def test_outputs_gradients_and_statistics_agree_with_the_gradient_tape(conversion):
    assert conversion.parity.error <= conversion.parity.tolerance
    assert conversion.parity.compared == 2 + 8 + 4 + 2


def test_parameters_keep_their_names_and_values(source, model):
    expected = {variable.path: variable for variable in source.trainable_variables}
    assert set(model.parameters) == set(expected)
    for name, variable in expected.items():
        np.testing.assert_array_equal(
            model.onnx.graph.initializers[name].const_value.numpy(), variable.numpy()
        )


def test_frozen_variables_are_kept_but_do_not_train(model):
    for name in ("fixed/kernel", "fixed/bias", "frozen/gamma"):
        assert name in model.onnx.graph.initializers
        assert name not in model.parameters


def test_a_sequential_names_its_variables_without_itself():
    model = from_keras(cnn.keras(channels=2))
    assert model.parameters[:4] == ("conv1/kernel", "conv1/bias", "bn1/gamma", "bn1/beta")
    assert model.state[:2] == ("bn1/moving_mean", "bn1/moving_variance")
    assert [str(spec) for spec in (*model.inputs, *model.outputs)] == [
        "input float[batch, 64]",
        "fc float[batch, 10]",
    ]


def test_batchnorm_is_alive_with_its_momentum_and_marks(model):
    rows, columns, frozen = nodes(model, "BatchNormalization")
    assert [source_layer(node) for node in (rows, columns, frozen)] == ["rows", "columns", "frozen"]
    assert [node.attributes["momentum"].value for node in (rows, columns)] == pytest.approx([0.7, 0.8])
    assert [node.attributes["epsilon"].value for node in (rows, columns)] == pytest.approx([0.02, 0.001])
    assert [value.name for value in rows.inputs[2:]] == [
        "rows/beta",
        "rows/moving_mean",
        "rows/moving_variance",
    ]
    assert [FROZEN in node.metadata_props for node in (rows, columns, frozen)] == [False, False, True]
    assert not any(UNBIASED_VARIANCE in node.metadata_props for node in (rows, columns, frozen))


def test_dropout_of_every_kind_is_alive_in_inference_form(model):
    ratios = {
        source_layer(node): float(ir.convenience.get_const_tensor(node.inputs[1]).numpy())
        for node in nodes(model, "Dropout")
    }
    assert ratios == pytest.approx({"spatial": 0.3, "rowwise": 0.2, "plain": 0.1})
    assert all(len(node.inputs) == 2 for node in nodes(model, "Dropout"))


def test_spatial_dropout_drops_whole_features(model):
    graph = GradientGraph.of(model).onnx
    (node,) = [node for node in graph.graph if node.op_type == "Mul" and node.name.startswith("spatial")]
    graph.graph.outputs.append(node.outputs[0])
    x = np.random.default_rng(0).random((4, 6, 5)).astype(np.float32)
    dropped = evaluate(graph, {"sequence": x, "target": np.zeros(4, np.int64)})[node.outputs[0].name] == 0
    assert dropped.any()
    assert (dropped.all(axis=1) == dropped.any(axis=1)).all()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size_gives_what_the_model_gives_at_inference(source, model, batch):
    x = np.random.default_rng(batch).random((batch, 6, 5)).astype(np.float32)
    outputs = evaluate(model.onnx, {"sequence": x})
    assert list(outputs) == ["logits", "aux"]
    for output, expected in zip(outputs.values(), source(x, training=False), strict=True):
        np.testing.assert_allclose(output, expected.numpy(), atol=1e-5)


def test_running_statistics_move_as_in_keras():
    source = cnn.keras(channels=2, dropout=0.0)
    model = from_keras(source)
    x = np.random.default_rng(0).random((6, 64)).astype(np.float32)
    results = evaluate(GradientGraph.of(model).onnx, {"input": x, "target": np.zeros(6, np.int64)})
    before = source.get_layer("bn2").moving_variance.numpy()
    source(x, training=True)
    assert not np.allclose(source.get_layer("bn2").moving_variance.numpy(), before)
    for name in ("bn1", "bn2"):
        bn = source.get_layer(name)
        np.testing.assert_allclose(results[f"{name}/moving_mean_new"], bn.moving_mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(
            results[f"{name}/moving_variance_new"], bn.moving_variance.numpy(), rtol=1e-5
        )


def test_the_model_stays_as_it_was():
    source = cnn.keras(channels=2)
    weights = [variable.numpy() for variable in source.variables]
    convert(source)
    for variable, before in zip(source.variables, weights, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before, err_msg=variable.path)
    x = np.ones((2, 64), np.float32)
    assert not np.array_equal(source(x, training=True), source(x, training=True)), "dropout is gone"


def test_nodes_know_their_layer(model):
    assert {source_layer(node) for node in nodes(model, "MatMul")} >= {"wide", "fixed", "logits", "aux"}
    assert source_layer(nodes(model, "Erf")[0]) == "wide"


def test_layers_that_keras_numbers_are_not_taken_for_scopes_that_tensorflow_numbers():
    twice = layers.Dense(4, name="dense")
    inner = keras.Sequential([layers.Dense(4, name="dense_2")], name="inner")
    model = from_keras(
        keras.Sequential([keras.Input((4,)), twice, layers.Dense(4, name="dense_1"), twice, inner])
    )
    assert [(node.name, source_layer(node)) for node in nodes(model, "MatMul")] == [
        ("dense/MatMul", "dense"),
        ("dense_1/MatMul", "dense_1"),
        ("dense/MatMul_2", "dense"),
        ("inner/dense_2/MatMul", "inner/dense_2"),
    ]


@pytest.mark.parametrize("opset", [18, 21])
def test_the_file_is_valid_and_no_newer_than_onnxruntime_training_reads(opset, tmp_path):
    path = from_keras(cnn.keras(channels=2), opset=opset).save(tmp_path / "m.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path)
    assert proto.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]


def test_several_inputs_in_a_dictionary_and_tokens():
    tokens, x = keras.Input((4,), dtype="int32", name="tokens"), keras.Input((3,), name="x")
    table = layers.Embedding(7, 3, name="table")(tokens)
    y = layers.Dense(1)(layers.Add()([layers.GlobalAveragePooling1D()(table), x]))
    conversion = convert(keras.Model({"x": x, "tokens": tokens}, y))
    assert {str(spec) for spec in conversion.model.inputs} == {"tokens int32[batch, 4]", "x float[batch, 3]"}
    assert conversion.parity.loss == "mse"


def test_attention_with_dropout():
    # The dropout inside has no name of ours: Keras counts layers of a kind from here on.
    keras.backend.clear_session()
    x = keras.Input((4, 6))
    h = layers.MultiHeadAttention(2, 3, dropout=0.1, name="attention")(x, x)
    conversion = convert(keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(h))))
    assert [source_layer(node) for node in nodes(conversion.model, "Dropout")] == ["attention/dropout"]


def test_conversion_is_silent(capfd):
    from_keras(cnn.keras(channels=2))
    assert capfd.readouterr() == ("", "")


def test_what_draws_other_random_numbers_is_refused():
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.RandomFlip(name="flip"), layers.Flatten()])
    with pytest.raises(
        UnsupportedError, match=r"the RandomFlip layer 'flip' changes its variable .* while it trains"
    ):
        convert(model)


def test_a_masked_batchnorm_is_refused():
    model = keras.Sequential([keras.Input((4, 2)), layers.Masking(), layers.BatchNormalization(name="bn")])
    with pytest.raises(UnsupportedError, match="the BatchNormalization layer 'bn' has a mask"):
        convert(model)


def test_an_op_without_a_counterpart_is_named_with_its_layer():
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(layers.Lambda(keras.ops.erfinv, name="inverse")(x)))
    with pytest.raises(
        ConversionError, match=r"tf2onnx cannot convert Erfinv node 'inverse.*' \(layer inverse\)"
    ):
        convert(model)


def test_a_model_whose_code_fails_is_one_line():
    class Broken(layers.Layer):
        def call(self, x, training=False):
            if training:
                raise ValueError("first line\nsecond line")
            return x

    x = keras.Input((4,))
    with pytest.raises(
        ConversionError, match=r"refuses the Keras model .*Broken.call\(\). first line;"
    ) as caught:
        convert(keras.Model(x, Broken()(x)))
    assert "\n" not in str(caught.value)


class Doubling(layers.Layer):
    """Doubles its input at inference only."""

    def call(self, x, training=False):
        return x if training else 2.0 * x


def test_a_layer_that_branches_on_its_mode_is_refused():
    x = keras.Input((4,))
    model = keras.Model(x, Doubling()(layers.Dense(3, name="fc")(x)))
    message = r"output '\w+' of the inference form at \[\d, \d\] is -?[\d.e-]+, in keras -?[\d.e-]+: "
    with pytest.raises(ParityError, match=message) as caught:
        convert(model)
    assert "the graph is made of what the forward does in train mode" in str(caught.value)
    assert "\n" not in str(caught.value)


class Counting(layers.Layer):
    """Multiplies by how often it was called."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = 0

    def call(self, x):
        self.calls += 1
        return x * float(self.calls)


def test_a_layer_with_a_side_effect_in_python_is_refused():
    x = keras.Input((4,))
    model = keras.Model(x, Counting()(layers.Dense(3)(x)))
    with pytest.raises(ParityError, match=r"again with the same inputs, keras's model .*; .*counts calls"):
        convert(model)


def test_a_call_of_python_is_named_with_its_layer():
    class Python(layers.Layer):
        def call(self, x):
            return tf.ensure_shape(tf.py_function(lambda y: 2 * y, [x], tf.float32), x.shape)

    x = keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(Python(name="eager")(x)))
    with pytest.raises(
        ConversionError, match=r"EagerPyFunc node .*\(layer eager\); .*; .*in place of Python"
    ):
        convert(model)


def test_an_unbuilt_model_is_refused_with_advice():
    with pytest.raises(InputError, match=r"is not built; .*keras.Input"):
        convert(keras.Sequential([layers.Dense(2)]))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.fc, self.head = layers.Dense(4, name="fc"), layers.Dense(2, name="head")

    def call(self, inputs):
        return {"logits": self.head(self.fc(inputs["a"]) * inputs["b"]), "features": inputs["b"]}


def test_a_model_of_a_class_of_its_own():
    model = Subclassed()
    model({"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 1), np.float32)})
    conversion = convert(model)
    assert conversion.model.parameters == ("fc/kernel", "fc/bias", "head/kernel", "head/bias")
    assert [str(spec) for spec in conversion.model.inputs] == [
        "input_0 float[batch, 3]",
        "input_1 float[batch, 1]",
    ]
    assert [spec.dims for spec in conversion.model.outputs] == [("batch", 1), ("batch", 2)]


def test_a_model_that_does_not_tell_its_input_is_refused():
    model = Subclassed()
    model.built = True
    with pytest.raises(InputError, match=r"does not tell the shape of its input; .*called on one argument"):
        convert(model)


def test_an_open_length_needs_an_example():
    x = keras.Input((None, 3), name="x")
    model = keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    with pytest.raises(
        InputError, match=r"takes inputs of shape \[None, None, 3\]; example_input, or --input-shape"
    ):
        convert(model)
    assert convert(model, example_input=(4, 3)).parity.error < 1e-4


def test_what_keras_adds_to_training_is_told():
    x = keras.Input((4,))
    layer = layers.Dense(2, kernel_regularizer="l2", bias_constraint="non_neg", name="fc")
    (penalty, projection) = convert(keras.Model(x, layer(x))).notes
    assert penalty.startswith("the regularizer of fc/kernel stays with Keras")
    assert projection.startswith("the constraint of fc/bias stays with Keras")


def test_frozen_variables_are_bit_identical_after_training(source, conversion):
    rng = np.random.default_rng(0)
    data = rng.standard_normal((12, 6, 5)).astype(np.float32), rng.integers(0, 3, 12)
    frozen = {v.path: v.numpy() for layer in ("fixed", "frozen") for v in source.get_layer(layer).weights}
    trained = gradfuse.train(conversion.model, data, epochs=2, batch_size=4, validation=0.0, lr=0.1)
    home = keras.models.clone_model(source)
    home.set_weights(source.get_weights())
    trained.to_source(home)
    after = {variable.path: variable.numpy() for variable in home.variables}
    assert any(not np.array_equal(after[name], v.numpy()) for name, v in _by_path(source, "wide").items())
    for name, before in frozen.items():
        np.testing.assert_array_equal(after[name], before, err_msg=name)


def _by_path(model, layer):
    return {variable.path: variable for variable in model.get_layer(layer).weights}


@pytest.mark.parametrize(
    ("layer", "mean", "variance"),
    [
        (layers.GaussianNoise(0.5), 2.0, 0.25),
        (layers.GaussianDropout(0.2), 2.0, 0.25 * 4),
        (layers.AlphaDropout(0.2), None, None),
    ],
    ids=["GaussianNoise", "GaussianDropout", "AlphaDropout"],
)
def test_noise_is_live_in_training_and_gone_at_inference(layer, mean, variance):
    x = keras.Input((5000, 1))
    model = from_keras(keras.Model(x, layers.Dense(1, kernel_initializer="ones")(layer(x))))
    data = np.full((8, 5000, 1), 2.0, np.float32)
    (still,) = evaluate(model.onnx, {"input": data}).values()
    np.testing.assert_allclose(still, data, rtol=1e-6)
    training = GradientGraph.of(model, "mse")
    results = evaluate(training.onnx, {"input": data, training.target.name: data})
    noisy = results[model.outputs[0].name]
    assert len(np.unique(noisy)) > 1
    if (
        mean is None
    ):  # two values: what is kept, and what is dropped to the limit of SELU, both scaled and moved
        low, high = np.unique(noisy.round(4))
        scale, limit = (0.8 * (1 + 0.2 * 1.7580993**2)) ** -0.5, -1.7580993
        offset = -scale * limit * 0.2
        np.testing.assert_allclose([low, high], [scale * limit + offset, 2 * scale + offset], atol=1e-4)
        np.testing.assert_allclose((noisy > 0).mean(), 0.8, atol=0.01)
    else:
        np.testing.assert_allclose(noisy.mean(), mean, atol=0.02)
        np.testing.assert_allclose(noisy.var(), variance, rtol=0.05)


def test_two_dropouts_of_one_tensor_draw_masks_of_their_own():
    x = keras.Input((2000,))
    first, second = layers.Dropout(0.5)(x), layers.Dropout(0.5)(x)
    model = from_keras(keras.Model(x, layers.Concatenate()([first, second])))
    training = GradientGraph.of(model, "mse")
    data = np.ones((2, 2000), np.float32)
    results = evaluate(training.onnx, {"input": data, training.target.name: np.ones((2, 4000), np.float32)})
    a, b = np.split(results[model.outputs[0].name] > 0, 2, axis=1)
    np.testing.assert_allclose((a & b).mean(), 0.25, atol=0.05)


def test_a_recurrent_layer_needs_its_number_of_steps():
    x = keras.Input((None, 3))
    model = keras.Model(x, layers.LSTM(2, name="memory")(x))
    with pytest.raises(UnsupportedError, match="the LSTM layer 'memory' runs over a dynamic number of steps"):
        from_keras(model)
    lstm = convert(model, example_input=(4, 3)).model
    assert [node.op_type for node in lstm.onnx.graph].count("LSTM") == 1
    assert not nodes(lstm, "Loop")
