"""Remedies that change the network itself: another activation, and batch normalisation beside it."""

from .activation import ACTIVATIONS, SWAPPED, parse_activation, swap_activation
from .batch_norm import INSERTED, insert_batch_norm

__all__ = ["ACTIVATIONS", "INSERTED", "SWAPPED", "insert_batch_norm", "parse_activation", "swap_activation"]
