"""From a TensorFlow SavedModel to a TrainableModel.

A SavedModel is a program, and TensorFlow's own loader runs what the folder says is to run at loading. Here it is read as data.
Of its graph only what the serving signature computes is kept; every op in it must be one that only computes (`_computing`);
variables come from the checkpoint. It is the graph for inference: BatchNormalization is arithmetic with fixed statistics in
it, and dropout is gone.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.callables import reason_of
from ..graph.errors import ConversionError, GradfuseError, InputError, UnsupportedError
from ..graph.files import MAX_IR_VERSION
from ..graph.model import TrainableModel
from .folding import fold_integers
from .frameworks import require, silenced
from .keras_call import TENSORFLOW_LOSSES
from .opset import check_opset, to_opset
from .parity import Array, DrawTarget, Reference
from .tensorflow_graph import (
    OPSET,
    check_ops,
    mark_stopped,
    name_signature,
    nodes_of,
    restore_variables,
)
from .tensorflow_ops import HANDLERS

__all__ = ["SavedModel", "load_saved_model", "saved"]

_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_OF_VARIABLES = {"VarHandleOp", "ReadVariableOp", "ResourceGather"}


@dataclass(frozen=True)
class SavedModel:
    """What a SavedModel's signature computes, without a call and without a variable in it.

    Attributes:
        name: The folder.
        graph: A GraphDef; its placeholders are the inputs, then the variables.
        inputs: Name, shape and element type of each input.
        variables: The value of each variable, by its name.
        trainable: Names of those that train.
        outputs: Name of each output, and of its tensor in the graph.
    """

    name: str
    graph: Any
    inputs: Sequence[tuple[str, tuple[int | None, ...], Any]]
    variables: Mapping[str, Array]
    trainable: Sequence[str]
    outputs: Mapping[str, str]

    def convert(self, *, opset: int = OPSET) -> TrainableModel:
        """The TrainableModel.

        Raises:
            ConversionError: tf2onnx lacks an op.
        """
        check_opset(opset)
        converted = ir.serde.deserialize_model(self._to_onnx())
        converted.ir_version = MAX_IR_VERSION
        converted.opset_imports.pop("ai.onnx.ml", None)
        for value in converted.graph.inputs:
            value.name = (value.name or "").removesuffix(":0")
        restore_variables(converted.graph, self.variables)
        mark_stopped(converted.graph)
        name_signature(converted.graph, [name for name, *_ in self.inputs], list(self.outputs))
        fold_integers(converted)
        check_ops(converted.graph)
        kept = tuple(name for name in self.trainable if name in converted.graph.initializers)
        return TrainableModel(to_opset(converted, opset), kept, "keras", self.name)

    def _to_onnx(self) -> Any:
        tf2onnx = require("tensorflow", "tf2onnx")
        try:
            with silenced("tf2onnx", "tensorflow"):
                proto, _ = tf2onnx.convert.from_graph_def(
                    self.graph,
                    input_names=self._placeholders(),
                    output_names=list(self.outputs.values()),
                    opset=OPSET,
                    custom_op_handlers={op: (handler, []) for op, handler in HANDLERS.items()},
                )
        except Exception as error:  # whatever tf2onnx stumbles over
            raise ConversionError(
                f"tf2onnx refuses the SavedModel {self.name}: {reason_of(error)}",
                remedy="save the model with model.save('model.keras') and pass that file",
            ) from error
        return proto

    def _placeholders(self) -> list[str]:
        return [
            *(f"input_{index}:0" for index in range(len(self.inputs))),
            *(f"variable_{index}:0" for index in range(len(self.variables))),
        ]

    def example_for(self, shape: Sequence[int] | None = None) -> tuple[Array, ...]:
        """An example of two for each input.

        Args:
            shape: Shape of one input without the batch, where the signature leaves it open.

        Raises:
            InputError: There is no shape, and the signature leaves a length open.
        """
        examples = []
        for _, own_shape, dtype in self.inputs:
            lengths = own_shape[1:] if shape is None else tuple(shape)
            if None in lengths:
                raise InputError(
                    f"the SavedModel {self.name} takes inputs of shape {list(own_shape)}",
                    expected="example_input, or --input-shape, as 28x28x1",
                )
            examples.append(np.zeros((2, *(length or 0 for length in lengths)), dtype.as_numpy_dtype))
        return tuple(examples)

    def reference(self, inputs: Sequence[Array], loss: str, draw_target: DrawTarget) -> Reference:
        """What TensorFlow computes for a batch."""
        tf = require("tensorflow")
        values = {name: tf.constant(array) for name, array in self.variables.items()}
        trained = [values[name] for name in self.trainable]

        def forward(*tensors: Any) -> Any:
            feeds = dict(zip(self._placeholders(), tensors, strict=True))
            return tf.graph_util.import_graph_def(self.graph, feeds, list(self.outputs.values()))

        with tf.GradientTape() as tape:
            tape.watch(trained)
            traced = tf.function(forward, autograph=False)
            outputs = traced(*map(tf.constant, inputs), *values.values())
            target = draw_target(outputs[0].numpy())
            scalar = TENSORFLOW_LOSSES[loss](tf, outputs[0], target)
        gradients = zip(self.trainable, tape.gradient(scalar, trained), strict=True)
        return Reference(
            outputs=[output.numpy() for output in outputs],
            target=target,
            gradients={name: tf.convert_to_tensor(g).numpy() for name, g in gradients if g is not None},
            state={},
        )


def saved(module: Any) -> SavedModel:
    """What a `tf.Module` would be as a SavedModel: what its one `tf.function` with a signature computes.

    Raises:
        InputError: It has no such function, or several.
    """
    with tempfile.TemporaryDirectory() as folder, silenced("tensorflow"):
        require("tensorflow").saved_model.save(module, folder)
        return replace(load_saved_model(Path(folder)), name=type(module).__name__)


def load_saved_model(folder: Path) -> SavedModel:
    """Read a SavedModel of TensorFlow 2 as data.

    Raises:
        InputError: The folder is damaged, or tells no single signature.
        UnsupportedError: Its graph holds an op that does more than compute.
    """
    try:
        with silenced("tensorflow"):
            return _load(folder)
    except GradfuseError:
        raise
    except Exception as error:  # TensorFlow raises whatever it stumbles over in the files
        raise InputError(
            f"{folder} is no SavedModel that can be read: {reason_of(error)}",
            expected="a folder written by tf.saved_model.save or model.export",
        ) from error


def _load(folder: Path) -> SavedModel:
    tf = require("tensorflow")
    proto = require("tensorflow", "tensorflow.core.protobuf.saved_model_pb2").SavedModel
    meta = proto.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]
    signature = _signature(folder, meta)
    outputs = {name: info.name for name, info in sorted(signature.outputs.items())}
    ends = [tensor.partition(":")[0] for tensor in outputs.values()]
    graph = _part(meta.graph_def, ends)
    _refuse_what_acts(folder, graph)
    variables, trainable = _variables(folder, meta, graph)
    inputs = [
        (name, _shape(info), tf.dtypes.as_dtype(info.dtype), info.name)
        for name, info in sorted(signature.inputs.items())
    ]
    flat, tensors = _flatten(graph, inputs, variables, outputs)
    return SavedModel(
        str(folder),
        flat,
        [(name, shape, dtype) for name, shape, dtype, _ in inputs],
        dict(variables.values()),
        trainable,
        dict(zip(outputs, tensors, strict=True)),
    )


def _signature(folder: Path, meta: Any) -> Any:
    named = {name: s for name, s in meta.signature_def.items() if not name.startswith("__")}
    if "serving_default" in named:
        return named["serving_default"]
    if len(named) != 1:
        raise InputError(
            f"{folder} has {len(named)} signatures, and none is serving_default",
            expected="a serving signature",
            remedy="save it with tf.saved_model.save(module, folder, signatures=...)",
        )
    return next(iter(named.values()))


def _shape(info: Any) -> tuple[int | None, ...]:
    return (None, *(dim.size if dim.size >= 0 else None for dim in info.tensor_shape.dim[1:]))


def _refuse_what_acts(folder: Path, graph: Any) -> None:
    """Raise UnsupportedError for an op that could read a file, write one, or do anything but compute."""
    for node in nodes_of(graph):
        if node.op not in _computing():
            raise UnsupportedError(
                f"{folder} holds the op {node.op} ({node.name}), which may do more than compute, or has no counterpart in ONNX",
                expected="a graph of arithmetic on tensors and variables",
                remedy="if you trust it, pass file.py:callable, a function that builds the model",
            )


def _part(graph: Any, ends: Sequence[str]) -> Any:
    """What these nodes need of a graph: nodes, and functions."""
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    names = _closure(
        ends, lambda name: (source.lstrip("^").partition(":")[0] for source in nodes[name].input)
    )
    called = {name for node in names for name in _called(nodes[node])}
    called = _closure(called, lambda name: (f for node in functions[name].node_def for f in _called(node)))
    part = type(graph)(versions=graph.versions)
    part.node.extend(node for node in graph.node if node.name in names)
    part.library.function.extend(functions[name] for name in sorted(called))
    return part


def _closure(start: Iterable[str], follow: Callable[[str], Iterable[str]]) -> set[str]:
    found, left = set(start), list(start)
    while left:
        new = set(follow(left.pop())) - found
        found |= new
        left += new
    return found


def _called(node: Any) -> Iterator[str]:
    for attribute in node.attr.values():
        yield from (function.name for function in attribute.list.func)
        if attribute.HasField("func"):
            yield attribute.func.name


@cache
def _computing() -> frozenset[str]:
    """Ops that have a counterpart in ONNX and no state; and what reads a variable or calls a function of such ops."""
    require("tensorflow", "tf2onnx.onnx_opset")
    handled = require("tensorflow", "tf2onnx.handler").tf_op.get_opsets()
    registry = require("tensorflow", "tensorflow.python.framework.op_def_registry")
    known = {op for versions in handled.values() for ops in versions for op in ops} | set(HANDLERS)
    definitions = {op: registry.get(op) for op in known | {"NoOp", "Const", "Placeholder", "IdentityN"}}
    stateless = {op for op, definition in definitions.items() if definition and not definition.is_stateful}
    return frozenset(stateless | _CALLS | _OF_VARIABLES)


def _variables(folder: Path, meta: Any, graph: Any) -> tuple[dict[str, tuple[str, Array]], list[str]]:
    """Name and value of each variable by its node in `graph`, and the names of those that train."""
    tf = require("tensorflow")
    nodes = {node.name for node in graph.node if node.op == "VarHandleOp"}
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    objects = require(
        "tensorflow", "tensorflow.core.protobuf.trackable_object_graph_pb2"
    ).TrackableObjectGraph
    stored = objects.FromString(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")).nodes
    found: dict[str, tuple[str, Array]] = {}
    trainable = []
    for call in graph.node:
        if call.op not in _CALLS:
            continue
        bound = meta.object_graph_def.concrete_functions[call.attr["f"].func.name].bound_inputs
        # The arguments come first, then what the function has captured.
        for source, number in zip(call.input[len(call.input) - len(bound) :], bound, strict=True):
            if source not in nodes or source in found:
                continue
            variable = meta.object_graph_def.nodes[number].variable
            (attribute,) = stored[number].attributes
            name = _unique(variable.name or source, {name for name, _ in found.values()})
            found[source] = name, reader.get_tensor(attribute.checkpoint_key)
            if variable.trainable and tf.dtypes.as_dtype(variable.dtype).is_floating:
                trainable.append(name)
    return found, trainable


def _unique(name: str, taken: set[str]) -> str:
    count, unique = 1, name
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    return unique


def _flatten(
    graph: Any, inputs: Sequence[Any], variables: Mapping[str, tuple[str, Array]], outputs: Mapping[str, str]
) -> tuple[Any, list[str]]:
    """The graph with all calls inlined, inputs and variables placeholders; and the names of the output tensors."""
    tf = require("tensorflow")
    _rename_functions(graph)
    constants = require("tensorflow", "tensorflow.python.framework.convert_to_constants")
    handles = {node: tf.Variable(array, trainable=False) for node, (_, array) in variables.items()}

    def body(*tensors: Any) -> Any:
        feeds = {inputs[i][3]: tf.identity(tensor) for i, tensor in enumerate(tensors)}
        capture = tf.compat.v1.get_default_graph().capture
        feeds |= {f"{node}:0": capture(variable.handle) for node, variable in handles.items()}
        return tf.graph_util.import_graph_def(graph, feeds, list(outputs.values()), name="")

    specs = [tf.TensorSpec(shape, dtype, f"input_{i}") for i, (_, shape, dtype, _) in enumerate(inputs)]
    wrapped = tf.compat.v1.wrap_function(body, specs)
    inner = {id(outer): tensor.op.name for outer, tensor in wrapped.graph.captures}
    places = {
        inner[id(variable.handle)]: (f"variable_{index}", variable)
        for index, variable in enumerate(handles.values())
        if id(variable.handle) in inner
    }
    frozen = constants.convert_variables_to_constants_v2(
        wrapped, lower_control_flow=False, aggressive_inlining=True
    )
    flat = frozen.graph.as_graph_def()
    _read_from_placeholders(flat, places)
    return flat, [tensor.name for tensor in frozen.outputs]


def _rename_functions(graph: Any) -> None:
    """Names that no other graph of this process has: TensorFlow keeps functions of one name apart nowhere."""
    prefix = f"gradfuse_{next(_NUMBERS)}_"
    for function in graph.library.function:
        function.signature.name = prefix + function.signature.name
    for node in nodes_of(graph):
        for attribute in node.attr.values():
            if attribute.HasField("func"):
                attribute.func.name = prefix + attribute.func.name
            for function in attribute.list.func:
                function.name = prefix + function.name


_NUMBERS = itertools.count()


def _read_from_placeholders(graph: Any, places: Mapping[str, tuple[str, Any]]) -> None:
    """Make placeholders of tensors of those of variables, and plain identities of what reads them."""
    resource = require("tensorflow").resource.as_datatype_enum
    passed = {
        node.name: node.input[0]
        for node in graph.node
        if node.op == "Identity" and node.attr["T"].type == resource
    }
    kept = [node for node in graph.node if node.name not in passed]
    for node in kept:
        if node.name in places:
            node.name, variable = places[node.name]
            _make_placeholder(node, variable)
        if node.op == "ReadVariableOp":
            node.op = "Identity"
            node.attr["T"].type = node.attr.pop("dtype").type
        for index, source in enumerate(node.input):
            while source in passed:
                source = passed[source]
            node.input[index] = places[source][0] if source in places else source
    del graph.node[:]
    graph.node.extend(kept)


def _make_placeholder(node: Any, variable: Any) -> None:
    tf = require("tensorflow")
    node.op = "Placeholder"
    node.attr.clear()
    node.attr["dtype"].type = variable.dtype.as_datatype_enum
    node.attr["shape"].shape.CopyFrom(tf.TensorShape(variable.shape).as_proto())
