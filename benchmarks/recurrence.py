"""A recurrent layer written out step by step, against the same layer as a Scan."""

from __future__ import annotations

import argparse
import time
from unittest import mock

import numpy as np
import onnx_ir as ir

from gradfuse.graph import GradientGraph, TrainableModel, recurrence

BATCH, FEATURES, HIDDEN, REPEATS = 32, 32, 64, 15
GATES = {"LSTM": 4, "GRU": 3}


def layer(op: str, steps: int) -> TrainableModel:
    """One recurrent layer that gives its last state."""
    rows, rng = GATES[op] * HIDDEN, np.random.default_rng(0)
    reset = "linear_before_reset = 1, " if op == "GRU" else ""
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 20]>\n'
        f"m (float[{steps}, {BATCH}, {FEATURES}] x) => (float[1, {BATCH}, {HIDDEN}] h)\n"
        f"<float[1, {rows}, {FEATURES}] w = {{0}}, float[1, {rows}, {HIDDEN}] r = {{0}}>\n"
        f"{{ y, h = {op} <{reset}hidden_size = {HIDDEN}> (x, w, r) }}"
    )
    for name, shape in (("w", (1, rows, FEATURES)), ("r", (1, rows, HIDDEN))):
        values = (rng.standard_normal(shape) / 8).astype(np.float32)
        model.graph.initializers[name].const_value = ir.tensor(values, name=name)
    return TrainableModel(model, ("w", "r"))


def measure(op: str, steps: int, unrolled: bool) -> tuple[int, float, float, float]:
    """Nodes, seconds to build the gradient graph, seconds to load it, and milliseconds of a step."""
    import onnxruntime

    start = time.perf_counter()
    with mock.patch.object(recurrence, "LONGEST_UNROLLED", steps if unrolled else 0):
        model = GradientGraph.of(layer(op, steps), "output").onnx
    built = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    serialized = ir.serde.serialize_model(model).SerializeToString()
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    loaded = time.perf_counter()
    feeds = {"x": np.random.default_rng(1).standard_normal((steps, BATCH, FEATURES), dtype=np.float32)}
    times = []
    for _ in range(REPEATS):
        before = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - before)
    nodes = sum(1 for _ in model.graph.all_nodes())
    return nodes, built - start, loaded - built, 1e3 * float(np.median(times))


def main(arguments: list[str]) -> int:
    """Print a line for each layer, length and form."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks recurrence", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 16, 64])
    options = parser.parse_args(arguments)
    print(f"{'':12}{'':8}{'nodes':>8}{'build s':>9}{'load s':>8}{'step ms':>9}")
    for op in GATES:
        for steps in options.steps:
            for form, unrolled in (("unrolled", True), ("Scan", False)):
                nodes, build, load, step = measure(op, steps, unrolled)
                print(f"{op} {steps:>6}  {form:10}{nodes:>8}{build:9.2f}{load:8.2f}{step:9.1f}", flush=True)
    return 0
