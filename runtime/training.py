"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..graph.errors import InputError
from ..graph.gradient_graph import GradientGraph
from ..graph.losses import loss_named
from ..graph.mapping import release
from ..graph.model import TrainableModel
from ..graph.rewriting import without_weights
from .data import batches, consecutive, fit_data, fixed_batch, split, whole_batches
from .optimizers import SGD, Array, Optimizer
from .providers import onnxruntime_for
from .run_folder import Checkpoint, EpochMetrics, RunFolder, finite
from .schedules import Progress, Schedule
from .session import EvaluationSession, StepResult, TrainingSession
from .step_graph import EvaluationGraph, StepGraph, initial_values

__all__ = ["Score", "TrainingResult", "score", "train"]

Show: TypeAlias = "Callable[[int, int, str], None]"
"""Shows how many steps are done, of how many, and a text."""


@dataclass(frozen=True)
class Score:
    """How good a model is on some examples.

    Attributes:
        loss: Mean over the examples.
        accuracy: Share of right predictions; None where the loss knows no right and wrong.
    """

    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class TrainingResult:
    """What a training leaves.

    Attributes:
        model: The model in inference form with the weights that the training left, running statistics included.
        weights: The same parameters and running statistics as arrays, by name.
        history: The metrics of each epoch.
        diverged_at: Number of the step, counting from 0, whose loss was not finite, which ended the training; the number of
            steps where the last update broke the weights; None where all is well.
    """

    model: TrainableModel
    weights: Mapping[str, Array]
    history: tuple[EpochMetrics, ...]
    diverged_at: int | None

    @property
    def diverged(self) -> bool:
        """Whether the training ended early because the loss was not finite."""
        return self.diverged_at is not None

    @property
    def gradient_norm(self) -> float:
        """Largest gradient norm of any step; infinite where one was not finite."""
        norms = [math.inf if epoch.gradient_norm is None else epoch.gradient_norm for epoch in self.history]
        return max(norms, default=0.0)

    @property
    def fuse_bites(self) -> dict[str, float]:
        """In which share of the steps each fuse changed a gradient, by its name."""
        steps = self.history[-1].step if self.history else 0
        names = self.history[0].fuse_bites if steps else ()
        return {name: sum(epoch.fuse_bites[name] for epoch in self.history) / steps for name in names}


def train(
    gradients: GradientGraph,
    data: Any,
    *,
    out: str | Path | None = None,
    epochs: int = 10,
    batch_size: int = 64,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    validation: float = 0.2,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = False,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    probed: Mapping[str, float | None] | None = None,
) -> TrainingResult:
    """Train a model on ONNX Runtime.

    A loss that is not finite ends the training: the result and run.json say at which step, and no model.onnx is written.

    Args:
        gradients: The gradient graph of the model, with its fuses.
        data: A source for `readers.load_data`, (x, y), or a mapping of names to arrays.
        out: Folder for metrics, checkpoints and the trained model (see `run_folder`); None writes nothing.
        epochs: Passes over the training examples, at least 1.
        batch_size: Examples in a batch, at least 1; the last batch of an epoch may be smaller. With batch normalisation a
            last batch of one example is left out, since one example has no variance; where the model takes one size only,
            a smaller last batch is.
        optimizer: How parameters change; None: SGD with momentum 0.9.
        schedule: Learning rate of each step; None: constantly 0.01.
        validation: Share of the examples held out, in [0, 1).
        seed: Decides the split, the order of the examples and what Dropout drops.
        device: `cpu` or `cuda`.
        threads: Threads within an operator; 0: one per core.
        overwrite: Delete the run that `out` holds.
        resume: Go on with the run that `out` holds after its last whole epoch, to the bit as if it had never stopped.
        progress: Show a progress bar on stderr.
        on_epoch: Called after each epoch.
        probed: What was measured before the first step, by name: the line of epoch 0 in the metrics.

    Raises:
        InputError: The data does not fit, `out` holds another run, the device cannot be had, or a number is out of range.
    """
    hyperparameters = _Hyperparameters(
        epochs, batch_size, optimizer or SGD(0.9), schedule or Schedule(0.01), validation, seed
    )
    onnxruntime_for(device)
    training = _Training(gradients, data, hyperparameters, device, threads)
    folder = None
    if out is not None:
        folder = RunFolder(
            out,
            training.settings(),
            parity=gradients.source.parity,
            overwrite=overwrite,
            resume=resume,
        )
    try:
        with _progress_bar(progress) as show:
            return training.run(folder, show, on_epoch, probed or {})
    except KeyboardInterrupt:
        if folder is not None:
            folder.write_status("interrupted")
        raise


def score(
    model: TrainableModel,
    data: Any,
    loss: str = "cross-entropy",
    *,
    batch_size: int = 256,
    device: str = "cpu",
    threads: int = 0,
) -> Score:
    """Loss and accuracy of a model, in inference form, on all examples of `data` (that fill a batch, where its size is fixed).

    Raises:
        InputError: The data does not fit the model, the loss is unknown, or the device cannot be had.
    """
    onnxruntime = onnxruntime_for(device)
    target = loss_named(loss).target(model.outputs[0])
    arrays = fit_data(data, model, target, loss)
    graph = EvaluationGraph.of(model, loss)
    session = EvaluationSession(graph, arrays, device, threads)
    state = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.array(value), device)
        for name, value in initial_values(model, graph.state).items()
    }
    indices = whole_batches(model, np.arange(len(arrays[0])))
    return _score(session, state, indices, fixed_batch(model) or batch_size)


@dataclass(frozen=True)
class _Hyperparameters:
    epochs: int
    batch_size: int
    optimizer: Optimizer
    schedule: Schedule
    validation: float
    seed: int

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("batch size", self.batch_size)):
            if value < 1:
                raise InputError(f"{name} {value}", expected="at least 1")

    def settings(self) -> dict[str, Any]:
        """All of them as JSON values; the number of epochs only where the schedule depends on it."""
        return {
            "batch_size": self.batch_size,
            "optimizer": {"name": self.optimizer.name, **vars(self.optimizer)},
            "schedule": dict(vars(self.schedule)),
            "validation": self.validation,
            "seed": self.seed,
            **({"epochs": self.epochs} if self.schedule.depends_on_length else {}),
        }


class _Training:
    """What a training is made of, and how far it has come."""

    def __init__(
        self,
        gradients: GradientGraph,
        data: Any,
        hyperparameters: _Hyperparameters,
        device: str,
        threads: int,
    ) -> None:
        source = gradients.source
        self._source, self._hyperparameters, self._device = source, hyperparameters, device
        self._arrays = fit_data(data, source, gradients.target, gradients.loss_function)
        self._indices, held_out = split(
            len(self._arrays[0]), hyperparameters.validation, hyperparameters.seed
        )
        self._held_out = whole_batches(source, held_out)
        self._steps_per_epoch = _count_steps(source, len(self._indices), hyperparameters.batch_size)
        self._graph = StepGraph.of(gradients, hyperparameters.optimizer, by_rows=device == "cpu")
        self._session = TrainingSession(self._graph, self._arrays, device, threads, hyperparameters.seed)
        evaluation = EvaluationGraph.of(source, gradients.loss_function)
        self._evaluation = EvaluationSession(evaluation, self._arrays, device, threads)
        self._history: list[EpochMetrics] = []
        self._step = 0
        self._diverged_at: int | None = None

    def settings(self) -> dict[str, Any]:
        """All that the outcome depends on, as JSON values."""
        light, constants = without_weights(self._graph.onnx)
        graph = ir.serde.serialize_model(light).SerializeToString()
        arrays = [tensor.numpy() for tensor in constants.values()]
        return {
            **self._hyperparameters.settings(),
            "device": self._device,
            "graph_sha256": _sha256(graph, *self._graph.initial.values(), *arrays),
            "data_sha256": _sha256(*self._arrays),
        }

    def run(
        self,
        folder: RunFolder | None,
        show: Show,
        on_epoch: Callable[[EpochMetrics], None] | None,
        probed: Mapping[str, float | None],
    ) -> TrainingResult:
        """Train from the folder's checkpoint, or from the start, to the last epoch or to a loss that is not finite."""
        done = self._begin(folder, probed)
        for epoch in range(done + 1, self._hyperparameters.epochs + 1):
            metrics = self._epoch(epoch, show)
            self._history.append(metrics)
            if folder is not None:
                folder.append(metrics)
            if on_epoch is not None:
                on_epoch(metrics)
            if self._diverged_at is not None:
                break
            if folder is not None:
                folder.save_checkpoint(Checkpoint(self._session.arrays(), epoch, self._step))
        return self._end(folder)

    def _begin(self, folder: RunFolder | None, probed: Mapping[str, float | None]) -> int:
        """Load the checkpoint where there is one; returns the number of epochs done."""
        if folder is None:
            return 0
        if folder.checkpoint is None:
            if probed:
                folder.append_probe(probed)
            return 0
        self._history = folder.take_history()
        self._session.load(folder.checkpoint.state)
        self._step = folder.checkpoint.step
        return folder.checkpoint.epoch

    def _epoch(self, epoch: int, show: Show) -> EpochMetrics:
        started = time.perf_counter()
        results, sizes, rate = self._take_steps(epoch, show)
        seconds = time.perf_counter() - started
        trained = _average(results, sizes, self._evaluation.predictions)
        held_out = self._validate()
        return EpochMetrics(
            epoch,
            self._step,
            rate,
            finite(results[0].loss),
            finite(trained.loss),
            trained.accuracy,
            None if held_out is None else finite(held_out.loss),
            None if held_out is None else held_out.accuracy,
            finite(float(np.max([result.gradient_norm for result in results]))),
            seconds,
            self._count_bites(results),
        )

    def _count_bites(self, results: Sequence[StepResult]) -> dict[str, int]:
        """In how many steps with a finite loss each fuse bit."""
        bits = [result.bits for result in results if math.isfinite(result.loss)]
        counts = np.sum(bits, axis=0) if bits else np.zeros(len(self._graph.fuses), int)
        return dict(zip(self._graph.fuses, counts.tolist(), strict=True))

    def _take_steps(self, epoch: int, show: Show) -> tuple[list[StepResult], list[int], float]:
        """Run an epoch's steps; returns what each said, the size of its batch, and the last learning rate."""
        hyperparameters = self._hyperparameters
        steps = hyperparameters.epochs * self._steps_per_epoch
        results, sizes, rate, bites = [], [], 0.0, 0
        losses = [metrics.decisive_loss for metrics in self._history]
        shuffled = batches(self._indices, hyperparameters.batch_size, hyperparameters.seed, epoch)
        for indices in itertools.islice(shuffled, self._steps_per_epoch):
            rate = hyperparameters.schedule.at(Progress(self._step, self._steps_per_epoch, steps, losses))
            result = self._session.run(indices, rate, self._step)
            results.append(result)
            sizes.append(len(indices))
            if not math.isfinite(result.loss):
                self._diverged_at = self._step
                break
            self._step += 1
            bites += any(result.bits)
            show(self._step, steps, f"epoch {epoch}, loss {result.loss:.4g}{_bite_text(bites, len(results))}")
        return results, sizes, rate

    def _validate(self) -> Score | None:
        if not len(self._held_out) or self._diverged_at is not None:
            return None
        result = _score(
            self._evaluation, self._session.state, self._held_out, self._hyperparameters.batch_size
        )
        if not math.isfinite(result.loss):
            self._diverged_at = self._step
        return result

    def _end(self, folder: RunFolder | None) -> TrainingResult:
        state = self._session.arrays()
        weights = {name: state[name] for name in (*self._source.parameters, *self._source.state)}
        if self._diverged_at is None and not all(map(_is_finite, weights.values())):
            self._diverged_at = self._step
        model = with_weights(self._source, weights)
        if folder is not None:
            if self._diverged_at is None:
                model.save(folder.model)
            folder.write_status(
                "finished" if self._diverged_at is None else "diverged",
                epoch=len(self._history),
                step=self._step,
                diverged_at=self._diverged_at,
            )
        return TrainingResult(model, weights, tuple(self._history), self._diverged_at)


def with_weights(model: TrainableModel, weights: Mapping[str, Array]) -> TrainableModel:
    """A copy of `model` in which these initializers, by name, have these values."""
    clone = model.onnx.clone()
    for name, array in weights.items():
        clone.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return dataclasses.replace(model, onnx=clone)


def _is_finite(array: Array) -> bool:
    """Whether all of an array is finite, without a mask of its size."""
    return bool(np.isfinite([array.min(initial=0.0), array.max(initial=0.0)]).all())


def _bite_text(bites: int, steps: int) -> str:
    return f", fuses bit in {100 * bites / steps:.0f} %" if bites else ""


def _count_steps(model: TrainableModel, examples: int, batch_size: int) -> int:
    """Batches of an epoch; batch normalisation cannot take one of a single example."""
    fixed = fixed_batch(model)
    if fixed not in (None, batch_size):
        raise InputError(
            f"{model.inputs[0]} takes {fixed} examples at a time, and was given batches of {batch_size}",
            remedy=f"--batch-size {fixed}, or make the first axis of the ONNX input symbolic",
        )
    whole, rest = divmod(examples, batch_size)
    smallest = fixed or (2 if model.state else 1)
    steps = (whole if batch_size >= smallest else 0) + (rest >= smallest)
    if steps == 0:
        raise InputError(
            f"{examples} examples in batches of {batch_size}",
            expected=f"{fixed} examples in a batch, for which the model was exported"
            if fixed
            else "at least 2 examples in a batch, since the model has batch normalisation",
        )
    return steps


def _score(session: EvaluationSession, state: Mapping[str, Any], indices: Array, batch_size: int) -> Score:
    parts = list(consecutive(indices, batch_size))
    return _average(
        [session.run(part, state) for part in parts], [len(part) for part in parts], session.predictions
    )


def _average(results: Sequence[StepResult], sizes: Sequence[int], predictions: int) -> Score:
    """The mean over the examples of batches of these sizes, with so many predictions for each example (0: not counted)."""
    loss = float(np.average([result.loss for result in results], weights=sizes))
    correct = sum(result.correct for result in results)
    return Score(loss, correct / (predictions * sum(sizes)) if predictions else None)


def _sha256(*parts: bytes | Array) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else f"{part.dtype}{part.shape}".encode())
        digest.update(b"" if isinstance(part, bytes) else np.ascontiguousarray(part).data)
        release(part)
    return digest.hexdigest()


@contextlib.contextmanager
def _progress_bar(enabled: bool) -> Iterator[Show]:
    """A function that shows how far the training is; rich redraws ten times a second at most."""
    if not enabled:
        yield lambda done, total, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    # What is printed while the bar shows goes above it, unless standard output is a file.
    redirect = sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect) as bar:
        task = bar.add_task("training", total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)
