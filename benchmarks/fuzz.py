"""Gradients of random nodes against finite differences in float64, family by family.

Each example is differentiated, run at x, x + h d and x - h d for a random direction d of every real input, and judged:

    passes    <dx, d> is the difference quotient
    refused   one of our errors, before anything runs
    fails     the runtime refuses the gradient, though it runs the forward pass
    invalid   the runtime refuses the forward pass: no example at all
    WRONG     the gradient runs and is another
"""

from __future__ import annotations

import argparse
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gradfuse.graph import UnsupportedError
from gradfuse.graph.builder import Builder
from gradfuse.graph.gradients import TABLE, differentiate
from gradfuse.graph.lowering import lower

from . import fuzz_families as families
from . import fuzz_moving as moving
from .fuzz_families import Array, Example

FAMILIES: dict[str, st.SearchStrategy[Example]] = {
    "broadcasting": families.broadcasting(),
    "elementwise": families.unary(),
    "reduction": families.reductions(),
    "cumulative": families.cumulative(),
    "product": families.products(),
    "einsum": families.einsums(),
    "convolution": families.convolutions(),
    "column": families.columns(),
    "pooling": families.pools(),
    "normalization": families.normalizations(),
    "shape": moving.moves(),
    "pad": moving.pads(),
    "slice": moving.slices(),
    "gather": moving.gathers(),
    "scatter": moving.scatters(),
    "top-k": moving.top_k(),
    "resize": moving.resizes(),
    "loss": moving.losses(),
    "scan": moving.scans(),
    "loop": moving.loops(),
    "if": moving.branches(),
    "recurrent": moving.recurrent(),
}

STEPS = {"double": ((1e-5, 1e-4), (1e-3, 1e-2)), "float": ((1e-3, 1e-2),)}
"""Lengths of a step with their tolerances, by element type: float32 where onnxruntime has no kernel for float64, and the
longer step where a kernel for float64 computes in float32."""

DIMS = ("static", "batch", "symbolic", "anonymous")
"""How shapes are declared: as numbers, the first axis by a symbol, equal lengths by one symbol, or a symbol for each axis."""

Run = Callable[[Mapping[str, Array]], list[Array]]


def judge(example: Example, dims: str) -> tuple[str, str]:
    """The verdict on an example, and what was found."""
    with np.errstate(all="ignore"):
        try:
            verdict, why = _judge(example, dims, "double")
        except _not_implemented():
            verdict, why = "invalid", ""
        # LSTM and its like have a kernel for float64 that says only when it is run that it has not.
        return _judge(example, dims, "float") if verdict == "invalid" else (verdict, why)


def _judge(example: Example, dims: str, dtype: str) -> tuple[str, str]:
    inputs = _of_type(example, dtype)
    # Differentiation comes first: it refuses what onnxruntime does not survive.
    try:
        names, model = _differentiated(example, inputs, dims)
    except UnsupportedError as error:
        return "refused", _line(error)
    try:
        run = _runner(_forward(example, inputs, dims))
        loss = run(inputs)[0]
    except Exception as error:  # whatever a runtime raises
        return "invalid", _line(error)
    if not np.isfinite(loss):
        return "invalid", "the loss is not finite"
    try:
        gradients = dict(zip(names, _runner(model)(inputs)[1:], strict=True))
    except Exception as error:
        if isinstance(error, _not_implemented()) and dtype == "double":
            raise
        return "fails", _line(error)
    differences = [_disagreement(inputs, run, name, gradients[name], dtype) for name in names]
    wrong = next(filter(None, differences), "")
    return ("WRONG", wrong) if wrong else ("passes", "")


def _of_type(example: Example, dtype: str) -> dict[str, Array]:
    kind = np.float32 if dtype == "float" else np.float64
    return {
        name: array.astype(kind) if array.dtype.kind == "f" else array
        for name, array in example.inputs.items()
    }


def _not_implemented() -> Any:
    import onnxruntime

    return onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _disagreement(inputs: Mapping[str, Array], run: Run, name: str, gradient: Array, dtype: str) -> str:
    """What is wrong with a gradient; nothing where it is the difference quotient for one of the steps."""
    x = inputs[name]
    if gradient.shape != x.shape:
        return f"the gradient of {name} {list(x.shape)} has shape {list(gradient.shape)}"
    direction = np.random.default_rng(0).standard_normal(x.shape)
    found, size = float((gradient * direction).sum()), float(np.abs(gradient * direction).sum())
    slope = np.nan
    for step, tolerance in STEPS[dtype]:
        ends = [np.asarray(x + sign * step * direction, x.dtype) for sign in (1, -1)]
        values = [float(run({**inputs, name: end})[0]) for end in ends]
        slope = (values[0] - values[1]) / (2 * step)
        if abs(found - slope) <= tolerance * max(1.0, size, abs(slope)):
            return ""
    return f"the slope along {name} is {slope:.6g}, its gradient says {found:.6g}"


def _forward(example: Example, inputs: Mapping[str, Array], dims: str) -> ir.Model:
    """The example and a loss, the sum of its outputs' elements with weights that vary along every axis."""
    declared = ", ".join(_declaration(example, name, array, dims) for name, array in inputs.items())
    sums = "\n".join(
        f"f_{y} = Cast <to = 11> ({y}) n_{y} = Size ({y}) "
        f"o_{y} = Constant <value_int = 1> () m_{y} = Add (n_{y}, o_{y}) r_{y} = Range (o_{y}, m_{y}, o_{y}) "
        f"c_{y} = Cast <to = 11> (r_{y}) "
        f"g_{y} = Constant <value = double {{0.83}}> () a_{y} = Mul (c_{y}, g_{y}) h_{y} = Sin (a_{y}) "
        f"v_{y} = Constant <value_ints = [-1]> () l_{y} = Reshape <allowzero = 0> (f_{y}, v_{y}) "
        f"p_{y} = Mul (l_{y}, h_{y}) s_{y} = ReduceSum <keepdims = 0> (p_{y})"
        for y in example.outputs
    )
    total = f"loss = Sum ({', '.join(f's_{y}' for y in example.outputs)})"
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : {example.opset}]>\n'
        f"example ({declared}) => (double loss) {{ {example.body}\n{sums}\n{total} }}"
    )


def _declaration(example: Example, name: str, array: Array, dims: str) -> str:
    dims = "static" if name in example.static else dims
    kind = {"float64": "double", "float32": "float"}.get(array.dtype.name, array.dtype.name)
    lengths = []
    for axis, length in enumerate(array.shape):
        symbol = f"{name}_{axis}" if dims in ("anonymous", "batch") else f"d{length}"
        lengths.append(str(length) if dims == "static" or (dims == "batch" and axis) else symbol)
    return f"{kind}[{', '.join(lengths)}] {name}" if lengths else f"{kind} {name}"


def _differentiated(example: Example, inputs: Mapping[str, Array], dims: str) -> tuple[list[str], ir.Model]:
    model = _forward(example, inputs, dims)
    lower(model)
    builder, graph = Builder(model.graph), model.graph
    values = [value for value in graph.inputs if inputs[value.name or ""].dtype.kind == "f"]
    found = differentiate(builder, graph.outputs[0], values, TABLE)
    for value in values:
        gradient = found.get(value) or builder.tensor(value).zeros_like()
        output = builder.op("Identity", gradient).value
        output.shape = None
        graph.outputs.append(output)
    return [value.name or "" for value in values], model


def _runner(model: ir.Model) -> Run:
    """Runs a model on onnxruntime, as it is written: an optimization may ask for a kernel that does not exist."""
    import onnxruntime

    serialized = ir.serde.serialize_model(model).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])

    def run(feeds: Mapping[str, Array]) -> list[Array]:
        return list(session.run(None, dict(feeds)))

    return run


def search(
    strategy: st.SearchStrategy[Example], examples: int, seen: Callable[[str, str, Example, str], Any]
) -> None:
    """Hand the verdict on so many examples to `seen`, the same examples each time."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy, st.sampled_from(DIMS))
    def run(example: Example, dims: str) -> None:
        seen(*judge(example, dims), example, dims)

    run()


def main(arguments: list[str]) -> int:
    """Print a line for each family, and every reason why an example did not pass."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200, help="examples for each family")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="only this one; may be repeated")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    columns = ("passes", "refused", "fails", "invalid", "WRONG")
    print(f"{'family':14}" + "".join(f"{column:>9}" for column in columns) + f"{'seconds':>9}")
    wrong = 0
    for family in options.family or FAMILIES:
        counts, reasons, start = Counter[str](), Counter[str](), time.perf_counter()
        samples: dict[str, str] = {}

        def seen(
            verdict: str,
            why: str,
            example: Example,
            dims: str,
            counts: Any = counts,
            reasons: Any = reasons,
            samples: Any = samples,
        ) -> None:
            counts[verdict] += 1
            if verdict != "passes":
                key = f"{verdict}: {_reason(why)}"
                reasons[key] += 1
                samples.setdefault(
                    key, f"{example.body!r} {_shapes(example)} opset {example.opset} {dims}: {why}"
                )

        search(FAMILIES[family], options.examples, seen)
        wrong += counts["WRONG"]
        print(
            f"{family:14}"
            + "".join(f"{counts[c]:9}" for c in columns)
            + f"{time.perf_counter() - start:9.0f}",
            flush=True,
        )
        for key, count in sorted(reasons.items(), key=lambda item: item[0].startswith("refused")):
            if not key.startswith("invalid"):
                print(f"    {count} {key[:90]}\n        {samples[key]}", flush=True)
    return int(wrong > 0)


def _reason(why: str) -> str:
    """A message without the names and numbers that differ between examples."""
    return " ".join(word for word in why.split() if not any(c.isdigit() or c in "'[" for c in word))


def _shapes(example: Example) -> dict[str, Any]:
    return {
        name: list(array.shape) if array.dtype.kind == "f" else array.tolist()
        for name, array in example.inputs.items()
    }
