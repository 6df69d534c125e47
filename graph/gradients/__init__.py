"""Gradients of ONNX graphs: the table, one entry per op written in standard ONNX ops, and the engine that applies it."""

from .control_flow import STATE
from .engine import DIFFERENTIATES, Adjoint, Gradient, Rule, differentiate
from .table import TABLE

__all__ = ["DIFFERENTIATES", "STATE", "TABLE", "Adjoint", "Gradient", "Rule", "differentiate"]
