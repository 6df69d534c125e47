"""Running a step graph: one onnxruntime session, everything bound once, two buffers in turn for the state.

In even steps the state is read from buffer 0 and written to buffer 1, in odd steps the other way round. Nothing is allocated or
copied from step to step but the batch, which is gathered straight into the memory that the graph reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..graph.errors import InputError
from ..graph.mapping import writable
from .optimizers import Array
from .providers import onnxruntime_for, open_session
from .step_graph import EvaluationGraph, StepGraph

__all__ = ["EvaluationSession", "StepResult", "TrainingSession"]

_NEGLIGIBLE = 1e-30

_LARGE_STATE = 1 << 30
"""Bytes of state from which a parameter's gradient should not be kept until all gradients are there."""

_STEPS_BETWEEN_SWEEPS = 64
"""Steps in which momentum does not decay from negligible to subnormal."""


class StepResult(NamedTuple):
    """What one run says about its batch.

    Attributes:
        loss: Mean loss over the batch.
        gradient_norm: Euclidean norm of all parameters' gradients before the fuses on them; 0 where none is computed.
        correct: Number of right predictions; 0 where the loss knows no right and wrong.
        bits: Whether each fuse changed a gradient.
    """

    loss: float
    gradient_norm: float
    correct: int
    bits: tuple[bool, ...]


class TrainingSession:
    """The state of a training, and the session that advances it.

    Args:
        step: The graph of a step.
        data: The whole training data: an array for each of `step.data`, examples along the first axis.
        device: Where to run: `cpu` or `cuda`.
        threads: Threads within an operator; 0: one per core.
        seed: Decides, together with the number of the step, what Dropout drops.
    """

    def __init__(
        self,
        step: StepGraph,
        data: Sequence[Array],
        device: str = "cpu",
        threads: int = 0,
        seed: int = 0,
    ) -> None:
        self._step, self._device, self._seed = step, device, seed
        self._onnxruntime = onnxruntime_for(device)
        large = sum(array.nbytes for array in step.initial.values()) > _LARGE_STATE
        self._session = open_session(step.onnx, device, threads, in_order=large)
        self._batches = _Batches(data, self._onnxruntime, device)
        self._learning_rate = _Input(np.zeros((), np.float64), self._onnxruntime, device)
        self._results = _Results(
            self._onnxruntime, (step.loss, step.gradient_norm, step.correct, step.bits), len(step.fuses)
        )
        self._bindings: dict[int, tuple[Any, Any]] = {}
        self._random = step.random
        self.load(step.initial)

    def load(self, state: Mapping[str, Array]) -> None:
        """Set every part of the state.

        Raises:
            InputError: A part is missing, or has another shape or element type than at the start.
        """
        for name, initial in self._step.initial.items():
            if name not in state or (state[name].shape, state[name].dtype) != (initial.shape, initial.dtype):
                raise InputError(
                    f"the state lacks {name!r}, or has it in another form",
                    expected=f"{initial.dtype}{list(initial.shape)}",
                )
        first = {name: writable(state[name]) for name in self._step.next}
        # The other buffer is written before it is read: its memory is not touched until the first step.
        arrays = [first, {name: np.empty_like(array) for name, array in first.items()}]
        self._buffers = [
            {
                name: self._onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device)
                for name, array in buffer.items()
            }
            for buffer in arrays
        ]
        self._shared = arrays if self._device == "cpu" else None
        self._bindings.clear()
        self._current = 0

    @property
    def state(self) -> dict[str, Any]:
        """The OrtValues that hold the present state, on the device; the next step but one overwrites them."""
        return self._buffers[self._current]

    def copy_state(self) -> dict[str, Array]:
        """The present state as arrays of their own."""
        return {name: np.array(array) for name, array in self.arrays().items()}

    def arrays(self) -> dict[str, Array]:
        """The present state as arrays, on the CPU without a copy; the next step but one overwrites them."""
        if self._shared is not None:
            return dict(self._shared[self._current])
        return {name: value.numpy() for name, value in self.state.items()}

    def run(self, indices: Array, learning_rate: float, step: int = 0) -> StepResult:
        """Take one step.

        Args:
            indices: Positions of the batch's examples in the data, int64.
            learning_rate: Of this step.
            step: Its number, counting from 0: what Dropout drops depends on it, and when the memory is swept.
        """
        if self._random:
            # A seed for each step lets an interrupted training go on exactly as it would have gone on.
            (word,) = np.random.SeedSequence([self._seed, step]).generate_state(1)
            self._onnxruntime.set_seed(int(word))
        self._batches.fill(indices)
        self._learning_rate.send(learning_rate)
        size = len(indices)
        if size not in self._bindings:
            self._bindings[size] = self._bind(size, 0), self._bind(size, 1)
        self._session.run(self._bindings[size][self._current])
        self._current = 1 - self._current
        if (step + 1) % _STEPS_BETWEEN_SWEEPS == 0:
            self._drop_subnormals()
        return self._results.read()

    def _drop_subnormals(self) -> None:
        """Set to zero what the optimizer remembers below 1e-30, where its device is the CPU.

        Where a gradient stays zero, as behind a dead ReLU, momentum decays to subnormal numbers and stays there; a CPU takes a
        hundred times as long for them. onnxruntime could flush them, but would then do so to all that this thread computes.
        """
        if self._shared is not None:
            for name in self._step.memory:
                array = self._shared[self._current][name]
                np.multiply(array, np.abs(array) >= _NEGLIGIBLE, out=array)

    def _bind(self, size: int, current: int) -> Any:
        """The binding that reads buffer `current`, writes the other, and takes batches of `size`."""
        binding = self._session.binding()
        for spec, batch in zip(self._step.data, self._batches.inputs(size), strict=True):
            binding.bind_ortvalue_input(spec.name, batch.value)
        binding.bind_ortvalue_input(self._step.learning_rate, self._learning_rate.value)
        for name, output in self._step.next.items():
            binding.bind_ortvalue_input(name, self._buffers[current][name])
            binding.bind_ortvalue_output(output, self._buffers[1 - current][name])
        self._results.bind(binding)
        return binding


class EvaluationSession:
    """Loss and accuracy of a model on data, without training.

    Args:
        graph: The graph to evaluate.
        data: The whole data: an array for each of `graph.data`, examples along the first axis.
        device: Where to run: `cpu` or `cuda`.
        threads: Threads within an operator; 0: one per core.

    Attributes:
        predictions: Number of predictions for each example; 0 where none is right or wrong.
    """

    def __init__(
        self, graph: EvaluationGraph, data: Sequence[Array], device: str = "cpu", threads: int = 0
    ) -> None:
        self._graph = graph
        self._onnxruntime = onnxruntime_for(device)
        self._session = open_session(graph.onnx, device, threads)
        self._batches = _Batches(data, self._onnxruntime, device)
        self._results = _Results(self._onnxruntime, (graph.loss, None, graph.correct, None))
        self.predictions = math.prod(data[-1].shape[1:]) if graph.correct else 0

    def run(self, indices: Array, state: Mapping[str, Any]) -> StepResult:
        """Evaluate one batch.

        Args:
            indices: Positions of the batch's examples in the data, int64.
            state: An OrtValue on the device for each of the graph's parameters and running statistics.
        """
        self._batches.fill(indices)
        binding = self._session.binding()
        for spec, batch in zip(self._graph.data, self._batches.inputs(len(indices)), strict=True):
            binding.bind_ortvalue_input(spec.name, batch.value)
        for name in self._graph.state:
            binding.bind_ortvalue_input(name, state[name])
        self._results.bind(binding)
        self._session.run(binding)
        return self._results.read()


class _Input:
    """A host array, and the device tensor that shares its memory (CPU) or takes copies of it (other devices)."""

    def __init__(self, array: Array, onnxruntime: Any, device: str) -> None:
        self.array, self._shared = array, device == "cpu"
        self.value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device)

    def send(self, number: float | None = None) -> None:
        """Let the device see the array, after setting it to `number` where one is given."""
        if number is not None:
            self.array[...] = number
        if not self._shared:
            self.value.update_inplace(self.array)


class _Batches:
    """Room for one batch of each size that occurs, filled by gathering rows of the data."""

    def __init__(self, data: Sequence[Array], onnxruntime: Any, device: str) -> None:
        self._data, self._onnxruntime, self._device = data, onnxruntime, device
        self._inputs: dict[int, list[_Input]] = {}

    def inputs(self, size: int) -> list[_Input]:
        """The inputs for batches of `size`."""
        if size not in self._inputs:
            self._inputs[size] = [
                _Input(np.empty((size, *array.shape[1:]), array.dtype), self._onnxruntime, self._device)
                for array in self._data
            ]
        return self._inputs[size]

    def fill(self, indices: Array) -> None:
        """Gather the rows at `indices` into the inputs for as many."""
        for source, batch in zip(self._data, self.inputs(len(indices)), strict=True):
            # mode="clip" writes straight into `out`; the default goes through a buffer.
            np.take(source, indices, axis=0, out=batch.array, mode="clip")
            batch.send()


class _Results:
    """The small outputs: loss, gradient norm, right predictions, bits of the fuses. They are on the host, whichever the device.

    Args:
        onnxruntime: The module.
        names: Name of each output; None where the graph has none.
        fuses: Number of fuses.
    """

    def __init__(self, onnxruntime: Any, names: Sequence[str | None], fuses: int = 0) -> None:
        shapes = {(): (np.float32, np.float32, np.int64), (fuses,): (np.bool_,)}
        self._arrays = [np.zeros(shape, dtype) for shape, dtypes in shapes.items() for dtype in dtypes]
        self._values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu")
            for name, array in zip(names, self._arrays, strict=True)
            if name is not None
        }

    def bind(self, binding: Any) -> None:
        """Have a run write them."""
        for name, value in self._values.items():
            binding.bind_ortvalue_output(name, value)

    def read(self) -> StepResult:
        """The numbers that the last run wrote."""
        loss, gradient_norm, correct, bits = self._arrays
        return StepResult(loss.item(), gradient_norm.item(), correct.item(), tuple(bits.tolist()))
