"""Which one-layer PyTorch models get right gradients: gradfuse, onnxruntime's own gradient builder and onnx-ad side by side.

Every row of the conformance suite is exported once, in training form, with the mean square of its output as the loss. Each
tool differentiates that one file with respect to all parameters; PyTorch's autograd is the judge. A tool passes where all
gradients agree to 1e-3 of the largest element, refuses where it says so, by an error or by ending the process, and is silently
wrong otherwise. Dropout is off. The batch size is open for gradfuse; the others get it as a number, without which they refuse
more. onnx-ad, the newest there is, runs in an environment of its own.

Then the time of a gradient: the graphs of gradfuse and onnx-ad for the same networks, in turns, each in a process of its own,
on the same onnxruntime.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .portability import make_environment

BATCH, TOLERANCE = 3, 1e-3
TOOLS = ("gradfuse", "onnxruntime", "onnx-ad")
NETWORKS = {"deep_mlp": (64, {"depth": 20, "activation": "tanh", "gain": 1.0}), "pre_ln": (32, {})}
"""Modules of `gradfuse.models` whose gradients are timed, with the batch size and options."""


def main(arguments: list[str]) -> int:
    """Count and print; fails where gradfuse is silently wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks coverage", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--environment", type=Path, help="keep onnx-ad's virtual environment here, and reuse it"
    )
    parser.add_argument("--every", type=int, default=1, help="take only every n-th row")
    parser.add_argument("--list", action="store_true", help="list the rows that a tool does not pass")
    parser.add_argument("--turns", type=int, default=5, help="turns of the timing; 0 leaves it out")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        environment = options.environment or Path(scratch) / "environment"
        ours = Path(sys.executable)
        pythons = dict(zip(TOOLS, (ours, ours, make_environment(environment, "onnx-ad")), strict=True))
        wrong = count(Path(scratch), pythons, options.every, options.list)
        if options.turns:
            compare_times(Path(scratch), pythons, options.turns)
    return int(wrong > 0)


def count(scratch: Path, pythons: dict[str, Path], every: int, listed: bool) -> int:
    """Print the table of passes; returns how often gradfuse was silently wrong."""
    folder = scratch / "rows"
    folder.mkdir()
    rows = export_rows(folder, every)
    outcomes: dict[str, Counter[str]] = {}
    for tool, python in pythons.items():
        names = list(rows)
        work(python, tool, folder, names)
        found = {name: outcome(folder, name, tool) for name in names}
        outcomes[tool] = Counter(what for what, _ in found.values())
        if listed:
            for name, (what, why) in found.items():
                if what != "passes":
                    print(f"{tool:12} {what:16} {rows[name]}: {why}")
    print(f"\n{len(rows)} one-layer models        passes  refuses  silently wrong")
    for tool, counts in outcomes.items():
        print(f"  {tool:24} {counts['passes']:8} {counts['refuses']:8} {counts['silently wrong']:15}")
    return outcomes["gradfuse"]["silently wrong"]


def export_rows(folder: Path, every: int) -> dict[str, str]:
    """Write each row's file, inputs and autograd's gradients; returns the rows' names by the files'."""
    families = importlib.import_module("tests.conformance.torch_rows").FAMILIES
    rows = [row for family in families.values() for row in family][::every]
    exported = {}
    for index, row in enumerate(rows):
        try:
            export(folder, f"row{index}", _Row(row).module(), _inputs(row))
        except Exception as error:
            print(f"not exported: {row.name}: {error}")
            continue
        exported[f"row{index}"] = row.name
    return exported


class _Row:
    """A row behind parameters that scale its inputs, and the mean square of what it computes."""

    def __init__(self, row: Any) -> None:
        self._row = row

    def module(self) -> Any:
        """The module; its forward takes the row's inputs."""
        import torch
        from torch import nn

        row = self._row
        torch.manual_seed(0)

        class Loss(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = row.make()
                scaled = [index for index in range(len(row.shapes)) if index not in row.labels]
                self.scales = nn.ParameterDict(
                    {str(index): nn.Parameter(1 + 0.1 * torch.randn(row.shapes[index])) for index in scaled}
                )

            def all(self, *inputs: Any) -> Any:
                scaled = [
                    x * self.scales[str(index)] if str(index) in self.scales else x
                    for index, x in enumerate(inputs)
                ]
                result = self.layer(*scaled)
                return (result[0] if isinstance(result, tuple) else result).square().mean()

        class One(Loss):
            def forward(self, x: Any) -> Any:
                return self.all(x)

        class Two(Loss):
            def forward(self, x: Any, other: Any) -> Any:
                return self.all(x, other)

        return (One if len(row.shapes) == 1 else Two)()


def _inputs(row: Any) -> list[Any]:
    rng = np.random.default_rng(1)
    return [
        rng.integers(0, row.labels[index], (BATCH, *shape))
        if index in row.labels
        else rng.standard_normal((BATCH, *shape)).astype(np.float32)
        for index, shape in enumerate(row.shapes)
    ]


def export(folder: Path, name: str, module: Any, inputs: list[Any]) -> None:
    """Write the module, its inputs and parameters, and the gradients that autograd finds in train mode."""
    import torch

    from gradfuse.converters import from_pytorch
    from gradfuse.converters.torch_functions import dropout_off

    tensors = [torch.as_tensor(array) for array in inputs]
    with dropout_off():
        model = from_pytorch(module, tensors)
    model.save(folder / f"{name}.onnx")
    parameters = {key: value for key, value in module.named_parameters() if key in model.parameters}
    given: dict[str, Any] = {
        f"input:{spec.name}": array for spec, array in zip(model.inputs, inputs, strict=True)
    }
    given |= {f"parameter:{key}": value.detach().numpy() for key, value in parameters.items()}
    np.savez(folder / f"{name}.npz", **given)
    with dropout_off():
        loss = module.train()(*tensors)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    judged: dict[str, Any] = {
        key: gradient.numpy() for key, gradient in zip(parameters, gradients, strict=True)
    }
    np.savez(folder / f"{name}.autograd.npz", **judged)


def work(python: Path, tool: str, folder: Path, names: list[str]) -> None:
    """Have the tool differentiate all; where one ends the process, go on after it."""
    worker = Path(__file__).with_name("coverage_worker.py")
    while names:
        done = subprocess.run(
            [python, worker, tool, folder, *names], capture_output=True, text=True, check=False
        )
        left = [name for name in names if not list(folder.glob(f"{name}.{tool}.*"))]
        if left and done.returncode == 0:
            raise SystemExit(f"{tool} left out {left[0]}")
        if left:
            (folder / f"{left[0]}.{tool}.txt").write_text("the process ended", encoding="utf-8")
        names = left[1:]


def outcome(folder: Path, name: str, tool: str) -> tuple[str, str]:
    """What a tool made of a file, `passes`, `refuses` or `silently wrong`, and why."""
    reason = folder / f"{name}.{tool}.txt"
    if reason.exists():
        return "refuses", reason.read_text(encoding="utf-8")[:100]
    with np.load(folder / f"{name}.autograd.npz") as theirs, np.load(folder / f"{name}.{tool}.npz") as ours:
        errors = {key: _error(ours[key], theirs[key]) for key in theirs.files}
    worst = max(errors, key=errors.__getitem__)
    return (
        ("passes", "")
        if errors[worst] <= TOLERANCE
        else ("silently wrong", f"{worst} by {errors[worst]:.1e}")
    )


def _error(ours: Any, theirs: Any) -> float:
    """The largest difference, in units of the largest element; NaN counts as wrong."""
    if ours.size != theirs.size:
        return float("inf")
    # A gradient that is zero but for rounding, as that of a bias before BatchNormalization, has no scale of its own.
    difference = np.abs(ours.reshape(theirs.shape) - theirs).max(initial=0.0)
    return float(np.nan_to_num(difference / max(np.abs(theirs).max(initial=0.0), 1e-3), nan=np.inf))


def compare_times(scratch: Path, pythons: dict[str, Path], turns: int) -> None:
    """Print how long a gradient takes."""
    folder = scratch / "times"
    folder.mkdir()
    (folder / "keep").touch()
    print(f"\na gradient, milliseconds{'':14} gradfuse  onnx-ad  ratio")
    for name, (batch, settings) in NETWORKS.items():
        module = importlib.import_module(f"gradfuse.models.{name}").pytorch(**settings)
        export(folder, name, _with_loss(module), [_batch_for(module, batch)])
        for tool in ("gradfuse", "onnx-ad"):
            work(pythons[tool], tool, folder, [name])
        if why := list(folder.glob(f"{name}.*.txt")):
            print(f"  {name:32} {why[0].suffixes[0][1:]} refuses: {why[0].read_text(encoding='utf-8')[:90]}")
            continue
        times: dict[str, list[float]] = {tool: [] for tool in ("gradfuse", "onnx-ad")}
        for _ in range(turns):
            for tool, measured in times.items():
                measured.append(_time(pythons["onnx-ad"], folder, f"{name}.{tool}"))
        ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
        ours, theirs = map(statistics.median, times.values())
        print(f"  {name} at batch {batch}".ljust(40) + f"{ours:7.2f} {theirs:8.2f} {ratio:6.2f}")


def _time(python: Path, folder: Path, name: str) -> float:
    worker = Path(__file__).with_name("coverage_worker.py")
    done = subprocess.run(
        [python, worker, "time", folder, name, "20"], check=True, stdout=subprocess.PIPE, text=True
    )
    return float(done.stdout)


def _with_loss(module: Any) -> Any:
    from torch import nn

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, x: Any) -> Any:
            return self.model(x).square().mean()

    return Loss()


def _batch_for(module: Any, size: int) -> Any:
    from gradfuse.converters.pytorch import example_for

    example = example_for(module)
    rng = np.random.default_rng(0)
    if np.issubdtype(example.dtype, np.integer):
        return rng.integers(0, example.max() + 1, (size, *example.shape[1:]))
    return rng.standard_normal((size, *example.shape[1:])).astype(np.float32)
