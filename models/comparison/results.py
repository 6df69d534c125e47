"""What a comparison found."""

from __future__ import annotations

from dataclasses import dataclass

from .cell import Cell, Settings
from .trainers import TRAINERS

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison:
    """All cells, by remedy and trainer in the order of their tables.

    Attributes:
        settings: What they share.
        cells: By the names of remedy and trainer.
    """

    settings: Settings
    cells: dict[tuple[str, str], Cell]

    @property
    def remedies(self) -> list[str]:
        """The names of those that were run."""
        return list(dict.fromkeys(remedy for remedy, _ in self.cells))

    def difference(self, remedy: str, trainer: str) -> float | None:
        """Largest relative difference of any step's loss to the native trainer's; None for a native trainer.

        Steps from the first non-finite loss of either on are not compared; infinite where only one of the two stays finite.
        """
        kind = TRAINERS[trainer]
        if kind.native or (remedy, kind.framework) not in self.cells:
            return None
        ours, native = self.cells[remedy, trainer], self.cells[remedy, kind.framework]
        if (ours.diverged_at is None) != (native.diverged_at is None):
            return float("inf")
        pairs = zip(ours.losses, native.losses, strict=False)
        return max((abs(a - b) / abs(b) for a, b in pairs if a is not None and b), default=0.0)
