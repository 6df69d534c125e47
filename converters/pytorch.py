"""From a `torch.nn.Module` to a TrainableModel.

The module is exported as it trains, by `torch.export` and torch's ONNX exporter, without the exporter's optimizer: that one
merges BatchNormalization into its neighbours and loses parameters by name. What the exporter emits becomes the inference form:

    exported                                              here
    BatchNormalization of a layer that trains             the same, marked UNBIASED_VARIANCE
    BatchNormalization of a layer in eval mode            the same, marked FROZEN
    Dropout(x, ratio, true)                               Dropout(x, ratio)
    Dropout of a layer in eval mode: nothing              nothing
    BatchNormalization of an InstanceNorm layer           the same, marked PER_INSTANCE, by `torch_functions.exportable`
    Dropout2d: x * Dropout(ones)                          the same, by `torch_functions.exportable`
    AveragePool(ceil_mode, count_include_pad), padded     AveragePool(ceil_mode) of a Pad
    Identity of a tensor that is detached                 the same, marked STOP_GRADIENT
    Clip of Hardtanh and ReLU6                            the same, marked OPEN_INTERVAL
    name scopes, stack traces, the graph's signature      the layer's path
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..graph.builder import Builder
from ..graph.callables import first_line, place_of
from ..graph.errors import ConversionError, InputError, UnsupportedError
from ..graph.lowering import pad_before_pooling
from ..graph.model import (
    FROZEN,
    OPEN_INTERVAL,
    PER_INSTANCE,
    STOP_GRADIENT,
    UNBIASED_VARIANCE,
    TrainableModel,
)
from ..graph.source import LAYER, describe_node
from .folding import fold_integers
from .frameworks import silenced
from .opset import check_opset
from .parity import Array
from .torch_functions import exportable
from .torch_operators import decompositions, translations

if TYPE_CHECKING:
    import torch

__all__ = ["as_tensors", "example_for", "from_pytorch", "in_mode", "quiet"]

Inputs: TypeAlias = "torch.Tensor | Array | Sequence[torch.Tensor | Array]"

_CHATTY = (
    "torch.export",
    "torch.fx.experimental.symbolic_shapes",
    "torch.onnx._internal.exporter._registration",
)


def from_pytorch(module: torch.nn.Module, example_inputs: Inputs, *, opset: int = 18) -> TrainableModel:
    """Convert a module.

    A module that is in eval mode as a whole is exported as `module.train()` would make it; in one that is in train mode, layers
    in eval mode are frozen. Parameters with `requires_grad=False` are kept, but do not train. Parameters that the forward does
    not use are left out. Weights that layers share become one parameter, under the first of their names. The module itself
    stays as it was: weights, running statistics, modes and the state of the random generators.

    Args:
        module: The module. Its forward takes tensors with the batch on axis 0.
        example_inputs: A tensor or an array for each argument of the forward, of any batch size.
        opset: Opset of the graph, 18 to 21.

    Raises:
        ConversionError: torch.export or torch's ONNX exporter refuses the module.
        InputError: The opset is not supported.
        UnsupportedError: The module draws random numbers in another way than dropout, or the exporter would lose a part of it.
    """
    check_opset(opset)
    inputs = tuple(_two_examples(tensor) for tensor in as_tensors(module, example_inputs))
    _check_arguments(module, inputs)
    with in_mode(module, training=True), quiet():
        _refuse_layers(module)
        model = _to_onnx(_export(module, inputs), opset, _dynamic_batch(module, inputs))
    _restore_names(model.graph, module)
    for node in model.graph.all_nodes():
        _refuse_randomness(node)
        _to_inference_form(node)
    _strip_metadata(model)
    _pad_before_pooling(model.graph)
    fold_integers(model)
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    kept = model.graph.initializers
    return TrainableModel(model, tuple(name for name in trained if name in kept), "pytorch")


def _check_arguments(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    try:
        inspect.signature(module.forward).bind(*inputs)
    except TypeError as error:
        raise InputError(
            f"the forward of {type(module).__name__} does not take {len(inputs)} inputs: {error}",
            expected="an example for each",
            remedy="let the callable return (module, (first, second)), or give them as example_input",
        ) from None


def _refuse_layers(module: torch.nn.Module) -> None:
    """Refuse what the exporter translates without a word of what it loses."""
    for name, layer in module.named_modules():
        for is_refused, wrong, remedy in _REFUSED_LAYERS:
            if is_refused(layer):
                raise UnsupportedError(f"the {type(layer).__name__} layer {name!r} {wrong}", remedy=remedy)


def _is_cumulative(layer: Any) -> bool:
    from torch.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d

    norms = (BatchNorm1d, BatchNorm2d, BatchNorm3d)
    return isinstance(layer, norms) and layer.training and layer.momentum is None


def _renormalises(layer: Any) -> bool:
    from torch.nn import Embedding, EmbeddingBag

    return isinstance(layer, (Embedding, EmbeddingBag)) and layer.max_norm is not None


def _counts_tokens(layer: Any) -> bool:
    from torch.nn import Embedding, EmbeddingBag

    return isinstance(layer, (Embedding, EmbeddingBag)) and layer.scale_grad_by_freq


def _is_quantised(layer: Any) -> bool:
    return (
        ".ao.nn.quantized" in type(layer).__module__ or ".ao.nn.intrinsic.quantized" in type(layer).__module__
    )


def _draws_slopes(layer: Any) -> bool:
    from torch.nn import RReLU

    return isinstance(layer, RReLU) and layer.training


_REFUSED_LAYERS: tuple[tuple[Callable[[Any], bool], str, str], ...] = (
    (
        _is_quantised,
        "is quantised",
        "convert the module of floats that it was made from",
    ),
    (
        _is_cumulative,
        "has momentum=None, a cumulative average",
        "set momentum to a number; its default is 0.1",
    ),
    (
        _renormalises,
        "has max_norm, which changes its weight in the forward",
        "set max_norm=None, the default",
    ),
    (
        _counts_tokens,
        "scales its gradient by frequencies",
        "set scale_grad_by_freq=False, the default",
    ),
    (
        _draws_slopes,
        "draws a slope for each number while it trains",
        "take torch.nn.LeakyReLU, or put this layer in eval mode while the rest is in train mode",
    ),
)
"""For each kind of layer: how it is known, what is wrong with it, and what to do."""


def _export(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.export.ExportedProgram:
    import torch

    name = type(module).__name__
    try:
        with exportable():
            program = torch.export.export(
                module, inputs, dynamic_shapes=_dynamic_batch(module, inputs), strict=False
            )
        _detach_without_grad(program.graph)
        decomposed = _decomposed(program)
    except Exception as error:  # whatever the module's own code raises
        if "Constraints violated (batch)" in str(error):
            raise ConversionError(
                f"the forward of {name} works for one batch size only",
                expected="any length of axis 0",
                remedy="take sizes from the input, as in x.flatten(1) or x.view(x.shape[0], -1), and never from len(x)",
            ) from error
        raise ConversionError(
            f"torch.export refuses {name}{place_of(error)}: {first_line(error) or type(error).__name__}",
            expected="a forward that torch.export.export can trace with the example input "
            + ", ".join(str(list(tensor.shape)) for tensor in inputs),
            remedy="check the shape of the example input, and move control flow that depends on data out of the forward",
        ) from error
    _refuse_state(decomposed, name)
    return decomposed


def _decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without what `decompositions` takes apart and without writes into state.

    That takes as long as the export itself, and is left out where no operator is taken apart and no state is written.
    """
    ours, may_write = decompositions(), _writes_statistics_only(program)
    calls = {node.target for node in program.graph.nodes if node.op == "call_function"}
    operators = [_without_write(call) if may_write else call for call in calls]
    if not any(operator in ours or _is_taken_apart(operator) for operator in operators):
        return program
    decomposed: torch.export.ExportedProgram = program.run_decompositions(ours)
    return decomposed


def _is_taken_apart(operator: Any) -> bool:
    """Whether an operator may be made of what `decompositions` takes apart, or writes."""
    import torch

    if not isinstance(operator, torch._ops.OpOverload) or operator._schema.is_mutable:
        return True
    # A composite that is not among torch's own decompositions is taken apart whatever the table.
    whole = torch.Tag.core in operator.tags or operator in torch.export.default_decompositions()
    return not whole and operator._opname not in _PLAIN_COMPOSITES


def _without_write(operator: Any) -> Any:
    """The operator that computes what this one writes in place; this one itself where there is none."""
    import torch

    if not isinstance(operator, torch._ops.OpOverload):
        return operator
    packet = getattr(torch.ops.aten, operator._opname.removesuffix("_"), None)
    return getattr(packet, operator._overloadname, operator)


_PLAIN_COMPOSITES = frozenset(
    ("batch_norm", "chunk", "dropout", "expand_as", "feature_dropout", "flatten", "reshape", "unflatten")
)
"""Composites without anything that `decompositions` takes apart."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _writes_statistics_only(program: torch.export.ExportedProgram) -> bool:
    """Whether there is no other state that an operator could write to than the statistics of normalisation layers."""
    return all(name.rpartition(".")[2] in _STATISTICS for name in program.graph_signature.buffers)


def _dynamic_batch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[str, Any]:
    """For each argument of the forward its dynamic axes: the batch, on axis 0 of every tensor."""
    import torch

    batch = {0: torch.export.Dim("batch")}
    arguments = inspect.signature(module.forward).bind(*inputs).arguments
    return {
        name: (batch,) * len(argument) if isinstance(argument, tuple) else batch
        for name, argument in arguments.items()
    }


def _detach_without_grad(graph: torch.fx.Graph) -> None:
    """Let what is computed under `torch.no_grad` say so: the exporter inlines it without a trace."""
    import torch

    region, detach = torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.aten.detach.default
    results = (
        node
        for call in graph.find_nodes(op="call_function", target=region)
        if not call.args[0]
        for node in call.users
    )
    for node in list(results):
        with graph.inserting_after(node):
            detached = graph.call_function(detach, (node,))
        detached.meta = dict(node.meta)
        node.replace_all_uses_with(
            detached, delete_user_cb=lambda user, keep=detached: user is not keep and user.op != "output"
        )


def _refuse_state(program: torch.export.ExportedProgram, name: str) -> None:
    """Refuse a forward that changes other buffers than the statistics which training moves."""
    for buffer in program.graph_signature.buffers_to_mutate.values():
        if buffer.rpartition(".")[2] not in _STATISTICS:
            raise UnsupportedError(
                f"the forward of {name} changes its buffer {buffer!r}, which would stay as it is",
                expected="no state but running statistics of normalisation layers",
                remedy="put the layer that holds the buffer in eval mode while the rest is in train mode",
            )


def _to_onnx(program: torch.export.ExportedProgram, opset: int, dynamic: dict[str, Any]) -> ir.Model:
    import torch

    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,
            opset_version=opset,
            external_data=False,
            verbose=False,
            dynamic_shapes=dynamic,
            custom_translation_table=translations(),
        )
    except torch.onnx.OnnxExporterError as error:
        operator = re.search(r"%(\w+)", str(error.__cause__))
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        what, why = operator[1] if operator else "the module", first_line(cause) or type(cause).__name__
        raise ConversionError(
            f"torch.onnx.export cannot translate {what}: {why}", remedy="replace the operator in the module"
        ) from error
    assert exported is not None  # only the exporter that writes to a file itself returns None
    # A round trip through the standard's own format leaves no tensor that shares its memory with the module.
    return ir.serde.deserialize_model(ir.serde.serialize_model(exported.model))


def as_tensors(module: torch.nn.Module, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """The inputs as tensors on the module's device; floating-point ones take the element type of its parameters."""
    import torch

    first = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    arrays = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    tensors = [torch.as_tensor(array, device=first.device) for array in arrays]
    return tuple(tensor.to(first.dtype) if tensor.is_floating_point() else tensor for tensor in tensors)


def example_for(module: torch.nn.Module, shape: Sequence[int] | None = None) -> Array:
    """An example of two inputs, as far as the module's first layer with parameters tells.

    Args:
        module: The module.
        shape: Shape of one input without the batch, where it is known.

    Raises:
        InputError: There is no shape, and the layer does not tell.
    """
    from torch import nn

    layer = next((layer for layer in module.modules() if _fixes_input(layer)), None)
    if isinstance(layer, nn.Embedding):
        return np.full((2, *(shape or (8,))), layer.num_embeddings - 1)
    match layer:
        case _ if shape is not None:
            pass
        case nn.Unflatten(dim=1, unflattened_size=lengths):
            shape = (math.prod(lengths),)
        case nn.Linear(in_features=width) | nn.BatchNorm1d(num_features=width):
            shape = (width,)
        case nn.LayerNorm(normalized_shape=lengths):
            shape = lengths
        case _:
            _refuse_layers(module)
            first = f"its first layer {type(layer).__name__}" if layer else "a module without parameters"
            raise InputError(
                f"the input shape of {type(module).__name__} does not follow from {first}",
                expected="example_input, --input-shape as 1x28x28, or a callable that returns (module, example_input)",
            )
    return np.zeros((2, *shape), np.float32)


def _fixes_input(layer: torch.nn.Module) -> bool:
    from torch import nn

    return isinstance(layer, nn.Unflatten) or next(layer.parameters(recurse=False), None) is not None


def _two_examples(tensor: torch.Tensor) -> torch.Tensor:
    """The first examples, at least two: torch.export takes a length of 1 for a constant."""
    return tensor[:2] if len(tensor) > 1 else tensor.repeat(2, *[1] * (tensor.dim() - 1))


@contextlib.contextmanager
def in_mode(module: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """The module in the mode that it trains in, or in eval mode; afterwards modes and random generators are as before."""
    import torch

    modes = [(layer, layer.training) for layer in module.modules()]
    devices = {parameter.device for parameter in module.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices):
        try:
            if not (training and module.training):
                module.train(training)
            yield
        finally:
            for layer, mode in modes:
                layer.training = mode


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what the exporters say to their own developers; on a failure they print the traced graph, too."""
    with silenced(*_CHATTY), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
        warnings.filterwarnings("ignore", r"The tensor attributes self.*_flat_weights", UserWarning)
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN", UserWarning)
        warnings.filterwarnings("ignore", "# The axis name: batch will not be used", UserWarning)
        yield


def _restore_names(graph: ir.Graph, module: torch.nn.Module) -> None:
    """Give shared weights the first of their names: the exporter takes the last."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in graph.initializers and name != first[id(parameter)]:
            graph.initializers[name].name = first[id(parameter)]


def _refuse_randomness(node: ir.Node) -> None:
    if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial"):
        raise UnsupportedError(
            f"{describe_node(node)} draws random numbers while the module trains",
            expected="no randomness but dropout",
            remedy="remove the layer, or put it in eval mode while the rest is in train mode",
        )


def _to_inference_form(node: ir.Node) -> None:
    if node.op_type == "Dropout":
        node.resize_inputs(2)
        return
    *layers, operator = _scopes(node, "class_hierarchy") or [""]
    for op_type, prefix, mark in _MARKS:
        if node.op_type == op_type and operator.startswith(prefix):
            node.metadata_props[mark] = "true"
    if UNBIASED_VARIANCE in node.metadata_props and layers and ".instancenorm." in layers[-1]:
        node.metadata_props[PER_INSTANCE] = "true"


def _pad_before_pooling(graph: ir.Graph) -> None:
    """The inference form runs as it is, so that what onnxruntime divides wrongly is written as for training."""
    builder = Builder(graph)
    for node in [node for node in graph if node.op_type == "AveragePool"]:
        with builder.scope(node.name or node.op_type, node.metadata_props):
            pad_before_pooling(node, builder)
    graph.sort()


_MARKS = (
    ("BatchNormalization", "aten._native_batch_norm_legit_functional", UNBIASED_VARIANCE),
    ("BatchNormalization", "aten._native_batch_norm_legit_no_training", FROZEN),
    ("Identity", "aten.detach", STOP_GRADIENT),
    ("Clip", "aten.hardtanh", OPEN_INTERVAL),
    ("Clip", "aten.relu6", OPEN_INTERVAL),
)
"""ONNX op, the PyTorch operator that it comes from, and how it is marked."""


def _scopes(node: ir.Node, kind: str) -> list[str]:
    """The modules around a node from the outside in, and the traced operator last."""
    return list(ast.literal_eval(node.metadata_props.get(f"pkg.torch.onnx.{kind}", "[]")))


def _strip_metadata(model: ir.Model) -> None:
    """Keep the layer's path; the rest repeats the graph, or tells paths of the machine that exported it."""
    described: list[ir.Model | ir.Graph | ir.Value] = [
        model,
        model.graph,
        *model.graph.inputs,
        *model.graph.initializers.values(),
    ]
    for node in model.graph.all_nodes():
        described += node.outputs
        # Nodes that torch adds to compute shapes have a scope of its own making.
        layers = [
            scope for scope in _scopes(node, "name_scopes")[:-1] if not scope.startswith("_empty_nn_module")
        ]
        marks = {key: value for key, value in node.metadata_props.items() if key.startswith("gradfuse.")}
        node.metadata_props.clear()
        node.metadata_props.update({LAYER: layers[-1], **marks} if layers and layers[-1] else marks)
    for item in described:
        item.metadata_props.clear()
