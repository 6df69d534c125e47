"""Finding the model that a SOURCE names: `module:callable`, `file.py:callable`, a `.keras` or `.onnx` file, a SavedModel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..graph.callables import call, find_callable, kind_of, reason_of
from ..graph.errors import InputError, UnsupportedError
from ..graph.model import TrainableModel
from .frameworks import framework_of, quieten_tensorflow, require
from .onnx_file import read_onnx
from .saved_model import load_saved_model

__all__ = ["Located", "locate"]

_BUILDER = "a function without arguments that returns a model"
_FORMS = "module:callable, file.py:callable, a .keras file, a SavedModel folder or an .onnx file"


@dataclass(frozen=True)
class Located:
    """A model, as its framework has it.

    Attributes:
        model: A `torch.nn.Module`, `keras.Model`, `tf.Module`, SavedModel, OnnxFile or TrainableModel.
        example_input: The example input that came with it, or None.
    """

    model: Any
    example_input: Any = None


def locate(source: str | Path) -> Located:
    """Load a file, or import and call a callable.

    Files are data: none runs code that it holds. A callable is the user's own code, and runs.

    Raises:
        InputError: There is no such file, module or callable, or it gives no model.
        UnsupportedError: A file of that kind cannot be loaded, or not safely.
    """
    text, path = str(source), Path(source)
    if path.suffix in (*_LOADERS, *_REFUSED) and not path.is_file():
        raise InputError(f"no such file: {path}")
    if path.suffix in _REFUSED:
        why, remedy = _REFUSED[path.suffix]
        raise UnsupportedError(f"{path} is not loaded: {why}", remedy=remedy)
    if path.suffix in _LOADERS:
        return Located(_LOADERS[path.suffix](path))
    if path.is_dir():
        return _load_folder(path)
    if not all(text.rpartition(":")):
        missing = "" if path.exists() else ", and no such file exists"
        raise InputError(f"{text!r} names no model{missing}", expected=_FORMS)
    quieten_tensorflow()
    return _build(text, find_callable(text, _BUILDER))


def _load_folder(path: Path) -> Located:
    if (path / "saved_model.pb").is_file():
        return Located(load_saved_model(path))
    raise InputError(f"{path} is a folder without a model", expected=_FORMS)


def _load_keras(path: Path) -> Any:
    keras = require("tensorflow", "keras")
    try:
        # In safe mode Keras refuses what would run code from the file: Lambda layers, classes that nobody registered.
        return keras.models.load_model(path, safe_mode=True, compile=False)
    except Exception as error:  # Keras raises whatever it stumbles over in the file
        raise InputError(
            f"Keras cannot load {path}: {reason_of(error)}",
            expected="a .keras file without custom code",
            remedy="for custom layers pass file.py:callable, a function that builds the model or loads it",
        ) from error


_LOADERS: dict[str, Callable[[Path], Any]] = {".keras": _load_keras, ".onnx": read_onnx}

_PICKLE = (
    "it is a pickle, which runs code when it is loaded, or weights without a model",
    "pass file.py:callable, a function that builds the model and loads its weights",
)

_REFUSED = {
    ".pt2": (
        "torch.export.load can run code that such a file holds",
        "if you trust it, pass file.py:callable, a function that returns torch.export.load(path).module()",
    ),
    ".pt": _PICKLE,
    ".pth": _PICKLE,
    ".h5": (
        "Keras's old format can hold code",
        "save the model with model.save('model.keras') and pass that file",
    ),
}
"""Why a file of that kind is not loaded, and what to do instead."""


def _build(source: str, function: Any) -> Located:
    result = function if framework_of(function) else call(source, function, _BUILDER)
    model, example_input = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if framework_of(model) or isinstance(model, TrainableModel):
        return Located(model, example_input)
    raise InputError(
        f"{source} returned {kind_of(result)}",
        expected="a torch.nn.Module, a keras.Model, a tf.Module, or a pair of one and an example input",
    )
