"""Networks of `keras.applications`, with random weights and small images: converted, compared, and trained beside Keras.

For each network the table shows its nodes; the seconds of our conversion, of tf2onnx alone, and of the parity check; the worst
relative error of outputs, gradients and running statistics; and over 20 steps of SGD on one batch, with dropout off on
both sides, the largest difference between our loss and Keras's, beside that of Keras with itself where it takes the same
batch in another order: what rounding alone does to this training. A small image leaves maps of one pixel to the last
layers, where one activation that rounding moves across 0 changes a gradient by percents.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import gradfuse
from gradfuse.converters import from_keras
from gradfuse.converters.frameworks import require, silenced
from gradfuse.converters.keras_call import reference
from gradfuse.converters.keras_layers import without_randomness
from gradfuse.converters.parity import check_parity
from gradfuse.graph import TrainableModel
from gradfuse.graph.model import FROZEN

STEPS, BATCH, CLASSES = 20, 16, 10

COLUMNS = (
    "network",
    "nodes",
    "convert s",
    "tf2onnx s",
    "ratio",
    "check s",
    "parity",
    "loss from",
    "to",
    "difference in loss",
    "of Keras with itself",
)

SIZES = {
    "ResNet50": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "EfficientNetB0": 64,
    "DenseNet121": 64,
    "VGG16": 32,
    "Xception": 71,
}
"""Width and height of the images that each network takes here."""


@dataclass(frozen=True)
class Figures:
    """What became of one network."""

    nodes: int
    convert: float
    exporter: float
    check: float
    parity: float
    first: float
    last: float
    difference: float
    own: float


def measure(name: str, rate: float) -> Figures:
    """Convert, compare and train one network."""
    keras = require("tensorflow", "keras")
    keras.utils.set_random_seed(0)
    shape = (SIZES[name], SIZES[name], 3)
    network = getattr(keras.applications, name)(
        weights=None, input_shape=shape, classes=CLASSES, classifier_activation=None
    )
    exporter, _ = _timed(lambda: export(network))
    convert, model = _timed(lambda: from_keras(network))
    examples = [np.zeros((2, *shape), np.float32)]
    check, parity = _timed(lambda: check_parity(model, partial(reference, network), examples))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, *shape)).astype(np.float32)
    y = rng.integers(0, CLASSES, BATCH)
    ours, theirs = train_ours(model, x, y, rate), train_keras(network, x, y, rate)
    reordered = train_keras(network, x[::-1], y[::-1], rate)
    difference, own = (float(np.abs(np.subtract(other, theirs)).max()) for other in (ours, reordered))
    return Figures(
        len(model.onnx.graph), convert, exporter, check, parity.error, theirs[0], theirs[-1], difference, own
    )


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def export(network: Any) -> None:
    """What tf2onnx does by itself, for inference."""
    tf2onnx, tf = require("tensorflow", "tf2onnx"), require("tensorflow")
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in network.inputs]
    with silenced("tf2onnx"):
        tf2onnx.convert.from_function(tf.function(network), input_signature=signature, opset=18)


def train_ours(model: TrainableModel, x: Any, y: Any, rate: float) -> list[float]:
    """The loss of each step on one batch."""
    clone = model.onnx.clone()
    for node in clone.graph:
        if node.op_type == "Dropout":
            node.metadata_props[FROZEN] = "true"
    trained = gradfuse.train(
        replace(model, onnx=clone),
        (x, y),
        epochs=STEPS,
        batch_size=len(x),
        validation=0.0,
        lr=rate,
        momentum=0.0,
    )
    return [np.nan if epoch.first_loss is None else epoch.first_loss for epoch in trained.history]


def train_keras(network: Any, x: Any, y: Any, rate: float) -> list[float]:
    """The loss of each step on one batch; the network stays as it was."""
    tf = require("tensorflow")
    optimizer = require("tensorflow", "keras").optimizers.SGD(rate)
    weights, losses = network.get_weights(), []
    for _ in range(STEPS):
        with tf.GradientTape() as tape, without_randomness():
            output = network(x, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, output))
        variables = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        losses.append(float(loss))
    network.set_weights(weights)
    return losses


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks applications", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SIZES), help=f"any of {', '.join(SIZES)}")
    parser.add_argument("--rate", type=float, default=1e-5, help="learning rate")
    options = parser.parse_args(arguments)
    print("| " + " | ".join(COLUMNS) + " |")
    print("| " + " | ".join("---" for _ in COLUMNS) + " |")
    for name in options.names:
        f = measure(name, options.rate)
        print(
            f"| {name} | {f.nodes} | {f.convert:.1f} | {f.exporter:.1f} | {f.convert / f.exporter:.2f} "
            f"| {f.check:.1f} | {f.parity:.0e} | {f.first:.4f} | {f.last:.4f} | {f.difference:.0e} | {f.own:.0e} |",
            flush=True,
        )
    return 0
