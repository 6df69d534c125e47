"""One function that converts whatever a model is given as, and checks the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..graph.errors import InputError
from ..graph.gradient_graph import GradientGraph
from ..graph.model import TrainableModel
from . import keras_call, pytorch, torch_reference
from .frameworks import framework_of
from .keras import from_keras
from .locate import locate
from .onnx_file import OnnxFile
from .parameters import choose_parameters
from .parity import ParityResult, check_outputs, check_parity, loss_for
from .saved_model import SavedModel, saved

__all__ = ["Conversion", "convert"]

_HALF_PRECISION = 2e-2
"""How far a float16 file and its float32 form may differ: a hundred roundings of 10 bits, added up as they do at random."""


@dataclass(frozen=True)
class Conversion:
    """A converted model.

    Attributes:
        model: The model.
        parity: How well it agrees with its source; None where that was not checked.
        notes: What the user should know of the conversion, each in a line.
    """

    model: TrainableModel
    parity: ParityResult | None = None
    notes: tuple[str, ...] = ()


def convert(
    source: Any,
    *,
    example_input: Any = None,
    opset: int = 18,
    tolerance: float = 1e-4,
    verify: bool = True,
    train: Sequence[str] | None = None,
) -> Conversion:
    """Convert a model and check the result against its source.

    Args:
        source: A `torch.nn.Module`, a `keras.Model`, a `tf.Module`, a TrainableModel, or what names one: `module:callable`,
            `file.py:callable`, a `.keras` or `.onnx` file, a SavedModel folder.
        example_input: An array, a tuple of arrays for several inputs, or the shape of one example without the batch, as
            `(1, 28, 28)`. By default it follows from the model.
        opset: Opset of the graph, 18 to 21; an ONNX file keeps its own where that is one of these.
        tolerance: Largest relative error of outputs, gradients and running statistics.
        verify: Whether to check.
        train: Patterns that choose the parameters to train, as `["layer4.*"]`; by default all that the source trains.

    Raises:
        InputError: The source is no model, or its input shape does not follow from it.
        UnsupportedError: A layer or an op cannot be trained.
        ConversionError: The framework's exporter refuses the model.
        ParityError: The converted model computes something else than its source.
    """
    name = ""
    if isinstance(source, (str, Path)):
        name, located = str(source), locate(source)
        source = located.model
        example_input = located.example_input if example_input is None else example_input
    if isinstance(source, OnnxFile):
        file = source.choosing(train)
        file = file.with_lengths(example_input) if _is_shape(example_input) else file
        conversion = _convert_file(file, example_input, tolerance, verify)
        model = conversion.model
    else:
        conversion = _convert(source, example_input, opset, tolerance, verify)
        model = choose_parameters(conversion.model, train)
    parity = model.parity if conversion.parity is None else str(conversion.parity)
    return replace(conversion, model=replace(model, source=model.source or name, parity=parity))


def _convert(source: Any, example_input: Any, opset: int, tolerance: float, verify: bool) -> Conversion:
    if isinstance(source, TrainableModel):
        return Conversion(source)
    framework = framework_of(source)
    if framework == "pytorch":
        tensors = pytorch.as_tensors(source, _examples(pytorch.example_for, source, example_input))
        model = pytorch.from_pytorch(source, tensors, opset=opset)
        examples = [tensor.detach().cpu().numpy() for tensor in tensors]
        reference = partial(torch_reference.reference, source)
    elif framework == "keras":
        needed = verify or example_input is not None
        examples = _examples(keras_call.example_for, source, example_input) if needed else []
        model = from_keras(source, examples or None, opset=opset)
        reference = partial(keras_call.reference, source)
    elif framework == "tensorflow" or isinstance(source, SavedModel):
        whole = source if isinstance(source, SavedModel) else saved(source)
        model = whole.convert(opset=opset)
        examples = _examples(SavedModel.example_for, whole, example_input) if verify else []
        reference = partial(whole.reference)
    else:
        raise InputError(
            f"a {type(source).__name__} is no model",
            expected="a torch.nn.Module, a keras.Model, a TrainableModel, or the name of one",
        )
    parity = check_parity(model, reference, examples, tolerance=tolerance) if verify else None
    return Conversion(model, parity, keras_call.notes(source) if framework == "keras" else ())


def _convert_file(file: OnnxFile, example_input: Any, tolerance: float, verify: bool) -> Conversion:
    if not verify:
        return Conversion(file.model, notes=file.notes)
    examples = _examples(OnnxFile.examples, file, example_input)
    # An op without a gradient is refused here, rather than when the file that is written now should train.
    GradientGraph.of(file.model, loss_for(file.model.outputs[0]))
    allowed = max(tolerance, _HALF_PRECISION) if file.is_half_precision else tolerance
    parity = check_outputs(file.model, file.run, examples, tolerance=allowed)
    return Conversion(file.model, parity, file.notes)


def _examples(example_for: Callable[..., Any], source: Any, example_input: Any) -> list[Any]:
    """One array for each input, from arrays, from the shape of one input, or from what the model tells."""
    if example_input is None or _is_shape(example_input):
        example_input = example_for(source, example_input)
    return list(example_input) if isinstance(example_input, (tuple, list)) else [example_input]


def _is_shape(example_input: Any) -> bool:
    several = isinstance(example_input, (tuple, list))
    return several and all(isinstance(length, int) for length in example_input)
