"""Which tensors of a file are parameters, and how patterns choose among them."""

from __future__ import annotations

import numpy as np
import pytest

import gradfuse
from gradfuse.converters import from_onnx
from gradfuse.graph import InputError

from .conftest import WriteModel

NETWORK = """
g (float[batch, 4] x) => (float[batch, 3] y) {
    c = Sub (x, mean) n = Mul (c, inverse_deviation)
    h = MatMul (n, layer1_weight) z = Add (h, layer1_bias) r = Mul (z, gain)
    m = Add (r, mask) p = Mul (m, kept) s = Mul (p, root) a = Relu (s)
    o = MatMul (a, layer2_weight) y = Add (o, layer2_bias)
}
"""
WEIGHTS = {
    "mean": (4,),
    "inverse_deviation": (4,),
    "layer1_weight": (4, 5),
    "layer1_bias": (5,),
    "gain": np.ones(5, np.float32),
    "mask": np.array([0, 0, -1e9, 0, 0], np.float32),
    "kept": np.array([1, 0, 1, 1, 1], np.float32),
    "root": np.array([1.4], np.float32),
    "layer2_weight": (5, 3),
    "layer2_bias": (3,),
}
PARAMETERS = ("layer1_weight", "layer1_bias", "gain", "layer2_weight", "layer2_bias")


def test_preprocessing_masks_and_numbers_are_no_parameters(write_model: WriteModel) -> None:
    assert from_onnx(write_model(NETWORK, WEIGHTS)).parameters == PARAMETERS


def test_the_bias_of_one_unit_and_the_slope_of_a_prelu_are(write_model: WriteModel) -> None:
    text = "g (float[n, 4] x) => (float[n, 1] y) { h = MatMul (x, w) b = Add (h, bias) y = PRelu (b, slope) }"
    model = from_onnx(write_model(text, {"w": (4, 1), "bias": (1,), "slope": (1,)}))
    assert model.parameters == ("w", "bias", "slope")


def test_a_class_token_that_is_joined_to_patches_is_and_padding_is_not(write_model: WriteModel) -> None:
    text = """
        g (float[n, 3, 4] x) => (float[n, 5, 4] y) {
            t = Expand (token, shape) p = Expand (padding, shape) h = MatMul (x, w) y = Concat <axis = 1> (t, h, p)
        }
    """
    weights = {
        "token": (1, 1, 4),
        "padding": np.zeros((1, 1, 4), np.float32),
        "shape": np.array([2, 1, 4]),
        "w": (4, 4),
    }
    path = write_model(text.replace("float[n,", "float[2,"), weights)
    assert from_onnx(path).parameters == ("token", "w")


def test_weights_inside_a_branch_are_found(write_model: WriteModel) -> None:
    text = """
        g (float[n, 4] x, bool flag) => (float[n, 4] y) {
            y = If (flag) <
                then_branch = t () => (float[n, 4] a) { a = MatMul (x, w) },
                else_branch = e () => (float[n, 4] b) { b = MatMul (x, v) }
            >
        }
    """
    assert from_onnx(write_model(text, {"w": (4, 4), "v": (4, 4)})).parameters == ("w", "v")


def test_patterns_choose(write_model: WriteModel) -> None:
    path = write_model(NETWORK, WEIGHTS)
    assert from_onnx(path, train=["layer1_*", "*_bias"]).parameters == (
        "layer1_weight",
        "layer1_bias",
        "layer2_bias",
    )


def test_the_whole_name_of_a_constant_makes_it_a_parameter(write_model: WriteModel) -> None:
    path = write_model(NETWORK, WEIGHTS)
    assert from_onnx(path, train=["root", "gain"]).parameters == ("gain", "root")
    with pytest.raises(InputError, match=r"no parameter matches 'roo\*'"):
        from_onnx(path, train=["roo*"])


def test_a_pattern_that_matches_nothing_offers_near_names(write_model: WriteModel) -> None:
    with pytest.raises(
        InputError, match=r"no parameter matches 'layer2_wieght'; a pattern for layer2_weight,"
    ):
        from_onnx(write_model(NETWORK, WEIGHTS), train=["layer2_wieght"])


def test_what_is_not_trained_stays_as_it_was_to_the_bit(write_model: WriteModel) -> None:
    path = write_model(NETWORK, WEIGHTS)
    before = from_onnx(path).onnx.graph.initializers
    rng = np.random.default_rng(0)
    data = rng.standard_normal((32, 4)), rng.integers(0, 3, 32)
    trained = gradfuse.train(path, data, epochs=3, lr=0.1, trainable=["layer2_*"], validation=0.0)
    after = trained.model.onnx.graph.initializers
    assert set(trained.weights) == {"layer2_weight", "layer2_bias"}
    for name, value in before.items():
        old, new = value.const_value, after[name].const_value
        assert old is not None
        assert new is not None
        assert np.array_equal(old.numpy(), new.numpy()) == (name not in trained.weights), name


def test_a_frozen_batch_normalisation_keeps_its_statistics(write_model: WriteModel) -> None:
    text = """
        g (float[n, 4] x) => (float[n, 3] y) {
            h = MatMul (x, w) m, a, b = BatchNormalization <training_mode = 1> (h, scale, shift, mean, var)
            f = BatchNormalization (m, scale2, shift2, mean2, var2) y = MatMul (f, v)
        }
    """
    vectors = {f"{name}{end}": (4,) for end in ("", "2") for name in ("scale", "shift", "mean")}
    variances = {f"var{end}": np.full(4, 2.0, np.float32) for end in ("", "2")}
    path = write_model(text, {"w": (4, 4), "v": (4, 3), **vectors, **variances})
    rng = np.random.default_rng(0)
    data = rng.standard_normal((32, 4)), rng.integers(0, 3, 32)
    trained = gradfuse.train(path, data, epochs=2, validation=0.0)
    assert {"mean", "var", "scale2", "shift2"} <= set(trained.weights)
    assert not {"mean2", "var2"} & set(trained.weights)


def test_integers_cannot_be_chosen(write_model: WriteModel) -> None:
    path = write_model(
        """
        g (int8[n, 4] x) => (int8[n, 4] y) <int8[4] w = {1, 2, 3, 4}> { y = Add (x, w) }
        """,
        {},
    )
    with pytest.raises(InputError, match="'w' is of INT8, which cannot train; floating-point numbers"):
        from_onnx(path, train=["w"])
