"""onnxruntime's gradient builder over the table of cases that gradfuse's own gradients are tested with.

Every case with static shapes in float32: its inputs become parameters, its outputs a weighted sum. PyTorch's autograd is the
judge of the builder, as it is of gradfuse in the tests. The builder agrees to 1e-3 of the largest element, refuses, or differs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .coverage import outcome, work

TOOL = "onnxruntime"


def main(arguments: list[str]) -> int:
    """Print how the builder does, in all and for each op that it does not always get right."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks second_opinion", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--list", action="store_true", help="list why the builder refuses")
    options = parser.parse_args(arguments)
    oracle = importlib.import_module("tests.graph.gradients.oracle")
    cases = importlib.import_module("tests.graph.gradients.cases").CASES
    cases = [case for case in cases if "static" in case.dims and "float" in case.dtypes]
    by_op: dict[str, Counter[str]] = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for index, case in enumerate(cases):
            write(folder, f"case{index}", case, oracle)
        work(Path(sys.executable), TOOL, folder, [f"case{index}" for index in range(len(cases))])
        for index, case in enumerate(cases):
            what, why = outcome(folder, f"case{index}", TOOL)
            by_op[case.name.split()[0]][what] += 1
            if what == "silently wrong" or (options.list and what != "passes"):
                print(f"{what:16}{case.name[:90]}: {why}")
    total = sum(by_op.values(), Counter())
    print(f"\n{len(cases)} cases: ", ", ".join(f"{count} {what}" for what, count in total.items()))
    for op, counts in sorted(by_op.items()):
        if set(counts) != {"passes"}:
            print(f"  {op:28}" + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return 0


def write(folder: Path, name: str, case: Any, oracle: Any) -> None:
    """The case as a file whose parameters are its inputs, what to feed, and autograd's gradients."""
    data, names = case.data("float"), case.differentiated()
    expected, cotangents = oracle.autograd(case, data, names)
    model = oracle.forward_graph(case, {**data, **cotangents}, "static", "float")
    constants = {**{key: data[key] for key in names}, **cotangents}
    for value in list(model.graph.inputs):
        if value.name in constants:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(constants[value.name], name=value.name)
            model.graph.register_initializer(value)
    ir.save(model, folder / f"{name}.onnx", format="protobuf")
    given: dict[str, Any] = {f"input:{key}": array for key, array in data.items() if key not in constants}
    given |= {f"parameter:{key}": data[key] for key in names}
    np.savez(folder / f"{name}.npz", **given)
    np.savez(folder / f"{name}.autograd.npz", **expected)
