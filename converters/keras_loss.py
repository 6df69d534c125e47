"""A loss written in Keras or TensorFlow, exported with the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import onnx
import onnx_ir as ir

from ..graph.builder import Tensor
from ..graph.callables import kind_of, reason_of, required_arguments
from ..graph.errors import ConversionError, GradfuseError, InputError, UnsupportedError, some
from ..graph.loss_function import build_loss
from ..graph.losses import LOSSES, Loss, base_name, parameters_of
from ..graph.model import TensorSpec
from .folding import fold_integers
from .frameworks import require
from .keras_call import check_backend
from .opset import to_opset
from .parity import Array
from .tensorflow_graph import OPSET, check_ops, mark_stopped, nodes_of, restore_constants, to_onnx

__all__ = ["KERAS_LOSSES", "keras_loss_named", "loss_from_keras"]

KERAS_LOSSES = "keras.losses."
"""What the names of Keras's own losses begin with."""

_OF_LABELS = ("sparse_categorical_crossentropy", "categorical_generalized_cross_entropy")


def keras_loss_named(spelled: str) -> Loss:
    """One of Keras's own losses by its class, as `keras.losses.Huber(delta=0.5)`.

    Raises:
        InputError: Keras has no such loss, or it takes other parameters.
    """
    losses = require("tensorflow", "keras").losses
    name = base_name(spelled).removeprefix(KERAS_LOSSES)
    known = {
        key for key, value in vars(losses).items() if inspect.isclass(value) and value is not losses.Loss
    }
    if name not in known:
        raise InputError(f"Keras has no loss {name!r}", expected=f"one of {some(sorted(known))}")
    given = parameters_of(spelled)
    try:
        return loss_from_keras(getattr(losses, name)(**given), spelled)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Keras refuses the loss {spelled}: {reason_of(error)}",
            expected=f"the parameters of {KERAS_LOSSES}{name}",
        ) from error


def loss_from_keras(function: Callable[..., Any], name: str = "") -> Loss:
    """A loss from a `keras.losses.Loss`, or from a function of Keras or TensorFlow tensors.

    Args:
        function: In Keras's order of arguments: `loss(y_true, y_pred)` with a target like the output; or
            `loss(labels, y_pred)`, known by that name, and `keras.losses.SparseCategoricalCrossentropy`, with labels int64
            [batch] of the classes of an output [batch, classes]. It gives a scalar, or numbers to take the mean of.
        name: What reports call it; by default the function's name, or that of its class.

    Raises:
        InputError: It takes other arguments, or Keras does not run on TensorFlow.
        ConversionError: TensorFlow cannot trace it, or tf2onnx lacks an op.
        UnsupportedError: It has a gradient of its own, which ONNX has no place for.
    """
    check_backend()
    name = name or getattr(function, "__name__", type(function).__name__)
    arguments = required_arguments(getattr(function, "call", function))
    if len(arguments) != 2:
        raise InputError(
            f"the loss {name} takes {len(arguments)} arguments",
            expected="loss(y_true, y_pred) or loss(labels, y_pred)",
        )
    build = partial(_build, function, name)
    if arguments[0] == "labels" or _takes_labels(function):
        return Loss(name, _labels, build, classes=True, ignored=getattr(function, "ignore_class", None))
    return Loss(name, LOSSES["mse"].target, build)


def _takes_labels(function: Callable[..., Any]) -> bool:
    losses = require("tensorflow", "keras").losses
    return getattr(function, "fn", function) in [getattr(losses, name, None) for name in _OF_LABELS]


def _labels(output: TensorSpec) -> TensorSpec | None:
    if len(output.dims) != 2:
        raise InputError(
            f"a Keras loss of labels on the output {output}",
            expected="an output [batch, classes]",
            remedy="take a loss of one-hot targets, as keras.losses.CategoricalCrossentropy",
        )
    return LOSSES["cross-entropy"].target(output)


def _build(function: Callable[..., Any], name: str, output: Tensor, target: Tensor) -> Tensor:
    try:
        proto, constants = _exported(function, name, output, target)
    except GradfuseError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise ConversionError(
            f"TensorFlow or tf2onnx refuses the loss {name}: {reason_of(error)}",
            expected="a function of Keras or TensorFlow tensors, loss(y_true, y_pred)",
        ) from error
    model = ir.serde.deserialize_model(proto)
    restore_constants(model.graph, constants)
    mark_stopped(model.graph)
    fold_integers(model)
    check_ops(model.graph)
    return build_loss(to_opset(model, output.builder.graph.opset_imports.get("", OPSET)), output, target)


def _exported(
    function: Callable[..., Any], name: str, output: Tensor, target: Tensor
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    tf = require("tensorflow")

    def forward(y_pred: Any, y_true: Any) -> Any:
        loss = function(y_true, y_pred)
        if not tf.is_tensor(loss):
            raise InputError(f"the loss {name} gives {kind_of(loss)}", expected="a tensor")
        return loss

    traced = tf.function(forward, autograph=False)
    specs = [_spec(output, "y_pred"), _spec(target, "y_true")]
    _refuse_own_gradients(traced.get_concrete_function(*specs).graph, name)
    return to_onnx(traced, specs, {})


def _spec(tensor: Tensor, name: str) -> Any:
    """What TensorFlow is told of a tensor: not the batch, and no other length that is open."""
    if tensor.dims is None or tensor.dtype is None:
        raise InputError(
            f"the output {tensor.value.name} has an unknown shape", expected="a known number of axes"
        )
    lengths = [length if isinstance(length, int) else None for length in tensor.dims[1:]]
    batch = [None] if tensor.dims else []
    return require("tensorflow").TensorSpec([*batch, *lengths], tensor.dtype.numpy(), name)


def _refuse_own_gradients(graph: Any, name: str) -> None:
    if any("_gradient_op_type" in node.attr for node in nodes_of(graph.as_graph_def())):
        raise UnsupportedError(
            f"the loss {name} has a gradient of its own (tf.custom_gradient)",
            expected="a loss whose gradient follows from its ops",
            remedy="write it without; tf.stop_gradient works",
        )
