"""The rules, in the order in which a report lists findings of one severity."""

from __future__ import annotations

from ...graph.errors import InputError
from . import (
    gf101,
    gf102,
    gf103,
    gf104,
    gf105,
    gf106,
    gf107,
    gf108,
    gf109,
    gf110,
    gf401,
    gf402,
    gf501,
    gf502,
    gf901,
)
from .rule import Rule

__all__ = ["RULES", "Rule", "explain"]

RULES: tuple[Rule, ...] = (
    gf502.RULE,
    gf102.RULE,
    gf103.RULE,
    gf104.RULE,
    gf105.RULE,
    gf106.RULE,
    gf107.RULE,
    gf109.RULE,
    gf110.RULE,
    gf101.RULE,
    gf108.RULE,
    gf501.RULE,
    gf401.RULE,
    gf402.RULE,
    gf901.RULE,
)
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
