"""Moments of values and gradients, propagated through the graph with the actual weights."""

from .budget import propagation_seconds
from .engine import Assumptions, Note, Propagation, propagate
from .mixture import gathers_examples, mixed
from .state import GradientMoments, Moments, ParameterGradient

__all__ = [
    "Assumptions",
    "GradientMoments",
    "Moments",
    "Note",
    "ParameterGradient",
    "Propagation",
    "gathers_examples",
    "mixed",
    "propagate",
    "propagation_seconds",
]
