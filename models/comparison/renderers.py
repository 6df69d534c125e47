"""A comparison as a table and a picture: for the terminal, as Markdown, and as a page of HTML."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...graph.errors import InputError
from .cell import Cell
from .results import Comparison
from .trainers import TRAINERS

__all__ = ["COLUMNS", "render", "renderer_for"]

COLUMNS = {
    "remedy": "what was changed in the network or its training",
    "trainer": "ORT: gradfuse on ONNX Runtime, with what the framework in brackets built; PyTorch, Keras: natively",
    "predicted": "growth of the gradient from the last layer to the first before the first step, as the report has it",
    "largest norm": "of all gradients together, before clipping, over all steps",
    "non-finite": "number of the step, counting from 0, whose loss or gradient norm was not finite, which ended the training",
    "loss": "on the examples held out, after the last step",
    "accuracy": "on the examples held out, after the last step",
    "ms": "median time of a step",
    "differs": "largest relative difference of a step's loss to the framework's own training",
    "loss over the steps": "each bar the mean of as many steps; full height is the comparison's largest loss, on a log scale",
}
"""Every column of the table, and what it holds."""

_BARS, _WIDTH, _FEWEST_STEPS = "▁▂▃▄▅▆▇█", 16, 20
"""Heights of the terminal's picture, its width, and the steps from which on a median time is worth printing."""

_FILE_WIDTH = 140


def render(comparison: Comparison) -> str:
    """The table for the terminal, at its width; wide enough for every column where there is none."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for row in _rows(comparison):
        table.add_row(*row)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    with console.capture() as capture:
        console.print(f"{_title(comparison)}. {_subtitle(comparison)}", table, sep="\n")
    return capture.get()


def renderer_for(path: Path) -> Callable[[Comparison], str]:
    """What writes a file of this kind.

    Raises:
        InputError: Nothing does.
    """
    if path.suffix not in _RENDERERS:
        raise InputError(f"cannot write a comparison as {path}", expected="a .md or .html file")
    return _RENDERERS[path.suffix]


def _markdown(comparison: Comparison) -> str:
    """A title, the table, and what its columns hold."""
    lines = [f"# {_title(comparison)}", "", f"{_subtitle(comparison)}", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row)} |" for row in _rows(comparison)]
    lines += ["", *(f"- {name}: {text}" for name, text in COLUMNS.items())]
    return "\n".join(lines) + "\n"


def _html(comparison: Comparison) -> str:
    """A page that needs nothing beside it.

    Raises:
        InputError: jinja2 or plotly is not installed.
    """
    try:
        import jinja2
        import plotly.graph_objects as plots
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed", remedy="pip install 'gradfuse[html]'") from error
    template = (Path(__file__).parent / "comparison.html").read_text(encoding="utf-8")
    return (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(
            title=_title(comparison),
            subtitle=_subtitle(comparison),
            columns=COLUMNS,
            rows=_rows(comparison),
            picture=_picture(comparison, plots).to_html(full_html=False, include_plotlyjs=True),
        )
    )


_RENDERERS: Mapping[str, Callable[[Comparison], str]] = {".md": _markdown, ".html": _html}
"""By the file's extension."""


def _title(comparison: Comparison) -> str:
    settings = comparison.settings
    return f"{settings.network} on {settings.data}"


def _subtitle(comparison: Comparison) -> str:
    s = comparison.settings
    return (
        f"SGD, learning rate {s.lr:g}, momentum {s.momentum:g}, batches of {s.batch_size}, {s.epochs} epochs, {s.loss}, "
        f"seed {s.seed}."
    )


def _rows(comparison: Comparison) -> list[tuple[str, ...]]:
    top = _log(max((x for cell in comparison.cells.values() for x in cell.losses if x), default=1.0))
    rows: list[tuple[str, ...]] = []
    shown = ""
    for (remedy, trainer), cell in comparison.cells.items():
        difference = comparison.difference(remedy, trainer)
        rows.append(
            (
                "" if remedy == shown else remedy,
                TRAINERS[trainer].title,
                "" if cell.verdict is None else f"{_growth(cell.log10_gain)} {cell.verdict}",
                _number(cell.gradient_norm),
                "" if cell.diverged_at is None else str(cell.diverged_at),
                "" if cell.loss is None else f"{cell.loss:.4f}",
                "" if cell.accuracy is None else f"{cell.accuracy:.4f}",
                f"{cell.milliseconds:.2f}" if len(cell.losses) >= _FEWEST_STEPS else "",
                "" if difference is None else f"{difference:.0e}",
                _curve(cell, top),
            )
        )
        shown = remedy
    return rows


def _growth(log10_gain: float | None) -> str:
    return "infinite" if log10_gain is None else f"{10**log10_gain:.3g}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _curve(cell: Cell, top: float) -> str:
    """The losses as bars, on a log scale from a hundredth of 1 to `top`."""
    finite = [loss for loss in cell.losses if loss is not None]
    parts = np.array_split(finite, min(_WIDTH, len(finite))) if finite else []
    heights = [(_log(part.mean()) + 2) / (top + 2) for part in parts]
    bars = "".join(_BARS[min(int(height * len(_BARS)), len(_BARS) - 1)] for height in heights)
    return bars + ("" if cell.diverged_at is None else "✕")


def _log(number: float) -> float:
    return math.log10(max(number, 1e-2))


def _picture(comparison: Comparison, plots: Any) -> Any:
    """The loss of every step, by remedy; trainers by line style."""
    figure = plots.Figure()
    dashes = dict(zip(TRAINERS, ("solid", "dot", "dash", "dashdot"), strict=True))
    colours = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a800", "#000000")
    for (remedy, trainer), cell in comparison.cells.items():
        colour = colours[comparison.remedies.index(remedy) % len(colours)]
        figure.add_scatter(
            y=cell.losses,
            name=f"{remedy}: {TRAINERS[trainer].title}",
            legendgroup=remedy,
            line={"dash": dashes[trainer], "color": colour, "width": 1.5},
        )
    figure.update_layout(template="plotly_white", height=560, xaxis_title="step", yaxis_title="loss")
    figure.update_yaxes(type="log")
    return figure
