"""Compares the gradients of a few ONNX nodes with PyTorch's autograd.

A `Case` states a forward computation twice: as ONNX text and as a function of torch tensors. `check` differentiates the ONNX
graph, runs it, and compares the gradient of every floating-point input.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator

from gradfuse.graph.builder import Builder
from gradfuse.graph.gradients import DIFFERENTIATES, TABLE, differentiate
from gradfuse.graph.lowering import infer_shapes, lower

Array = np.ndarray[Any, Any]
Data = tuple[int, ...] | Array

TOLERANCE = {"float": 1e-4, "double": 1e-7}
_TORCH = {"float": torch.float32, "double": torch.float64}
DIMS = ("static", "batch", "symbolic", "anonymous")
"""How input shapes are declared: as numbers, with a symbol for the first axis, as symbols (equal lengths share one), or with a
symbol of its own for each dimension."""


_FORWARD = "forward_nodes"


@dataclass(frozen=True)
class Case:
    """A forward computation.

    Attributes:
        name: What is special about it; begins with the op type.
        body: ONNX text from the inputs to `outputs`.
        inputs: For each input its shape, for standard normal data, or the data itself.
        reference: The same computation on torch tensors, called with the inputs in order.
        outputs: The outputs that take part in the loss.
        static: Inputs whose shape is always declared by numbers: convolution kernels.
        fixed: Floating-point inputs that are not differentiated.
        dims: How input shapes are declared: a subset of `DIMS`.
        opset: ONNX opset of the body.
        functions: ONNX text of model-local functions in the domain `local`.
        dtypes: Element types to run it in.
    """

    name: str
    body: str
    inputs: Mapping[str, Data]
    reference: Callable[..., Any]
    outputs: tuple[str, ...] = ("y",)
    static: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    dims: tuple[str, ...] = DIMS
    opset: int = 20
    functions: str = ""
    dtypes: tuple[str, ...] = ("float", "double")

    def data(self, dtype: str) -> dict[str, Array]:
        """The inputs as arrays, floating-point ones of element type `dtype`."""
        rng = np.random.default_rng(0)
        kind = np.float32 if dtype == "float" else np.float64
        arrays = {
            name: rng.standard_normal(data) if isinstance(data, tuple) else data
            for name, data in self.inputs.items()
        }
        return {
            name: array.astype(kind) if array.dtype.kind == "f" else array for name, array in arrays.items()
        }

    def differentiated(self) -> list[str]:
        """Names of the inputs that have a gradient."""
        data = self.data("float")
        return [name for name, array in data.items() if array.dtype.kind == "f" and name not in self.fixed]


def check(case: Case, dims: str = "static", dtype: str = "float") -> ir.Model:
    """Assert that all gradients of `case` are PyTorch's; return the gradient graph."""
    data, names = case.data(dtype), case.differentiated()
    expected, cotangents = autograd(case, data, names, _TORCH[dtype])
    model = gradient_graph(case, {**data, **cotangents}, dims, dtype)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    found = run(model, {**data, **cotangents})
    for name in names:
        error = relative_error(found[f"{name}_grad"], expected[name])
        assert error <= TOLERANCE[dtype], f"{case.name}: gradient of {name} is off by {error:.2g}"
    return model


def relative_error(found: Array, expected: Array) -> float:
    """The largest difference over the largest expected value; infinite where shape, type or non-finite places differ."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    difference = np.abs(found[finite] - expected[finite]).max()
    return float(difference / max(np.abs(expected[finite]).max(), 1e-30)) if difference > 0 else 0.0


def autograd(
    case: Case, data: Mapping[str, Array], names: Sequence[str], dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The gradient of each of `names`, and the cotangent of each output."""
    tensors = {name: torch.from_numpy(array.copy()) for name, array in data.items()}
    for name in names:
        tensors[name].requires_grad_()
    results = case.reference(*tensors.values())
    results = results if isinstance(results, tuple | list) else (results,)
    rng = np.random.default_rng(1)
    weights = [torch.from_numpy(rng.standard_normal(tuple(y.shape))).to(dtype) for y in results]
    gradients = torch.autograd.grad(results, [tensors[name] for name in names], weights, allow_unused=True)
    filled = [
        torch.zeros_like(tensors[name]) if g is None else g for name, g in zip(names, gradients, strict=True)
    ]
    return (
        {name: g.numpy() for name, g in zip(names, filled, strict=True)},
        {f"cotangent_{name}": weight.numpy() for name, weight in zip(case.outputs, weights, strict=True)},
    )


def forward_graph(case: Case, data: Mapping[str, Array], dims: str, dtype: str) -> ir.Model:
    """The graph that computes the sum over outputs of <output, cotangent>."""
    declared = ", ".join(_declaration(case, name, array, dims) for name, array in data.items())
    products = "\n".join(
        f"product_{y} = Mul ({y}, cotangent_{y})\n sum_{y} = ReduceSum <keepdims = 0> (product_{y})"
        for y in case.outputs
    )
    # onnxruntime's gradient builder, whose second opinion a benchmark asks for, has no gradient of Sum.
    op = "Sum" if len(case.outputs) > 1 else "Identity"
    total = f"loss = {op} ({', '.join(f'sum_{y}' for y in case.outputs)})"
    imports = f'"" : {case.opset}' + (', "local" : 1' if case.functions else "")
    return ir.from_onnx_text(
        f"<ir_version: 10, opset_import: [{imports}]>\n"
        f"case ({declared}) => ({dtype} loss) {{ {case.body}\n{products}\n{total} }}\n{case.functions}"
    )


def gradient_graph(case: Case, data: Mapping[str, Array], dims: str, dtype: str) -> ir.Model:
    """The graph that computes the gradients of what `forward_graph` computes."""
    model = forward_graph(case, data, dims, dtype)
    lower(model)
    infer_shapes(model)
    model.metadata_props[_FORWARD] = str(len(model.graph))
    builder, values = Builder(model.graph), {value.name: value for value in model.graph.inputs}
    wrt = {name: values[name] for name in case.differentiated()}
    gradients = differentiate(builder, model.graph.outputs[0], wrt.values(), TABLE)
    for name, value in wrt.items():
        gradient = gradients.get(value) or builder.tensor(value).zeros_like()
        gradient.value.name = f"{name}_grad"
        gradient.value.shape, gradient.value.type = value.shape, value.type
        model.graph.outputs.append(gradient.value)
    return model


def _declaration(case: Case, name: str, array: Array, dims: str) -> str:
    dims = "static" if name in case.static else dims
    shape = [_dimension(name, axis, length, dims) for axis, length in enumerate(array.shape)]
    kind = {"float32": "float", "float64": "double"}.get(array.dtype.name, array.dtype.name)
    return f"{kind}[{', '.join(shape)}] {name}" if shape else f"{kind} {name}"


def _dimension(name: str, axis: int, length: int, dims: str) -> str:
    if dims == "static" or (dims == "batch" and axis > 0):
        return str(length)
    return f"{name}_{axis}" if dims == "anonymous" else f"d{length}"


def run(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every output by name, from onnxruntime, or from ONNX's reference where onnxruntime has no kernel for doubles."""
    serialized = ir.serde.serialize_model(model).SerializeToString()
    names = [output.name or "" for output in model.graph.outputs]
    used = {value.name for value in model.graph.inputs}
    feeds = {name: array for name, array in feeds.items() if name in used}
    session = _session(serialized)
    if session is None:
        with np.errstate(over="ignore", invalid="ignore"):
            results = ReferenceEvaluator(serialized).run(names, dict(feeds))
    else:
        results = session.run(names, dict(feeds))
    return dict(zip(names, results, strict=True))


def _session(serialized: bytes) -> Any:
    """A session, unoptimized where an optimization needs a kernel that does not exist; None where one is missing anyway."""
    import onnxruntime

    missing = onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented
    for optimized in (True, False):
        with contextlib.suppress(missing):
            return onnxruntime.InferenceSession(
                serialized, _options(optimized), providers=["CPUExecutionProvider"]
            )
    return None


@functools.cache
def _options(optimized: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def op_types(body: str) -> set[str]:
    """Op types in ONNX text."""
    import re

    return set(re.findall(r"=\s*([A-Z]\w*)", body))


def backward_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes that `differentiate` appended."""
    return list(model.graph)[int(model.metadata_props[_FORWARD]) :]


__all__ = [
    "DIFFERENTIATES",
    "DIMS",
    "TABLE",
    "Case",
    "backward_nodes",
    "check",
    "op_types",
    "relative_error",
    "run",
]
