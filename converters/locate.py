"""Finding the model that a SOURCE names: `module:callable`, `file.py:callable`, a `.keras` or an `.onnx` file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..graph.errors import InputError, UnsupportedError, some
from ..graph.model import TrainableModel
from .frameworks import framework_of, quieten_tensorflow, require
from .onnx_file import from_onnx

__all__ = ["Located", "locate"]

_FORMS = "module:callable, file.py:callable, a .keras file or an .onnx file"


@dataclass(frozen=True)
class Located:
    """A model, as its framework has it.

    Attributes:
        model: A `torch.nn.Module`, `keras.Model` or TrainableModel.
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
        return _refuse_folder(path)
    where, colon, name = text.rpartition(":")
    if not colon or not where or not name:
        missing = "" if path.exists() else ", and no such file exists"
        raise InputError(f"{text!r} names no model{missing}", expected=_FORMS)
    quieten_tensorflow()
    module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    return _call(text, _attribute(module, where, name))


def _refuse_folder(path: Path) -> Located:
    if (path / "saved_model.pb").is_file():
        raise UnsupportedError(
            f"{path} is a SavedModel: it holds the inference graph, without BatchNorm and dropout as they train",
            remedy="save the model with model.save('model.keras') and pass that file",
        )
    raise InputError(f"{path} is a folder without a model", expected=_FORMS)


def _load_keras(path: Path) -> Any:
    keras = require("tensorflow", "keras")
    try:
        # In safe mode Keras refuses what would run code from the file: Lambda layers, classes that nobody registered.
        return keras.models.load_model(path, safe_mode=True, compile=False)
    except Exception as error:  # Keras raises whatever it stumbles over in the file
        raise InputError(
            f"Keras cannot load {path}: {_reason(error)}",
            expected="a .keras file without custom code",
            remedy="for custom layers pass file.py:callable, a function that builds the model or loads it",
        ) from error


_LOADERS: dict[str, Callable[[Path], Any]] = {".keras": _load_keras, ".onnx": from_onnx}

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


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"no such file: {path}", expected="file.py:callable")
    name = f"gradfuse_source_{path.stem}"  # its own name, so that a file called torch.py hides no package
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported", expected="a Python file")
    module = importlib.util.module_from_spec(spec)
    _make_importable(path.parent)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InputError(f"{path} cannot be imported: {_reason(error)}") from error
    return module


def _import_module(name: str) -> ModuleType:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InputError(
                f"{name} cannot be imported: {_reason(error)}", remedy=f"install {error.name}"
            ) from error
        raise InputError(
            f"no module named {name!r}",
            expected="a module in the current folder or an installed one",
            remedy=f"for a file write {name.replace('.', '/')}.py:callable",
        ) from error
    except Exception as error:
        raise InputError(f"{name} cannot be imported: {_reason(error)}") from error


def _make_importable(folder: Path) -> None:
    if (path := str(folder.resolve())) not in sys.path:
        sys.path.insert(0, path)


def _attribute(module: ModuleType, where: str, name: str) -> Any:
    try:
        attribute = getattr(module, name)
    except AttributeError as error:
        callables = [
            key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
        ]
        raise InputError(
            f"{where} has no {name!r}", expected=f"one of {some(callables) or 'its callables'}"
        ) from error
    if not callable(attribute):
        raise InputError(
            f"{where}:{name} is {_kind(attribute)}",
            expected="a function without arguments that returns a model",
        )
    return attribute


def _call(source: str, attribute: Any) -> Located:
    try:
        result = attribute if framework_of(attribute) else attribute()
    except Exception as error:
        raise InputError(
            f"{source} raised {_reason(error)}", expected="a function without arguments that returns a model"
        ) from error
    model, example_input = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if framework_of(model) or isinstance(model, TrainableModel):
        return Located(model, example_input)
    raise InputError(
        f"{source} returned {_kind(result)}",
        expected="a torch.nn.Module, a keras.Model, or a pair of one and an example input",
    )


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
