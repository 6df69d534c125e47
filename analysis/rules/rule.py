"""What a rule is, and what it sees."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..attribution import Attribution
from ..moments import Propagation
from ..profile import ProfileEntry, Step
from ..report import Finding
from ..verdict import Summary

__all__ = ["Evidence", "Rule"]


@dataclass(frozen=True)
class Evidence:
    """Everything that was predicted.

    Attributes:
        state: Moments of every tensor.
        steps: The trunk of the backward flow, in backward order.
        profile: RMS of every value and gradient.
        attribution: Each layer's gain by cause.
        summary: The verdict.
    """

    state: Propagation
    steps: Sequence[Step]
    profile: Sequence[ProfileEntry]
    attribution: Sequence[Attribution]
    summary: Summary


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        code: As `GF101`.
        check: Findings of this rule.
        document: The docstring of the rule's module: the rule's page, in Markdown.
    """

    code: str
    check: Callable[[Evidence], list[Finding]]
    document: str

    @property
    def page(self) -> str:
        """The page, headed by the code."""
        title, _, rest = inspect.cleandoc(self.document).partition("\n")
        return f"# {self.code}: {title.rstrip('.')}\n{rest}\n"
