"""Files whose weights lie in another file beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import gradfuse
from gradfuse.converters import convert, from_onnx
from gradfuse.graph.mapping import is_mapped

from .conftest import WriteModel


@pytest.fixture
def external(write_model: WriteModel) -> Path:
    """One weight large enough to be mapped, and small ones, all of them outside of the file."""
    body = "h = MatMul (x, large) r = Relu (h) m = MatMul (r, w) y = Add (m, bias)"
    text = f"g (float[batch, 600] x) => (float[batch, 3] y) {{ {body} }}"
    path = write_model(text, {"large": (600, 600), "w": (600, 3), "bias": (3,)}, opset=13)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_it_converts_with_large_weights_mapped(external: Path) -> None:
    conversion = convert(external)
    assert conversion.parity is not None
    tensors = {name: value.const_value for name, value in conversion.model.onnx.graph.initializers.items()}
    assert is_mapped(tensors["large"])
    assert not is_mapped(tensors["bias"])


def test_what_is_saved_stands_alone(external: Path, tmp_path: Path) -> None:
    expected = np.array(from_onnx(external).onnx.graph.initializers["large"].const_value.numpy())
    saved = convert(external).model.save(tmp_path / "elsewhere" / "model.onnx")
    external.with_name("weights.bin").unlink()
    assert [path.name for path in saved.parent.iterdir()] == ["model.onnx"]
    loaded = gradfuse.load(saved).onnx.graph.initializers["large"].const_value
    assert loaded is not None
    np.testing.assert_array_equal(loaded.numpy(), expected)


@pytest.mark.parametrize("pattern", ["*", "w"])
def test_it_trains_with_large_weights_trained_or_frozen(external: Path, tmp_path: Path, pattern: str) -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((16, 600)), rng.integers(0, 3, 16)
    trained = gradfuse.train(external, data, out=tmp_path / "run", epochs=1, lr=1e-4, trainable=[pattern])
    assert not trained.diverged
    again = gradfuse.load(tmp_path / "run" / "model.onnx")
    moved = set(trained.weights)
    for name, value in again.onnx.graph.initializers.items():
        before = from_onnx(external).onnx.graph.initializers[name].const_value
        assert value.const_value is not None
        assert before is not None
        assert np.array_equal(value.const_value.numpy(), before.numpy()) == (name not in moved), name
