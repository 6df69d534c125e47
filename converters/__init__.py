"""From PyTorch, Keras and ONNX files to TrainableModels, each conversion checked against its source, and the weights back."""

from .conversion import Conversion, convert
from .keras import from_keras
from .keras_loss import loss_from_keras
from .locate import Located, locate
from .losses import find_loss
from .onnx_file import from_onnx
from .parity import ParityResult
from .pytorch import from_pytorch
from .remedied import refuse_remedies, remedied
from .torch_loss import loss_from_torch
from .weights import to_keras, to_pytorch, to_source

__all__ = [
    "Conversion",
    "Located",
    "ParityResult",
    "convert",
    "find_loss",
    "from_keras",
    "from_onnx",
    "from_pytorch",
    "locate",
    "loss_from_keras",
    "loss_from_torch",
    "refuse_remedies",
    "remedied",
    "to_keras",
    "to_pytorch",
    "to_source",
]
