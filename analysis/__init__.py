"""Says from graph and weights alone what the gradients will be, where they explode or vanish, why, and what to do about it."""

from .analysis import analyse
from .evidence import TrainingSetup
from .findings import Finding, FindingsError, Remedy
from .plan import FusePlan
from .probe import Measurement, probe
from .report import RiskReport
from .rules import RULES, explain
from .sample import Numbers, assume
from .thresholds import THRESHOLDS, thresholds_with

__all__ = [
    "RULES",
    "THRESHOLDS",
    "Finding",
    "FindingsError",
    "FusePlan",
    "Measurement",
    "Numbers",
    "Remedy",
    "RiskReport",
    "TrainingSetup",
    "analyse",
    "assume",
    "explain",
    "probe",
    "thresholds_with",
]
