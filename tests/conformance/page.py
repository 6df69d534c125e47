"""The page `docs/coverage.md`: one section for each framework, which that framework's suite writes and checks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"

_COLUMNS = ("layer", "ONNX ops", "opset", "result", "worst relative gradient error")


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

    def __str__(self) -> str:
        cells = (self.layer, " ".join(self.ops), self.opset or "", self.result, _bound(self.error))
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table(title: str, lines: Iterable[Line]) -> str:
    """A family of layers under a heading of its own."""
    head = f"| {' | '.join(_COLUMNS)} |\n|{' --- |' * len(_COLUMNS)}"
    return "\n".join([f"### {title}\n", head, *map(str, lines)])


def check_section(framework: str, text: str) -> None:
    """The framework's section is `text`; with GRADFUSE_WRITE_COVERAGE set it becomes so.

    Args:
        framework: The section's heading: `PyTorch` or `Keras`.
        text: What stands below the heading.
    """
    page, section = PAGE.read_text(encoding="utf-8"), f"## {framework}\n\n{text.strip()}\n"
    pattern = re.compile(rf"^## {framework}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    if os.environ.get("GRADFUSE_WRITE_COVERAGE"):
        page = pattern.sub(lambda found: section + "\n" * (found.end() < len(page)), page)
        PAGE.write_text(page, encoding="utf-8")
    found = pattern.search(page)
    assert found is not None, f"docs/coverage.md has no section {framework}"
    assert _comparable(framework, found[0]) == _comparable(framework, section)


def _comparable(framework: str, section: str) -> str:
    """What two runs agree on: an error near 1e-5 may fall on either side of it, and tf2onnx merges equal nodes of several rows,
    of which hashes decide which one keeps them."""
    lines = section.strip().replace("< 1e-5", "< 1e-4").splitlines()
    if framework == "Keras":
        lines = [" | ".join(cells[:1] + cells[2:]) for cells in (line.split(" | ") for line in lines)]
    return "\n".join(lines)


def _bound(error: float | None) -> str:
    """The power of ten that the errors stay below, from 1e-5: what lies below that is another machine's rounding."""
    if error is None:
        return ""
    return next((f"< 1e-{power}" for power in (5, 4, 3) if error < 10.0**-power), f"{error:.0e}")
