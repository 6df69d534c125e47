"""How long a conversion takes, beside the framework's own exporter.

`exporter` is what a user would call without gradfuse: `torch.onnx.export`, and `model.export(format="onnx")` of Keras.
`convert` is gradfuse's conversion without its check, `check` the comparison with the framework. CPU seconds, which other
work on the machine does not change: the median over turns in which the three take their places one after the other. The
ratio is convert to exporter.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = {
    "pytorch": ("mlp", "cnn", "deep_mlp", "pre_ln", "resnet"),
    "keras": ("mlp", "cnn", "deep_mlp", "pre_ln"),
}
"""Modules of `gradfuse.models`, by framework."""

LIMIT = 1.5


def main(arguments: list[str]) -> int:
    """Measure and print; fails where a ratio is above the limit."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks conversion", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    worst = 0.0
    print(f"{'':24} exporter  convert    check   ratio")
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    for framework, networks in NETWORKS.items():
        for name in networks:
            build = getattr(importlib.import_module(f"gradfuse.models.{name}"), framework)
            exporter, convert, check = _measure(framework, build(), options.turns)
            worst = max(worst, convert / exporter)
            print(
                f"{framework:8} {name:15} {exporter:8.2f} {convert:8.2f} {check:8.2f} {convert / exporter:7.2f}",
                flush=True,
            )
    print(f"worst ratio {worst:.2f}, at most {LIMIT}")
    return int(worst > LIMIT)


def _measure(framework: str, model: Any, turns: int) -> tuple[float, float, float]:
    """Median seconds of the exporter, of the conversion, and of its check."""
    from gradfuse.converters import convert

    export = _pytorch_exporter(model) if framework == "pytorch" else _keras_exporter(model)
    times = []
    for _ in range(turns + 1):
        exporter = _seconds(export)
        bare = _seconds(lambda: convert(model, verify=False))
        checked = _seconds(lambda: convert(model))
        times.append((exporter, bare, max(checked - bare, 0.0)))
    # The first turn imports and compiles.
    exporter, bare, check = map(statistics.median, zip(*times[1:], strict=True))
    return exporter, bare, check


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
    def export() -> None:
        with tempfile.TemporaryDirectory() as folder:
            model.export(str(Path(folder) / "model.onnx"), format="onnx", verbose=False)

    return export
