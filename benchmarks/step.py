"""How long a training step takes: gradfuse beside PyTorch, Keras and onnxruntime's own training API.

Every side trains the same network with the same weights on the same batches of 64, gathers its batch itself and reads the loss
of every step. Each runs in a process of its own with the same number of threads, and they take turns (A B C A B C ...), so that
whatever else the machine does falls on all of them. The table shows the median milliseconds of a step, and each side's time
divided by PyTorch's, as the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from types import TracebackType

from .step_sides import CASES, SIDES

_REFERENCE = "PyTorch"


class Worker:
    """One side in a process of its own."""

    def __init__(self, side: str, case: str, optimizer: str, threads: int) -> None:
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow", "PYTHONWARNINGS": "ignore"}
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.step_sides", side, case, optimizer, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **quiet, **counts},
        )
        answer = json.loads(self._ask() or '{"error": "it ended without an answer"}')
        self.loss: float = answer.get("loss", math.nan)
        self.error: str = answer.get("error", "")

    def milliseconds(self, steps: int) -> float:
        """Mean time of a step over `steps` of them."""
        return float(self._ask(f"{steps}\n"))

    def _ask(self, question: str = "") -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(question)
        self._process.stdin.flush()
        return self._process.stdout.readline()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def measure(
    case: str, optimizer: str, threads: int, turns: int, seconds: float
) -> dict[str, list[float] | str]:
    """Milliseconds of a step in each turn, or why there are none, by side."""
    import contextlib

    with contextlib.ExitStack() as stack:
        workers = {side: stack.enter_context(Worker(side, case, optimizer, threads)) for side in SIDES}
        running = {side: worker for side, worker in workers.items() if not worker.error}
        if CASES[case].deterministic:
            _check_losses({side: worker.loss for side, worker in running.items()})
        steps = {
            side: max(3, round(1e3 * seconds / worker.milliseconds(5))) for side, worker in running.items()
        }
        times: dict[str, list[float]] = {side: [] for side in running}
        for _ in range(turns):
            for side, worker in running.items():
                times[side].append(worker.milliseconds(steps[side]))
    return {side: times.get(side, worker.error) for side, worker in workers.items()}


def _check_losses(losses: dict[str, float]) -> None:
    expected = losses[_REFERENCE]
    for side, loss in losses.items():
        # Adam's first step is the gradient's sign: where it is near zero, rounding decides.
        if not math.isclose(loss, expected, rel_tol=1e-2):
            raise SystemExit(
                f"{side} has loss {loss} where {_REFERENCE} has {expected}: they do not train the same"
            )


def main(arguments: list[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.2, help="length of one turn of one side")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--optimizers", nargs="+", choices=("sgd", "adamw"), default=["sgd", "adamw"])
    options = parser.parse_args(arguments)
    rows, notes = [], []
    for case in options.cases:
        for optimizer in options.optimizers:
            times = measure(case, optimizer, options.threads, options.turns, options.seconds)
            rows.append(
                [CASES[case].title, optimizer, *(_cell(times[side], times[_REFERENCE]) for side in SIDES)]
            )
            notes += [
                f"{side}, {case}, {optimizer}: {why}" for side, why in times.items() if isinstance(why, str)
            ]
    _print(rows, notes, options.threads)
    return 0


def _cell(times: list[float] | str, reference: list[float] | str) -> str:
    if isinstance(times, str):
        return "-"
    ratio = (
        ""
        if isinstance(reference, str)
        else statistics.median(a / b for a, b in zip(times, reference, strict=True))
    )
    return f"{statistics.median(times):.3g} ms" + (f" ({ratio:.2f})" if ratio else "")


def _print(rows: list[list[str]], notes: list[str], threads: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "network", "optimizer", *SIDES, box=box.SIMPLE, title=f"a training step, batch 64, {threads} threads"
    )
    for row in rows:
        table.add_row(*row)
    console = Console(width=140)
    console.print(table)
    for note in dict.fromkeys(notes):
        console.print(f"- {note}", markup=False, highlight=False)
