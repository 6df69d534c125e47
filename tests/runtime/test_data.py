from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.graph import InputError, TensorSpec
from gradfuse.runtime.data import batches, fit_data, fixed_batch, split, whole_batches

LABELS = TensorSpec("target", ir.DataType.INT64, ("batch",))


def fit(model, data, name="mlp", target=LABELS, loss="cross-entropy"):
    return fit_data(data, model(name), target, loss)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 8, 8), (8, 8, 1), (64, 1)])
def test_examples_are_flattened_and_unflattened(shape, model):
    x = np.arange(3 * 64, dtype=np.float64).reshape(3, *shape)
    flat, labels = fit(model, (x, np.array([0, 1, 9], np.int32)))
    assert flat.shape == (3, 64)
    assert flat.dtype == np.float32
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(flat.ravel(), x.ravel())
    image, _ = fit(model, (x, np.zeros(3)), "cnn")
    assert image.shape == (3, 1, 8, 8)


def test_data_that_fits_is_not_copied(model, examples):
    x, y = examples(16)
    fitted = fit(model, (x, y))
    assert all(np.shares_memory(ours, theirs) for ours, theirs in zip(fitted, (x, y), strict=True))


def test_axes_are_never_scrambled(model):
    """A channels-last image has as many numbers as a channels-first one, in another order."""
    source = model("cnn")
    source.onnx.graph.inputs[0].shape = ir.Shape(["batch", 3, 8, 8])
    with pytest.raises(InputError, match=r"an example has the shape 8x8x3.*3x8x8.*transpose the axes"):
        fit_data((np.zeros((2, 8, 8, 3)), np.zeros(2)), source, LABELS, "cross-entropy")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            (np.zeros((4, 63)), np.zeros(4)),
            "an example has the shape 63, the model takes x float[batch, 64]; 64 for each example;"
            " reshape the data, or convert the model for this shape",
        ),
        ((np.zeros((4, 64)), np.zeros(3)), "inputs and target have 4, 3 rows; the same number of rows"),
        (
            (np.zeros((0, 64)), np.zeros(0)),
            "the data for x float[batch, 64] is empty: (0, 64); examples along the first axis",
        ),
        (
            (np.float32(1), np.zeros(1)),
            "the data for x float[batch, 64] is empty: (); examples along the first axis",
        ),
        (
            (np.zeros((3, 64)), np.array([0, 10, -1])),
            "label 10 in row 1, counting from 0; labels 0 to 9 for the model's 10 classes",
        ),
        (
            (np.zeros((3, 64)), np.array([0, 1, -1])),
            "label -1 in row 2, counting from 0; labels 0 to 9 for the model's 10 classes",
        ),
        (
            (np.zeros((2, 64)), np.array([0, 1.5])),
            "row 1 of the data for target int64[batch] is 1.5; int64 numbers",
        ),
        (
            (np.zeros((2, 64)), np.array([np.nan, 1])),
            "row 0 of the data for target int64[batch] is nan; int64 numbers",
        ),
        (
            (np.array([["a"] * 64]), np.zeros(1)),
            "the data for x float[batch, 64] has elements of type <U1; numbers",
        ),
        (
            (np.zeros((2, 64)), None),
            "the data holds no target; one for the loss cross-entropy: target int64[batch]",
        ),
        (([1], [2], [3]), "the data is a tuple; (x, y) or a mapping of names to arrays"),
        (
            {"y": np.zeros(2)},
            "the data holds no inputs; an array named x, or one for each input of the model",
        ),
    ],
)
def test_bad_data_is_one_clear_line(data, message, model):
    with pytest.raises(InputError) as error:
        fit(model, data)
    assert str(error.value) == message


@pytest.mark.parametrize(("value", "name"), [(np.nan, "nan"), (-np.inf, "-inf"), (1e300, "inf")])
def test_numbers_that_are_not_finite_are_located(value, name, model):
    x = np.zeros((5, 64))
    x[3, 7] = value
    with pytest.raises(InputError) as error:
        fit(model, (x, np.zeros(5)))
    assert str(error.value) == (
        f"{name} in the data for x float[batch, 64], row 3, column 7, counting from 0;"
        " finite numbers; remove or fill in such rows"
    )


def test_a_fixed_batch_leaves_out_what_does_not_fill_it(model):
    source = model("mlp")
    assert fixed_batch(source) is None
    assert list(whole_batches(source, np.arange(5))) == [0, 1, 2, 3, 4]
    source.onnx.graph.inputs[0].shape = ir.Shape([2, 64])
    assert fixed_batch(source) == 2
    assert list(whole_batches(source, np.arange(5))) == [0, 1, 2, 3]


def test_inputs_are_found_by_name(model):
    source = model("mlp")
    source.onnx.graph.inputs.append(
        ir.val("mask", dtype=ir.DataType.INT64, shape=ir.Shape(["batch", "length"]))
    )
    arrays = {"mask": np.ones((2, 5)), "x": np.zeros((2, 64)), "y": np.zeros(2)}
    with pytest.raises(InputError, match="the data lacks the model's input 'mask', and has x"):
        fit_data({"x": arrays["x"], "y": arrays["y"]}, source, LABELS, "cross-entropy")
    x, mask, y = fit_data(arrays, source, LABELS, "cross-entropy")
    assert [array.shape for array in (x, mask, y)] == [(2, 64), (2, 5), (2,)]
    assert mask.dtype == np.int64


def test_an_only_input_is_found_under_any_name(model):
    x = np.ones((2, 64))
    for arrays in ({"pixels": x}, {"other": x + 1, "x": x}, {"x_train": x, "x_test": x + 1, "y_test": x}):
        assert (fit(model, {**arrays, "y": np.zeros(2)})[0] == 1).all()
    with pytest.raises(InputError, match="lacks the model's input 'x', and has a, b"):
        fit(model, {"a": x, "b": x, "y": np.zeros(2)})


def test_losses_without_a_target_take_none(model):
    (x,) = fit(model, (np.zeros((2, 64)), np.zeros(2)), target=None, loss="output")
    assert x.shape == (2, 64)


def test_split_is_a_partition_by_seed():
    training, held_out = split(100, 0.2, 0)
    assert len(held_out) == 20
    assert sorted([*training, *held_out]) == list(range(100))
    np.testing.assert_array_equal(split(100, 0.2, 0)[1], held_out)
    assert (split(100, 0.2, 1)[1] != held_out).any()
    assert len(split(100, 0.0, 0)[1]) == 0
    assert len(split(3, 0.01, 0)[1]) == 1


def test_batches_are_shuffled_by_seed_and_epoch():
    indices = np.arange(10, 20)

    def order(seed, epoch):
        return [int(index) for batch in batches(indices, 4, seed, epoch) for index in batch]

    assert [len(batch) for batch in batches(indices, 4, 0, 1)] == [4, 4, 2]
    assert sorted(order(0, 1)) == list(indices)
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}) == 4
