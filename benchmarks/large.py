"""How much memory a model of more than 2 GB takes: converting it, reporting on it, and training it for a step.

The model is written with its weights in a file beside it. Each command runs in a process of its own, on the command line.
Printed are the peaks of its resident and of its anonymous memory, less those of the same command on a tiny model, in units of
the model's size. Resident memory counts the pages of mapped files that were read, which the system takes back where it needs
room; anonymous memory it cannot take back.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

INPUTS, CLASSES, TINY = 64, 10, 8
BLOCK = 1 << 24

UNGUARDED = "import sys; from gradfuse.cli import main; sys.exit(main())"
"""The command line in one process, so that it is this process whose memory is watched."""


def main(arguments: list[str]) -> int:
    """Write the models, run the commands, print; fails where a command does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks large", description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16384, help="of the dense layers")
    parser.add_argument(
        "--depth", type=int, default=2, help="how many; two of 16384, or eight of 8192, make 2.15 GB"
    )
    options = parser.parse_args(arguments)
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        models = [
            write_model(Path(scratch) / f"{width}" / "model.onnx", width, options.depth)
            for width in (TINY, options.width)
        ]
        size = sum(path.stat().st_size for path in models[1].parent.iterdir())
        data = Path(scratch) / "data.npz"
        rng = np.random.default_rng(0)
        np.savez(data, x=rng.standard_normal((4, INPUTS)).astype(np.float32), y=rng.integers(0, CLASSES, 4))
        print(f"a model of {size / 1e9:.2f} GB: peaks of memory in models, and seconds")
        print(f"  {'':26} {'resident':>9} {'anonymous':>10} {'seconds':>8}")
        for name, command in commands(data).items():
            small, large = (run(name, path, command) for path in models)
            failed |= large.code != 0
            resident, anonymous = large.resident - small.resident, large.anonymous - small.anonymous
            print(
                f"  {name:26} {resident / size:9.2f} {anonymous / size:10.2f} {large.seconds:8.1f}",
                flush=True,
            )
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


class Usage(NamedTuple):
    """Peaks of resident and of anonymous memory in bytes, seconds, and exit code of a command."""

    resident: int
    anonymous: int
    seconds: float
    code: int


def run(name: str, model: Path, arguments: list[str]) -> Usage:
    """Run a command, and watch its memory."""
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(dir=model.parent.parent) as out,
        tempfile.TemporaryFile("w+") as said,
    ):
        command = [name.split()[0], str(model), *(part.replace("OUT", out) for part in arguments)]
        process = subprocess.Popen(
            [sys.executable, "-c", UNGUARDED, *command], stdout=subprocess.DEVNULL, stderr=said
        )
        anonymous = [0]
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            anonymous.append(anonymous_bytes(process.pid))
            time.sleep(0.02)
        code = process.returncode = os.waitstatus_to_exitcode(ended[1])
        if code:
            said.seek(0)
            print(said.read(), end="")
    return Usage(ended[2].ru_maxrss * 1024, max(anonymous), time.perf_counter() - started, code)


def anonymous_bytes(process: int) -> int:
    """Anonymous memory that a process holds now."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def write_model(path: Path, width: int, depth: int) -> Path:
    """`depth` square dense layers of this width between a first and a last, the weights as external data."""
    path.parent.mkdir()
    shapes = {"first": (INPUTS, width)}
    shapes |= {f"middle{layer}": (width, width) for layer in range(depth)}
    body = " ".join(
        f"z{layer} = MatMul (h{layer}, {name}) h{layer + 1} = Relu (z{layer})"
        for layer, name in enumerate(shapes)
    )
    ends = f"(float[batch, {INPUTS}] h0) => (float[batch, {CLASSES}] y)"
    text = f"g {ends} {{ {body} y = MatMul (h{len(shapes)}, last) }}"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    shapes["last"] = (width, CLASSES)
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
