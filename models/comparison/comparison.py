"""Every remedy with every trainer, as results come.

The folder of a comparison holds

    comparison.json    schema gradfuse-comparison/1: the settings
    cells.jsonl        one line for each cell, written when it ends: the fields of `Cell`

so that an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...graph.errors import GradfuseError, InputError
from ...graph.files import atomic_path
from ...runtime import SGD, Schedule
from .cell import Cell, Settings
from .networks import read_network
from .remedies import REMEDIES
from .results import Comparison
from .trainers import TRAINERS

__all__ = ["compare"]

_SCHEMA = "gradfuse-comparison/1"
_SETTINGS, _CELLS = "comparison.json", "cells.jsonl"


def compare(
    network: str = "mlp",
    data: str = "digits",
    *,
    loss: str = "cross-entropy",
    out: str | Path | None = None,
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 0.01,
    momentum: float = 0.9,
    seed: int = 0,
    remedies: Sequence[str] | None = None,
    overwrite: bool = False,
    on_cell: Callable[[Cell, int, int], None] | None = None,
) -> Comparison:
    """Train a network's twins with each remedy, on ONNX Runtime and natively.

    Args:
        network: Module of `gradfuse.models`, or any module or file with `pytorch` and `keras`, see `networks`.
        data: As for `gradfuse train`.
        loss: `cross-entropy` or `mse`.
        out: Folder for the results as they come; a comparison that it holds goes on. None writes nothing.
        epochs: Passes over the training examples, at least 1.
        batch_size: Examples in a batch, at least 2.
        lr: Learning rate, above 0.
        momentum: Of SGD, in [0, 1).
        seed: Of the split and the order of the examples.
        remedies: Names of those to run; None: all that change the network.
        overwrite: Forget what `out` holds.
        on_cell: Called with each cell, the number of cells done, and that of all.

    Raises:
        InputError: The network or data is not what it should be, or `out` holds another comparison.
        GradfuseError: A training could not be run.
    """
    settings = Settings(network, data, loss, epochs, batch_size, lr, momentum, seed)
    _check(settings)
    wanted = _wanted(settings, remedies)
    folder = None if out is None else Path(out)
    cells = {} if folder is None else _begin(folder, settings, overwrite)
    total = len(wanted) * len(TRAINERS)
    for trainer in TRAINERS:
        missing = [remedy for remedy in wanted if (remedy, trainer) not in cells]
        for cell in _run(settings, trainer, missing) if missing else ():
            cells[cell.remedy, trainer] = cell
            if folder is not None:
                _append(folder / _CELLS, cell)
            if on_cell is not None:
                on_cell(cell, len(cells), total)
    return Comparison(settings, {(r, t): cells[r, t] for r in wanted for t in TRAINERS})


def _check(settings: Settings) -> None:
    Schedule(settings.lr)
    SGD(settings.momentum)
    if settings.loss not in ("cross-entropy", "mse"):
        raise InputError(f"loss {settings.loss!r}", expected="cross-entropy or mse")
    if settings.epochs < 1 or settings.batch_size < 2:
        raise InputError(
            f"{settings.epochs} epochs in batches of {settings.batch_size}",
            expected="at least 1 epoch, and at least 2 examples in a batch",
        )


def _wanted(settings: Settings, names: Sequence[str] | None) -> list[str]:
    known = {remedy.name: remedy for remedy in REMEDIES}
    if unknown := [name for name in names or () if name not in known]:
        raise InputError(f"unknown remedy {unknown[0]!r}", expected=f"one of {', '.join(known)}")
    builders = read_network(settings.network, settings.data, settings.loss).builders
    return [
        remedy.name
        for remedy in REMEDIES
        if (names is None or remedy.name in names) and remedy.changes(builders["keras"])
    ]


def _begin(folder: Path, settings: Settings, overwrite: bool) -> dict[tuple[str, str], Cell]:
    """The cells that the folder holds already."""
    described = {"schema": _SCHEMA, **dataclasses.asdict(settings)}
    path, lines = folder / _SETTINGS, folder / _CELLS
    if path.exists() and not overwrite:
        if json.loads(path.read_text(encoding="utf-8")) != described:
            raise InputError(
                f"{folder} holds another comparison",
                expected="one with the same settings",
                remedy="another folder, or --overwrite",
            )
        return {(cell.remedy, cell.trainer): cell for cell in _read(lines)}
    folder.mkdir(parents=True, exist_ok=True)
    lines.unlink(missing_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(described, indent=1), encoding="utf-8")
    return {}


def _read(path: Path) -> Iterator[Cell]:
    """Whole lines only: the last may have been cut."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            fields = json.loads(line)
            yield Cell(**{**fields, "losses": tuple(fields["losses"])})


def _append(path: Path, cell: Cell) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(cell)) + "\n")


def _run(settings: Settings, trainer: str, remedies: Sequence[str]) -> Iterator[Cell]:
    job = {"settings": dataclasses.asdict(settings), "trainer": trainer, "remedies": list(remedies)}
    command = [sys.executable, "-m", "gradfuse.models.comparison.worker"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as noise:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True
        ) as worker:
            try:
                yield from _cells(worker, job)
            except BaseException:
                worker.kill()
                raise
        if worker.returncode:
            noise.seek(0)
            reason = (noise.read().strip().splitlines() or ["no reason given"])[-1]
            raise GradfuseError(
                f"the training by {TRAINERS[trainer].title} ended with exit code {worker.returncode}: {reason}"
            )


def _cells(worker: subprocess.Popen[str], job: dict[str, Any]) -> Iterator[Cell]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(job))
    worker.stdin.close()
    for line in worker.stdout:
        yield _cell(json.loads(line))


def _cell(answer: dict[str, Any]) -> Cell:
    if "error" in answer:
        raise GradfuseError(answer["error"])
    return Cell(**{**answer, "losses": tuple(answer["losses"])})
