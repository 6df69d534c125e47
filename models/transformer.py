"""A transformer encoder on flat grey images, whose rows it reads as tokens, in either framework.

Each layer is self-attention and a two-layer ReLU network, both residual. LayerNorm stands before each branch (pre-LN) or after
each sum (post-LN); the former ends with one more. The mean over the tokens feeds a dense layer. Positions are added as sines
(Vaswani 2017, section 3.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..converters.frameworks import require
from .dense import Layer, keras_dense, pytorch_linear, uniform_layer

if TYPE_CHECKING:
    import torch

__all__ = ["keras", "pytorch"]

Array = np.ndarray[Any, Any]

_EPSILON = 1e-5  # of LayerNorm: PyTorch's default; Keras's is 1e-3


def pytorch(
    size: int = 8,
    width: int = 32,
    heads: int = 4,
    hidden: int = 64,
    layers: int = 4,
    classes: int = 10,
    seed: int = 0,
    *,
    norm_first: bool,
) -> torch.nn.Module:
    """Logits [batch, classes] from pixels [batch, size * size].

    Args:
        size: Height and width of the image: number of tokens, and length of each before the embedding.
        width: Length of a token's features, a multiple of `heads`.
        heads: Number of attention heads.
        hidden: Length of the hidden layer of each layer's network.
        layers: Number of layers.
        classes: Number of logits.
        seed: Seed of the weights.
        norm_first: Whether LayerNorm stands before each branch (pre-LN), or after each sum (post-LN).
    """
    shape = _Shape(size, width, heads, hidden, layers, classes, norm_first)
    return _pytorch_encoder(shape, _draw_encoder(shape, seed))


def keras(
    size: int = 8,
    width: int = 32,
    heads: int = 4,
    hidden: int = 64,
    layers: int = 4,
    classes: int = 10,
    seed: int = 0,
    *,
    norm_first: bool,
) -> Any:
    """The same network, with the same weights, in Keras."""
    shape = _Shape(size, width, heads, hidden, layers, classes, norm_first)
    return _keras_encoder(shape, _draw_encoder(shape, seed))


@dataclass(frozen=True)
class _Shape:
    size: int
    width: int
    heads: int
    hidden: int
    layers: int
    classes: int
    norm_first: bool


@dataclass(frozen=True)
class _LayerWeights:
    query: Layer
    key: Layer
    value: Layer
    output: Layer
    up: Layer
    down: Layer


@dataclass(frozen=True)
class _EncoderWeights:
    """Every matrix as [outputs, inputs]."""

    embedding: Layer
    layers: tuple[_LayerWeights, ...]
    head: Layer


def _draw_encoder(shape: _Shape, seed: int) -> _EncoderWeights:
    """Every layer by PyTorch's default initialisation of dense layers."""
    rng = np.random.default_rng(seed)
    width, hidden = shape.width, shape.hidden
    embedding = uniform_layer(rng, shape.size, width)
    layers = tuple(
        _LayerWeights(
            query=uniform_layer(rng, width, width),
            key=uniform_layer(rng, width, width),
            value=uniform_layer(rng, width, width),
            output=uniform_layer(rng, width, width),
            up=uniform_layer(rng, width, hidden),
            down=uniform_layer(rng, hidden, width),
        )
        for _ in range(shape.layers)
    )
    return _EncoderWeights(embedding, layers, uniform_layer(rng, width, shape.classes))


def _positions(length: int, width: int) -> Array:
    """Sines and cosines [length, width], float32."""
    angles = np.arange(length)[:, None] / 10_000.0 ** (np.arange(0, width, 2) / width)
    waves = np.stack([np.sin(angles), np.cos(angles)], axis=2)
    return waves.reshape(length, -1)[:, :width].astype(np.float32)


def _pytorch_encoder(shape: _Shape, weights: _EncoderWeights) -> torch.nn.Module:
    """Logits [batch, classes] from pixels [batch, size * size]."""
    framework = require("torch")

    class Encoder(framework.nn.Module):  # type: ignore[misc, name-defined]
        """Tokens from rows, layers, mean over tokens, head."""

        def __init__(self) -> None:
            super().__init__()
            self.rows = framework.nn.Unflatten(1, (shape.size, shape.size))
            self.embedding = pytorch_linear(weights.embedding)
            self.register_buffer("positions", framework.from_numpy(_positions(shape.size, shape.width)))
            self.layers = framework.nn.ModuleList(_pytorch_layer(shape, layer) for layer in weights.layers)
            self.norm = (
                framework.nn.LayerNorm(shape.width, eps=_EPSILON)
                if shape.norm_first
                else framework.nn.Identity()
            )
            self.head = pytorch_linear(weights.head)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            x = self.embedding(self.rows(pixels)) + self.positions
            for layer in self.layers:
                x = layer(x)
            y: torch.Tensor = self.head(self.norm(x).mean(1))
            return y

    network: torch.nn.Module = Encoder()
    return network


def _pytorch_layer(shape: _Shape, weights: _LayerWeights) -> torch.nn.Module:
    framework = require("torch")
    layer: torch.nn.TransformerEncoderLayer = framework.nn.TransformerEncoderLayer(
        shape.width,
        shape.heads,
        shape.hidden,
        dropout=0.0,
        layer_norm_eps=_EPSILON,
        batch_first=True,
        norm_first=shape.norm_first,
    )
    joined = [np.concatenate(parts) for parts in zip(weights.query, weights.key, weights.value, strict=True)]
    arrays = {
        "self_attn.in_proj_weight": joined[0],
        "self_attn.in_proj_bias": joined[1],
        **_named("self_attn.out_proj", weights.output),
        **_named("linear1", weights.up),
        **_named("linear2", weights.down),
    }
    state = layer.state_dict() | {name: framework.from_numpy(array) for name, array in arrays.items()}
    layer.load_state_dict(state)
    return layer


def _named(module: str, layer: Layer) -> dict[str, Array]:
    return {f"{module}.weight": layer[0], f"{module}.bias": layer[1]}


def _keras_encoder(shape: _Shape, weights: _EncoderWeights) -> Any:
    """The same network in Keras."""
    keras = require("tensorflow", "keras")
    pixels = keras.Input((shape.size * shape.size,))
    rows = keras.layers.Reshape((shape.size, shape.size), name="rows")(pixels)
    x = keras_dense(weights.embedding, "embedding")(rows) + _positions(shape.size, shape.width)
    for number, layer in enumerate(weights.layers, 1):
        x = _keras_layer(x, shape, layer, f"layer{number}")
    if shape.norm_first:
        x = _keras_norm(x, "norm")
    features = keras.layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(pixels, keras_dense(weights.head, "head")(features))


def _keras_layer(x: Any, shape: _Shape, weights: _LayerWeights, name: str) -> Any:
    layers = require("tensorflow", "keras").layers
    attention = layers.MultiHeadAttention(shape.heads, shape.width // shape.heads, name=f"{name}_attention")

    def attend(y: Any) -> Any:
        attended = attention(y, y)
        attention.set_weights(_keras_attention(shape, weights))
        return attended

    def transform(y: Any) -> Any:
        up = layers.ReLU(name=f"{name}_relu")(keras_dense(weights.up, f"{name}_up")(y))
        return keras_dense(weights.down, f"{name}_down")(up)

    for number, branch in enumerate((attend, transform), 1):
        norm = f"{name}_norm{number}"
        x = x + branch(_keras_norm(x, norm)) if shape.norm_first else _keras_norm(x + branch(x), norm)
    return x


def _keras_norm(x: Any, name: str) -> Any:
    return require("tensorflow", "keras").layers.LayerNormalization(epsilon=_EPSILON, name=name)(x)


def _keras_attention(shape: _Shape, weights: _LayerWeights) -> list[Array]:
    """Query, key and value as [inputs, heads, depth], the output as [heads, depth, outputs]."""
    heads = shape.heads, shape.width // shape.heads
    split = [
        array
        for weight, bias in (weights.query, weights.key, weights.value)
        for array in (weight.T.reshape(-1, *heads), bias.reshape(heads))
    ]
    return [*split, weights.output[0].T.reshape(*heads, -1), weights.output[1]]
