"""The adding problem: a test of long memory (Hochreiter and Schmidhuber 1997, section 5.4).

Each sequence has two numbers at each time: a value uniform in [0, 1), and a mark, which is 1 at one time of the first half
and at one of the second, else 0. The target is the sum of the two marked values. Always answering 1 has a mean squared error
of 1/6.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["data"]


def data(
    examples: int = 2000, length: int = 30, seed: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Sequences [examples, length, 2] and their targets [examples, 1], float32.

    Args:
        examples: Number of sequences.
        length: Number of times, at least 2.
        seed: Seed of values and marks.
    """
    rng = np.random.default_rng(seed)
    values, marks = rng.random((examples, length)), np.zeros((examples, length))
    first = rng.integers(0, length // 2, examples)
    second = rng.integers(length // 2, length, examples)
    rows = np.arange(examples)
    marks[rows, first] = marks[rows, second] = 1.0
    x = np.stack([values, marks], axis=2).astype(np.float32)
    return x, (values * marks).sum(1, keepdims=True).astype(np.float32)
