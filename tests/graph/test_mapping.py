"""Mapped weights that are written over."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gradfuse.graph import TrainableModel
from gradfuse.graph.mapping import LARGE, writable

from .conftest import build_model


def test_writing_over_a_mapped_weight_changes_neither_the_model_nor_its_file(tmp_path: Path) -> None:
    weight = np.arange(LARGE, dtype=np.float32).reshape(2, -1)
    outputs = f"float[batch, {LARGE // 2}] y"
    path = build_model("y = MatMul (x, w)", {"w": weight}, inputs="float[batch, 2] x", outputs=outputs).save(
        tmp_path / "model.onnx"
    )
    content = path.read_bytes()
    tensor = TrainableModel.load(path).onnx.graph.initializers["w"].const_value
    assert tensor is not None
    own = writable(tensor.numpy())
    np.testing.assert_array_equal(own, weight)
    own[...] = 0
    np.testing.assert_array_equal(tensor.numpy(), weight)
    assert path.read_bytes() == content


def test_what_is_not_mapped_is_copied() -> None:
    array = np.ones(3)
    writable(array)[0] = 2
    assert array.tolist() == [1, 1, 1]
