"""What a rule is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from ..evidence import Evidence
from ..findings import Finding

__all__ = ["Rule"]


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
