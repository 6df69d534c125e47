"""Fuses: clipping nodes on gradient edges.

A fuse is one node of a model-local ONNX function, named `fuse/<target>`, whose body is a few standard ops: a viewer shows the
node and its threshold, a runtime sees the ops. Below its threshold a fuse multiplies by exactly 1, or clips nothing, and so
changes no bit of the gradient.

    value        g -> min(max(g, -t), t)                                    torch clip_grad_value_, Keras clipvalue
    norm         g -> g t / max(|g|, t)                                     Keras clipnorm
    global-norm  g_i -> g_i t / max(sqrt(sum_j |g_j|^2), t)                 torch clip_grad_norm_, Keras global_clipnorm

A `value` or `norm` fuse sits on the gradient of one tensor. On a parameter's gradient it limits the update only, although
the backward pass may use the same sum further on (BatchNormalization's does); on an activation's gradient it limits what
flows back to everything before it. The `global-norm` fuse takes the gradients of all parameters, after their own fuses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from .errors import InputError, some
from .gradient_graph import GradientGraph

__all__ = ["ALL_PARAMETERS", "FUSE_KINDS", "Fuse", "insert_fuses", "list_fuses", "remove_fuses"]

ALL_PARAMETERS = "global-norm"
"""The target of a `global-norm` fuse."""

_DOMAIN = "gradfuse"
_FUNCTIONS = {"value": "ValueFuse", "norm": "NormFuse", "global-norm": "GlobalNormFuse"}

FUSE_KINDS = tuple(_FUNCTIONS)
"""Every kind of fuse."""

_VALUE = """
    limit = Constant <value_float: float = @threshold> ()
    high = CastLike (limit, gradient)
    low = Neg (high)
    clipped = Clip (gradient, low, high)
"""

_NORM = """
    squares = ReduceSumSquare <keepdims = 0> (gradient)
    norm = Sqrt (squares)
    limit = Constant <value_float: float = @threshold> ()
    high = CastLike (limit, gradient)
    larger = Max (norm, high)
    scale = Div (high, larger)
    clipped = Mul (gradient, scale)
"""


@dataclass(frozen=True)
class Fuse:
    """One clipping node.

    Attributes:
        kind: `value`, `norm` or `global-norm`.
        target: Name of the parameter or activation whose gradient it clips; `ALL_PARAMETERS` for `global-norm`.
        threshold: The largest absolute value, or the largest Euclidean norm, that passes unchanged; above 0.
    """

    kind: str
    target: str
    threshold: float

    def __post_init__(self) -> None:
        if self.kind not in FUSE_KINDS:
            raise InputError(
                f"unknown kind of fuse {self.kind!r}", expected=f"one of {', '.join(FUSE_KINDS)}"
            )
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise InputError(f"threshold {self.threshold} of {self.name}", expected="a positive number")
        if (self.kind == "global-norm") != (self.target == ALL_PARAMETERS):
            raise InputError(
                f"a {self.kind} fuse on {self.target!r}",
                expected=f"target {ALL_PARAMETERS!r} for global-norm only",
            )

    @property
    def name(self) -> str:
        """Name of the node."""
        return f"fuse/{self.target}"


def insert_fuses(gradients: GradientGraph, fuses: Iterable[Fuse]) -> GradientGraph:
    """A copy of `gradients` with these fuses beside those that it has; a fuse replaces an earlier one on its target.

    Raises:
        InputError: A target is no tensor with a gradient.
    """
    wanted = {fuse.name: fuse for fuse in (*list_fuses(gradients.onnx), *fuses)}
    result = remove_fuses(gradients)
    names = {**result.activation_gradients, **result.gradients}
    for fuse in sorted(wanted.values(), key=lambda fuse: fuse.kind == "global-norm"):
        if fuse.kind == "global-norm":
            _insert(result.onnx, fuse, list(result.gradients.values()))
        elif fuse.target in names:
            _insert(result.onnx, fuse, [names[fuse.target]])
        else:
            raise InputError(f"no gradient flows through {fuse.target!r}", expected=f"one of {some(names)}")
    result.onnx.graph.sort()
    return result


def remove_fuses(gradients: GradientGraph) -> GradientGraph:
    """A copy of `gradients` without any fuse."""
    result = gradients.clone()
    graph = result.onnx.graph
    for node in [node for node in graph if _is_fuse(node)][::-1]:
        for before, after in zip(node.inputs, node.outputs, strict=True):
            if before is not None:
                name, after.name = after.name, f"{after.name}/removed"
                _redirect_consumers(after, before)
                _redirect_outputs(graph, after, before)
                before.name = name
        graph.remove(node, safe=True)
    for identifier in [key for key in result.onnx.functions if key[0] == _DOMAIN]:
        del result.onnx.functions[identifier]
    result.onnx.opset_imports.pop(_DOMAIN, None)
    return result


def list_fuses(model: ir.Model) -> list[Fuse]:
    """The fuses of a graph, in the order of their nodes."""
    kinds = {function: kind for kind, function in _FUNCTIONS.items()}
    return [
        Fuse(
            kinds[node.op_type],
            (node.name or "").removeprefix("fuse/"),
            node.attributes.get_float("threshold", 0.0),
        )
        for node in model.graph
        if _is_fuse(node)
    ]


def _is_fuse(node: ir.Node) -> bool:
    return node.domain == _DOMAIN and node.op_type in _FUNCTIONS.values()


def _insert(model: ir.Model, fuse: Fuse, names: Sequence[str]) -> None:
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs if value.name in names}
    edges = [values[name] for name in names]
    function = _function(fuse.kind, len(edges), model.opset_imports[""])
    model.functions.setdefault(function.identifier(), function)
    model.opset_imports[_DOMAIN] = 1
    node = ir.node(
        function.name,
        edges,
        {"threshold": fuse.threshold},
        domain=_DOMAIN,
        num_outputs=len(edges),
        name=fuse.name,
    )
    for before, after in zip(edges, node.outputs, strict=True):
        name, before.name = before.name, f"{before.name}/before_{fuse.kind}"
        after.name, after.type, after.shape = name, before.type, before.shape
        if before not in graph.outputs:
            _redirect_consumers(before, after, spare=node)
        _redirect_outputs(graph, before, after)
    graph.append(node)


def _redirect_consumers(before: ir.Value, after: ir.Value, spare: ir.Node | None = None) -> None:
    for user, index in tuple(before.uses()):
        if user is not spare:
            user.replace_input_with(index, after)


def _redirect_outputs(graph: ir.Graph, before: ir.Value, after: ir.Value) -> None:
    for index, output in enumerate(graph.outputs):
        if output is before:
            graph.outputs[index] = after


def _function(kind: str, count: int, opset: int) -> ir.Function:
    """The function of a kind of fuse; the one for `global-norm` takes as many gradients as there are."""
    inputs, outputs, body = "gradient", "clipped", {"value": _VALUE, "norm": _NORM}.get(kind, "")
    if kind == "global-norm":
        inputs, outputs = (", ".join(f"{stem}_{i}" for i in range(count)) for stem in ("gradient", "clipped"))
        body = _global_norm(count)
    header = f'<opset_import: ["" : {opset}], domain: "{_DOMAIN}">'
    text = f"{header}\n{_FUNCTIONS[kind]} <threshold> ({inputs}) => ({outputs}) {{{body}}}"
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def _global_norm(count: int) -> str:
    indices = range(count)
    return "\n".join(
        [
            *(f"square_{i} = ReduceSumSquare <keepdims = 0> (gradient_{i})" for i in indices),
            f"squares = Sum ({', '.join(f'square_{i}' for i in indices)})",
            "norm = Sqrt (squares)",
            "limit = Constant <value_float: float = @threshold> ()",
            "high = CastLike (limit, norm)",
            "larger = Max (norm, high)",
            "scale = Div (high, larger)",
            *(f"clipped_{i} = Mul (gradient_{i}, scale)" for i in indices),
        ]
    )
