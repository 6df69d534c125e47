"""Files that were exported for one batch size."""

from __future__ import annotations

import numpy as np
import pytest

import gradfuse
from gradfuse.converters import convert
from gradfuse.graph import InputError, ParityError

from .conftest import WriteModel

FLATTENING = """
g (float[1, 2, 3, 3] x) => (float[1, 3] y) {
    c = Conv (x, kernel) r = Relu (c) f = Reshape (r, shape) y = MatMul (f, w)
}
"""


@pytest.mark.parametrize("shape", [[1, 8], [1, -1], [-1, 8]])
def test_a_batch_of_one_becomes_any(write_model: WriteModel, shape: list[int]) -> None:
    weights = {"kernel": (2, 2, 2, 2), "shape": np.array(shape), "w": (8, 3)}
    conversion = convert(write_model(FLATTENING, weights))
    assert conversion.notes == ("exported for a batch of 1, now for any",)
    assert str(conversion.model.inputs[0]) == "x float[batch, 2, 3, 3]"
    assert str(conversion.model.outputs[0]) == "y float[batch, 3]"
    assert conversion.parity is not None
    rng = np.random.default_rng(0)
    data = rng.standard_normal((10, 2, 3, 3)), rng.integers(0, 3, 10)
    assert not gradfuse.train(conversion.model, data, epochs=1, batch_size=4).diverged


MERGING = "g (float[4, 3] x) => (float[12] y) { h = MatMul (x, w) y = Reshape (h, shape) }"


def test_where_it_cannot_be_lifted_the_model_trains_at_its_batch(write_model: WriteModel) -> None:
    text = "g (float[4, 3] x) => (float[4, 3] y) { h = MatMul (x, w) t = Transpose (h) g = MatMul (h, t) y = MatMul (g, v) }"
    conversion = convert(write_model(text, {"w": (3, 3), "v": (4, 3)}))
    assert conversion.notes == ("exported for a batch of 4, and trains at that only",)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((14, 3)), rng.integers(0, 3, 14)
    trained = gradfuse.train(conversion.model, data, epochs=2, batch_size=4, validation=0.3)
    assert trained.history[-1].step == 4  # two whole batches in each epoch: what is left over is left out
    with pytest.raises(InputError, match=r"takes 4 examples at a time, .* batches of 8; --batch-size 4"):
        gradfuse.train(conversion.model, data, epochs=1, batch_size=8)


def test_examples_that_look_at_each_other_are_found_out(write_model: WriteModel) -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y) { m = ReduceMean <keepdims = 1> (x, axes) d = Sub (x, m) y = MatMul (d, w) }"
    with pytest.raises(ParityError, match="in the file"):
        convert(write_model(text, {"axes": np.array([0]), "w": (3, 3)}))
