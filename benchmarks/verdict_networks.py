"""Networks of all families and gains, made by seed as ONNX graphs, for the benchmark of verdicts and remedies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from gradfuse.graph import GradientGraph, TrainableModel
from gradfuse.graph.builder import Builder, Tensor
from gradfuse.graph.lowering import infer_shapes

__all__ = ["BATCH_SIZE", "CLASSES", "FAMILIES", "Network", "draw"]

BATCH_SIZE, CLASSES, OPSET = 32, 10, 18
INPUTS, SIDE, TOKENS, STEP = 32, 6, 6, 8
"""Lengths of an input: of a vector, of an image's sides, in tokens, and of one time step."""


@dataclass(frozen=True)
class Network:
    """What a network is made from.

    Attributes:
        family: One of FAMILIES.
        seed: Of its weights.
        depth: Layers, blocks, or time steps.
        width: Features or channels.
        gain: Standard deviation of the weights times the square root of their number of inputs.
        activation: One of ACTIVATIONS.
        norm: `batch`, `layer` or nothing.
        skips: Whether layers are residual blocks.
        branch: Factor on the residual branches.
        everywhere: Whether the gain is that of every weight, those of the first and last layers included.
        orthogonal: Gain of an orthogonal recurrent matrix in place of a normal one; 0: none.
    """

    family: str
    seed: int
    depth: int
    width: int
    gain: float
    activation: str = "relu"
    norm: str = ""
    skips: bool = False
    branch: float = 1.0
    everywhere: bool = False
    orthogonal: float = 0.0

    def gradients(self) -> GradientGraph:
        """The gradient graph; `first` is the output of the first layer, `y` that of the last."""
        return GradientGraph.of(_Writer(self).model())

    def changed(self, **parts: Any) -> Network:
        """The same network with other parts."""
        return replace(self, **parts)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.builder.op("Relu", x),
    "leaky": lambda x: x.builder.op("LeakyRelu", x, alpha=0.2),
    "elu": lambda x: x.builder.op("Elu", x),
    "tanh": lambda x: x.tanh(),
    "sigmoid": lambda x: x.sigmoid(),
    "gelu": lambda x: 0.5 * x * (1.0 + (x * 0.5**0.5).erf()),
    "silu": lambda x: x * x.sigmoid(),
    "exp": lambda x: x.exp(),
    "square": lambda x: x * x,
    "cube": lambda x: x * x * x,
}


class _Writer:
    """Writes one network."""

    def __init__(self, network: Network) -> None:
        self.network, self.rng = network, np.random.default_rng(network.seed)
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET}, name="network")
        self.builder, self.parameters = Builder(self.graph), list[str]()

    def model(self) -> TrainableModel:
        """The whole model."""
        family = FAMILIES[self.network.family]
        shape = ir.Shape(["batch", *family.shape(self.network)])
        x = ir.val("x", dtype=ir.DataType.FLOAT, shape=shape)
        self.graph.inputs.append(x)
        y = family.write(self, self.builder.tensor(x)).value
        y.name, y.shape = "y", ir.Shape(["batch", CLASSES])
        self.graph.outputs.append(y)
        model = ir.Model(self.graph, ir_version=10)
        infer_shapes(model)
        return TrainableModel(model, tuple(self.parameters), source=self.network.family)

    def fixed(self, array: np.ndarray[Any, Any]) -> Tensor:
        """A tensor that is not trained."""
        tensor = ir.tensor(array.astype(np.float32), name=f"p{len(self.graph.initializers)}")
        value = ir.Value(
            name=tensor.name,
            const_value=tensor,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
        )
        self.graph.register_initializer(value)
        return self.builder.tensor(value)

    def parameter(self, array: np.ndarray[Any, Any]) -> Tensor:
        """A trained tensor."""
        tensor = self.fixed(array)
        self.parameters.append(tensor.value.name or "")
        return tensor

    def normal(self, *shape: int, inputs: int, gain: float | None = None) -> Tensor:
        """A weight of the network's gain, or another."""
        scale = self.network.gain if gain is None or self.network.everywhere else gain
        return self.parameter(scale * inputs**-0.5 * self.rng.standard_normal(shape))

    def dense(self, x: Tensor, before: int, after: int, gain: float | None = None) -> Tensor:
        """x W + b over the last axis."""
        return x @ self.normal(before, after, inputs=before, gain=gain) + self.parameter(np.zeros(after))

    def conv(self, x: Tensor, before: int, after: int) -> Tensor:
        """A 3x3 convolution that keeps the image's size."""
        kernel = self.normal(after, before, 3, 3, inputs=9 * before)
        return self.builder.op("Conv", x, kernel, self.parameter(np.zeros(after)), pads=[1, 1, 1, 1])

    def normalised(self, x: Tensor, *shape: int, kind: str) -> Tensor:
        """`x` as it is, or normalised over the batch or over all elements (of these lengths) of each example or token."""
        if not kind:
            return x
        if kind == "batch":
            scale, bias = self.parameter(np.ones(shape[0])), self.parameter(np.zeros(shape[0]))
            moving = self.fixed(np.zeros(shape[0])), self.fixed(np.ones(shape[0]))
            return self.builder.op("BatchNormalization", x, scale, bias, *moving)
        scale, bias = self.parameter(np.ones(shape)), self.parameter(np.zeros(shape))
        return self.builder.op("LayerNormalization", x, scale, bias, axis=-len(shape))

    def activated(self, x: Tensor, *shape: int) -> Tensor:
        """The network's normalisation and activation."""
        return ACTIVATIONS[self.network.activation](self.normalised(x, *shape, kind=self.network.norm))

    def first(self, x: Tensor) -> Tensor:
        """Names the first layer's output."""
        x.value.name = "first"
        return x


def _mlp(writer: _Writer, x: Tensor) -> Tensor:
    """Dense layers; with skips, blocks of two of them."""
    width = writer.network.width
    x = writer.first(writer.dense(x, INPUTS, width))
    for _ in range(writer.network.depth):
        h = writer.dense(writer.activated(x, width), width, width)
        if writer.network.skips:
            h = writer.dense(writer.activated(h, width), width, width)
            x = x + (h if writer.network.branch == 1.0 else writer.network.branch * h)
        else:
            x = h
    return writer.dense(writer.activated(x, width), width, CLASSES, gain=1.0)


def _cnn(writer: _Writer, x: Tensor) -> Tensor:
    """Convolutions; with skips, blocks of two of them; then the mean over positions."""
    shape = (writer.network.width, SIDE, SIDE)
    x = writer.first(writer.conv(x, 3, shape[0]))
    for _ in range(writer.network.depth):
        h = writer.conv(writer.activated(x, *shape), shape[0], shape[0])
        if writer.network.skips:
            h = writer.conv(writer.activated(h, *shape), shape[0], shape[0])
            x = x + (h if writer.network.branch == 1.0 else writer.network.branch * h)
        else:
            x = h
    pooled = writer.activated(x, *shape).mean((2, 3), keepdims=False)
    return writer.dense(pooled, shape[0], CLASSES, gain=1.0)


def _rnn(writer: _Writer, x: Tensor) -> Tensor:
    """A recurrent layer, written out in time, whose last state is classified."""
    network, width = writer.network, writer.network.width
    w, r, b = (
        writer.normal(STEP, width, inputs=STEP, gain=1.0),
        _recurrent(writer),
        writer.parameter(np.zeros(width)),
    )
    h = None
    for time in range(network.depth):
        product = x.slice([time], [time + 1], [1], [1]).squeeze(1) @ w + b
        h = ACTIVATIONS[network.activation](writer.first(product) if h is None else product + h @ r)
    assert h is not None
    return writer.dense(h, width, CLASSES, gain=1.0)


def _recurrent(writer: _Writer) -> Tensor:
    network = writer.network
    if not network.orthogonal:
        return writer.normal(network.width, network.width, inputs=network.width)
    orthogonal, _ = np.linalg.qr(writer.rng.standard_normal((network.width, network.width)))
    return writer.parameter(network.orthogonal * orthogonal)


def _transformer(writer: _Writer, x: Tensor) -> Tensor:
    """Blocks of one-headed attention and a dense network, normalised before (`layer`), behind (`post`) or not at all."""
    network, width = writer.network, writer.network.width
    x = writer.first(writer.dense(x, width, width, gain=1.0))
    for _ in range(network.depth):
        for branch in (_attention, _feed_forward):
            kind = network.norm if network.norm == "layer" else ""
            h = branch(writer, writer.normalised(x, width, kind=kind))
            x = x + (h if network.branch == 1.0 else network.branch * h)
            x = writer.normalised(x, width, kind="layer" if network.norm == "post" else "")
    x = writer.normalised(x, width, kind="layer" if network.norm == "layer" else "")
    return writer.dense(x.mean((1,), keepdims=False), width, CLASSES, gain=1.0)


def _attention(writer: _Writer, x: Tensor) -> Tensor:
    width = writer.network.width
    q, k, v = (writer.dense(x, width, width) for _ in range(3))
    weights = writer.builder.op("Softmax", (q @ k.transpose(0, 2, 1)) * width**-0.5, axis=-1)
    return writer.dense(weights @ v, width, width)


def _feed_forward(writer: _Writer, x: Tensor) -> Tensor:
    width = writer.network.width
    hidden = ACTIVATIONS[writer.network.activation](writer.dense(x, width, 2 * width))
    return writer.dense(hidden, 2 * width, width)


@dataclass(frozen=True)
class Family:
    """How networks of a family are drawn and written.

    Attributes:
        write: Logits from the input.
        shape: Shape of one input.
        draw: The parts that are drawn at random.
    """

    write: Callable[[_Writer, Tensor], Tensor]
    shape: Callable[[Network], tuple[int, ...]]
    draw: Callable[[np.random.Generator], dict[str, Any]]


def _flat(network: Network) -> tuple[int, ...]:
    return (INPUTS,)


def _image(network: Network) -> tuple[int, ...]:
    return (3, SIDE, SIDE)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())


def _size(rng: np.random.Generator, depth: tuple[int, int], width: tuple[int, int]) -> dict[str, int]:
    return {"depth": int(rng.integers(*depth)), "width": int(rng.integers(*width))}


def _smooth(rng: np.random.Generator) -> str:
    return str(rng.choice(["relu", "leaky", "elu", "tanh", "gelu", "silu", "sigmoid"]))


def _drawn_mlp(rng: np.random.Generator) -> dict[str, Any]:
    return {**_size(rng, (6, 30), (24, 65)), "gain": _log_uniform(rng, 0.9, 4.5), "activation": _smooth(rng)}


def _drawn_normalised(rng: np.random.Generator, norm: str) -> dict[str, Any]:
    activation = str(rng.choice(["relu", "leaky", "tanh", "gelu"]))
    return {
        **_size(rng, (4, 40), (24, 97)),
        "gain": _log_uniform(rng, 0.7, 3.0),
        "activation": activation,
        "norm": norm,
    }


def _drawn_cnn(rng: np.random.Generator, norm: str = "") -> dict[str, Any]:
    activation = str(rng.choice(["relu", "leaky", "tanh", "gelu"]))
    size = _size(rng, (3, 12), (8, 25))
    return {**size, "gain": _log_uniform(rng, 1.0, 4.5), "activation": activation, "norm": norm}


def _drawn_resnet(rng: np.random.Generator) -> dict[str, Any]:
    norm = str(rng.choice(["", "batch", "layer"]))
    size = _size(rng, (4, 20), (24, 49))
    return {**size, "gain": _log_uniform(rng, 0.8, 4.0), "norm": norm, "skips": True}


def _drawn_convolutional_resnet(rng: np.random.Generator) -> dict[str, Any]:
    norm = str(rng.choice(["", "batch"]))
    return {**_size(rng, (2, 8), (8, 21)), "gain": _log_uniform(rng, 0.8, 4.0), "norm": norm, "skips": True}


def _drawn_rnn(rng: np.random.Generator) -> dict[str, Any]:
    activation = str(rng.choice(["tanh", "relu"]))
    return {**_size(rng, (8, 40), (24, 49)), "gain": _log_uniform(rng, 0.9, 3.5), "activation": activation}


def _drawn_transformer(rng: np.random.Generator) -> dict[str, Any]:
    norm = str(rng.choice(["layer", "post", ""]))
    size = _size(rng, (1, 7), (16, 49))
    return {**size, "gain": _log_uniform(rng, 0.7, 5.0), "activation": "gelu", "norm": norm}


def _drawn_exponential(rng: np.random.Generator) -> dict[str, Any]:
    activation = str(rng.choice(["exp", "square", "cube"]))
    return {**_size(rng, (1, 6), (16, 65)), "gain": _log_uniform(rng, 0.3, 2.0), "activation": activation}


FAMILIES: Mapping[str, Family] = {
    "MLP": Family(_mlp, _flat, _drawn_mlp),
    "MLP + BN": Family(_mlp, _flat, lambda rng: _drawn_normalised(rng, "batch")),
    "MLP + LN": Family(_mlp, _flat, lambda rng: _drawn_normalised(rng, "layer")),
    "CNN": Family(_cnn, _image, _drawn_cnn),
    "CNN + BN": Family(_cnn, _image, lambda rng: _drawn_cnn(rng, "batch")),
    "residual MLP": Family(_mlp, _flat, _drawn_resnet),
    "ResNet": Family(_cnn, _image, _drawn_convolutional_resnet),
    "RNN": Family(_rnn, lambda network: (network.depth, STEP), _drawn_rnn),
    "transformer": Family(_transformer, lambda network: (TOKENS, network.width), _drawn_transformer),
    "exponential": Family(_mlp, _flat, _drawn_exponential),
}
"""Every family; gains are drawn so that about half of the networks explode."""


def draw(family: str, seed: int, index: int) -> Network:
    """Network number `index` of a family, for a seed."""
    rng = np.random.default_rng([seed, list(FAMILIES).index(family), index])
    return Network(family, int(rng.integers(2**31)), **FAMILIES[family].draw(rng))
