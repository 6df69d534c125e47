"""From PyTorch, Keras and ONNX files to TrainableModels, each conversion checked against its source, and the weights back."""

from .conversion import Conversion, convert
from .parity import ParityResult
from .pytorch import from_pytorch

__all__ = ["Conversion", "ParityResult", "convert", "from_pytorch"]
