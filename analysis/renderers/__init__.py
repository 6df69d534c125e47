"""The formats of a report."""

from collections.abc import Callable, Mapping

from ..contents import ReportContents
from .json import render_json
from .text import render_text

__all__ = ["RENDERERS"]

RENDERERS: Mapping[str, Callable[[ReportContents], str]] = {"text": render_text, "json": render_json}
"""Each format's renderer."""
