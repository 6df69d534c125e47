"""The same network as PyTorch and Keras twins, trained on ONNX Runtime and natively, with each remedy against explosion."""

from .cell import Cell
from .comparison import compare
from .remedies import REMEDIES, Remedy
from .renderers import render, renderer_for
from .results import Comparison
from .trainers import TRAINERS

__all__ = ["REMEDIES", "TRAINERS", "Cell", "Comparison", "Remedy", "compare", "render", "renderer_for"]
