"""The network and the data of a comparison.

A network is a module with `pytorch(**options)` and `keras(**options)`, which build twins with the same weights, as those of
`gradfuse.models` do. Options that the data decide are filled in where a builder has them: `inputs`, `size`, `length`,
`classes`, `outputs`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...graph.callables import find_callable
from ...graph.errors import InputError
from ...runtime import load_data
from .trainers import Array

__all__ = ["Network", "read_network"]


class Network(NamedTuple):
    """A network, and the data that it is trained on.

    Attributes:
        builders: `pytorch` and `keras`.
        options: What the data decide.
        x: Inputs, float32: flat examples, or sequences where the builders have a `length`.
        y: Labels, int64, or targets, float32.
    """

    builders: dict[str, Callable[..., Any]]
    options: dict[str, int]
    x: Array
    y: Array

    def build(self, framework: str, changes: dict[str, Any]) -> Any:
        """The twin of a framework."""
        builder = self.builders[framework]
        known = inspect.signature(builder).parameters
        return builder(**{name: n for name, n in self.options.items() if name in known}, **changes)


def read_network(module: str, data: str, loss: str) -> Network:
    """Find the builders, and bring the data into their form.

    Args:
        module: Name of a module of `gradfuse.models`, or of any other, or a file.
        data: As for `gradfuse train`.
        loss: `cross-entropy` or `mse`.

    Raises:
        InputError: There is no such network, or the data are not one input and a target.
    """
    where = f"gradfuse.models.{module}" if _is_ours(module) else module
    builders = {
        name: find_callable(f"{where}:{name}", "a function that builds the network")
        for name in ("pytorch", "keras")
    }
    examples = load_data(data)
    if len(examples.inputs) != 1 or examples.target is None:
        raise InputError(f"{data} holds {len(examples.inputs)} inputs", expected="one input and a target")
    (x,) = examples.inputs.values()
    y = examples.target.astype(np.int64 if loss == "cross-entropy" else np.float32)
    options = {"classes": int(y.max()) + 1} if loss == "cross-entropy" else {"outputs": y.shape[-1]}
    if "length" in inspect.signature(builders["keras"]).parameters:
        options |= {"length": x.shape[1], "inputs": x.shape[2]}
    else:
        x = x.reshape(len(x), -1)
        options |= {"inputs": x.shape[1], "size": math.isqrt(x.shape[1])}
    return Network(builders, options, np.ascontiguousarray(x, np.float32), y)


def _is_ours(module: str) -> bool:
    return module.isidentifier() and importlib.util.find_spec(f"gradfuse.models.{module}") is not None
