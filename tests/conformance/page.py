"""The page `docs/coverage.md`: one section for each framework, which that framework's suite writes and checks.

The last column bounds a row's error by a power of ten. Rounding differs between machines and versions, so a bound is written
with room to spare, and stays while it is true and not too wide: a page and a run differ where an error reaches its bound,
or falls below a hundredth of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"

_COLUMNS = ("layer", "ONNX ops", "opset", "result", "relative gradient error")
_LEAST, _SPARE, _WIDEST = 1e-5, 3, 100


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        layer: What was converted.
        ops: ONNX ops of its forward.
        opset: Opset of the graph; None where there is no graph.
        result: `passes`, or `refused: ` and why.
        error: The worst relative error of its gradients; None where none were compared.
    """

    layer: str
    ops: Sequence[str]
    opset: int | None
    result: str
    error: float | None

    def cells(self, bounds: Mapping[str, str]) -> str:
        """The line, with what `bounds` says of its layer while that is true."""
        bound = "" if self.error is None else _bound(self.error, bounds.get(_escaped(self.layer), ""))
        cells = (self.layer, " ".join(self.ops), str(self.opset or ""), self.result, bound)
        return f"| {' | '.join(map(_escaped, cells))} |"


def check_section(framework: str, head: str, families: Mapping[str, Sequence[Line]]) -> None:
    """The framework's section says this; with GRADFUSE_WRITE_COVERAGE set it is made to.

    Args:
        framework: The section's heading: `PyTorch` or `Keras`.
        head: What stands above the tables.
        families: The lines of each table, by its heading.
    """
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"^## {framework}\n.*?(?=\n## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/coverage.md has no section {framework}"
    bounds = dict(re.findall(r"^\| (.*?) \| .* \| (< 1e-\d) \|$", found[0], re.MULTILINE))
    tables = [_table(title, lines, bounds) for title, lines in families.items()]
    section = "\n\n".join([f"## {framework}", head, *tables]) + "\n"
    if os.environ.get("GRADFUSE_WRITE_COVERAGE"):
        PAGE.write_text(page.replace(found[0], section), encoding="utf-8")
    else:
        assert found[0] == section


def _table(title: str, lines: Sequence[Line], bounds: Mapping[str, str]) -> str:
    head = f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}"
    return "\n".join([f"### {title}\n", head, *(line.cells(bounds) for line in lines)])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def _bound(error: float, said: str) -> str:
    """A power of ten above the error: the one said before, while it is one, or one with room to spare."""
    before = float(said.removeprefix("< ") or 0)
    if error < before and (before == _LEAST or error > before / _WIDEST):
        return said
    return next((f"< 1e-{power}" for power in (5, 4, 3) if _SPARE * error < 10.0**-power), f"{error:.0e}")
