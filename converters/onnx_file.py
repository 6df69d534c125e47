"""From any ONNX file to a TrainableModel.

A file that gradfuse wrote says what its parameters are. In any other, `parameters` finds them.

    before                                             after
    model-local functions                              inlined
    BatchNormalization, training_mode=1                inference form; those without it are then marked FROZEN
    Dropout(x, ratio, true)                            Dropout(x, ratio); those without `true` are then marked FROZEN
    a batch of one size                                of any size, where `batch` finds that safe
    float16, bfloat16                                  float32
    opset below 18 or above 21                         18 or 21
    Constant of more than one element                  initializer

The first three lines give the reference: what comes after them must compute what they compute, and is held to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    RemoveInitializersFromInputsPass,
)

from ..graph.errors import ConversionError, GradfuseError, InputError, UnsupportedError
from ..graph.evaluation import evaluate
from ..graph.files import MAX_IR_VERSION, load_model
from ..graph.lowering import OPSETS, infer_shapes
from ..graph.model import FROZEN, TensorSpec, TrainableModel, spec_of
from ..graph.source import describe_node
from .batch import fixed_batch, with_any_batch
from .contradictions import refuse_contradictions
from .division import guard_division
from .folding import fold_integers
from .inlining import check_functions
from .opset import to_opset
from .parameters import choose_parameters, integer_weight, weights
from .parity import Array
from .precision import is_half_precision, refuse_quantised, to_float32

__all__ = ["OnnxFile", "from_onnx", "read_onnx"]

_OLDEST_OPSET = 7

_LENGTHS = (8, 64, 224)
"""What symbolic axes are tried with, in turn: a deep network of images takes no small ones."""

_LARGEST_INPUT = 1 << 28


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file of another exporter.

    Attributes:
        path: The file.
        original: What it holds, functions inlined, in inference form.
        model: The same, ready to train.
        notes: What differs between the two, for the user to know.
    """

    path: Path
    original: ir.Model
    model: TrainableModel
    notes: tuple[str, ...]

    @property
    def is_half_precision(self) -> bool:
        """Whether the file computes with float16 or bfloat16, whose rounding the trained model does not share."""
        return is_half_precision(self.original)

    def choosing(self, patterns: Sequence[str] | None) -> OnnxFile:
        """The same, in which patterns choose the parameters.

        Raises:
            InputError: There are none, or a pattern matches none.
        """
        model = choose_parameters(self.model, patterns)
        if not model.parameters:
            whole = integer_weight(model.onnx.graph)
            raise InputError(
                f"{self.path} has no parameters to train{f': {whole}' if whole else ''}",
                expected="floating-point initializers that a layer uses as weights",
                remedy="export the model with its weights in it, or name some with --train",
            )
        return replace(self, model=model)

    def with_lengths(self, shape: Sequence[int]) -> OnnxFile:
        """The same, in which axes of any length have the lengths of one input, given without the batch."""
        onnx = self.model.onnx.clone()
        for value in onnx.graph.inputs:
            dims = list(value.shape or ())
            if len(dims) == len(shape) + 1:
                known = [dim if isinstance(dim, int) else n for dim, n in zip(dims[1:], shape, strict=True)]
                value.shape = ir.Shape([dims[0], *known])
        infer_shapes(onnx)
        return replace(self, model=replace(self.model, onnx=onnx))

    def examples(self, shape: Sequence[int] | None = None) -> tuple[Array, ...]:
        """A batch for each input, of a size that the file can take.

        Args:
            shape: The shape of one input without the batch, where it is known; the same for each input.

        Raises:
            InputError: The file takes none of the sizes tried.
        """
        errors: list[GradfuseError] = []
        batch = fixed_batch(self.original) or 2
        for length in _LENGTHS:
            arrays = tuple(_example(spec, batch, length, shape) for spec in self.model.inputs)
            try:
                self.run(arrays)
            except GradfuseError as error:
                errors.append(error)
            else:
                return arrays
        raise InputError(
            f"{self.path} does not run, so that nothing can be compared with it: {errors[0].wrong}",
            remedy="say --input-shape if its axes are not what they seem, or --no-verify",
        )

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The file's own outputs; where it takes batches of one size only, from as many runs as it needs."""
        size = fixed_batch(self.original) or len(inputs[0])
        parts = [
            self._run([array[start : start + size] for array in inputs])
            for start in range(0, len(inputs[0]), size)
        ]
        if len(parts) == 1:
            return parts[0]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        values = [
            value
            for value in self.original.graph.inputs
            if value.name not in self.original.graph.initializers
        ]
        feeds = {
            value.name or "": array.astype(spec_of(value).dtype.numpy())
            for value, array in zip(values, inputs, strict=True)
        }
        return [_widened(array) for array in _evaluated(self.original, feeds).values()]


def _evaluated(model: ir.Model, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    if (model.opset_imports.get("") or 0) in range(_OLDEST_OPSET, OPSETS[-1] + 1):
        return evaluate(model, feeds)
    # Every onnxruntime that trains ends at that opset; the standard's own evaluator knows all of them.
    from onnx.reference import ReferenceEvaluator

    names = [output.name or "" for output in model.graph.outputs]
    try:
        results = ReferenceEvaluator(ir.serde.serialize_model(model)).run(names, dict(feeds))
    except Exception as error:  # whatever its ops raise
        raise ConversionError(f"ONNX's evaluator cannot run it: {error}") from error
    return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}


def _widened(array: Array) -> Array:
    return (
        array
        if array.dtype in (np.float32, np.float64) or array.dtype.kind in "iub"
        else array.astype(np.float32)
    )


def _example(spec: TensorSpec, batch: int, length: int, shape: Sequence[int] | None) -> Array:
    dims = [dim if isinstance(dim, int) else length for dim in spec.dims]
    if dims and not isinstance(spec.dims[0], int):
        dims[0] = batch
    lengths = dims if shape is None else [*dims[:1], *shape]
    if np.prod(lengths, dtype=float) > _LARGEST_INPUT:
        raise InputError(f"the input {spec} is too large to try", remedy="--no-verify skips the comparison")
    return np.ones(lengths, spec.dtype.numpy())


def from_onnx(path: str | Path, *, train: Sequence[str] | None = None) -> TrainableModel:
    """Read an ONNX file, without comparing the result with it.

    Args:
        path: The file.
        train: Patterns that choose among its parameters, as `["layer4.*"]`; by default all train.

    Raises:
        ConversionError: An op has no counterpart at a supported opset.
        InputError: The file is missing or damaged, has no parameters, or none that a pattern chooses.
        UnsupportedError: It is quantised, or has ops that are not of the ONNX standard.
    """
    source = read_onnx(path)
    if isinstance(source, TrainableModel):
        return choose_parameters(source, train)
    return source.choosing(train).model


def read_onnx(path: str | Path) -> OnnxFile | TrainableModel:
    """Read an ONNX file; one that gradfuse wrote is a TrainableModel at once.

    Raises:
        GradfuseError: As `from_onnx` does.
    """
    path = Path(path)
    original = load_model(path)
    if TrainableModel.is_recorded(original):
        return TrainableModel.from_recorded(original)
    _refuse_training_graph(path, original)
    _normalise(original)
    model, notes = original.clone(), []
    if (batch := fixed_batch(model)) is not None:
        free = with_any_batch(model)
        model = free or model
        notes.append(
            f"exported for a batch of {batch}" + (", now for any" if free else ", and trains at that only")
        )
    if is_half_precision(model):
        to_float32(model)
        notes.append("float16 became float32, in which it trains")
    model = to_opset(model, min(max(model.opset_imports[""], OPSETS[0]), OPSETS[-1]))
    model.ir_version = MAX_IR_VERSION
    # A Constant of one element is a number of the formula, rather than a weight.
    LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=2)(model)
    fold_integers(model)
    trainable = TrainableModel(model, weights(model.graph), "onnx", str(path))
    return OnnxFile(path, original, trainable, tuple(notes))


def _refuse_training_graph(path: Path, model: ir.Model) -> None:
    """One that `gradfuse fuse` wrote takes its parameters as inputs with defaults, and gives out their gradients."""
    outputs = {output.name for output in model.graph.outputs}
    if any(f"{value.name}_grad" in outputs for value in model.graph.inputs if value.is_initializer()):
        raise InputError(
            f"{path} is a training graph, with loss and gradients in it",
            expected="the model that it was made from",
            remedy="gradfuse fuse puts in all fuses of a model at once; its --list and --remove take a training graph",
        )


def _normalise(model: ir.Model) -> None:
    """Inline functions, check what there is, and give it its inference form, in place."""
    if "ai.onnx" in model.opset_imports:
        model.opset_imports[""] = model.opset_imports.pop("ai.onnx")
    opset = model.opset_imports.setdefault("", OPSETS[0])
    if opset < _OLDEST_OPSET:
        raise UnsupportedError(f"the model has opset {opset}", expected=f"opset {_OLDEST_OPSET} or later")
    check_functions(model)
    try:
        InlinePass()(model)
    except (ir.passes.PassError, ir.passes.InvariantError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            "the functions of the model contradict themselves or the model", remedy="export the model again"
        ) from error
    refuse_quantised(model)
    _refuse_other_domains(model)
    _refuse_sequences(model)
    # What later versions add to the format, onnxruntime need not read in order to run a graph of ops that it knows.
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    RemoveInitializersFromInputsPass()(model)
    LiftSubgraphInitializersToMainGraphPass()(model)
    _to_inference_form(model)
    infer_shapes(model)
    refuse_contradictions(model)
    guard_division(model)


def _refuse_other_domains(model: ir.Model) -> None:
    for node in model.graph.all_nodes():
        if node.domain:
            raise UnsupportedError(
                f"{describe_node(node)} is not of the ONNX standard",
                expected="ops of the standard, or functions that the file defines by them",
                remedy="export the model without optimisation for a runtime",
            )


def _refuse_sequences(model: ir.Model) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise UnsupportedError(
                f"{value.name!r} is a {type(value.type).__name__.removesuffix('Type').lower()}, not a tensor",
                expected="tensors as inputs and outputs",
                remedy="export the model with its outputs joined, or with a single one",
            )


def _to_inference_form(model: ir.Model) -> None:
    nodes = [node for node in model.graph if node.op_type in ("BatchNormalization", "Dropout")]
    training = [_is_training(node) for node in nodes]
    for node, trains in zip(nodes, training, strict=True):
        if any(training) and not trains:
            node.metadata_props[FROZEN] = "true"
        if node.op_type == "Dropout":
            node.resize_inputs(min(len(node.inputs), 2))
        else:
            node.attributes.pop("training_mode", None)
            _drop_statistics(node, model.graph)


def _is_training(node: ir.Node) -> bool:
    if node.op_type == "BatchNormalization":
        return bool(node.attributes.get_int("training_mode", 0))
    value = node.inputs[2] if len(node.inputs) > 2 else None
    mode = None if value is None else ir.convenience.get_const_tensor(value)
    return mode is not None and bool(mode.numpy().item())


def _drop_statistics(node: ir.Node, graph: ir.Graph) -> None:
    """Remove the outputs for new running statistics: the training form computes them."""
    statistics = node.outputs[1:]
    if any(value.uses() for value in statistics):
        raise InputError(
            f"the new statistics of BatchNormalization node {node.name!r} are used inside the graph",
            expected="graph outputs, or nothing",
            remedy="export the model in inference form",
        )
    kept = [output for output in graph.outputs if output not in statistics]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    node.resize_outputs(1)
