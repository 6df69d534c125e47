"""Says from graph and weights alone what the gradients will be, where they explode or vanish, why, and what to do about it."""

from .analysis import analyse
from .findings import Finding, FindingsError, Remedy
from .report import RiskReport
from .rules import RULES, explain

__all__ = ["RULES", "Finding", "FindingsError", "Remedy", "RiskReport", "analyse", "explain"]
