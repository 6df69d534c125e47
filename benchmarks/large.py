"""How much memory a model of more than 2 GB takes: converting it, reporting on it, and training it for a step.

The model is written with its weights in a file beside it. Each command runs in a process of its own, on the command line.
Printed is the peak of its resident memory, less that of the same command on a tiny model, in units of the model's size.
Resident memory counts the pages of mapped files that were read, which the system takes back where it needs room.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

INPUTS, CLASSES, TINY = 64, 10, 8
BLOCK = 1 << 24


def main(arguments: list[str]) -> int:
    """Write the models, run the commands, print; fails where a command does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks large", description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16384, help="of two dense layers; 16384 makes 2.15 GB")
    options = parser.parse_args(arguments)
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        models = [
            write_model(Path(scratch) / f"{width}" / "model.onnx", width) for width in (TINY, options.width)
        ]
        size = sum(path.stat().st_size for path in models[1].parent.iterdir())
        data = Path(scratch) / "data.npz"
        rng = np.random.default_rng(0)
        np.savez(data, x=rng.standard_normal((4, INPUTS)).astype(np.float32), y=rng.integers(0, CLASSES, 4))
        print(f"a model of {size / 1e9:.2f} GB: peak of resident memory, in models, and seconds")
        for name, command in commands(data).items():
            (small, _, _), (large, seconds, code) = (run(name, path, command) for path in models)
            failed |= code != 0
            print(f"  {name:26} {(large - small) / size:6.2f} {seconds:8.1f}", flush=True)
    return int(failed)


def commands(data: Path) -> dict[str, list[str]]:
    """Arguments after the model, by what is printed."""
    step = ["--data", str(data), "--epochs", "1", "--batch-size", "4", "--validation", "0"]
    return {
        "convert": ["-o", "OUT/model.onnx"],
        "report": ["--fail-on", "never"],
        "train": [*step, "--momentum", "0", "--out", "OUT"],
        "train --train last*": [*step, "--momentum", "0", "--out", "OUT", "--train", "last*"],
    }


def run(name: str, model: Path, arguments: list[str]) -> tuple[int, float, int]:
    """Peak of resident memory in bytes, seconds, and exit code of a command."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=model.parent.parent) as out:
        command = [name.split()[0], str(model), *(part.replace("OUT", out) for part in arguments)]
        process = subprocess.Popen(
            [sys.executable, "-m", "gradfuse", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        print(said, end="")
    return usage.ru_maxrss * 1024, time.perf_counter() - started, code


def write_model(path: Path, width: int) -> Path:
    """Dense layers of this width, the weights as external data."""
    path.parent.mkdir()
    body = "h = MatMul (x, first) a = Relu (h) i = MatMul (a, second) b = Relu (i) j = MatMul (b, third) c = Relu (j)"
    text = f"g (float[batch, {INPUTS}] x) => (float[batch, {CLASSES}] y) {{ {body} y = MatMul (c, last) }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    shapes = {
        "first": (INPUTS, width),
        "second": (width, width),
        "third": (width, width),
        "last": (width, CLASSES),
    }
    rng = np.random.default_rng(0)
    with path.with_suffix(".bin").open("wb") as file:
        for name, shape in shapes.items():
            model.graph.initializer.append(external(name, shape, file, rng))
    path.write_bytes(model.SerializeToString())
    return path


def external(name: str, shape: tuple[int, ...], file: Any, rng: np.random.Generator) -> onnx.TensorProto:
    """Append a tensor's values, drawn for a ReLU network, to the file, block by block."""
    tensor = onnx.TensorProto(
        name=name, data_type=onnx.TensorProto.FLOAT, dims=shape, data_location=onnx.TensorProto.EXTERNAL
    )
    count, offset = math.prod(shape), file.tell()
    for start in range(0, count, BLOCK):
        values = rng.standard_normal(min(BLOCK, count - start), np.float32) * np.float32(
            (2 / shape[0]) ** 0.5
        )
        file.write(values.tobytes())
    entries = {"location": Path(file.name).name, "offset": offset, "length": 4 * count}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor
