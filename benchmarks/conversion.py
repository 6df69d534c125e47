"""How long a conversion takes, beside the framework's own exporter.

`exporter` is what a user would call without gradfuse: `torch.onnx.export`, and `model.export(format="onnx")` of Keras.
`convert` is gradfuse's conversion without its check, `check` the comparison with the framework. CPU seconds, of which other
work on the machine changes little: the median over turns, each side in a process of its own. The ratio is convert to exporter.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

FRAMEWORKS = ("pytorch", "keras")
NETWORKS = ("mlp", "cnn", "deep_mlp", "pre_ln", "resnet")
"""Modules of `gradfuse.models`, each with a model of both frameworks."""

LIMIT = 1.5


def main(arguments: list[str]) -> int:
    """Measure and print; fails where a ratio is above the limit."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks conversion", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", help="any of the networks, as keras.cnn; by default all")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", choices=("exporter", "gradfuse"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = options.names or [f"{framework}.{name}" for framework in FRAMEWORKS for name in NETWORKS]
    if options.side:
        framework, _, network = names[0].partition(".")
        print(json.dumps(_measure(options.side, framework, network, options.turns)))
        return 0
    worst = 0.0
    print(f"{'':24} exporter  convert    check   ratio")
    for name in names:
        (exporter,) = _in_a_process("exporter", name, options.turns)
        convert, check = _in_a_process("gradfuse", name, options.turns)
        worst = max(worst, convert / exporter)
        print(f"{name:24} {exporter:8.2f} {convert:8.2f} {check:8.2f} {convert / exporter:7.2f}", flush=True)
    print(f"worst ratio {worst:.2f}, at most {LIMIT}")
    return int(worst > LIMIT)


def _in_a_process(side: str, name: str, turns: int) -> list[float]:
    """What `_measure` finds, in a process of its own: neither side finds what the other has left in a cache."""
    command = [sys.executable, "-m", "benchmarks", "conversion", name, f"--turns={turns}", f"--side={side}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def _measure(side: str, framework: str, network: str, turns: int) -> tuple[float, ...]:
    """Median seconds of the exporter, or of our conversion and of its check; a turn before imports and compiles."""
    from gradfuse.converters import convert

    model = getattr(importlib.import_module(f"gradfuse.models.{network}"), framework)()
    if side == "exporter":
        export = _pytorch_exporter(model) if framework == "pytorch" else _keras_exporter(model)
        return (_median_seconds(export, turns),)
    bare, checked = (
        _median_seconds(partial(convert, model, verify=verify), turns) for verify in (False, True)
    )
    return bare, max(checked - bare, 0.0)


def _median_seconds(run: Callable[[], Any], turns: int) -> float:
    return statistics.median([_seconds(run) for _ in range(turns + 1)][1:])


def _seconds(run: Callable[[], Any]) -> float:
    started = time.process_time()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        run()
    return time.process_time() - started


def _pytorch_exporter(module: Any) -> Callable[[], Any]:
    import torch

    from gradfuse.converters.pytorch import example_for

    example = torch.as_tensor(np.asarray(example_for(module)))
    shapes = ({0: torch.export.Dim("batch")},)
    return lambda: torch.onnx.export(module, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False)


def _keras_exporter(model: Any) -> Callable[[], Any]:
    from gradfuse.converters.keras_call import example_for

    model(*example_for(model))  # Keras exports only what was called

    def export() -> None:
        with tempfile.TemporaryDirectory() as folder:
            model.export(str(Path(folder) / "model.onnx"), format="onnx", verbose=False)

    return export
