"""Importing a framework where it is needed: quietly, and with one line of advice where it is missing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.util
import logging
import operator
import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from typing import Any

from ..graph.errors import InputError

__all__ = ["framework_of", "quieten_tensorflow", "require", "silenced"]

_EXTRAS = {
    "keras": "tensorflow",
    "onnxscript": "torch",
    "tensorflow": "tensorflow",
    "tf2onnx": "tensorflow",
    "torch": "torch",
}


def require(*names: str) -> Any:
    """Import modules of a framework.

    Returns:
        The last of them.

    Raises:
        InputError: One is not installed; the error names the extra that brings it.
    """
    quieten_tensorflow()
    try:
        return [importlib.import_module(name) for name in names][-1]
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise InputError(
            f"{error.name} is not installed", remedy=f"pip install 'gradfuse[{_EXTRAS[error.name]}]'"
        ) from error


def quieten_tensorflow() -> None:
    """From now on TensorFlow reports only warnings, and nothing while it is imported, whoever imports it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    if "tensorflow" not in sys.modules and not any(
        isinstance(finder, _QuietImport) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _QuietImport())


class _QuietImport(importlib.abc.MetaPathFinder):
    """Imports TensorFlow without standard error: there it describes its build while it is loaded, whatever its log level."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            quiet = _without_stderr()(spec.loader.exec_module)
            spec.loader.exec_module = quiet  # type: ignore[method-assign]  # of this one spec
        return spec


_MODELS = (
    ("pytorch", "torch", "nn.Module"),
    ("keras", "keras", "Model"),
    ("tensorflow", "tensorflow", "Module"),
)
"""Each framework, its package, and its class of models."""


def framework_of(model: Any) -> str:
    """`pytorch` for a `torch.nn.Module`, `keras` for a `keras.Model`, `tensorflow` for any other `tf.Module`; imports none."""
    for framework, library, of in _MODELS:
        if library in sys.modules and isinstance(model, operator.attrgetter(of)(sys.modules[library])):
            return framework
    return ""


@contextlib.contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Within this context, loggers of these names, and those below them, report nothing."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
