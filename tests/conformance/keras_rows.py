"""The cases of the Keras conformance suite: one row for each layer and way to use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from gradfuse.converters.frameworks import require

keras, tf = require("tensorflow", "keras"), require("tensorflow")
layers = keras.layers
ops = keras.ops

Shape: TypeAlias = "tuple[int, ...]"


@dataclass(frozen=True)
class Row:
    """A layer and how to call it.

    Attributes:
        name: How the coverage table calls it.
        make: Makes the layer, or a function of tensors.
        shapes: Shape of each input without the batch.
        labels: For inputs that are integers, how many there are.
    """

    name: str
    make: Callable[[], Any]
    shapes: tuple[Shape, ...]
    labels: Mapping[int, int] = field(default_factory=dict)


def _layer(
    kind: str,
    *arguments: Any,
    shapes: Sequence[Shape],
    labels: Mapping[int, int] | None = None,
    **options: Any,
) -> Row:
    """A layer of Keras by its class."""
    shown = ", ".join([*map(str, arguments), *(f"{key}={value}" for key, value in options.items())])
    return Row(
        f"{kind}({shown})" if shown else kind,
        lambda: getattr(layers, kind)(*arguments, **options),
        tuple(shapes),
        labels or {},
    )


def _vector(kind: str, *arguments: Any, **options: Any) -> Row:
    return _layer(kind, *arguments, shapes=[(6,)], **options)


def _line(kind: str, *arguments: Any, **options: Any) -> Row:
    return _layer(kind, *arguments, shapes=[(8, 4)], **options)


def _steps(kind: str, *arguments: Any, **options: Any) -> Row:
    return _layer(kind, *arguments, shapes=[(3, 3)], **options)


def _image(kind: str, *arguments: Any, **options: Any) -> Row:
    return _layer(kind, *arguments, shapes=[(7, 6, 4)], **options)


def _volume(kind: str, *arguments: Any, **options: Any) -> Row:
    return _layer(kind, *arguments, shapes=[(5, 4, 4, 2)], **options)


def _pair(kind: str, **options: Any) -> Row:
    return Row(
        f"{kind}({', '.join(f'{key}={value}' for key, value in options.items())})" if options else kind,
        lambda: _merge(getattr(layers, kind)(**options)),
        ((3, 4), (3, 4)),
    )


def _merge(layer: Any) -> Callable[..., Any]:
    return lambda a, b: layer([a, b])


def _function(name: str, function: Callable[..., Any], *shapes: Shape, **options: Any) -> Row:
    return Row(name, lambda: function, shapes or ((4, 6),), **options)


def _block(name: str, make: Callable[[], Any], *shapes: Shape, **options: Any) -> Row:
    return Row(name, make, shapes, **options)


_ACTIVATIONS = [
    "celu", "elu", "exponential", "gelu", "glu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu",
    "linear", "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink", "softmax",
    "softplus", "softsign", "sparse_plus", "sparse_sigmoid", "sparsemax", "squareplus", "tanh", "tanh_shrink", "threshold",
]  # fmt: skip

ACTIVATIONS = [
    *(_line("Activation", name) for name in _ACTIVATIONS if name != "threshold"),
    _function("activations.threshold", lambda x: keras.activations.threshold(x, 0.3, 0.1), (8, 4)),
    _function(
        "activations.gelu(approximate=True)", lambda x: keras.activations.gelu(x, approximate=True), (8, 4)
    ),
    *(_line(kind) for kind in ["ReLU", "LeakyReLU", "ELU", "PReLU", "Softmax"]),
    _line("ReLU", max_value=1.0, negative_slope=0.2, threshold=0.1),
    _line("PReLU", shared_axes=[1]),
    _line("Softmax", axis=1),
]

DENSE = [
    _vector("Dense", 3),
    _vector("Dense", 3, use_bias=False, activation="relu"),
    _line("Dense", 3, activation="tanh"),
    _line("EinsumDense", "abc,cd->abd", output_shape=(None, 3), bias_axes="d"),
    _layer("Embedding", 7, 3, shapes=[(5,)], labels={0: 7}),
    _layer("Embedding", 7, 3, mask_zero=True, shapes=[(5,)], labels={0: 7}),
    _line("Identity"),
    _line("Masking"),
]

CONVOLUTIONS = [
    _line("Conv1D", 3, 3),
    _line("Conv1D", 3, 3, strides=2, padding="same"),
    _line("Conv1D", 3, 3, dilation_rate=2, padding="causal"),
    _line("Conv1D", 4, 3, groups=2),
    _image("Conv2D", 3, 3),
    _image("Conv2D", 3, 3, strides=2, padding="same"),
    _image("Conv2D", 3, (2, 3), dilation_rate=2, padding="same", activation="relu"),
    _image("Conv2D", 4, 3, groups=2, use_bias=False),
    _image("Conv2D", 3, 1),
    _volume("Conv3D", 3, 2),
    _volume("Conv3D", 3, 3, strides=2, padding="same"),
    _line("SeparableConv1D", 3, 3, depth_multiplier=2),
    _line("SeparableConv1D", 3, 3, strides=2, padding="same"),
    _image("SeparableConv2D", 3, 3),
    _image("SeparableConv2D", 3, 3, depth_multiplier=2, strides=2, padding="same"),
    _line("DepthwiseConv1D", 3),
    _line("DepthwiseConv1D", 3, depth_multiplier=2, padding="same"),
    _image("DepthwiseConv2D", 3),
    _image("DepthwiseConv2D", 3, strides=2, padding="same", depth_multiplier=2),
    _image("DepthwiseConv2D", 3, dilation_rate=2),
    _line("Conv1DTranspose", 3, 3),
    _line("Conv1DTranspose", 3, 3, strides=2, padding="same"),
    _image("Conv2DTranspose", 3, 3),
    _image("Conv2DTranspose", 3, 3, strides=2, padding="same"),
    _image("Conv2DTranspose", 3, 3, strides=2, output_padding=1),
    _volume("Conv3DTranspose", 3, 2),
    _volume("Conv3DTranspose", 3, 3, strides=2, padding="same"),
]


def _normalization() -> Any:
    layer = layers.Normalization(mean=0.3, variance=2.0)
    layer.build((None, 8, 4))  # Keras makes its constants here, and not within a trace
    return layer


NORMALIZATION = [
    _image("BatchNormalization"),
    _image("BatchNormalization", axis=1, momentum=0.9, epsilon=0.01),
    _vector("BatchNormalization", center=False, scale=False),
    _line("LayerNormalization"),
    _image("LayerNormalization", axis=[1, 2, 3]),
    _line("LayerNormalization", center=False, scale=False),
    _image("GroupNormalization", groups=2),
    _image("GroupNormalization", groups=-1),
    _line("UnitNormalization"),
    _line("UnitNormalization", axis=1),
    _line("RMSNormalization"),
    _line("Rescaling", 0.5, offset=0.1),
    _block("Normalization(mean=0.3, variance=2.0)", _normalization, (8, 4)),
]

REGULARIZATION = [
    _line("Dropout", 0.5),
    _line("SpatialDropout1D", 0.5),
    _image("SpatialDropout2D", 0.5),
    _volume("SpatialDropout3D", 0.5),
    _line("GaussianNoise", 0.5),
    _line("GaussianDropout", 0.5),
    _line("AlphaDropout", 0.5),
    _line("ActivityRegularization", l2=0.1),
]

_POOLINGS = [(_line, "1D"), (_image, "2D"), (_volume, "3D")]

POOLING = [
    *(place(f"{kind}{dims}", 2) for place, dims in _POOLINGS for kind in ("MaxPooling", "AveragePooling")),
    *(
        place(f"{kind}{dims}", 3, strides=2, padding="same")
        for place, dims in _POOLINGS
        for kind in ("MaxPooling", "AveragePooling")
    ),
    *(place(f"Global{kind}{dims}") for place, dims in _POOLINGS for kind in ("MaxPooling", "AveragePooling")),
    _image("GlobalAveragePooling2D", keepdims=True),
]

SHAPES = [
    _line("UpSampling1D"),
    _image("UpSampling2D", 2),
    _image("UpSampling2D", (2, 3), interpolation="bilinear"),
    _volume("UpSampling3D", 2),
    _line("ZeroPadding1D", 2),
    _image("ZeroPadding2D", ((1, 2), (0, 1))),
    _volume("ZeroPadding3D", 1),
    _line("Cropping1D", (1, 2)),
    _image("Cropping2D", ((1, 2), (0, 1))),
    _volume("Cropping3D", 1),
    _line("Reshape", (2, -1)),
    _line("Permute", (2, 1)),
    _vector("RepeatVector", 3),
    _image("Flatten"),
]

MERGING = [
    *map(_pair, ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"]),
    _pair("Concatenate", axis=1),
    _pair("Dot", axes=2),
    _pair("Dot", axes=(1, 1), normalize=True),
]

_UNITS = ["SimpleRNN", "GRU", "LSTM"]


def _stacked() -> Any:
    return keras.Sequential([layers.LSTM(3, return_sequences=True), layers.GRU(2)])


class Composed(layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A function of layers and tensors."""

    def __init__(self, function: Callable[..., Any], *parts: Any) -> None:
        super().__init__()
        self.function, self.parts = function, list(parts)

    def call(self, x: Any, other: Any = None) -> Any:
        return self.function(*self.parts, *((x,) if other is None else (x, other)))


def _from_state(first: Any, layer: Any, x: Any, state: Any) -> Any:
    h = first(state)
    return layer(x, initial_state=[h, h + 0.5] if isinstance(layer, layers.LSTM) else h)


def _behind_mask(embedding: Any, layer: Any, tokens: Any) -> Any:
    return layer(embedding(tokens), mask=embedding.compute_mask(tokens))


def _initial(kind: str) -> Row:
    return Row(
        f"{kind}(3) with initial_state",
        lambda: Composed(_from_state, layers.Dense(3), getattr(layers, kind)(3, return_state=True)),
        ((3, 2), (5,)),
    )


def _masked(kind: str) -> Row:
    return Row(
        f"{kind}(2) behind a mask",
        lambda: Composed(_behind_mask, layers.Embedding(7, 3, mask_zero=True), getattr(layers, kind)(2)),
        ((3,),),
        {0: 7},
    )


RECURRENT = [
    *(_steps(kind, 3) for kind in _UNITS),
    *(_steps(kind, 3, return_sequences=True, go_backwards=True) for kind in _UNITS),
    *(_steps(kind, 3, return_sequences=True, return_state=True) for kind in _UNITS),
    *(_steps(kind, 3, use_bias=False, activation="relu") for kind in _UNITS),
    *(_steps(kind, 2, activation="elu") for kind in _UNITS[:1]),
    *(_steps(kind, 3, dropout=0.5) for kind in _UNITS),
    *(_steps(kind, 2, recurrent_dropout=0.5) for kind in _UNITS),
    *map(_initial, _UNITS),
    *map(_masked, _UNITS),
    _steps("LSTM", 3, activation="softsign", recurrent_activation="softplus", unit_forget_bias=False),
    _steps("GRU", 3, reset_after=False),
    _steps("GRU", 2, reset_after=False, recurrent_activation="hard_sigmoid"),
    _block("LSTM and GRU, stacked", _stacked, (3, 3)),
    _block("RNN of two cells", lambda: layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)]), (3, 3)),
    _block("Bidirectional(LSTM(3))", lambda: layers.Bidirectional(layers.LSTM(3)), (3, 3)),
    _block(
        "Bidirectional(GRU(3, return_sequences=True), merge_mode=sum)",
        lambda: layers.Bidirectional(layers.GRU(3, return_sequences=True), merge_mode="sum"),
        (3, 3),
    ),
    _block("TimeDistributed(Dense(3))", lambda: layers.TimeDistributed(layers.Dense(3)), (3, 3)),
    _block("TimeDistributed(Conv1D(2, 2))", lambda: layers.TimeDistributed(layers.Conv1D(2, 2)), (3, 4, 2)),
    _block("ConvLSTM1D(2, 2)", lambda: layers.ConvLSTM1D(2, 2), (3, 4, 2)),
]


def _masked_norm(masking: Any, norm: Any, x: Any) -> Any:
    return norm(masking(x), mask=masking.compute_mask(x))


def _of_two(layer: Any, x: Any, other: Any) -> Any:
    return layer([x, other])


def _attention(kind: str, *arguments: Any, **options: Any) -> Row:
    shown = ", ".join([*map(str, arguments), *(f"{key}={value}" for key, value in options.items())])
    layer = getattr(layers, kind)
    return _block(
        f"{kind}({shown})" if shown else kind,
        lambda: Composed(_of_two, layer(*arguments, **options)),
        (3, 4),
        (3, 4),
    )


def _heads(name: str, make: Callable[[], Any], **options: Any) -> Row:
    return _block(name, lambda: Composed(lambda layer, x: layer(x, x, **options), make()), (8, 4))


ATTENTION = [
    _heads("MultiHeadAttention(2, 3)", lambda: layers.MultiHeadAttention(2, 3)),
    _heads(
        "MultiHeadAttention(2, 3, dropout=0.5), causal",
        lambda: layers.MultiHeadAttention(2, 3, dropout=0.5),
        use_causal_mask=True,
    ),
    _block(
        "MultiHeadAttention(2, 3, value_dim=2), to another sequence",
        lambda: Composed(lambda layer, x, y: layer(x, y), layers.MultiHeadAttention(2, 3, value_dim=2)),
        (3, 4),
        (3, 4),
    ),
    _heads("GroupQueryAttention(3, 4, 2)", lambda: layers.GroupQueryAttention(3, 4, 2)),
    _attention("Attention"),
    _attention("Attention", use_scale=True, dropout=0.5),
    _attention("Attention", score_mode="concat"),
    _attention("AdditiveAttention"),
]


class OwnLayer(layers.Layer):  # type: ignore[misc]
    """A layer of a user's own, in TensorFlow's ops."""

    def build(self, shape: Any) -> None:
        self.weight = self.add_weight(shape=(shape[-1], 3), name="weight")

    def call(self, x: Any) -> Any:
        y = tf.einsum("btf,fu->btu", x, self.weight)
        return tf.where(y > 0, tf.math.log1p(tf.abs(y)), 0.1 * y) - tf.reduce_logsumexp(
            y, axis=1, keepdims=True
        )


MODELS = [
    _block(
        "a layer used twice",
        lambda: Composed(lambda layer, x: layer(layer(x)), layers.Dense(4, activation="tanh")),
        (8, 4),
    ),
    _block("a layer of one's own in TensorFlow ops", OwnLayer, (8, 4)),
    _block(
        "two inputs and three outputs",
        lambda: Composed(
            lambda f, g, x, y: [f(x), {"b": g(y), "sum": x + y}], layers.Dense(3), layers.Dense(2)
        ),
        (3, 4),
        (3, 4),
    ),
    _block(
        "a model within the model",
        lambda: keras.Sequential([layers.Dense(3), layers.BatchNormalization()]),
        (8, 4),
    ),
    _function("keras.ops.einsum", lambda x: keras.ops.einsum("btf,bsf->bts", x, x), (8, 4)),
    _function("keras.ops.cumsum", lambda x: keras.ops.cumsum(x, axis=1), (8, 4)),
    _function("keras.ops.norm", lambda x: keras.ops.norm(x, axis=-1), (8, 4)),
    _function("keras.ops.take", lambda x: keras.ops.take(x, [2, 0, 2], axis=1), (8, 4)),
    _function("keras.ops.flip", lambda x: keras.ops.flip(x, axis=1) * x, (8, 4)),
    _function("keras.ops.stop_gradient", lambda x: x * keras.ops.stop_gradient(x), (8, 4)),
    _function("keras.ops.max", lambda x: keras.ops.max(x, axis=1), (8, 4)),
    _function("keras.ops.var", lambda x: keras.ops.var(x, axis=[1, 2]), (8, 4)),
]


FAMILIES = {
    "Activations": ACTIVATIONS,
    "Dense and embeddings": DENSE,
    "Convolutions": CONVOLUTIONS,
    "Normalization": NORMALIZATION,
    "Regularization": REGULARIZATION,
    "Pooling": POOLING,
    "Shapes": SHAPES,
    "Merging": MERGING,
    "Recurrent": RECURRENT,
    "Attention": ATTENTION,
    "Models and functions": MODELS,
}
REFUSED = [
    (_image("RandomFlip"), "changes its variable"),
    (
        _block(
            "BatchNormalization behind a mask",
            lambda: Composed(_masked_norm, layers.Masking(), layers.BatchNormalization()),
            (8, 4),
        ),
        "has a mask",
    ),
    (
        _function("keras.ops.erfinv", lambda x: keras.ops.erfinv(keras.ops.tanh(x)), (8, 4)),
        "cannot convert Erfinv",
    ),
]
"""What is refused, and a part of the reason given."""
