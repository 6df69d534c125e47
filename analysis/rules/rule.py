"""What a rule is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..evidence import Evidence
from ..findings import Finding, Remedy

__all__ = ["Rule", "finding", "grave"]


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


def finding(
    code: str,
    severity: str,
    node: ir.Node | None,
    message: str,
    numbers: Mapping[str, Any],
    remedies: Sequence[Remedy] = (),
    phase: str = "backward",
) -> Finding:
    """A finding at a node; None for the whole graph."""
    name, op_type = ("", "") if node is None else (node.name or "", node.op_type)
    return Finding(code, severity, name, op_type, phase, message, numbers, remedies)


def grave(evidence: Evidence) -> str:
    """An error where the gradients explode, else a warning."""
    return "error" if evidence.summary.verdict == "explodes" else "warning"
