"""The sides of the step benchmark: each takes a case and gives a function that trains on one batch.

Run as a program, this is the worker: one side, one case, in a process of its own. It answers each line `N` on its standard
input with the milliseconds that a step took on average over N steps.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, Any]"
Step: TypeAlias = Callable[[Array], float]

BATCH, EXAMPLES, WARM_UP = 64, 4096, 10
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 0.01


@dataclass(frozen=True)
class Case:
    """A network to train.

    Attributes:
        title: What the table calls it.
        module: Module of `gradfuse.models` that builds it in both frameworks, with the same weights.
        options: Arguments of its builders.
        inputs: Length of one example.
        deterministic: Whether all sides compute the same losses; Dropout draws from each side's own generator.
    """

    title: str
    module: str
    options: dict[str, Any]
    inputs: int = 784
    deterministic: bool = True


CASES = {
    "mlp": Case("MLP 784-128-10", "mlp", {"inputs": 784}),
    "cnn": Case("CNN 28x28, BatchNorm, Dropout", "cnn", {"size": 28}, deterministic=False),
    "tanh": Case(
        "20-layer tanh MLP, width 256",
        "deep_mlp",
        {"inputs": 784, "width": 256, "depth": 20, "activation": "tanh", "gain": 1.0},
    ),
}


def data(case: Case) -> tuple[Array, Array]:
    """Random examples and labels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((EXAMPLES, case.inputs), dtype=np.float32)
    return x, rng.integers(0, 10, EXAMPLES)


def gradfuse(case: Case, optimizer: str, threads: int) -> Step:
    """gradfuse's step graph."""
    from gradfuse.graph import GradientGraph
    from gradfuse.runtime import StepGraph, TrainingSession, optimizer_named

    options = {"momentum": MOMENTUM} if optimizer == "sgd" else {"weight_decay": WEIGHT_DECAY}
    gradients = GradientGraph.of(_converted(case))
    session = TrainingSession(
        StepGraph.of(gradients, optimizer_named(optimizer, **options)), data(case), threads=threads
    )
    return lambda indices: session.run(indices, LEARNING_RATE).loss


def pytorch(case: Case, optimizer: str, threads: int) -> Step:
    """PyTorch eager with its fused optimizer."""
    import torch

    torch.set_num_threads(threads)
    module = _build(case, "pytorch")
    if optimizer == "sgd":
        optim: Any = torch.optim.SGD(module.parameters(), LEARNING_RATE, MOMENTUM, fused=True)
    else:
        optim = torch.optim.AdamW(module.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    x, y = (torch.from_numpy(array) for array in data(case))
    cross_entropy = torch.nn.functional.cross_entropy

    def step(indices: Array) -> float:
        chosen = torch.from_numpy(indices)
        loss: Any = cross_entropy(module(x[chosen]), y[chosen])
        optim.zero_grad()
        loss.backward()
        optim.step()
        return float(loss.item())

    return step


def keras(case: Case, optimizer: str, threads: int, jit: bool = False) -> Step:
    """Keras: one tf.function for forward, gradients and update."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    import keras

    model = _build(case, "keras")
    if optimizer == "sgd":
        optim = keras.optimizers.SGD(LEARNING_RATE, MOMENTUM)
    else:
        optim = keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=1e-8)
    optim.build(model.trainable_variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = cross_entropy(y, model(x, training=True))
        optim.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    compiled = tf.function(train, jit_compile=jit)
    x, y = data(case)
    return lambda indices: float(compiled(tf.constant(x[indices]), tf.constant(y[indices])))


def keras_jit(case: Case, optimizer: str, threads: int) -> Step:
    """Keras, compiled by XLA."""
    return keras(case, optimizer, threads, jit=True)


def ort_api(case: Case, optimizer: str, threads: int) -> Step:
    """onnxruntime's own Module and Optimizer, which know AdamW and SGD without momentum."""
    if optimizer != "adamw":
        raise NotImplementedError("onnxruntime's training API has no momentum")
    import onnx
    import onnxruntime
    from onnxruntime.training import artifacts, onnxblock
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    model, parameters = _ort_training_form(_converted(case))
    update = onnxblock.optim.AdamW(eps=1e-8, weight_decay=WEIGHT_DECAY)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        loss = artifacts.LossType.CrossEntropyLoss
        artifacts.generate_artifacts(
            model, parameters, loss=loss, optimizer=update, artifact_directory=folder
        )
        # onnx stamps its own newest IR version on the optimizer's graph, which onnxruntime 1.19 cannot read.
        update_graph = onnx.load(f"{folder}/optimizer_model.onnx")
        update_graph.ir_version = model.ir_version
        onnx.save(update_graph, f"{folder}/optimizer_model.onnx")
        state = CheckpointState.load_checkpoint(f"{folder}/checkpoint")
        module = Module(f"{folder}/training_model.onnx", state, session_options=options)
        optim = Optimizer(f"{folder}/optimizer_model.onnx", module)
    optim.set_learning_rate(LEARNING_RATE)
    x, y = data(case)

    def step(indices: Array) -> float:
        loss = module(x[indices], y[indices])
        optim.step()
        module.lazy_reset_grad()
        return float(loss)

    return step


SIDES: dict[str, Callable[[Case, str, int], Step]] = {
    "gradfuse": gradfuse,
    "PyTorch": pytorch,
    "Keras": keras,
    "Keras jit": keras_jit,
    "ORT API": ort_api,
}
"""The columns of the table."""


def _build(case: Case, framework: str) -> Any:
    import importlib

    module = importlib.import_module(f"gradfuse.models.{case.module}")
    return getattr(module, framework)(**case.options)


def _converted(case: Case) -> Any:
    from gradfuse.converters import convert

    return convert(_build(case, "pytorch"), example_input=(case.inputs,), verify=False).model


def _ort_training_form(model: Any) -> tuple[Any, list[str]]:
    """The forward graph as onnxruntime's gradient builder wants it, and the parameters' names."""
    import onnx
    import onnx_ir as ir

    proto = ir.serde.serialize_model(model.onnx)
    for node in proto.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
            node.output.extend([f"{node.name}_mean", f"{node.name}_variance"])
        if node.op_type == "Dropout":
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(np.array(True), f"{node.name}_training")
            )
            node.input.append(f"{node.name}_training")
            node.output.append(f"{node.name}_mask")
    del proto.graph.value_info[:]
    return proto, list(model.parameters)


def work(side: str, case: str, optimizer: str, threads: int) -> None:
    """Set a side up, report its loss after the first update, then time what is asked for."""
    # Frameworks print while they start; the answers go to the real standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    rng = np.random.default_rng(1)
    batches = [rng.permutation(EXAMPLES)[:BATCH] for _ in range(64)]
    try:
        step = SIDES[side](CASES[case], optimizer, threads)
        losses = [step(batches[index]) for index in range(WARM_UP)]
    except Exception as error:  # a side that cannot run is a gap in the table, with its reason
        reason = str(error).strip().splitlines() or [type(error).__name__]
        print(json.dumps({"error": reason[0][:200]}), file=answers, flush=True)
        return
    print(json.dumps({"loss": losses[1]}), file=answers, flush=True)
    for line in sys.stdin:
        count = int(line)
        started = time.perf_counter()
        for index in range(count):
            step(batches[index % len(batches)])
        print(1e3 * (time.perf_counter() - started) / count, file=answers, flush=True)


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
