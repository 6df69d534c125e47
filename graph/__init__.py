"""The ground floor that every room speaks: trainable models, their gradient graphs, losses and fuses, all as ONNX graphs."""

from .errors import ConversionError, GradfuseError, InputError, ParityError, UnsupportedError
from .evaluation import evaluate
from .fuses import ALL_PARAMETERS, FUSE_KINDS, GLOBAL_KINDS, Fuse, insert_fuses, list_fuses, remove_fuses
from .gradient_graph import GradientGraph
from .losses import LOSSES
from .model import TensorSpec, TrainableModel

__all__ = [
    "ALL_PARAMETERS",
    "FUSE_KINDS",
    "GLOBAL_KINDS",
    "LOSSES",
    "ConversionError",
    "Fuse",
    "GradfuseError",
    "GradientGraph",
    "InputError",
    "ParityError",
    "TensorSpec",
    "TrainableModel",
    "UnsupportedError",
    "evaluate",
    "insert_fuses",
    "list_fuses",
    "remove_fuses",
]
