"""What a report costs: time and memory of `gradfuse report`, as a process of its own, for models of several sizes.

Residual networks of ResNet-50's form at several widths, beside one forward and backward of PyTorch at batch 32, and
transformers whose weights lie beside their files. Covariances between channels are left out (`--budget 0`) unless
`--budget` says otherwise. `extra` is the peak of resident memory less that of a process that only imports, in units of
the model's size.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from gradfuse.converters import convert

from .cost_networks import ResNet50, write_transformer
from .large import run

BATCH_SIZE, CLASSES = 32, 1000
WIDTHS = (12, 28, 64, 128)
"""1, 5, 26 and 101 million parameters."""

SHAPES = {"small": (256, 4, 32), "billion": (2048, 20, 128)}
"""Width, blocks and tokens of transformers."""

_ONLY_IMPORT = "import gradfuse.analysis, gradfuse.api, gradfuse.converters"


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
    base = _imported()
    print(f"{'model':12} {'parameters':>10} {'seconds':>8} {'peak':>8} {'extra':>7} {'/ PyTorch step':>14}")
    with tempfile.TemporaryDirectory() as scratch:
        for width in options.widths:
            module, shape = ResNet50(width, CLASSES), (3, options.image, options.image)
            path = convert(module, example_input=shape, verify=False).model.save(
                Path(scratch) / f"{width}.onnx"
            )
            _line(f"ResNet-50/{width}", path, options.budget, base, _step(module, shape))
        for name in options.transformer:
            width, blocks, tokens = SHAPES[name]
            path = write_transformer(Path(scratch) / name / "model.onnx", width, blocks, tokens, CLASSES)
            _line(name, path, options.budget, base, None)
    return 0


def _imported() -> int:
    """Peak of resident memory of a process that only imports."""
    process = subprocess.Popen([sys.executable, "-c", _ONLY_IMPORT])
    _, _, usage = os.wait4(process.pid, 0)
    return usage.ru_maxrss * 1024


def _step(module: nn.Module, shape: tuple[int, ...]) -> float:
    """Seconds of the second forward and backward of a batch."""
    x, labels = torch.randn(BATCH_SIZE, *shape), torch.randint(CLASSES, (BATCH_SIZE,))
    for _ in range(2):
        started = time.perf_counter()
        torch.autograd.backward(nn.functional.cross_entropy(module(x), labels))
    return time.perf_counter() - started


def _line(name: str, path: Path, budget: str, base: int, step: float | None) -> None:
    size = path.stat().st_size + sum(file.stat().st_size for file in path.parent.glob("model.bin"))
    usage = run("report", path, ["--fail-on", "never", "--budget", budget])
    peak, seconds = usage.resident, usage.seconds
    ratio = "" if step is None else f"{seconds / step:14.2f}"
    failed = f"  failed with {usage.code}" if usage.code else ""
    print(
        f"{name:12} {size / 4e6:9.1f}M {seconds:8.1f} {peak / 1e9:6.2f}GB {(peak - base) / size:7.2f} {ratio}{failed}",
        flush=True,
    )
