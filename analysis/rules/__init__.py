"""The rules, in the order in which a report lists findings of one severity."""

from __future__ import annotations

from ...graph.errors import InputError
from . import gf101, gf102, gf901
from .rule import Rule

__all__ = ["RULES", "Rule", "explain"]

RULES: tuple[Rule, ...] = (gf102.RULE, gf101.RULE, gf901.RULE)
"""Every rule. A cause stands before its consequence."""


def explain(code: str) -> str:
    """The page of a rule: what it sees, why that is bad, an example, the cure, references.

    Raises:
        InputError: There is no such rule.
    """
    pages = {rule.code: rule.page for rule in RULES}
    if code.upper() not in pages:
        raise InputError(f"unknown rule {code!r}", expected=f"one of {', '.join(sorted(pages))}")
    return pages[code.upper()]
