import importlib
import subprocess
import sys

import pytest
import torch

from gradfuse.converters.frameworks import framework_of, require
from gradfuse.graph import InputError

KERAS_MODEL = """
import keras

def build():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
"""


@pytest.mark.parametrize(
    ("library", "extra"), [("torch", "torch"), ("tf2onnx", "tensorflow"), ("keras", "tensorflow")]
)
def test_a_missing_framework_names_the_extra(monkeypatch, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library} is not installed; pip install 'gradfuse\[{extra}\]'"):
        require(library)


def test_a_module_that_is_missing_for_another_reason_is_not_hidden(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError("No module named 'other'", name="other")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ModuleNotFoundError, match="other"):
        require("torch")


def test_frameworks_are_told_apart():
    keras = require("tensorflow", "keras")
    models = (torch.nn.ReLU(), keras.Sequential(), torch.nn.ReLU, None)
    assert [framework_of(model) for model in models] == ["pytorch", "keras", "", ""]


def test_tensorflow_is_silent_even_where_the_users_own_file_imports_it(tmp_path):
    (tmp_path / "network.py").write_text(KERAS_MODEL)
    code = "from gradfuse.converters import convert; print(convert('network.py:build').model.parameters)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    assert run.stdout == "('dense/kernel', 'dense/bias')\n"
