"""What a report costs: time and memory of `gradfuse report`, as a process of its own, for models of several sizes.

Residual networks of ResNet-50's form at several widths, beside one forward and backward of PyTorch at batch 32, and
transformers whose weights lie beside their files. Covariances between channels are left out (`--budget 0`) unless
`--budget` says otherwise. `extra` is the peak of resident memory less that of a process that only imports, in units of
the model's size. A process between counts, since a child's peak includes what its parent held when it was started.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gradfuse.converters import convert

from .cost_networks import ResNet50, write_transformer

BATCH_SIZE, CLASSES = 32, 1000
WIDTHS = (12, 28, 64, 128)
"""1, 5, 26 and 101 million parameters."""

SHAPES = {"small": (256, 4, 32), "billion": (2048, 20, 128)}
"""Width, blocks and tokens of transformers."""

_ONLY_IMPORT = """
from gradfuse.cli.late import import_late
import_late()
import gradfuse.analysis, gradfuse.api, gradfuse.converters
"""

_COUNT = """
import resource, subprocess, sys, time
started = time.perf_counter()
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
print(seconds, used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss, code)
"""
"""Runs a command and prints what it took."""


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock and of the processor, bytes of resident memory at the peak, exit code."""

    seconds: float
    processor: float
    peak: int
    code: int

    @classmethod
    def of(cls, *arguments: str) -> Cost:
        """Of a Python process with these arguments."""
        command = [sys.executable, "-c", _COUNT, sys.executable, *arguments]
        seconds, processor, peak, code = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.split()
        return cls(float(seconds), float(processor), int(peak), int(code))


def main(arguments: list[str]) -> int:
    """Print a line for each model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cost", description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS, help="of ResNet-50's first stage")
    parser.add_argument(
        "--image", type=int, default=224, help="height and width of its images (default: 224)"
    )
    parser.add_argument("--transformer", choices=SHAPES, nargs="*", default=list(SHAPES))
    parser.add_argument("--budget", default="0", help="as for gradfuse report (default: 0)")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    base = Cost.of("-c", _ONLY_IMPORT)
    print(
        f"{'model':12} {'parameters':>10} {'seconds':>8} {'CPU':>6} {'peak':>8} {'extra':>7} {'/ PyTorch step':>14}"
    )
    print(f"{'only imports':23} {base.seconds:8.1f} {base.processor:6.1f} {base.peak / 1e9:6.2f}GB")
    with tempfile.TemporaryDirectory() as scratch:
        for width in options.widths:
            module, shape = ResNet50(width, CLASSES), (3, options.image, options.image)
            path = convert(module, example_input=shape, verify=False).model.save(
                Path(scratch) / f"{width}.onnx"
            )
            _line(f"ResNet-50/{width}", path, options.budget, base.peak, _step(module, shape))
        for name in options.transformer:
            width, blocks, tokens = SHAPES[name]
            path = write_transformer(Path(scratch) / name / "model.onnx", width, blocks, tokens, CLASSES)
            _line(name, path, options.budget, base.peak, None)
    return 0


def _step(module: nn.Module, shape: tuple[int, ...]) -> float:
    """Seconds of the second forward and backward of a batch."""
    x, labels = torch.randn(BATCH_SIZE, *shape), torch.randint(CLASSES, (BATCH_SIZE,))
    for _ in range(2):
        started = time.perf_counter()
        torch.autograd.backward(nn.functional.cross_entropy(module(x), labels))
    return time.perf_counter() - started


def _line(name: str, path: Path, budget: str, base: int, step: float | None) -> None:
    size = path.stat().st_size + sum(file.stat().st_size for file in path.parent.glob("model.bin"))
    cost = Cost.of("-m", "gradfuse", "report", str(path), "--fail-on", "never", "--budget", budget)
    ratio = "" if step is None else f"{cost.seconds / step:14.2f}"
    failed = f"  failed with {cost.code}" if cost.code else ""
    print(
        f"{name:12} {size / 4e6:9.1f}M {cost.seconds:8.1f} {cost.processor:6.1f} {cost.peak / 1e9:6.2f}GB"
        f" {(cost.peak - base) / size:7.2f} {ratio}{failed}",
        flush=True,
    )
