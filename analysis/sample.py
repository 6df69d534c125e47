"""What a prediction takes for granted, from numbers that a user gives, or from the statistics of a sample of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from ..graph.errors import InputError
from ..graph.gradient_graph import GradientGraph
from ..graph.model import TensorSpec
from .moments import Assumptions
from .moments.quadrature import Array

__all__ = ["Numbers", "assume", "check_lengths", "describe_inputs"]

Numbers: TypeAlias = "float | Sequence[float] | Array"
"""One number for all, or one for each channel (axis 1 of the input)."""


def assume(
    gradients: GradientGraph,
    *,
    batch_size: int = 32,
    mean: Numbers | None = None,
    variance: Numbers | None = None,
    label_frequencies: Sequence[float] | Array | None = None,
    budget: float = 10.0,
    data: Sequence[Array] | None = None,
) -> Assumptions:
    """Assumptions: what is given; else what the sample says; else N(0, 1) inputs, and all classes alike.

    Args:
        gradients: The model's gradient graph.
        batch_size: Examples in a batch.
        mean: Mean of the inputs.
        variance: Variance of the inputs.
        label_frequencies: Share of each class, in any unit.
        budget: Seconds that may be spent on covariances, and again on remedies.
        data: A sample: an array for each input, then the target. Only mean, variance and label frequencies are taken: for
            each channel of an image, for each element of any other input. Several inputs are taken together.

    Raises:
        InputError: Numbers do not fit the model.
    """
    spec = gradients.source.inputs[0]
    sampled = None if data is None else _moments(data[: len(gradients.source.inputs)])
    if label_frequencies is None and data is not None and gradients.loss_function.classes:
        labels = data[-1][data[-1] != gradients.loss_function.ignored]
        label_frequencies = _frequencies(labels, gradients.source.outputs[0])
    return Assumptions(
        batch_size,
        (0.0 if sampled is None else sampled[0]) if mean is None else _per_channel(mean, spec),
        (1.0 if sampled is None else sampled[1]) if variance is None else _per_channel(variance, spec),
        None if label_frequencies is None else _shares(label_frequencies),
        budget,
    )


def check_lengths(gradients: GradientGraph) -> None:
    """Refuse inputs with axes of any length, but for the batch's: a variance is a sum over a length.

    Raises:
        InputError: A length is not known.
    """
    for spec in gradients.source.inputs:
        if sum(not isinstance(dim, int) for dim in spec.dims) > 1:
            raise InputError(
                f"the lengths of the input {spec} are not known",
                expected="the length of every axis but that of the batch",
                remedy="give the shape of one input with --input-shape, as 3x224x224",
            )


def describe_inputs(assumptions: Assumptions) -> str:
    """`N(0,1)`; of several means and variances, their average."""
    mean, variance = float(np.mean(assumptions.mean)), float(np.mean(assumptions.variance))
    several = max(np.size(assumptions.mean), np.size(assumptions.variance)) > 1
    return f"N({round(mean, 4):g},{variance:.3g})" + (" on average" if several else "")


def _per_channel(numbers: Numbers, spec: TensorSpec) -> float | Array:
    """Shaped to broadcast against one example."""
    array = np.asarray(numbers, dtype=np.float64)
    if array.size == 1:
        return float(array.reshape(()))
    if len(spec.dims) < 2 or spec.dims[1] not in (array.size, None) or array.ndim != 1:
        raise InputError(
            f"{array.size} input means or variances for {spec}",
            expected="one number, or one for each channel",
        )
    return array.reshape(-1, *[1] * (len(spec.dims) - 2))


def _moments(inputs: Sequence[Array]) -> tuple[float | Array, float | Array] | None:
    """Mean and variance; None where no input has floating-point numbers."""
    arrays = [array for array in inputs if array.dtype.kind == "f"]
    if not arrays:
        return None
    if len(arrays) > 1:
        flat = np.concatenate([array.reshape(-1) for array in arrays]).astype(np.float64)
        return float(flat.mean()), float(flat.var())
    axes = (0, *range(2, arrays[0].ndim)) if arrays[0].ndim > 3 else (0,)
    mean = arrays[0].mean(axes, dtype=np.float64, keepdims=True)[0]
    return mean, arrays[0].var(axes, dtype=np.float64, keepdims=True)[0]


def _frequencies(labels: Array, output: TensorSpec) -> Array | None:
    classes = output.dims[1]
    return np.bincount(labels.reshape(-1), minlength=classes) if isinstance(classes, int) else None


def _shares(frequencies: Sequence[float] | Array) -> Array:
    array = np.asarray(frequencies, dtype=np.float64).reshape(-1)
    if not (np.all(np.isfinite(array)) and np.all(array >= 0) and array.sum() > 0):
        raise InputError("label frequencies", expected="numbers that are not negative, one of them positive")
    return np.asarray(array / array.sum())
