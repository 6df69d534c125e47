"""An op is passed with an approximation.

## What it sees
An op, or a use of one, for which there is no transfer rule, or whose rule passes over something; and what every prediction
of a kind of network simplifies: sums of branches, gates, concatenation, attention, recurrence, weights that are read again,
losses over positions. The message says what was assumed, once for each kind, at the first node that it is true of.

## Why it is bad
The prediction is less certain for everything before an op without a rule: the report widens its intervals, and may miss a
growth there. Where more than half of the parameters lie behind ops without a rule, a warning says on how many the verdict
rests, and what would be called stable is called at-risk. The simplifications of the other kind are part of what the
intervals allow for.

## Example
`CumSum`: values and gradients are taken to keep their mean square.

## Cure
None is needed in the model. To be sure, measure a few steps.

## References
The table of transfer rules, `analysis/moments/transfer/table.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import onnx_ir as ir

from ...graph.source import describe_node
from ..evidence import Evidence
from ..findings import Finding
from ..followed import followed_parameters, rests_on_little
from ..simplifications import simplifications
from .rule import Rule, finding

__all__ = ["RULE"]


def check(evidence: Evidence) -> list[Finding]:
    """One note for each kind; before them a warning where the verdict rests on few parameters."""
    state, kinds = evidence.prediction.state, defaultdict[tuple[str, str], list[ir.Node]](list)
    for note in state.notes:
        kinds[note.node.op_type, note.text].append(note.node)
    for note in simplifications(state):
        kinds["", note.text].append(note.node)
    return [*_warning(evidence), *(_note(nodes, text) for (_, text), nodes in kinds.items())]


def _note(nodes: Sequence[ir.Node], text: str) -> Finding:
    more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
    numbers = {"nodes": [node.name or "" for node in nodes]}
    return finding(
        "GF901", "note", nodes[0], f"{describe_node(nodes[0])}{more}: {text}", numbers, phase="forward"
    )


def _warning(evidence: Evidence) -> list[Finding]:
    state = evidence.prediction.state
    if evidence.summary.basis == "measured" or not rests_on_little(state):
        return []
    followed, every = followed_parameters(state), state.gradients.source.parameters
    nodes = [note.node for note in state.notes if note.is_unknown]
    message = (
        f"the verdict rests on {len(followed)} of {len(every)} parameters: the others lie behind ops without a rule,"
        f" the last of them {describe_node(nodes[-1])}; --probe measures them"
    )
    numbers = {"followed": followed, "nodes": [node.name or "" for node in nodes]}
    return [finding("GF901", "warning", nodes[-1], message, numbers, phase="forward")]


RULE = Rule("GF901", check, __doc__)
