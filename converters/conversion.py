"""One function that converts whatever a model is given as, and checks the result."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..graph.errors import InputError
from ..graph.model import TrainableModel
from . import keras, pytorch
from .frameworks import framework_of
from .parity import ParityResult, check_parity

__all__ = ["Conversion", "convert"]


@dataclass(frozen=True)
class Conversion:
    """A converted model.

    Attributes:
        model: The model.
        parity: How well it agrees with its source; None where that was not checked.
    """

    model: TrainableModel
    parity: ParityResult | None = None


def convert(
    source: Any, *, example_input: Any = None, opset: int = 18, tolerance: float = 1e-4, verify: bool = True
) -> Conversion:
    """Convert a model and check the result against its source.

    Args:
        source: A `torch.nn.Module` or a TrainableModel.
        example_input: An array, a tuple of arrays for several inputs, or the shape of one example without the batch, as
            `(1, 28, 28)`. By default it follows from the model's first layer.
        opset: Opset of the graph, 18 to 21.
        tolerance: Largest relative error of outputs, gradients and running statistics.
        verify: Whether to check.

    Raises:
        InputError: The source is no model, or its input shape does not follow from it.
        ConversionError: The framework's exporter refuses the model.
        ParityError: The converted model computes something else than its source.
    """
    if isinstance(source, TrainableModel):
        return Conversion(source)
    convert_from = {"pytorch": _convert_pytorch, "keras": _convert_keras}.get(framework_of(source))
    if convert_from is not None:
        return convert_from(source, example_input, opset, tolerance, verify)
    raise InputError(f"a {type(source).__name__} is no model", expected="a torch.nn.Module")


def _convert_pytorch(
    module: Any, example_input: Any, opset: int, tolerance: float, verify: bool
) -> Conversion:
    inputs = pytorch.as_tensors(
        module, pytorch.example_for(module) if example_input is None else _example(example_input)
    )
    model = pytorch.from_pytorch(module, inputs, opset=opset)
    if not verify:
        return Conversion(model)
    examples = [tensor.detach().cpu().numpy() for tensor in inputs]
    reference = partial(pytorch.reference, module)
    return Conversion(model, check_parity(model, reference, examples, tolerance=tolerance))


def _convert_keras(model: Any, example_input: Any, opset: int, tolerance: float, verify: bool) -> Conversion:
    converted = keras.from_keras(model, opset=opset)
    if not verify:
        return Conversion(converted)
    examples = keras.example_for(model) if example_input is None else _example(example_input)
    examples = examples if isinstance(examples, (tuple, list)) else [examples]
    return Conversion(
        converted, check_parity(converted, partial(keras.reference, model), examples, tolerance=tolerance)
    )


def _example(example_input: Any) -> Any:
    if isinstance(example_input, tuple) and all(isinstance(length, int) for length in example_input):
        return np.zeros((2, *example_input), np.float32)
    return example_input
