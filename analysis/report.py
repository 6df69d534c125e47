"""The report, and what can be done with it."""

from __future__ import annotations

from dataclasses import dataclass

from ..graph.errors import InputError
from .contents import ReportContents
from .findings import SEVERITIES, Finding, FindingsError
from .renderers import RENDERERS
from .renderers.text import gist

__all__ = ["RiskReport"]


@dataclass(frozen=True)
class RiskReport(ReportContents):
    """A report on one model at its present weights."""

    def render(self, format: str = "text") -> str:
        """The report in one of RENDERERS' formats.

        Raises:
            InputError: There is no such format.
        """
        if format not in RENDERERS:
            raise InputError(f"unknown report format {format!r}", expected=f"one of {', '.join(RENDERERS)}")
        return RENDERERS[format](self)

    def failures(self, fail_on: str = "error") -> list[Finding]:
        """The findings of this severity or above; `never` accepts all.

        Raises:
            InputError: There is no such severity.
        """
        if fail_on == "never":
            return []
        if fail_on not in SEVERITIES:
            raise InputError(
                f"unknown severity {fail_on!r}", expected=f"one of {', '.join(SEVERITIES)}, never"
            )
        least = SEVERITIES.index(fail_on)
        return [finding for finding in self.findings if SEVERITIES.index(finding.severity) >= least]

    def fails(self, fail_on: str = "error") -> bool:
        """Whether there is a finding of this severity or above."""
        return bool(self.failures(fail_on))

    def check(self, fail_on: str = "error") -> None:
        """Do nothing where there is no finding of this severity or above; made for tests.

        Raises:
            FindingsError: There is one.
            InputError: There is no such severity.
        """
        if failures := self.failures(fail_on):
            raise FindingsError(gist(self, failures))
