"""The report as text for a terminal of 80 columns: verdict, findings, plan, then the depth profile. It needs no colour.

Names come from the model and are hostile: control characters are written out, and no markup is read in them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..contents import ReportContents
from ..findings import Finding, Remedy
from ..profile import ProfileEntry
from ..verdict import Summary
from ..wording import number, power

__all__ = ["gist", "render_text"]

_WIDTH = 80
_BAR = 24
_ROWS = 24
_DECADES = 12.0
"""What lies further below the largest gradient is rounding noise, as for a bias before BatchNormalization, and gets no bar."""

_NOTED = math.log10(2.0)
"""Decades between time steps that the first line names."""

_OVERFLOW = "values overflow float32 in the forward pass, before there is a gradient"

_VERDICTS = {
    "explodes": "training is predicted to fail at the first steps",
    "at-risk": "the prediction does not exclude that a run exceeds the limits; --probe measures some batches",
    "stable": "gradients grow less than {growth:g}-fold and shrink less than {shrink:g}-fold from last layer to first",
    "vanishes": "the first layers receive less than 1/{shrink:g} of the last layer's gradient",
}
_NO_GRADIENT = "no parameter receives a gradient"


def render_text(report: ReportContents) -> str:
    """The report as plain text."""
    console = Console(
        file=io.StringIO(), width=_WIDTH, color_system=None, force_terminal=False, highlight=False
    )
    _summary(console, report)
    _findings(console, report)
    _plan(console, report)
    _profile(console, report)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def gist(report: ReportContents, findings: Iterable[Finding]) -> str:
    """Verdict and findings, for the text of an exception."""
    lines = [_verdict_line(report)]
    for finding in findings:
        lines.append(f"{finding.code} {finding.severity}: {_safe(finding.message)}")
        lines.extend(f"  - {remedy.text}" for remedy in finding.remedies[:2])
    return "\n".join([*lines, "see report.render() for the whole report"])


def _verdict_line(report: ReportContents) -> str:
    summary = report.summary
    return (
        f"gradfuse: {summary.verdict.upper()} - {_meaning(report)} (risk {summary.risk:.2f},"
        f" growth {_growth(summary)}, global norm {number(summary.global_norm)})"
    )


def _meaning(report: ReportContents) -> str:
    summary, thresholds = report.summary, report.assumptions["thresholds"]
    if summary.overflow_phase == "forward":
        return _OVERFLOW
    if summary.global_norm == 0:
        return _NO_GRADIENT
    limits = {"growth": thresholds["GF101.growth"], "shrink": thresholds["GF108.shrink"]}
    return _VERDICTS[summary.verdict].format(**limits)


def _growth(summary: Summary) -> str:
    """What lies between time steps stands apart: it does not make a network vanish."""
    time = summary.through_time
    if not math.isfinite(summary.log10_gain) or abs(time) < _NOTED:
        return f"{power(summary.log10_gain)} from last layer to first"
    return f"{power(summary.log10_gain - time)} from last layer to first and {power(time)} from last time step to first"


def _summary(console: Console, report: ReportContents) -> None:
    console.print(Text(_verdict_line(report)))
    model, assumed, measured = report.model, report.assumptions, report.measurement
    name = f"{_safe(str(model['path']))}: " if model["path"] else ""
    ran = (
        "Nothing was run."
        if measured is None
        else f"Measured on {measured.batches} batches of {measured.inputs}."
    )
    console.print(
        Text(
            f"{name}{model['parameters']:,} parameters, {model['nodes']} nodes; assumed: inputs {assumed['input']},"
            f" {assumed['loss']}, batches of {assumed['batch_size']}; covariance between channels kept in"
            f" {assumed['full_covariance']}. {ran}"
        )
    )
    console.print(Text(f"parity: {_safe(str(model['parity']))}"))
    if measured is not None:
        console.print(Text(_comparison(report)))


def _comparison(report: ReportContents) -> str:
    """How the measured agrees with the predicted."""
    predicted, differing = report.predicted, report.disagreements
    count = sum(entry.kind == "parameter" for entry in report.profile)
    text = (
        f"predicted alone: {predicted.verdict}, growth {power(predicted.log10_gain)}, global norm"
        f" {number(predicted.global_norm)}; gradients of {len(differing)} of {count} parameters differ more than 2-fold"
    )
    if not differing:
        return text
    worst = differing[0]
    return (
        f"{text}, most that of {_safe(worst.tensor)}: measured {number(worst.measured_grad_rms or 0.0)},"
        f" predicted {number(worst.grad_rms)}"
    )


def _findings(console: Console, report: ReportContents) -> None:
    """Each remedy stands under the first finding that offers it."""
    offered: set[str] = set()
    for finding in report.findings:
        console.print()
        console.print(Text(f"{finding.code} {finding.severity}: {_safe(finding.message)}"))
        new = [remedy for remedy in finding.remedies if remedy.text not in offered]
        for remedy in new:
            console.print(Padding(Text(_remedy(remedy)), (0, 0, 0, 2)))
            for line in filter(None, (remedy.gradfuse, remedy.pytorch, remedy.keras)):
                console.print(Padding(Text(line), (0, 0, 0, 6)))
        if finding.remedies and not new:
            console.print(Padding(Text("- remedies: as above"), (0, 0, 0, 2)))
        offered.update(remedy.text for remedy in finding.remedies)
    if report.not_recomputed:
        console.print()
        console.print(Text(report.not_recomputed))


def _remedy(remedy: Remedy) -> str:
    then = f"growth then: {power(remedy.predicted_log10_gain)}, norm: {number(remedy.predicted_global_norm)}"
    return f"- {remedy.text} [{then}]"


def _plan(console: Console, report: ReportContents) -> None:
    console.print()
    if not report.fuses:
        console.print(Text(f"fuse plan: {_safe(report.plan.reason)}"))
        return
    console.print(Text("fuse plan (gradfuse fuse SOURCE --clip auto):"))
    for fuse in report.fuses:
        console.print(Padding(Text(f"{_safe(fuse.target)}: {fuse.kind} {fuse.threshold:g}"), (0, 0, 0, 2)))


def _profile(console: Console, report: ReportContents) -> None:
    """The gradient's RMS of the parameters over depth, as bars on a log scale."""
    entries = [entry for entry in report.profile if entry.kind == "parameter"]
    shown = _thinned(sorted(entries, key=lambda entry: (entry.depth, entry.tensor)))
    if not shown:
        return
    probed = report.measurement is not None
    table = Table(box=None, padding=(0, 1, 0, 0), show_edge=False)
    for title in ("depth", "parameter", "value", "gradient", *(["measured"] if probed else []), ""):
        left = title in ("parameter", "")
        table.add_column(title, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    logs = [math.log10(entry.grad_rms) for entry in shown if 0 < entry.grad_rms < math.inf]
    high = max(logs, default=0.0)
    low = min((log for log in logs if log > high - _DECADES), default=high)
    for entry in shown:
        measured = [] if entry.measured_grad_rms is None else [number(entry.measured_grad_rms)]
        table.add_row(
            str(entry.depth),
            Text(_safe(entry.tensor)),
            number(entry.value_rms),
            number(entry.grad_rms),
            *(measured or ["-"] * probed),
            _bar(entry.grad_rms, low, high),
        )
    console.print()
    console.print(table)
    if len(shown) < len(entries):
        console.print(Text(f"{len(shown)} of {len(entries)} parameters; --format json has all"))
    console.print(Text(f"RMS of value and gradient; the bars run from {power(low)} to {power(high)}"))


def _thinned(entries: Sequence[ProfileEntry]) -> list[ProfileEntry]:
    """Weights rather than biases, and no more rows than a screen holds, first and last included."""
    kept = [entry for entry in entries if entry.size > 1]
    largest: dict[int, ProfileEntry] = {}
    for entry in kept:
        if entry.depth not in largest or entry.size > largest[entry.depth].size:
            largest[entry.depth] = entry
    if len(kept) > _ROWS:
        kept = list(largest.values())
    if len(kept) <= _ROWS:
        return kept
    return [kept[round(index * (len(kept) - 1) / (_ROWS - 1))] for index in range(_ROWS)]


def _bar(value: float, low: float, high: float) -> str:
    if value == 0 or math.log10(value) < low:
        return ""
    if not math.isfinite(value):
        return "#" * (_BAR - 1) + ">"
    share = (math.log10(value) - low) / (high - low) if high > low else 1.0
    return "#" * max(1, round(share * _BAR))


def _safe(name: str) -> str:
    """Control characters and line breaks written out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
