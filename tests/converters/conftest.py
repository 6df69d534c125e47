"""ONNX files from text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

Array = np.ndarray[Any, Any]
WriteModel = Callable[..., Path]


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Write a graph, `g (...) => (...) { ... }`, as a file, with initializers: arrays, or shapes of random ones."""

    def write(text: str, weights: Mapping[str, Any], opset: int = 18, imports: str = "") -> Path:
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{imports}]> {text}')
        rng = np.random.default_rng(0)
        for name, given in weights.items():
            array = given if isinstance(given, np.ndarray) else rng.standard_normal(given).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        return path

    return write
