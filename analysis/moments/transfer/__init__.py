"""Transfer rules: how each op carries moments forward and gradient moments back."""

from .table import TABLE

__all__ = ["TABLE"]
