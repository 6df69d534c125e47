"""Putting fuses into a graph, finding them, and taking them out."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from ..errors import InputError, some
from ..gradient_graph import GradientGraph
from .functions import DOMAIN, Form, form_named, form_of, function
from .fuse import Fuse
from .loops import add_bits, body_of, remove_bits
from .units import summed_axes

__all__ = ["fuse_bits", "fuse_states", "insert_fuses", "list_fuses", "remove_fuses"]

Graph = TypeVar("Graph", GradientGraph, ir.Model)


def insert_fuses(gradients: GradientGraph, fuses: Iterable[Fuse]) -> GradientGraph:
    """A copy of `gradients` with these fuses beside those that it has; a fuse replaces an earlier one on its target.

    Raises:
        InputError: A target is no tensor with a gradient, or `adaptive` is to clip what has no weight.
    """
    wanted = {fuse.name: fuse for fuse in (*list_fuses(gradients.onnx), *fuses)}
    result = remove_fuses(gradients)
    names = {**result.activation_gradients, **result.gradients}
    for fuse in sorted(wanted.values(), key=lambda fuse: (fuse.is_global, fuse.name)):
        if fuse.kind == "adaptive" and fuse.target not in result.gradients:
            raise InputError(
                f"an adaptive fuse on {fuse.target!r}",
                expected=f"a parameter: one of {some(result.gradients)}",
            )
        if fuse.is_global:
            _insert(result, fuse, list(result.gradients.values()))
        elif fuse.target in names:
            _insert(result, fuse, [names[fuse.target]])
        elif fuse.target in result.recurrent_gradients:
            _insert_in_loop(result, fuse, result.recurrent_gradients[fuse.target])
        else:
            raise InputError(f"no gradient flows through {fuse.target!r}", expected=f"one of {some(names)}")
    result.onnx.graph.sort()
    return result


def remove_fuses(graph: Graph, pattern: str = "*") -> Graph:
    """A copy without the fuses whose target matches the pattern.

    Raises:
        InputError: The graph has fuses, and the pattern matches none.
    """
    if isinstance(graph, GradientGraph):
        return replace(graph, onnx=remove_fuses(graph.onnx, pattern))
    result = graph.clone()
    nodes = [node for node, _ in _fuse_nodes(result)]
    matching = [node for node in nodes if fnmatch.fnmatchcase(_target(node), pattern)]
    if nodes and not matching:
        raise InputError(
            f"no fuse on {pattern!r}", expected=f"a pattern for one of {some(map(_target, nodes))}"
        )
    for node in matching[::-1]:
        _remove(result.graph, node)
    used = {node.op_identifier() for node, _ in _fuse_nodes(result)}
    for identifier in [key for key in result.functions if key[0] == DOMAIN and key not in used]:
        del result.functions[identifier]
    if len(matching) == len(nodes):
        result.opset_imports.pop(DOMAIN, None)
    return result


def list_fuses(model: ir.Model) -> list[Fuse]:
    """The fuses of a graph, in the order of their nodes.

    Raises:
        InputError: A node of a fuse's type has no such threshold or target.
    """
    return [
        Fuse(form.kind, _target(node), node.attributes.get_float("threshold", 0.0), node.doc_string or "")
        for node, form in _fuse_nodes(model)
    ]


def fuse_states(model: ir.Model) -> dict[str, str]:
    """The output with the new state, by the input with the old one, of each fuse that remembers."""
    return {
        _input(node, -1).name or "": node.outputs[-1].name or ""
        for node, form in _fuse_nodes(model)
        if form.state
    }


def fuse_bits(model: ir.Model) -> dict[str, ir.Value]:
    """For each fuse, by the name of its node, the bool scalar that tells whether it changed the gradient."""
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    return {node.name or "": by_name[f"{node.name}/bit"] for node, _ in _fuse_nodes(model)}


def _fuse_nodes(model: ir.Model) -> list[tuple[ir.Node, Form]]:
    """Those in the bodies of loops included."""
    return [(node, form) for node in model.graph.all_nodes() if (form := form_named(node)) is not None]


def _target(node: ir.Node) -> str:
    return (node.name or "").removeprefix("fuse/")


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _insert(gradients: GradientGraph, fuse: Fuse, names: Sequence[str]) -> None:
    graph, form = gradients.onnx.graph, form_of(fuse)
    values = {value.name: value for node in graph for value in node.outputs if value.name in names}
    edges = [values[name] for name in names]
    node = _node(gradients, fuse, form, edges)
    for before, after in zip(edges, node.outputs, strict=False):
        name, before.name = before.name, f"{before.name}/before_{fuse.kind}"
        after.name, after.type, after.shape = name, before.type, before.shape
        if before not in graph.outputs:
            _redirect_consumers(before, after, spare=node)
        _redirect_outputs(graph, before, after)
    bit = node.outputs[len(edges)]
    bit.name, bit.type, bit.shape = f"{fuse.name}/bit", ir.TensorType(ir.DataType.BOOL), ir.Shape(())
    if form.state:
        new, old = node.outputs[-1], _input(node, -1)
        new.name, new.type, new.shape = f"{fuse.name}/state_new", old.type, old.shape
        graph.outputs.append(new)
    graph.append(node)


def _insert_in_loop(gradients: GradientGraph, fuse: Fuse, name: str) -> None:
    if fuse.kind not in ("value", "norm"):
        raise InputError(
            f"a {fuse.kind} fuse on {fuse.target!r}, inside a loop",
            expected="value or norm, which remember nothing",
        )
    found = body_of(gradients.onnx.graph, name)
    assert found is not None
    scan, before = found
    body, node = scan.attributes["body"].as_graph(), _node(gradients, fuse, form_of(fuse), [before])
    after, bit = node.outputs
    before.name, after.name = f"{name}/before_{fuse.kind}", name
    after.type, after.shape = before.type, before.shape
    bit.name, bit.type, bit.shape = f"{fuse.name}/step", ir.TensorType(ir.DataType.BOOL), ir.Shape(())
    _redirect_outputs(body, before, after)
    body.append(node)
    add_bits(gradients.onnx.graph, scan, bit, f"{fuse.name}/bit")


def _node(gradients: GradientGraph, fuse: Fuse, form: Form, edges: Sequence[ir.Value]) -> ir.Node:
    """The node, whose outputs have no names yet, and the function that it calls."""
    model, graph = gradients.onnx, gradients.onnx.graph
    defined = function(form, len(edges), model.opset_imports[""])
    model.functions.setdefault(defined.identifier(), defined)
    model.opset_imports[DOMAIN] = 1
    inputs, attributes = list(edges), dict[str, float | list[int]](threshold=float(fuse.threshold))
    if fuse.kind == "adaptive":
        inputs.append(graph.initializers[fuse.target])
        attributes["axes"] = summed_axes(gradients.source, fuse.target)
    if form.state:
        inputs.append(_state_input(graph, f"{fuse.name}/state", form, edges[0].dtype or ir.DataType.FLOAT))
    return ir.node(
        form.name,
        inputs,
        attributes,
        domain=DOMAIN,
        num_outputs=len(edges) + 1 + bool(form.state),
        name=fuse.name,
        doc_string=fuse.reason or None,
    )


def _state_input(graph: ir.Graph, name: str, form: Form, dtype: ir.DataType) -> ir.Value:
    """A graph input with the state before the first step as its default."""
    tensor = ir.tensor(np.array(form.state, dtype.numpy()), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(dtype), shape=ir.Shape([len(form.state)]), const_value=tensor
    )
    graph.register_initializer(value)
    graph.inputs.append(value)
    return value


def _remove(whole: ir.Graph, node: ir.Node) -> None:
    form, graph = form_named(node), node.graph
    assert form is not None
    assert isinstance(graph, ir.Graph)
    count = form.gradients(node)
    for before, after in zip(node.inputs[:count], node.outputs[:count], strict=True):
        if before is not None:
            name, after.name = after.name, f"{after.name}/removed"
            _redirect_consumers(after, before)
            _redirect_outputs(graph, after, before)
            before.name = name
    if graph is not whole:
        remove_bits(whole, node.outputs[count])
    own = set(node.outputs[count:])
    graph.outputs[:] = [value for value in graph.outputs if value not in own]
    state = _input(node, -1) if form.state else None
    graph.remove(node, safe=True)
    if state is not None:
        graph.inputs[:] = [value for value in graph.inputs if value is not state]
        graph.initializers.pop(state.name or "", None)


def _redirect_consumers(before: ir.Value, after: ir.Value, spare: ir.Node | None = None) -> None:
    for user, index in tuple(before.uses()):
        if user is not spare:
            user.replace_input_with(index, after)


def _redirect_outputs(graph: ir.Graph, before: ir.Value, after: ir.Value) -> None:
    for index, output in enumerate(graph.outputs):
        if output is before:
            graph.outputs[index] = after
