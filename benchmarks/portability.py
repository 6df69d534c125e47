"""Whether the same graphs train the same on the newest plain onnxruntime.

Makes a virtual environment with nothing but onnxruntime and numpy in it, and runs the same gradient and step graphs there and
on the installed onnxruntime, which may be a training build.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

from gradfuse.graph import ALL_PARAMETERS, Fuse, GradientGraph, insert_fuses
from gradfuse.graph.files import save_model
from gradfuse.runtime import SGD, AdamW, StepGraph

STEPS, BATCH, TOLERANCE = 20, 64, 1e-5

CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "mlp-sgd": ("mlp", {}, SGD(0.9, nesterov=True)),
    "mlp-adamw": ("mlp", {}, AdamW()),
    # Dropout draws other numbers in another build: only one that drops nothing can be compared.
    "cnn-sgd": ("cnn", {"dropout": 0.0}, SGD(0.9)),
    "tanh-sgd": ("deep_mlp", {"activation": "tanh", "gain": 1.0}, SGD(0.9, 1e-4)),
}
"""Module of `gradfuse.models`, its builder's options, and the optimizer."""


def export(folder: Path, name: str) -> None:
    """Write a case's graphs and inputs."""
    import importlib

    from gradfuse.converters import convert

    module, options, optimizer = CASES[name]
    network = importlib.import_module(f"gradfuse.models.{module}").pytorch(**options)
    model = convert(network, example_input=(64,), verify=False).model
    fuses = [Fuse("global-norm", ALL_PARAMETERS, 1.0), Fuse("value", model.parameters[0], 0.1)]
    gradients = insert_fuses(GradientGraph.of(model), fuses)
    step = StepGraph.of(gradients, optimizer)
    gradients.save(folder / f"{name}.gradients.onnx")
    save_model(step.onnx, folder / f"{name}.step.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS, BATCH, 64), dtype=np.float32)
    data: dict[str, Any] = dict(
        zip([spec.name for spec in step.data], (x, rng.integers(0, 10, (STEPS, BATCH))), strict=True)
    )
    facts = {
        "data": list(data),
        "learning_rate": step.learning_rate,
        "next": dict(step.next),
        "loss": step.loss,
        "gradients": list(gradients.gradients.values()),
        "steps": STEPS,
    }
    (folder / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")
    np.savez(folder / f"{name}.npz", **(data | dict(step.initial)))


def make_environment(folder: Path, *packages: str) -> Path:
    """A virtual environment with the newest onnxruntime, and with these packages; returns its Python."""
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [str(python), "-m", "pip", "install", "-qq", "--upgrade", "onnxruntime", "numpy", *packages]
    subprocess.run(install, check=True)
    return python


def run(python: Path, folder: Path) -> dict[str, Any]:
    """What the worker says under this Python."""
    worker = Path(__file__).with_name("portability_worker.py")
    done = subprocess.run([python, worker, folder], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main(arguments: list[str]) -> int:
    """Compare, print a line for each case, and fail where one differs by more than the tolerance."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks portability", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--environment", type=Path, help="keep the virtual environment here, and reuse it")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "graphs"
        folder.mkdir()
        for name in CASES:
            export(folder, name)
        here = run(Path(sys.executable), folder)
        there = run(make_environment(options.environment or Path(scratch) / "environment"), folder)
    print(
        f"onnxruntime {here['onnxruntime']} and {there['onnxruntime']}, {STEPS} steps, largest relative difference:"
    )
    worst = 0.0
    for name, ours in here["cases"].items():
        errors = {what: _difference(ours[what], there["cases"][name][what]) for what in ("losses", "norms")}
        worst = max(worst, *errors.values())
        print(f"  {name:10} losses {errors['losses']:.1e}   norms of the gradients {errors['norms']:.1e}")
    print("they agree" if worst <= TOLERANCE else f"they differ by more than {TOLERANCE:g}")
    return int(worst > TOLERANCE)


def _difference(ours: list[float], theirs: list[float]) -> float:
    """The largest difference, in units of the largest value: some gradients are zero but for rounding."""
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / max(map(abs, theirs))
