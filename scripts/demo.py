"""The main job, end to end, on real data: scikit-learn's handwritten digits.

Three networks - the seed's from PyTorch, its twin from Keras, and a deep one whose weights are drawn too large - are each
converted, reported on, fused, trained on ONNX Runtime with and without their fuses, evaluated and written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import gradfuse
from gradfuse.api import convert_with_parity
from gradfuse.models import deep_mlp, mlp

# The seed document's settings; the batch that the report assumes is the one that training takes.
BATCH_SIZE = 64
TRAINING = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "batch_size": BATCH_SIZE, "epochs": 10}

console = Console(highlight=False, soft_wrap=True, markup=False)


@dataclass(frozen=True)
class Job:
    """One network of the demonstration."""

    name: str
    build: Callable[[], Any]


JOBS = (
    Job("mlp-pytorch", mlp.pytorch),
    Job("mlp-keras", mlp.keras),
    Job("deep-mlp", deep_mlp.pytorch),
)


def main() -> None:
    """Run every job, then print the table and what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), help="folder to write to (demo-output)"
    )
    out = parser.parse_args().out
    table = Table(
        "network", "verdict", "gain", "fuses", "unfused", "fused", "seconds", box=None, pad_edge=False
    )
    for job in JOBS:
        started = time.perf_counter()
        cells = run(job, out / job.name)
        table.add_row(job.name, *cells, f"{time.perf_counter() - started:.1f}")
    console.print("\nTest accuracy on the held-out digits:\n")
    console.print(table)
    console.print(f"\nWritten to {out}/:")
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        console.print(f"  {path}")


def run(job: Job, folder: Path) -> list[str]:
    """Convert, report, fuse, train, evaluate, write; returns the network's cells of the table."""
    console.rule(job.name, align="left")
    module = job.build()
    conversion = convert_with_parity(module)
    conversion.model.save(folder / "converted.onnx")
    console.print(f"converted; {conversion.parity}\n")

    report = gradfuse.analyse(conversion.model, batch_size=BATCH_SIZE)
    (folder / "report.json").write_text(report.render("json"), encoding="utf-8")
    console.print(report.render("text"))

    fused = gradfuse.fuse(conversion.model, clip=report.fuses)
    fused.save(folder / "fused.onnx")
    bare = gradfuse.train(conversion.model, "digits", **TRAINING)
    trained = gradfuse.train(fused, "digits", out=folder / "training", overwrite=True, **TRAINING)
    trained.to_source(module)
    return [
        report.summary.verdict,
        f"x {10**report.summary.log10_gain:.3g}",
        ", ".join(f"{fuse.kind} {fuse.threshold:g}" for fuse in report.fuses) or "none needed",
        outcome(bare),
        outcome(trained),
    ]


def outcome(trained: gradfuse.Trained) -> str:
    """The accuracy of the last epoch, or the step whose loss was not finite."""
    if trained.diverged:
        return f"broke at step {trained.diverged_at}"
    return f"{trained.history[-1].validation_accuracy:.4f}"


if __name__ == "__main__":
    main()
