"""From a Keras model to a TrainableModel.

The model is traced as a function of its input and all its variables, so that tf2onnx can neither fold nor lose one, in train
mode. Two layers would not survive that: BatchNormalization falls apart into means and variances, Dropout into random numbers.
While the model is traced they are replaced by a marker, TensorFlow's Print op, which no optimizer removes and whose message
says which layer it stands for; tf2onnx is told what to make of it:

    BatchNormalization    Print(x, [gamma, beta, mean, variance])    BatchNormalization, channels moved to axis 1 and back
    Dropout               Print(x)                                   Dropout
    SpatialDropout        x * Print(ones)                            x * Dropout(ones)

Layers that change in training in any other way are refused, rather than converted to what they do at inference.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir

from ..graph.builder import Builder
from ..graph.errors import ConversionError, GradfuseError, InputError, UnsupportedError
from ..graph.files import MAX_IR_VERSION
from ..graph.model import FROZEN, TrainableModel
from ..graph.source import LAYER, describe_node
from .folding import fold_integers
from .frameworks import require, silenced
from .opset import check_opset, to_opset
from .parity import Array, DrawTarget, Reference

__all__ = ["example_for", "from_keras", "reference", "variables"]

_OPSET = 18  # the newest that tf2onnx writes
_MARKER = "gradfuse:"
_SCOPE = re.compile(r"\.(_\d+)?$")  # what `_name_scope` and TensorFlow add to a layer's name


@dataclass(frozen=True)
class _Mark:
    """What a marker stands for."""

    op_type: str
    axis: int = 1
    frozen: bool = False
    epsilon: float = 0.0
    momentum: float = 0.0
    ratio: float = 0.0


def from_keras(model: Any, *, opset: int = _OPSET) -> TrainableModel:
    """Convert a Keras 3 model.

    Parameters carry the path of their variable, without the name of the model itself: `dense/kernel`. Variables with
    `trainable=False` are kept, but do not train, and a BatchNormalization layer with `trainable=False`, or called with
    `training=False`, keeps its statistics. The model itself stays as it was.

    Args:
        model: A `keras.Model` that is built, on the TensorFlow backend. Its inputs have the batch on axis 0.
        opset: Opset of the graph, 18 to 21.

    Raises:
        ConversionError: TensorFlow cannot trace the model, or tf2onnx lacks an op.
        InputError: The model is not built, or the opset is not supported.
        UnsupportedError: A layer changes in training in a way that cannot be converted.
    """
    check_opset(opset)
    names = variables(model)
    marks: dict[str, _Mark] = {}
    converted = ir.serde.deserialize_model(_to_onnx(model, list(names.values()), marks))
    converted.ir_version = MAX_IR_VERSION
    converted.opset_imports.pop("ai.onnx.ml", None)
    graph = converted.graph
    _restore_variables(graph, names)
    builder = Builder(graph)
    layers = {layer.name for layer in model._flatten_layers(include_self=False)}
    for node in list(graph):
        if (mark := marks.get(node.name or "")) is not None:
            _apply_mark(node, mark, builder)
        _name_layers(node, layers, builder)
    graph.sort()
    _name_signature(graph, model)
    fold_integers(converted)
    _check_ops(graph)
    trained = {id(variable) for variable in model.trainable_variables}
    kept = [
        name for name, variable in names.items() if id(variable) in trained and name in graph.initializers
    ]
    return TrainableModel(to_opset(converted, opset), tuple(kept), "keras")


def variables(model: Any) -> dict[str, Any]:
    """The model's variables by their names in the converted graph.

    Raises:
        InputError: The model is not built, or Keras does not run on TensorFlow.
    """
    keras = require("tensorflow", "keras")
    if (backend := keras.backend.backend()) != "tensorflow":
        raise InputError(
            f"Keras runs on {backend}",
            expected="the TensorFlow backend",
            remedy="set KERAS_BACKEND=tensorflow before Keras is imported",
        )
    if not model.built:
        raise InputError(
            f"the Keras model {model.name!r} is not built",
            expected="a model that knows its input shape",
            remedy="begin it with keras.Input, or call it once on an example",
        )
    named: dict[str, Any] = {}
    for variable in model.variables:
        path, count = variable.path.removeprefix(f"{model.name}/"), 1
        name = path
        while name in named:
            count += 1
            name = f"{path}_{count}"
        named[name] = variable
    return named


def _to_onnx(model: Any, variables: Sequence[Any], marks: dict[str, _Mark]) -> onnx.ModelProto:
    """The traced model, its variables inputs of the graph; `marks` receives the mark of each node that a marker became."""
    tf2onnx, tf = require("tensorflow", "tf2onnx"), require("tensorflow")
    inputs = _input_specs(model)

    def forward(*tensors: Any) -> Any:
        values = {id(v): value for v, value in zip(variables, tensors[len(inputs) :], strict=True)}
        outputs, state = _call(model, values, tensors[: len(inputs)])
        _refuse_other_state(model, values, state)
        return outputs

    signature = [tf.TensorSpec(shape, dtype, f"input_{i}") for i, (shape, dtype) in enumerate(inputs)]
    signature += [tf.TensorSpec(v.shape, v.dtype, f"variable_{i}") for i, v in enumerate(variables)]
    left: list[_Mark] = []
    try:
        with _markers(left), silenced("tf2onnx"):
            proto, _ = tf2onnx.convert.from_function(
                tf.function(forward, autograph=False),
                input_signature=signature,
                opset=_OPSET,
                custom_op_handlers={
                    "Print": (partial(_replace_marker, left, marks), []),
                    "Erfc": (_replace_erfc, []),
                },
            )
    except GradfuseError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise ConversionError(
            f"TensorFlow or tf2onnx refuses the Keras model {model.name!r}: {_reason(error)}",
            remedy="replace the layer that it names",
        ) from error
    converted: onnx.ModelProto = proto
    return converted


def _reason(error: Exception) -> str:
    """The first line of an error, and the second where Keras says in the first only where it happened."""
    lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
    where = bool(lines) and lines[0].startswith("Exception encountered when calling")
    return " ".join(lines[: 1 + where]) or type(error).__name__


def _input_specs(model: Any) -> list[tuple[tuple[int | None, ...], str]]:
    """Shape and element type of each input."""
    if getattr(model, "inputs", None) is None:
        raise InputError(
            f"the Keras model {model.name!r} does not tell the shape of its input",
            expected="a functional or Sequential model, or one wrapped in keras.Model(inputs, outputs)",
        )
    return [((None, *tensor.shape[1:]), tensor.dtype) for tensor in model.inputs]


def _call(model: Any, values: Mapping[int, Any], inputs: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Outputs and new non-trainable variables, in train mode."""
    keras = require("tensorflow", "keras")
    structure = getattr(model, "_inputs_struct", model.inputs[0])  # a Sequential has one input
    outputs, state = model.stateless_call(
        [values[id(variable)] for variable in model.trainable_variables],
        [values[id(variable)] for variable in model.non_trainable_variables],
        keras.tree.pack_sequence_as(structure, list(inputs)),
        training=True,
    )
    return keras.tree.flatten(outputs), state


def _refuse_other_state(model: Any, values: Mapping[int, Any], state: Sequence[Any]) -> None:
    for variable, new in zip(model.non_trainable_variables, state, strict=True):
        if new is not values[id(variable)]:
            owners = [
                layer
                for layer in model._flatten_layers(include_self=False)
                if any(own is variable for own in layer.variables)
            ]
            owner = f"{type(owners[-1]).__name__} layer {owners[-1].name!r}" if owners else "model"
            raise UnsupportedError(
                f"the {owner} changes its variable {variable.path} while it trains",
                expected="no layer with random numbers or state of its own but Dropout and BatchNormalization",
                remedy="remove the layer",
            )


@contextlib.contextmanager
def _markers(marks: list[_Mark]) -> Iterator[None]:
    """Within this context, BatchNormalization layers and dropout leave markers in the traced graph."""
    keras = require("tensorflow", "keras")

    def normalize(layer: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is not None or layer.renorm:
            what = "renorm=True" if layer.renorm else "a mask"
            raise UnsupportedError(
                f"the BatchNormalization layer {layer.name!r} has {what}", remedy="remove it"
            )
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        mark = _Mark(
            "BatchNormalization",
            axis=layer.axis % len(inputs.shape),
            frozen=not (training and layer.trainable),
            epsilon=layer.epsilon,
            momentum=layer.momentum,
        )
        outputs = _leave_marker(marks, mark, keras.ops.cast(inputs, dtype), *_statistics(layer, dtype))
        return keras.ops.cast(outputs, layer.compute_dtype)

    def drop(inputs: Any, rate: float, noise_shape: Any = None, seed: Any = None) -> Any:
        mark = _Mark("Dropout", ratio=rate)
        if noise_shape is None:
            return _leave_marker(marks, mark, inputs)
        lengths = zip(noise_shape, keras.ops.shape(inputs), strict=True)
        shape = [whole if length is None else length for length, whole in lengths]
        return inputs * _leave_marker(marks, mark, keras.ops.ones(shape, inputs.dtype))

    with (
        mock.patch.object(keras.layers.BatchNormalization, "call", normalize),
        mock.patch.object(keras.layers.Layer, "_open_name_scope", _name_scope),
        _dropout(drop),
    ):
        yield


def _name_scope(layer: Any) -> Any:
    """A scope whose name ends in a dot: TensorFlow numbers a scope that is entered again, as Keras numbers its layers."""
    return require("tensorflow").name_scope(f"{layer.name}.")


def _leave_marker(marks: list[_Mark], mark: _Mark, x: Any, *others: Any) -> Any:
    marks.append(mark)
    tf = require("tensorflow")
    return tf.raw_ops.Print(input=x, data=others, message=f"{_MARKER}{len(marks) - 1}")


def _statistics(layer: Any, dtype: str) -> list[Any]:
    """Scale, bias, mean and variance of a BatchNormalization layer."""
    ops, channels = require("tensorflow", "keras").ops, layer.moving_mean.shape
    scale = layer.gamma if layer.scale else ops.ones(channels)
    bias = layer.beta if layer.center else ops.zeros(channels)
    return [ops.cast(tensor, dtype) for tensor in (scale, bias, layer.moving_mean, layer.moving_variance)]


def _dropout(function: Callable[..., Any]) -> contextlib.AbstractContextManager[object]:
    """Within this context, `function` takes the place of the one that all dropout in Keras goes through."""
    backend = require("tensorflow", "keras.src.backend")
    return mock.patch.object(backend.random, "dropout", function)


def _replace_marker(
    left: Sequence[_Mark], marks: dict[str, _Mark], graph: Any, node: Any, name: str, arguments: Any
) -> None:
    """tf2onnx's handler of Print: the node that the marker stands for, channels on axis 1."""
    message = node.get_attr_value("message", b"").decode()
    if not message.startswith(_MARKER):
        node.type, node.input = "Identity", node.input[:1]
        return
    mark = marks[node.name] = left[int(message.removeprefix(_MARKER))]
    node.type = mark.op_type
    if mark.op_type == "BatchNormalization" and mark.axis != 1:
        shape = graph.get_shape(node.input[0])
        to_front = [0, mark.axis, *(axis for axis in range(1, len(shape)) if axis != mark.axis)]
        graph.insert_new_node_on_input(node, "Transpose", node.input[0], perm=to_front)
        back = graph.insert_new_node_on_output(
            "Transpose", node.output[0], perm=np.argsort(to_front).tolist()
        )
        graph.set_shape(node.output[0], [shape[axis] for axis in to_front])
        graph.set_shape(back.output[0], shape)


def _replace_erfc(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """1 - erf(x): GELU in TensorFlow is written with an op that ONNX lacks."""
    node.type = "Erf"
    one = graph.make_const(f"{node.name}/one", np.ones((), np.float32)).output[0]
    graph.insert_new_node_on_output("Sub", node.output[0], inputs=[one, node.output[0]])


def _apply_mark(node: ir.Node, mark: _Mark, builder: Builder) -> None:
    """Complete a node that a marker became: tf2onnx has dropped its attributes."""
    node.name = builder.unique_name((node.name or "").removesuffix("Print") + mark.op_type)
    node.outputs[0].name = node.name
    if mark.frozen:
        node.metadata_props[FROZEN] = "true"
    if mark.op_type == "BatchNormalization":
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", mark.epsilon)
        node.attributes["momentum"] = ir.AttrFloat32("momentum", mark.momentum)
    else:
        node.resize_inputs(2)
        node.replace_input_with(1, builder.constant(mark.ratio, ir.DataType.FLOAT).value)


def _restore_variables(graph: ir.Graph, names: Mapping[str, Any]) -> None:
    """Turn the inputs that stand for variables into initializers of their names."""
    inputs = {value.name: value for value in graph.inputs}
    for index, (name, variable) in enumerate(names.items()):
        value = inputs[f"variable_{index}"]
        graph.inputs.remove(value)
        value.name, value.const_value = name, ir.tensor(np.array(variable.numpy()), name=name)
        graph.register_initializer(value)


def _name_layers(node: ir.Node, layers: Collection[str], builder: Builder) -> None:
    """Record the layer that a node came from, and take the marks of `_name_scope` out of the names."""
    scopes = [_SCOPE.sub("", scope) for scope in (node.name or "").split("/")[:-1]]
    if path := "/".join(scope for scope in scopes if scope in layers):
        node.metadata_props[LAYER] = path
    node.name = _clean(node.name or "", builder)
    for output in node.outputs:
        output.name = _clean(output.name or "", builder)


def _clean(name: str, builder: Builder) -> str:
    clean = "/".join(_SCOPE.sub("", part) for part in name.split("/"))
    return name if clean == name else builder.unique_name(clean)


def _name_signature(graph: ir.Graph, model: Any) -> None:
    """Names of inputs and outputs as in the model, where it has them, and `batch` for the length of axis 0."""
    taken = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
    inputs = [re.sub(r"^keras_tensor(_\d+)?$", "input", tensor.name) for tensor in model.inputs]
    outputs = getattr(model, "output_names", [model.layers[-1].name])
    for values, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for value, name in zip(values, names, strict=False):
            if name not in taken:
                taken.add(name)
                value.name = name
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])


def _check_ops(graph: ir.Graph) -> None:
    """Raise ConversionError if tf2onnx left an op in the graph that it could not convert."""
    for node in graph:
        if node.domain == "" and not onnx.defs.has(node.op_type):
            raise ConversionError(
                f"tf2onnx cannot convert {describe_node(node)}",
                expected="TensorFlow ops with a counterpart in ONNX",
                remedy="replace the layer",
            )


def example_for(model: Any, shape: Sequence[int] | None = None) -> tuple[Array, ...]:
    """An example of two for each input.

    Args:
        model: The model.
        shape: Shape of one input without the batch, where the model leaves it open; the same for each input.

    Raises:
        InputError: There is no shape, and the model leaves a length open.
    """
    keras = require("tensorflow", "keras")
    embeddings = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
    token = min((layer.input_dim for layer in embeddings), default=1) - 1
    examples = []
    for own_shape, dtype in _input_specs(model):
        lengths = own_shape[1:] if shape is None else tuple(shape)
        if None in lengths:
            raise InputError(
                f"the Keras model {model.name!r} takes inputs of shape {list(own_shape)}",
                expected="example_input, or --input-shape, as 28x28x1",
            )
        examples.append(np.full((2, *(length or 0 for length in lengths)), token, dtype))
    return tuple(examples)


def reference(model: Any, inputs: Sequence[Array], loss: str, draw_target: DrawTarget) -> Reference:
    """What Keras computes for a batch in train mode, with dropout off; the model stays as it was.

    Args:
        model: The model.
        inputs: An array for each input.
        loss: `cross-entropy` or `mse`.
        draw_target: Makes the target for an output.
    """
    tf = require("tensorflow")
    names = {id(variable): name for name, variable in variables(model).items()}
    values = {id(variable): tf.identity(variable.value) for variable in model.variables}
    trained = [values[id(variable)] for variable in model.trainable_variables]
    with tf.GradientTape() as tape, _dropout(lambda inputs, *_, **__: inputs):
        tape.watch(trained)
        outputs, state = _call(model, values, [tf.constant(array) for array in inputs])
        target = draw_target(outputs[0].numpy())
        scalar = _LOSSES[loss](tf, outputs[0], target)
    gradients = tape.gradient(scalar, trained)
    return Reference(
        outputs=[output.numpy() for output in outputs],
        target=target,
        gradients={
            names[id(variable)]: tf.convert_to_tensor(gradient).numpy()
            for variable, gradient in zip(model.trainable_variables, gradients, strict=True)
            if gradient is not None
        },
        state={
            names[id(variable)]: new.numpy()
            for variable, new in zip(model.non_trainable_variables, state, strict=True)
        },
    )


_LOSSES: Mapping[str, Callable[[Any, Any, Array], Any]] = {
    "cross-entropy": lambda tf, output, target: tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(target, output)
    ),
    "mse": lambda tf, output, target: tf.reduce_mean(tf.square(output - target)),
}
