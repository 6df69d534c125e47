"""What layers of Keras do while a model is traced, where what they do by themselves could not be trained.

    BatchNormalization    a marker that becomes BatchNormalization
    dropout               a marker that becomes Dropout; with one number for many elements, x * Dropout(ones)
    GaussianNoise         x + stddev * N, where N is standard normal
    GaussianDropout       x * (1 + stddev * N)
    AlphaDropout          x * s(D) + t(D), where D is Dropout(ones): polynomials through what the layer does at each value of D
    SimpleRNN, GRU, LSTM  a marker that becomes the ONNX node, or the layer's steps one by one (`keras_recurrent`)
    Dense                 one matrix product, also where its input has more than two axes
    grouped convolutions  themselves, no longer compiled for the CPU

D is 0 or 1 / (1 - rate) in training and 1 at inference, so one graph serves both. At rate 1/2, D - 1 is a random sign in
training and 0 at inference; so N is (D - 1) times normal numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

from ..graph.errors import UnsupportedError
from . import keras_markers
from .frameworks import require
from .keras_markers import Markers
from .keras_recurrent import recurrent_loop

__all__ = ["traced_layers", "without_randomness"]

_SELU_LIMIT = -1.6732632423543772 * 1.0507009873554805
"""What SELU tends to at minus infinity, and AlphaDropout drops to."""


@contextlib.contextmanager
def traced_layers(markers: Markers) -> Iterator[None]:
    """Within this context, layers leave markers in the traced graph."""
    keras, tf = require("tensorflow", "keras"), require("tensorflow")
    layers, random = keras.layers, _Random(markers)
    loop = recurrent_loop(markers, layers.RNN.inner_loop)
    replaced = [
        (layers.BatchNormalization, "call", _batch_norm(markers)),
        *(
            (recurrent, "inner_loop", loop)
            for recurrent in (layers.RNN, layers.SimpleRNN, layers.GRU, layers.LSTM)
        ),
        (layers.Bidirectional, "_can_attempt_fused_lstm", _never),
        (layers.Bidirectional, "_can_attempt_fused_gru", _never),
        (layers.Layer, "_open_name_scope", _name_scope),
        (tf, "function", _without_compiling(tf.function)),
        (tf, "tensordot", _plain_tensordot(tf.tensordot)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, function in replaced:
            stack.enter_context(
                mock.patch.object(owner, name, function, create=owner is layers.Bidirectional)
            )
        stack.enter_context(
            _random_layers(random.drop, random.noise, random.gaussian_dropout, random.alpha_dropout)
        )
        yield


def without_randomness() -> contextlib.AbstractContextManager[object]:
    """Within this context, dropout and noise change nothing."""
    return _random_layers(lambda inputs, *_, **__: inputs, *[lambda layer, inputs: inputs] * 3)


@contextlib.contextmanager
def _random_layers(
    dropout: Callable[..., Any],
    noise: Callable[..., Any],
    gaussian: Callable[..., Any],
    alpha: Callable[..., Any],
) -> Iterator[None]:
    """Within this context, these take the place of Keras's: the function that all dropout goes through, and three calls."""
    layers = require("tensorflow", "keras").layers
    backend = require("tensorflow", "keras.src.backend")
    with (
        mock.patch.object(backend.random, "dropout", dropout),
        mock.patch.object(layers.GaussianNoise, "call", _method(noise)),
        mock.patch.object(layers.GaussianDropout, "call", _method(gaussian)),
        mock.patch.object(layers.AlphaDropout, "call", _method(alpha)),
    ):
        yield


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    """The `call` of a layer."""

    def call(layer: Any, inputs: Any, training: bool = False) -> Any:
        return function(layer, inputs) if training else inputs

    return call


class _Random:
    """Layers that draw random numbers, with markers in their place."""

    def __init__(self, markers: Markers) -> None:
        self._markers = markers

    def drop(self, inputs: Any, rate: float, noise_shape: Any = None, seed: Any = None) -> Any:
        if noise_shape is None:
            return self._markers.leave(keras_markers.dropout(rate), inputs)
        return inputs * self._mask(inputs, rate, noise_shape)

    def noise(self, layer: Any, inputs: Any) -> Any:
        return inputs + layer.stddev * self._normal(inputs)

    def gaussian_dropout(self, layer: Any, inputs: Any) -> Any:
        return inputs * (1.0 + math.sqrt(layer.rate / (1.0 - layer.rate)) * self._normal(inputs))

    def alpha_dropout(self, layer: Any, inputs: Any) -> Any:
        rate, low = layer.rate, _SELU_LIMIT
        if rate == 0:
            return inputs
        scale = ((1 - rate) * (1 + rate * low**2)) ** -0.5
        offset, kept = -scale * low * rate, 1 / (1 - rate)
        # The factor of x and the rest where x is dropped (D = 0), at inference (D = 1) and where x is kept (D = kept).
        factor = _parabola(0.0, scale, kept, at_one=1.0)
        rest = _parabola(scale * low + offset, offset, kept, at_one=0.0)
        mask = self._mask(inputs, rate, layer.noise_shape)
        return inputs * factor(mask) + rest(mask)

    def _normal(self, inputs: Any) -> Any:
        ones = require("tensorflow", "keras").ops.ones_like(inputs)
        sign = self._markers.leave(keras_markers.dropout(0.5), ones) - 1.0
        return sign * self._markers.leave(keras_markers.normal(), ones)

    def _mask(self, inputs: Any, rate: float, noise_shape: Sequence[int | None] | None) -> Any:
        ops = require("tensorflow", "keras").ops
        whole = ops.shape(inputs)
        given = noise_shape or [None] * len(whole)
        shape = [all_ if length is None else length for length, all_ in zip(given, whole, strict=True)]
        return self._markers.leave(keras_markers.dropout(rate), ops.ones(shape, inputs.dtype))


def _parabola(at_zero: float, at_kept: float, kept: float, *, at_one: float) -> Callable[[Any], Any]:
    """The polynomial of degree 2 with these values at 0, `kept` and 1."""
    slope = at_one - at_zero
    curvature = ((at_kept - at_zero) / kept - slope) / (kept - 1)
    return lambda d: at_zero + d * (slope + curvature * (d - 1.0))


def _batch_norm(markers: Markers) -> Callable[..., Any]:
    keras = require("tensorflow", "keras")

    def call(layer: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is not None or layer.renorm:
            what = "renorm=True" if layer.renorm else "a mask"
            raise UnsupportedError(
                f"the BatchNormalization layer {layer.name!r} has {what}", remedy="remove it"
            )
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        mark = keras_markers.batch_norm(
            axis=layer.axis % len(inputs.shape),
            epsilon=layer.epsilon,
            momentum=layer.momentum,
            frozen=not (training and layer.trainable),
        )
        outputs = markers.leave(mark, keras.ops.cast(inputs, dtype), *_statistics(layer, dtype))
        return keras.ops.cast(outputs, layer.compute_dtype)

    return call


def _statistics(layer: Any, dtype: str) -> list[Any]:
    """Scale, bias, mean and variance of a BatchNormalization layer."""
    ops, channels = require("tensorflow", "keras").ops, layer.moving_mean.shape
    scale = layer.gamma if layer.scale else ops.ones(channels)
    bias = layer.beta if layer.center else ops.zeros(channels)
    return [ops.cast(tensor, dtype) for tensor in (scale, bias, layer.moving_mean, layer.moving_variance)]


def _name_scope(layer: Any) -> Any:
    """A scope whose name ends in a dot: TensorFlow numbers a scope that is entered again, as Keras numbers its layers."""
    return require("tensorflow").name_scope(f"{layer.name}.")


def _without_compiling(function: Callable[..., Any]) -> Callable[..., Any]:
    """`tf.function`, but a function that it would compile is called as it is: compiled ones stay closed to tf2onnx."""

    def decorate(*arguments: Any, jit_compile: bool | None = None, **options: Any) -> Any:
        if not jit_compile:
            return function(*arguments, **options)
        return arguments[0] if arguments else lambda compiled: compiled

    return decorate


def _plain_tensordot(tensordot: Callable[..., Any]) -> Callable[..., Any]:
    """`tf.tensordot`, which reshapes its operands to matrices, but a product with a matrix is one as it is."""

    def product(a: Any, b: Any, axes: Any, name: str | None = None) -> Any:
        plain = axes in (1, [[-1], [0]]) and len(a.shape) > 1 and len(b.shape) == 2
        return require("tensorflow").matmul(a, b, name=name) if plain else tensordot(a, b, axes, name)

    return product


def _never(*arguments: Any, **options: Any) -> bool:
    return False
