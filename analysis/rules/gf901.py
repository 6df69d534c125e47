"""An op is passed with an approximation.

## What it sees
An op, or a use of one, for which there is no transfer rule, or whose rule passes over something. The message says what
was assumed.

## Why it is bad
The prediction is less certain for everything before the op: the report widens its intervals, and may miss a growth there.

## Example
`CumSum`: values and gradients are taken to keep their mean square.

## Cure
None is needed in the model. To be sure, measure a few steps.

## References
The table of transfer rules, `analysis/moments/transfer/table.py`.
"""

from __future__ import annotations

from ...graph.source import describe_node
from ..evidence import Evidence
from ..findings import Finding
from .rule import Rule

__all__ = ["RULE"]


def check(evidence: Evidence) -> list[Finding]:
    """One note for each node."""
    return [
        Finding(
            "GF901",
            "note",
            note.node.name or "",
            note.node.op_type,
            "forward",
            f"{describe_node(note.node)}: {note.text}",
        )
        for note in evidence.prediction.state.notes
    ]


RULE = Rule("GF901", check, __doc__)
