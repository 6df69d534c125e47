"""Lets modules wait until they are used, though others import them at once.

onnx-ir (seen in 1.1) imports sympy for arithmetic on symbolic dimensions, which few models ask for: half of the time that
all imports take, and 35 MB. Where onnx-ir uses it otherwise than here, it is imported as ever.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__all__ = ["import_late"]

_LATE = ("sympy", "onnx_ir._symbolic_shapes")
"""The second takes functions from the first when it is imported, and is itself asked for nothing but symbolic arithmetic."""


class _Late:
    """Finds these modules as ever, and loads them when they are first asked for something."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As any finder's; None for other modules."""
        spec = PathFinder.find_spec(name, path, target) if name in _LATE else None
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def import_late() -> None:
    """From now on in this process, import these modules when they are used."""
    sys.meta_path.insert(0, _Late)
