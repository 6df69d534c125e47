"""Training on ONNX Runtime: optimizers, schedules, the step graph, data, and the loop that ties them together."""

from .optimizers import OPTIMIZERS, SGD, AdamW, Optimizer, optimizer_named
from .providers import DEVICES
from .readers import Examples, load_data
from .run_folder import EpochMetrics
from .schedules import SCHEDULES, Progress, Schedule
from .session import TrainingSession
from .step_graph import StepGraph
from .training import Score, TrainingResult, score, train

__all__ = [
    "DEVICES",
    "OPTIMIZERS",
    "SCHEDULES",
    "SGD",
    "AdamW",
    "EpochMetrics",
    "Examples",
    "Optimizer",
    "Progress",
    "Schedule",
    "Score",
    "StepGraph",
    "TrainingResult",
    "TrainingSession",
    "load_data",
    "optimizer_named",
    "score",
    "train",
]
