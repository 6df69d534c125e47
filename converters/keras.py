"""From a Keras model to a TrainableModel.

The model is traced as a function of its inputs and all its variables, so that tf2onnx can neither fold nor lose one, in train
mode. Layers that would not survive that leave markers (`keras_layers`); those that change in training in any other way are
refused, rather than converted to what they do at inference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ..graph.builder import Builder
from ..graph.callables import first_line, place_of
from ..graph.errors import ConversionError, GradfuseError, UnsupportedError
from ..graph.files import MAX_IR_VERSION
from ..graph.model import TrainableModel
from ..graph.source import LAYER
from .folding import fold_integers
from .frameworks import require, silenced
from .keras_call import Signature, call, layers_of, signature_of, variables
from .keras_layers import traced_layers
from .keras_markers import Markers
from .opset import check_opset, to_opset
from .parity import Array
from .tensorflow_graph import (
    OPSET,
    check_ops,
    mark_stopped,
    name_signature,
    restore_constants,
    restore_variables,
    to_onnx,
)

__all__ = ["from_keras"]

_SCOPE = re.compile(r"\.(_\d+)?$")  # what `keras_layers` and TensorFlow add to a layer's name


def from_keras(model: Any, examples: Sequence[Array] | None = None, *, opset: int = OPSET) -> TrainableModel:
    """Convert a Keras 3 model.

    Parameters carry the path of their variable, without the name of the model itself: `dense/kernel`. Variables with
    `trainable=False` are kept, but do not train, and a BatchNormalization layer with `trainable=False`, or called with
    `training=False`, keeps its statistics. The model itself stays as it was.

    Args:
        model: A `keras.Model` that is built, on the TensorFlow backend. Its inputs have the batch on axis 0.
        examples: An example for each input, where the model leaves open what it must know: the element types of a model
            without `keras.Input`, the number of steps of a recurrent layer.
        opset: Opset of the graph, 18 to 21.

    Raises:
        ConversionError: TensorFlow cannot trace the model, or tf2onnx lacks an op.
        InputError: The model is not built, or the opset is not supported.
        UnsupportedError: A layer changes in training in a way that cannot be converted.
    """
    check_opset(opset)
    names, markers = variables(model), Markers()
    signature = signature_of(model, examples)
    with silenced("onnx_ir"):
        proto, constants = _to_onnx(model, signature, list(names.values()), markers)
        converted = ir.serde.deserialize_model(proto)
    converted.ir_version = MAX_IR_VERSION
    converted.opset_imports.pop("ai.onnx.ml", None)
    graph = converted.graph
    restore_variables(graph, {name: np.array(variable.numpy()) for name, variable in names.items()})
    restore_constants(graph, constants)
    mark_stopped(graph)
    _complete_nodes(graph, model, markers)
    name_signature(graph, signature.names, signature.outputs)
    fold_integers(converted)
    check_ops(graph)
    trained = {id(variable) for variable in model.trainable_variables}
    kept = [
        name for name, variable in names.items() if id(variable) in trained and name in graph.initializers
    ]
    return TrainableModel(to_opset(converted, opset), tuple(kept), "keras")


def _to_onnx(
    model: Any, signature: Signature, variables: Sequence[Any], markers: Markers
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The traced model, its variables inputs of the graph; and what its other inputs are, tensors that its layers hold."""
    tf, count = require("tensorflow"), len(signature.names)

    def forward(*tensors: Any) -> Any:
        values = {id(v): value for v, value in zip(variables, tensors[count:], strict=True)}
        outputs, state = call(model, signature.structure, values, tensors[:count])
        _refuse_other_state(model, values, state)
        return outputs

    types = list(zip(signature.shapes, signature.dtypes, strict=True))
    specs = [tf.TensorSpec(shape, dtype, f"input_{i}") for i, (shape, dtype) in enumerate(types)]
    specs += [tf.TensorSpec(v.shape, v.dtype, f"variable_{i}") for i, v in enumerate(variables)]
    try:
        with traced_layers(markers):
            return to_onnx(tf.function(forward, autograph=False), specs, {"Print": markers.handle})
    except GradfuseError as error:
        raise _as_raised(error) from None
    except Exception as error:  # whatever the model's own code raises
        raise ConversionError(
            f"TensorFlow or tf2onnx refuses the Keras model {model.name!r}{place_of(error)}:"
            f" {first_line(error) or type(error).__name__}",
            remedy="replace the layer that it names",
        ) from error


def _as_raised(error: BaseException) -> BaseException:
    """An error of ours before Keras wrapped it, once for each layer around, in an account of the arguments."""
    while isinstance(error.__context__, GradfuseError):
        error = error.__context__
    return error


def _refuse_other_state(model: Any, values: Mapping[int, Any], state: Sequence[Any]) -> None:
    for variable, new in zip(model.non_trainable_variables, state, strict=True):
        if new is not values[id(variable)]:
            owners = [layer for layer in layers_of(model) if any(own is variable for own in layer.variables)]
            owner = f"{type(owners[-1]).__name__} layer {owners[-1].name!r}" if owners else "model"
            raise UnsupportedError(
                f"the {owner} changes its variable {variable.path} while it trains",
                expected="no layer with random numbers or state of its own but dropout, noise and BatchNormalization",
                remedy="remove the layer",
            )


def _complete_nodes(graph: ir.Graph, model: Any, markers: Markers) -> None:
    """Record the layer that each node came from, complete what markers became, and clean up the names."""
    builder, layers = Builder(graph), {layer.name for layer in layers_of(model)}
    for node in list(graph):
        scopes = [_SCOPE.sub("", scope) for scope in (node.name or "").split("/")[:-1]]
        if path := "/".join(scope for scope in scopes if scope in layers):
            node.metadata_props[LAYER] = path
        markers.complete(node, builder)
    for node in graph:
        node.name = _clean(node.name or "", model.name, builder)
        for output in node.outputs:
            output.name = _clean(output.name or "", model.name, builder)
    graph.sort()


def _clean(name: str, model: str, builder: Builder) -> str:
    """A name without the model's own, and without what `keras_layers` and TensorFlow add to those of layers."""
    parts = [_SCOPE.sub("", part) for part in name.split("/")]
    clean = "/".join(parts[1:] if len(parts) > 1 and parts[0] == model else parts)
    return name if clean == name else builder.unique_name(clean)
