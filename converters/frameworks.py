"""Importing a framework where it is needed: quietly, and with one line of advice where it is missing."""

from __future__ import annotations

import contextlib
import importlib
import logging
import operator
import os
import sys
from collections.abc import Iterator
from typing import Any

from ..graph.errors import InputError

__all__ = ["framework_of", "require", "silenced"]

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
    quiet = "tensorflow" in names and "tensorflow" not in sys.modules
    try:
        with _without_stderr() if quiet else contextlib.nullcontext():
            return [importlib.import_module(name) for name in names][-1]
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise InputError(
            f"{error.name} is not installed", remedy=f"pip install 'gradfuse[{_EXTRAS[error.name]}]'"
        ) from error


def framework_of(model: Any) -> str:
    """`pytorch` for a `torch.nn.Module`, `keras` for a `keras.Model`, else nothing; imports neither."""
    for framework, library, of in (("pytorch", "torch", "nn.Module"), ("keras", "keras", "Model")):
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
    """TensorFlow describes its build there while it is loaded, whatever its log level; later it heeds the level."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
