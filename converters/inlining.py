"""Model-local functions, and how large a graph becomes when they are written out."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ..graph.errors import InputError

__all__ = ["check_functions"]

_MOST_NODES = 1_000_000


def check_functions(model: ir.Model) -> None:
    """Raise InputError if functions call each other in a circle, or into more nodes than anybody would write.

    A file of a few lines can hold functions that call each other twice each, forty deep: 10^12 nodes.
    """
    sizes: dict[ir.OperatorIdentifier, int] = {}
    for identifier in model.functions:
        _size(identifier, model.functions, sizes, ())
    total = sum(sizes.get(node.op_identifier(), 1) for node in model.graph.all_nodes())
    if total > _MOST_NODES:
        raise InputError(
            f"the model has {total:.0e} nodes once its functions are written out",
            expected=f"at most {_MOST_NODES:.0e}",
        )


def _size(
    identifier: ir.OperatorIdentifier,
    functions: Mapping[ir.OperatorIdentifier, ir.Function],
    sizes: dict[ir.OperatorIdentifier, int],
    callers: tuple[ir.OperatorIdentifier, ...],
) -> int:
    """Number of nodes that a call becomes."""
    if identifier in callers:
        raise InputError(
            f"the function {identifier[1]!r} calls itself", expected="functions without recursion"
        )
    if identifier not in sizes:
        inner = [node.op_identifier() for node in functions[identifier].all_nodes()]
        sizes[identifier] = sum(
            _size(name, functions, sizes, (*callers, identifier)) if name in functions else 1
            for name in inner
        )
    return sizes[identifier]
