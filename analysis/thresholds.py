"""The thresholds of the rules: every one is listed here, documented on the page of its rule, and may be set by the user."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..graph.errors import InputError, some

__all__ = ["THRESHOLDS", "thresholds_with"]

THRESHOLDS: Mapping[str, float] = {
    "GF101.growth": 100.0,
    "GF101.norm": 100.0,
    "GF101.warning": 10.0,
    "GF102.exponent": 1.5,
    "GF102.gain": 1.26,
    "GF103.scale": 3.0,
    "GF104.growth": 10.0,
    "GF105.growth": 10.0,
    "GF106.growth": 10.0,
    "GF107.blocks": 12.0,
    "GF108.shrink": 100.0,
    "GF109.share": 0.5,
    "GF110.share": 0.5,
    "GF501.step": 1.0,
}
"""The default of each, by name. Growths and gains are factors, not decades."""


def thresholds_with(changes: Mapping[str, float] | None = None) -> dict[str, float]:
    """The defaults, with these in place of some.

    Raises:
        InputError: A name is unknown, or a number is not positive.
    """
    for name, number in (changes or {}).items():
        if name not in THRESHOLDS:
            raise InputError(f"unknown threshold {name!r}", expected=f"one of {some(THRESHOLDS)}")
        if not (math.isfinite(number) and number > 0):
            raise InputError(f"threshold {name}={number:g}", expected="a positive number")
    return {**THRESHOLDS, **(changes or {})}
