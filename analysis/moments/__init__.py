"""Moments of values and gradients, propagated through the graph with the actual weights."""

from .budget import propagation_seconds
from .engine import Assumptions, Note, Propagation, propagate
from .state import GradientMoments, Moments, ParameterGradient

__all__ = [
    "Assumptions",
    "GradientMoments",
    "Moments",
    "Note",
    "ParameterGradient",
    "Propagation",
    "propagate",
    "propagation_seconds",
]
