"""`module:callable` and `file.py:callable`: how a user names code of their own, a model's builder or a data set's reader."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InputError, some

__all__ = ["call", "find_callable", "kind_of", "reason_of", "required_arguments"]


def find_callable(source: str, expected: str) -> Callable[..., Any]:
    """Import what `source` names; the current folder, or that of the file, is importable meanwhile and afterwards.

    Args:
        source: `module:callable` or `file.py:callable`.
        expected: What the callable should be, for the error.

    Raises:
        InputError: There is no such file, module or attribute, it cannot be imported, or it is not callable.
    """
    where, _, name = source.rpartition(":")
    if not where or not name:
        raise InputError(f"{source!r} names no callable", expected="module:callable or file.py:callable")
    module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{where} has no {name!r}", expected=f"one of {some(public) or 'its callables'}")
    attribute: Callable[..., Any] = getattr(module, name)
    if not callable(attribute):
        raise InputError(f"{source} is {kind_of(attribute)}", expected=expected)
    return attribute


def call(source: str, function: Callable[..., Any], expected: str) -> Any:
    """Call the user's function without arguments.

    Raises:
        InputError: It raised an error.
    """
    try:
        return function()
    except Exception as error:  # whatever the user's own code raises
        raise InputError(f"{source} raised {reason_of(error)}", expected=expected) from error


def required_arguments(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments without a default; of a `torch.nn.Module` those of its `forward`.

    Raises:
        InputError: The function, one written in C, does not tell.
    """
    try:
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{function!r} does not tell its arguments", expected="a function written in Python"
        ) from error
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        one.name for one in parameters if one.default is inspect.Parameter.empty and one.kind not in variable
    ]


def kind_of(value: Any) -> str:
    """The value's type in words: `an int`."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def reason_of(error: Exception) -> str:
    """Type and first line of an error that somebody else's code raised."""
    line = first_line(error)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error, and the next where that only announces it, as Keras does; empty without any."""
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    announced = itertools.takewhile(
        lambda line: line.startswith("Exception encountered when calling") or line.endswith(":"), lines
    )
    return " ".join(lines[: 1 + len(list(announced))])


def place_of(error: BaseException) -> str:
    """The line of the user's own code that an error was raised under, as ` at net.py:12`; empty where there is none."""
    installed = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    others = (*installed, str(Path(__file__).parent), str(Path(__file__).parents[1] / "converters"), "<")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


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
        raise InputError(f"{path} cannot be imported: {reason_of(error)}") from error
    return module


def _import_module(name: str) -> ModuleType:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            remedy = f"install {error.name}"
            raise InputError(f"{name} cannot be imported: {reason_of(error)}", remedy=remedy) from error
        raise InputError(
            f"no module named {name!r}",
            expected="a module in the current folder or an installed one",
            remedy=f"for a file write {name.replace('.', '/')}.py:callable",
        ) from error
    except Exception as error:
        raise InputError(f"{name} cannot be imported: {reason_of(error)}") from error


def _make_importable(folder: Path) -> None:
    if (path := str(folder.resolve())) not in sys.path:
        sys.path.insert(0, path)
