"""Trains PyTorch and Keras models on ONNX Runtime, and says beforehand where their gradients will explode.

    import gradfuse

    model = gradfuse.convert(module)                        # a torch.nn.Module, keras.Model or path -> TrainableModel
    gradfuse.analyse(model).check(fail_on="error")          # raises where the gradients will explode
    trained = gradfuse.train(model, "digits", clip="auto")
    trained.to_source(module)                               # the weights go home

Importing this package imports neither a framework nor a runtime: each is imported by the call that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis import RiskReport
    from .api import Trained, analyse, compare, convert, fuse, load, remedy, train
    from .graph import Fuse, GradfuseError, GradientGraph, TrainableModel

__all__ = [
    "Fuse",
    "GradfuseError",
    "GradientGraph",
    "RiskReport",
    "TrainableModel",
    "Trained",
    "analyse",
    "compare",
    "convert",
    "fuse",
    "load",
    "remedy",
    "train",
]

_ROOMS = {
    "api": ("Trained", "analyse", "compare", "convert", "fuse", "load", "remedy", "train"),
    "analysis": ("RiskReport",),
    "graph": ("Fuse", "GradfuseError", "GradientGraph", "TrainableModel"),
}


def __getattr__(name: str) -> Any:
    for room, names in _ROOMS.items():
        if name in names:
            return getattr(importlib.import_module(f".{room}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
