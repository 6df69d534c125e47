"""Networks of `keras.applications`, with random weights and small images: converted, compared, and trained beside Keras.

For each network the table shows its nodes; the CPU seconds of our conversion, of tf2onnx alone, and of the parity check; the
worst relative error of outputs, gradients and running statistics; and over 20 steps of SGD on one batch the loss of the first
and of the last step, and the largest difference between our loss and Keras's, beside that of Keras with itself where it takes
the same batch in the opposite order: what rounding alone does to this training.

Images are random pixels, prepared by the network's own `preprocess_input`. Dropout and stochastic depth are off on both sides,
since no two frameworks draw the same masks: a `Dropout` node that is frozen hands its input on, and so does Keras's under
`without_randomness`.

Such networks start chaotic: batch normalisation over a few pixels, and one activation that rounding moves across 0 changes a
gradient by percents. A comparison of two trainings means something where one of them agrees with itself. So the learning
rate is the largest of `RATES` at which Keras differs from itself by no more than `OWN`, a fifth of what is allowed; `--rate`
takes another.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

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
RATES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
ALLOWED, OWN = 1e-3, 2e-4
"""Largest difference in loss between ours and Keras's, and between Keras and itself where a rate is chosen."""

NETWORKS = {
    "ResNet50": ("resnet", 64),
    "MobileNetV2": ("mobilenet_v2", 64),
    "MobileNetV3Small": ("mobilenet_v3", 64),
    "MobileNetV3Large": ("mobilenet_v3", 64),
    "EfficientNetB0": ("efficientnet", 64),
    "DenseNet121": ("densenet", 64),
    "VGG16": ("vgg16", 32),
    "Xception": ("xception", 71),
}
"""The module of `keras.applications` that each network is in, and the width and height of its images here."""

Training: TypeAlias = Callable[[Any, Any, float], Iterator[float]]


@dataclass(frozen=True)
class Figures:
    """What became of one network."""

    nodes: int
    convert: float
    exporter: float
    check: float
    parity: float
    rate: float
    losses: Sequence[float]
    difference: float
    own: float

    def __str__(self) -> str:
        return (
            f"{self.nodes} | {self.convert:.1f} | {self.exporter:.1f} | {self.convert / self.exporter:.2f} | {self.check:.1f} "
            f"| {self.parity:.0e} | {self.rate:.0e} | {self.losses[0]:.4f} | {self.losses[-1]:.4f} "
            f"| {self.difference:.0e} | {self.own:.0e}"
        )


COLUMNS = (
    "network", "nodes", "convert s", "tf2onnx s", "ratio", "check s", "parity", "rate", "loss from", "to", "difference in loss",
    "of Keras with itself",
)  # fmt: skip


def measure(name: str, rates: Sequence[float]) -> Figures:
    """Convert, compare and train one network, at the first of the rates at which Keras agrees with itself."""
    keras = require("tensorflow", "keras")
    keras.utils.set_random_seed(0)
    module, size = NETWORKS[name]
    shape = (size, size, 3)
    network = getattr(keras.applications, name)(
        weights=None, input_shape=shape, classes=CLASSES, classifier_activation=None
    )
    exporter, _ = _timed(lambda: export(network))
    convert, model = _timed(lambda: from_keras(network))
    examples = [np.zeros((2, *shape), np.float32)]
    check, parity = _timed(lambda: check_parity(model, partial(reference, network), examples))
    x, y = batch_for(module, shape)
    train = keras_training(network)
    for rate in rates:
        theirs = list(train(x, y, rate))
        own = _difference(theirs, train(x[::-1], y[::-1], rate), enough=OWN)
        if own <= OWN:
            break
    difference = _difference(theirs, train_ours(model, x, y, rate))
    return Figures(
        len(model.onnx.graph), convert, exporter, check, parity.error, rate, theirs, difference, own
    )


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def _difference(losses: Sequence[float], others: Iterable[float], enough: float = np.inf) -> float:
    """The largest, or the first above `enough`; infinite where a side is not finite."""
    largest = 0.0
    for loss, other in zip(losses, others, strict=False):
        difference = abs(loss - other)
        largest = max(largest, difference if np.isfinite(difference) else np.inf)
        if largest > enough:
            break
    return largest


def batch_for(module: str, shape: tuple[int, int, int]) -> tuple[Any, Any]:
    """Images of random pixels, prepared for the network, and classes."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0.0, 255.0, (BATCH, *shape)).astype(np.float32)
    prepare = require("tensorflow", f"keras.applications.{module}").preprocess_input
    return np.asarray(prepare(pixels), np.float32), rng.integers(0, CLASSES, BATCH)


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
        probe=False,
    )
    return [np.nan if epoch.first_loss is None else epoch.first_loss for epoch in trained.history]


def keras_training(network: Any) -> Training:
    """A function that gives the loss of each step on one batch, by Keras, from the weights that the network has now."""
    tf, keras, weights = require("tensorflow"), require("tensorflow", "keras"), network.get_weights()
    optimizer, variables = keras.optimizers.SGD(), network.trainable_variables
    optimizer.build(variables)

    @tf.function  # type: ignore[untyped-decorator]  # TensorFlow has no types
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape, without_randomness():
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(y, network(x, training=True))
            )
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def train(x: Any, y: Any, rate: float) -> Iterator[float]:
        optimizer.learning_rate = rate
        network.set_weights(weights)
        for _ in range(STEPS):
            yield float(step(tf.constant(x), tf.constant(y)))

    return train


def main(arguments: list[str]) -> int:
    """Print the table; fails where a difference is above what is allowed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks applications", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(NETWORKS), help=f"any of {', '.join(NETWORKS)}")
    parser.add_argument("--rate", type=float, help="learning rate; by default as above")
    options = parser.parse_args(arguments)
    rates, worst = RATES if options.rate is None else (options.rate,), 0.0
    print("| " + " | ".join(COLUMNS) + " |")
    print("| " + " | ".join("---" for _ in COLUMNS) + " |")
    for name in options.names:
        figures = measure(name, rates)
        worst = max(worst, figures.difference)
        print(f"| {name} | {figures} |", flush=True)
    print(f"largest difference in loss {worst:.0e}, at most {ALLOWED:.0e}")
    return int(worst > ALLOWED)
