"""Numbers as a person reads them."""

from __future__ import annotations

import math

__all__ = ["factor", "number", "power"]


def number(value: float) -> str:
    """Three digits: `0.0123`, `2,700`, `4.5e+25`, `infinite`."""
    if not math.isfinite(value):
        return "infinite"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2g}"
    return f"{float(f'{value:.3g}'):,.10g}"


def power(log10: float) -> str:
    """Ten to this power."""
    if math.isnan(log10) or log10 == math.inf:
        return "infinite"
    return number(10.0**log10) if abs(log10) < 300 else f"1e{log10:+.0f}"


def factor(log10: float) -> str:
    """A change of size: `2,700-fold`."""
    return f"{power(log10)}-fold" if math.isfinite(log10) else "without bound"
