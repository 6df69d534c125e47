"""Gradients of single ops, each written in several ways.

Measured are the table's own formula (`graph/gradients/`) and what else ONNX or ONNX Runtime offers. Each alternative is a graph
in a process of its own; the processes measure in turn, so that a busy moment of the machine meets all of them. Printed is the
median time of one run, and the largest difference from the first alternative's result.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from gradfuse.graph.builder import Builder
from gradfuse.graph.gradients import TABLE, differentiate
from gradfuse.graph.lowering import infer_shapes, lower

THREADS, ROUNDS, RUNS = 2, 7, 5
OURS = "the table's"

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Kernel:
    """One gradient.

    Attributes:
        name: Op and sizes.
        forward: The op as ONNX text, from the inputs to y. The backward graph of the table is made from it.
        inputs: Shape of each input.
        output: Shape of y, and of its gradient dy.
        wanted: The inputs whose gradients are computed.
        alternatives: Other backward graphs as ONNX text, from inputs and dy to d<input>.
    """

    name: str
    forward: str
    inputs: Shapes
    output: tuple[int, ...]
    wanted: tuple[str, ...]
    alternatives: Mapping[str, str]

    def graphs(self) -> Iterator[tuple[str, bytes]]:
        """Every way to compute the gradients, as a serialized model."""
        yield OURS, self._ours()
        for name, body in self.alternatives.items():
            outputs = ", ".join(f"float[] d{name}" for name in self.wanted)
            yield name, _model(body, {**self.inputs, "dy": self.output}, outputs).SerializeToString()

    def _ours(self) -> bytes:
        body = f"{self.forward} weighted = Mul (y, dy) loss = ReduceSum <keepdims = 0> (weighted)"
        model = ir.serde.deserialize_model(_model(body, {**self.inputs, "dy": self.output}, "float loss"))
        lower(model)
        infer_shapes(model)
        values = {value.name: value for value in model.graph.inputs}
        gradients = differentiate(
            Builder(model.graph), model.graph.outputs[0], [values[name] for name in self.wanted], TABLE
        )
        model.graph.outputs.clear()
        for name in self.wanted:
            gradients[values[name]].value.name = f"d{name}"
            model.graph.outputs.append(gradients[values[name]].value)
        RemoveUnusedNodesPass()(model)
        return ir.serde.serialize_model(model).SerializeToString()

    def data(self) -> dict[str, Array]:
        """Standard normal inputs."""
        rng = np.random.default_rng(0)
        shapes = {**self.inputs, "dy": self.output}
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _model(body: str, inputs: Shapes, outputs: str) -> onnx.ModelProto:
    declared = ", ".join(f"float[{', '.join(map(str, shape))}] {name}" for name, shape in inputs.items())
    imports = 'opset_import: ["" : 20, "com.microsoft" : 1]'
    return onnx.parser.parse_model(
        f"<ir_version: 10, {imports}>\nkernel ({declared}) => ({outputs}) {{ {body} }}"
    )


IMAGE, POOLED = (64, 32, 28, 28), (64, 32, 14, 14)

_RELU = {
    "Greater, Where": "zero = Constant <value_float = 0.0> () m = Greater (x, zero) dx = Where (m, dy, zero)",
    "Sign, Mul": "y = Relu (x) s = Sign (y) dx = Mul (dy, s)",
    "ReluGrad (native)": "y = Relu (x) dx = com.microsoft.ReluGrad (dy, y)",
}

_INDICES = "y, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) s = Shape (x)"
_MAX_POOL = {
    "indices, ScatterElements": f"{_INDICES} flat = Constant <value_ints = [-1]> () n = Size (x) v = Reshape (n, flat)"
    " z = ConstantOfShape (v) a = Reshape (i, flat) b = Reshape (dy, flat)"
    ' c = ScatterElements <axis = 0, reduction = "add"> (z, a, b) dx = Reshape (c, s)',
    "MaxPoolGrad (native)": f"{_INDICES} dx = com.microsoft.MaxPoolGrad (dy, i)",
    "forward with indices only": f"{_INDICES} dx = Identity (y)",
}

_AVERAGE_POOL = {
    "ConvTranspose of ones": "p = Constant <value_ints = [-1, 1, 14, 14]> () r = Reshape (dy, p)"
    " q = Constant <value_floats = [0.25, 0.25, 0.25, 0.25]> () k = Constant <value_ints = [1, 1, 2, 2]> ()"
    " w = Reshape (q, k) c = ConvTranspose <strides = [2, 2]> (r, w) s = Shape (x) dx = Reshape (c, s)",
    "Expand": "q = Constant <value_float = 0.25> () d = Mul (dy, q)"
    " a = Constant <value_ints = [0, 0, 14, 1, 14, 1]> () r = Reshape (d, a)"
    " b = Constant <value_ints = [1, 1, 1, 2, 1, 2]> () e = Expand (r, b) s = Shape (x) dx = Reshape (e, s)",
}

_BIAS = {
    "ReduceSum [2, 3], then [0]": "a = Constant <value_ints = [2, 3]> () p = ReduceSum <keepdims = 0> (dy, a)"
    " b = Constant <value_ints = [0]> () s = ReduceSum <keepdims = 0> (p, b)"
    " c = Constant <value_ints = [32, 1, 1]> () db = Reshape (s, c)",
    "ReduceSum [0], then [2, 3]": "a = Constant <value_ints = [0]> () p = ReduceSum <keepdims = 0> (dy, a)"
    " b = Constant <value_ints = [1, 2]> () db = ReduceSum <keepdims = 1> (p, b)",
}

_GELU = {"GeluGrad (native)": "dx = com.microsoft.GeluGrad (dy, x)"}


def conv(batch: int, channels: int, filters: int, size: int, taps: int, group: int = 1) -> Kernel:
    """Both gradients of a convolution that keeps the image size."""
    pad, weight = taps // 2, (filters, channels // group, taps, taps)
    pads = f"pads = [{pad}, {pad}, {pad}, {pad}]"
    dx = f"dx = ConvTranspose <{pads}, group = {group}> (dy, w)"
    alternatives = {
        "ConvGrad (native)": f"dx, dw = com.microsoft.ConvGrad <{pads}, kernel_shape = [{taps}, {taps}], group = {group}>"
        " (dy, x, w)"
    }
    if group == 1:
        convolved = f"a = Transpose <perm = [1, 0, 2, 3]> (x) b = Transpose <perm = [1, 0, 2, 3]> (dy) c = Conv <{pads}> (a, b)"
        alternatives["dw = Conv(x', dy')"] = f"{dx} {convolved} dw = Transpose <perm = [1, 0, 2, 3]> (c)"
        alternatives["dx = Conv(dy, flipped w)"] = (
            "t = Transpose <perm = [1, 0, 2, 3]> (w) s = Constant <value_ints = [-1, -1]> ()"
            " e = Constant <value_ints = [-100, -100]> () axes = Constant <value_ints = [2, 3]> ()"
            f" f = Slice (t, s, e, axes, s) dx = Conv <{pads}> (dy, f)"
            f" {convolved} dw = Transpose <perm = [1, 0, 2, 3]> (c)"
        )
    else:
        alternatives["dw = sum of dy x, tap by tap"] = f"{dx} {_tap_by_tap(weight, size)}"
    return Kernel(
        f"conv {taps}x{taps}, {channels} -> {filters}, {batch} of {size}x{size}, group {group}",
        f"y = Conv <{pads}, group = {group}> (x, w)",
        {"x": (batch, channels, size, size), "w": weight},
        (batch, filters, size, size),
        ("x", "w"),
        alternatives,
    )


def _tap_by_tap(weight: tuple[int, ...], size: int) -> str:
    filters, _, taps, _ = weight
    pad = taps // 2
    lines = [
        f"around = Constant <value_ints = [0, 0, {pad}, {pad}, 0, 0, {pad}, {pad}]> () padded = Pad (x, around)",
        "axes = Constant <value_ints = [2, 3]> () all = Constant <value_ints = [0, 2, 3]> ()",
        "column = Constant <value_ints = [-1, 1]> ()",
    ]
    for i, (row, col) in enumerate(itertools.product(range(taps), repeat=2)):
        lines.append(
            f"s{i} = Constant <value_ints = [{row}, {col}]> () e{i} = Constant <value_ints = [{row + size}, {col + size}]> ()"
            f" t{i} = Slice (padded, s{i}, e{i}, axes) m{i} = Mul (t{i}, dy)"
            f" q{i} = ReduceSum <keepdims = 0> (m{i}, all) c{i} = Reshape (q{i}, column)"
        )
    columns = ", ".join(f"c{i}" for i in range(taps * taps))
    shape = f"shape = Constant <value_ints = [{filters}, 1, {taps}, {taps}]> ()"
    return " ".join(
        [*lines, f"all_taps = Concat <axis = 1> ({columns}) {shape} dw = Reshape (all_taps, shape)"]
    )


KERNELS = [
    Kernel("relu", "y = Relu (x)", {"x": IMAGE}, IMAGE, ("x",), _RELU),
    Kernel("gelu", "y = Gelu (x)", {"x": (896, 512)}, (896, 512), ("x",), _GELU),
    Kernel(
        "max-pool 2x2",
        "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)",
        {"x": IMAGE},
        POOLED,
        ("x",),
        _MAX_POOL,
    ),
    Kernel(
        "average-pool 2x2",
        "y = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)",
        {"x": IMAGE},
        POOLED,
        ("x",),
        _AVERAGE_POOL,
    ),
    Kernel("bias", "y = Add (x, b)", {"x": IMAGE, "b": (32, 1, 1)}, IMAGE, ("b",), _BIAS),
    conv(64, 32, 64, 14, 3),
    conv(64, 1, 32, 28, 3),
    conv(64, 64, 64, 14, 1),
    conv(16, 3, 32, 32, 7),
    conv(16, 32, 32, 28, 7),
    conv(16, 32, 32, 28, 5),
    conv(32, 64, 64, 14, 3, group=64),
    conv(16, 32, 32, 28, 7, group=32),
]


def main(arguments: list[str]) -> int:
    """Print the table of all kernels, or of those whose name contains one of `arguments`."""
    for kernel in KERNELS:
        if not arguments or any(name in kernel.name for name in arguments):
            print(f"\n{kernel.name}")
            for name, milliseconds, difference in measure(kernel):
                print(f"  {name:32} {milliseconds:8.2f} ms   {difference:.0e}", flush=True)
    return 0


def measure(kernel: Kernel) -> list[tuple[str, float, float]]:
    """Name, median time in milliseconds and difference from the first result, for each alternative that runs here."""
    context = multiprocessing.get_context("spawn")
    started: list[tuple[str, Any, list[Array], list[float]]] = []
    for name, model in kernel.graphs():
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(model, kernel.data(), theirs), daemon=True)
        process.start()
        results = ours.recv()
        if results is not None:
            started.append((name, ours, results, []))
    for _, (_, pipe, _, times) in itertools.product(range(ROUNDS), started):
        pipe.send(None)
        times.extend(pipe.recv())
    for _, pipe, _, _ in started:
        pipe.close()
    first = started[0][2]
    return [
        (name, 1e3 * float(np.median(times)), _difference(results, first))
        for name, _, results, times in started
    ]


def _difference(results: list[Array], expected: list[Array]) -> float:
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) if a.shape == b.shape else np.nan
        for a, b in zip(results, expected, strict=True)
    )


def _serve(
    model: bytes, feeds: dict[str, Array], pipe: multiprocessing.connection.Connection[Any, Any]
) -> None:
    """In a process of its own: send the results (None where this onnxruntime lacks an op), then times whenever asked."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = THREADS, 4
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's errors share no base class
        pipe.send(None)
        return
    used = {
        value.name: onnxruntime.OrtValue.ortvalue_from_numpy(feeds[value.name])
        for value in session.get_inputs()
    }
    binding = session.io_binding()
    for name, value in used.items():
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    pipe.send(binding.copy_outputs_to_cpu())
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send([_seconds(session, binding) for _ in range(RUNS)])


def _seconds(session: Any, binding: Any) -> float:
    begin = time.perf_counter()
    session.run_with_iobinding(binding)
    return time.perf_counter() - begin
