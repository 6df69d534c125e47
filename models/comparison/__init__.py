"""The same network as PyTorch and Keras twins, trained on ONNX Runtime and natively, with each remedy against explosion."""

from .comparison import Comparison, compare
from .remedies import REMEDIES, Remedy
from .trainers import TRAINERS

__all__ = ["REMEDIES", "TRAINERS", "Comparison", "Remedy", "compare"]
