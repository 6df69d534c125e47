"""Losses that a user writes in Keras, or names from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradfuse
from gradfuse.converters import find_loss, from_keras, loss_from_keras
from gradfuse.converters.frameworks import require
from gradfuse.graph import (
    ConversionError,
    GradientGraph,
    InputError,
    TrainableModel,
    UnsupportedError,
    evaluate,
)

keras, tf = require("tensorflow", "keras"), require("tensorflow")
losses = keras.losses
Array = np.ndarray[Any, Any]

PRICES = tf.constant([1.0, 3.0, 0.5])


def quantile(y_true: Any, y_pred: Any, tau: float = 0.9) -> Any:
    error = y_true - y_pred
    return keras.ops.maximum(tau * error, (tau - 1) * error)


def priced(y_true: Any, y_pred: Any) -> Any:
    return tf.reduce_mean(PRICES * tf.square(y_pred - tf.stop_gradient(y_pred) / 2 - y_true), axis=-1)


def energy(y_true: Any, y_pred: Any) -> Any:
    return tf.reduce_sum(tf.square(y_pred))


def focal(labels: Any, y_pred: Any) -> Any:
    likelihood = tf.gather(y_pred, labels, batch_dims=1)
    return -((1 - likelihood) ** 2) * tf.math.log(likelihood)


class Skewed(losses.Loss):  # type: ignore[misc]  # Keras has no types
    def call(self, target: Any, output: Any) -> Any:
        return keras.ops.exp(output - target) - (output - target)


RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=(4, 3)).astype(np.float32)
SHARES = RNG.dirichlet(np.ones(3), 4).astype(np.float32)
COINS = RNG.integers(0, 2, (4, 3)).astype(np.float32)
LABELS = np.array([0, 2, 1, 1])

CASES = [
    (quantile, NUMBERS),
    (priced, NUMBERS),
    (energy, NUMBERS),
    (focal, LABELS),
    (Skewed(), NUMBERS),
    (Skewed(reduction="sum"), NUMBERS),
    (losses.huber, NUMBERS),
    ("keras.losses.Huber(delta=0.5)", NUMBERS),
    ("keras.losses.LogCosh", NUMBERS),
    ("keras.losses.MeanAbsolutePercentageError()", NUMBERS),
    ("keras.losses.MeanSquaredLogarithmicError", SHARES),
    ("keras.losses.CosineSimilarity", NUMBERS),
    ("keras.losses.Poisson", SHARES),
    ("keras.losses.KLDivergence", SHARES),
    ("keras.losses.CategoricalCrossentropy(label_smoothing=0.1)", SHARES),
    ("keras.losses.CategoricalCrossentropy(from_logits=True)", SHARES),
    ("keras.losses.CategoricalFocalCrossentropy", SHARES),
    ("keras.losses.CategoricalHinge", COINS),
    ("keras.losses.BinaryCrossentropy", COINS),
    ("keras.losses.BinaryCrossentropy(from_logits=True, reduction=None)", COINS),
    ("keras.losses.BinaryFocalCrossentropy(gamma=1.5)", COINS),
    ("keras.losses.Hinge", COINS),
    ("keras.losses.SquaredHinge", 2 * COINS - 1),
    ("keras.losses.Dice", COINS),
    ("keras.losses.Tversky(alpha=0.3)", COINS),
    ("keras.losses.SparseCategoricalCrossentropy", LABELS),
    ("keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1)", LABELS),
    ("keras.losses.CategoricalGeneralizedCrossEntropy(q=0.4)", LABELS),
    (losses.sparse_categorical_crossentropy, LABELS),
]


@pytest.fixture(scope="module")
def model() -> Any:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation="softmax", name="dense")])


@pytest.fixture(scope="module")
def converted(model: Any) -> TrainableModel:
    return from_keras(model)


def of_keras(spelled: Any) -> Callable[[Any, Any], Any]:
    if not isinstance(spelled, str):
        return spelled  # type: ignore[no-any-return]
    spelled = spelled if "(" in spelled else spelled + "()"
    # Python reads these constants of CASES: the parser under test must not judge itself.
    return eval(spelled, {"keras": keras})  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("loss", "target"),
    CASES,
    ids=[str(getattr(loss, "name", getattr(loss, "__name__", loss))) for loss, _ in CASES],
)
def test_value_and_gradients_are_those_of_the_gradient_tape(
    model: Any, converted: TrainableModel, loss: Any, target: Array
) -> None:
    graph = GradientGraph.of(converted, find_loss(loss))
    x = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    with tf.GradientTape() as tape:
        output = tf.identity(
            model(x)
        )  # without what Keras hangs on it: the logits, which its losses take instead
        expected = tf.reduce_mean(of_keras(loss)(tf.constant(target), output))
    gradients = tape.gradient(expected, model.trainable_variables)
    assert graph.target is not None
    found = evaluate(graph.onnx, {graph.source.inputs[0].name: x, graph.target.name: target})
    assert found[graph.loss_output] == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        name = graph.gradients[variable.path.removeprefix(f"{model.name}/")]
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_model_trains_with_it_from_a_file_and_its_arguments_are_in_keras_s_order(
    model: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "def above(y_true, y_pred):\n    return 10.0 * (y_true - y_pred) ** 2 * (y_true > y_pred).numpy()\n"
        "def ordered(y_true, y_pred):\n    return (1 + 0 * y_pred) * y_pred - 2 * y_true\n"
    )
    data = NUMBERS[:, :1].repeat(5, 1), SHARES
    graph = gradfuse.fuse(model, loss=f"{tmp_path / 'mine.py'}:ordered", clip="none")
    assert graph.target is not None
    found = evaluate(graph.onnx, {"input": data[0], graph.target.name: 0 * SHARES})
    assert found[graph.loss_output] == pytest.approx(1 / 3)  # the outputs of a softmax
    trained = gradfuse.train(model, data, loss="keras.losses.KLDivergence()", epochs=6, lr=0.3, batch_size=2)
    assert trained.history[-1].train_loss < trained.history[0].train_loss
    with pytest.raises(ConversionError, match=r"refuses the loss .*mine\.py:above: "):
        gradfuse.train(model, data, loss=f"{tmp_path / 'mine.py'}:above")


def test_labels_are_checked_and_one_may_be_ignored(model: Any) -> None:
    data = np.zeros((4, 5), np.float32), np.array([0, 1, 2, 3])
    with pytest.raises(InputError, match="label 3 in row 3"):
        gradfuse.train(model, data, loss=focal)
    ignoring = "keras.losses.SparseCategoricalCrossentropy(ignore_class=3)"
    assert gradfuse.train(model, data, loss=ignoring, epochs=1, validation=0.25).history


@pytest.mark.parametrize(
    "function",
    [lambda true, pred: pred - true, lambda y_pred, y_true: y_pred, lambda a, b, c: a],
    ids=["abbreviated", "exchanged", "three"],
)
def test_what_tells_no_framework_by_its_arguments_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"takes \(\w+, \w+.*in opposite order"):
        find_loss(function)


def test_named_explicitly_the_arguments_may_have_any_names(converted: TrainableModel) -> None:
    graph = GradientGraph.of(converted, loss_from_keras(lambda a, b: a - b))
    assert graph.target is not None
    feeds = {"input": np.ones((2, 5), np.float32), graph.target.name: np.zeros((2, 3), np.float32)}
    assert evaluate(graph.onnx, feeds)[graph.loss_output] == pytest.approx(-1 / 3)


def test_the_batch_and_open_lengths_stay_open() -> None:
    model = keras.Sequential([keras.Input((None, 5)), keras.layers.Dense(3)])
    graph = GradientGraph.of(from_keras(model), find_loss("keras.losses.MeanAbsoluteError"))
    assert graph.target is not None
    for batch, steps in ((1, 2), (3, 7)):
        x, target = np.ones((batch, steps, 5), np.float32), np.full((batch, steps, 3), 9, np.float32)
        found = evaluate(graph.onnx, {"input": x, graph.target.name: target})
        expected = np.abs(model(x).numpy() - target).mean()
        assert found[graph.loss_output] == pytest.approx(float(expected), rel=1e-5)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def reversed_gradient(x: Any) -> Any:
    return tf.identity(x), lambda upstream: -upstream


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda y_true, y_pred: reversed_gradient(y_pred), UnsupportedError, "a gradient of its own"),
        (lambda y_true, y_pred: y_true @ y_pred, ConversionError, "TensorFlow or tf2onnx refuses the loss"),
        (lambda y_true, y_pred: None, InputError, "gives None; a tensor"),
        (lambda y_true, y_pred: {"loss": y_pred}, InputError, "gives a dict"),
        (losses.sparse_categorical_crossentropy, InputError, r"output \[batch, classes\]"),
        ("keras.losses.CTC", ConversionError, "refuses the loss keras.losses.CTC"),
    ],
    ids=["custom-gradient", "shapes", "nothing", "dict", "labels-of-steps", "ctc"],
)
def test_what_cannot_be_exported_says_why(loss: Any, error: type[Exception], message: str) -> None:
    model = keras.Sequential([keras.Input((2, 5)), keras.layers.Dense(3)])
    with pytest.raises(error, match=message):
        GradientGraph.of(from_keras(model), find_loss(loss))


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("keras.losses.Hubert", "Keras has no loss 'Hubert'; one of Binary"),
        ("keras.losses.get(identifier='mse')", "Keras has no loss 'get'"),
        ("keras.losses.Huber(beta=2)", "Keras refuses the loss .*'beta'"),
        ("keras.losses.Huber(0.5)", "cannot be read"),
    ],
)
def test_a_name_that_keras_has_not_says_so(spelled: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_loss(spelled)
