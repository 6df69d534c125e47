"""From PyTorch, Keras and ONNX files to TrainableModels, each conversion checked against its source, and the weights back."""

from .conversion import Conversion, convert
from .keras import from_keras
from .parity import ParityResult
from .pytorch import from_pytorch
from .weights import to_keras, to_pytorch, to_source

__all__ = [
    "Conversion",
    "ParityResult",
    "convert",
    "from_keras",
    "from_pytorch",
    "to_keras",
    "to_pytorch",
    "to_source",
]
