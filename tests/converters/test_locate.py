import sys

import numpy as np
import pytest
import torch

from gradfuse.converters.locate import locate
from gradfuse.graph import InputError, UnsupportedError

SOURCE = """
import torch

def linear():
    return torch.nn.Linear(3, 2)

def with_example():
    return torch.nn.Linear(3, 2), torch.ones(4, 3)

def nothing():
    pass

def two_arguments(a, b):
    return torch.nn.Linear(a, b)

def number():
    return 1

instance = torch.nn.Linear(3, 2)
width = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "networks.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("networks", None)


@pytest.mark.parametrize("source", ["networks:linear", "networks.py:linear", "networks:instance"])
def test_a_callable_or_a_module_in_the_current_folder(folder, source):
    located = locate(source)
    assert isinstance(located.model, torch.nn.Linear)
    assert located.example_input is None


def test_a_callable_may_return_an_example_input(folder):
    located = locate(folder / "networks.py:with_example")
    assert isinstance(located.model, torch.nn.Linear)
    assert located.example_input.shape == (4, 3)


def test_a_file_may_import_its_neighbours(folder, monkeypatch):
    (folder / "main.py").write_text("from networks import linear")
    monkeypatch.chdir(folder.parent)
    assert isinstance(locate(f"{folder / 'main.py'}:linear").model, torch.nn.Linear)


def test_a_file_named_like_a_package_hides_no_package(folder):
    (folder / "torch.py").write_text("def linear():\n    from networks import linear\n    return linear()")
    assert isinstance(locate("torch.py:linear").model, torch.nn.Linear)
    assert sys.modules["torch"] is torch


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.onnx", "no such file: missing.onnx"),
        ("missing.keras", "no such file: missing.keras"),
        ("missing.py:linear", "no such file: missing.py"),
        (
            "missing:linear",
            "no module named 'missing'; a module in the current folder or an installed one; .*missing.py:callable",
        ),
        ("networks", "'networks' names no model, and no such file exists; module:callable, file.py:callable"),
        ("networks:", "'networks:' names no model"),
        ("networks:lineal", "networks has no 'lineal'; one of linear, with_example, nothing"),
        ("networks:width", "networks:width is an int; a function without arguments"),
        (
            "networks:two_arguments",
            "networks:two_arguments raised TypeError: .*missing 2 required positional arguments",
        ),
        ("networks:nothing", "networks:nothing returned None; a torch.nn.Module, a keras.Model"),
        ("networks:number", "networks:number returned an int"),
        (".", "a folder without a model"),
    ],
)
def test_each_failure_is_one_clear_line(folder, source, message):
    with pytest.raises(InputError, match=message) as caught:
        locate(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import no_such_package",
            "broken.py cannot be imported: ModuleNotFoundError: No module named 'no_such_package'",
        ),
        ("def f(:", "broken.py cannot be imported: SyntaxError"),
        ("raise ValueError('first\\nsecond')", "broken.py cannot be imported: ValueError: first$"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why(folder, code, message):
    (folder / "broken.py").write_text(code)
    with pytest.raises(InputError, match=message):
        locate("broken.py:f")


def test_a_missing_dependency_of_a_module_is_told_from_a_missing_module(folder):
    (folder / "needy.py").write_text("import no_such_package")
    with pytest.raises(
        InputError, match=r"needy cannot be imported: .*'no_such_package'; install no_such_package"
    ):
        locate("needy:f")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("m.pt2", r"torch.export.load\(path\).module\(\)"),
        ("m.pt", "builds the model"),
        ("m.h5", "model.save"),
    ],
)
def test_files_that_can_run_code_are_not_loaded(folder, name, remedy):
    (folder / name).write_bytes(b"x")
    with pytest.raises(UnsupportedError, match=remedy):
        locate(name)


def test_a_keras_file_is_loaded(folder):
    import keras

    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="fc")]).save("m.keras")
    assert locate("m.keras").model.get_layer("fc").units == 2


def test_a_keras_file_with_code_in_it_is_refused(folder):
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save("lambda.keras")
    with pytest.raises(
        InputError, match=r"Keras cannot load lambda.keras: .*; a .keras file without custom code"
    ):
        locate("lambda.keras")


def test_a_damaged_keras_file_is_refused(folder):
    (folder / "bad.keras").write_bytes(np.random.default_rng(0).bytes(100))
    with pytest.raises(InputError, match=r"Keras cannot load bad.keras"):
        locate("bad.keras")
