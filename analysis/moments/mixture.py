"""Gradients of a network that gathers its examples into groups, from several normal laws that make up that of its inputs.

Every layer takes what it receives as normal. Training gathers examples around few centres: between them, where a normal law
puts many, there are hardly any, and gradients are largest. So the input is taken apart, x = a + e with a ~ N(mean, s variance)
and e ~ N(0, (1 - s) variance). Given a, each layer is nearer to a normal law, and over draws of a moments add up (Gaussian
sums: Alspach and Sorenson 1972; the law of total expectation), with G the gradient of one example and M_a = E[G | a]:

    E G^2 = E_a E[G^2 | a]          (E G)^2 = E M_a M_b of independent a and b, without bias from few draws

Nothing is executed: what is propagated are the moments given a. Batch normalisation takes its statistics over all laws, which
are therefore followed together, and couples their gradients (`constraint`). Weights that were drawn and not trained need one
law alone. Training shows in outputs that differ from example to example, or in a weight `[n, m]` with a singular value beyond
those of independent elements, deviation (sqrt n + sqrt m) (Bai and Yin 1993; Martin and Mahoney 2021).

Sequences are taken apart token by token where their tokens meet in sums alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ...graph.gradients.normalization import BATCH_STATISTICS
from .blocks import aligned, mean_square
from .budget import propagation_seconds
from .elementwise_op import is_floating
from .engine import Assumptions, Propagation, propagate_together
from .forward_graph import has_recurrent_nodes
from .quadrature import Array
from .state import GradientSummary, Moments

__all__ = ["LAWS", "gathers_examples", "mixed", "of_laws"]

LAWS = 16
"""Normal laws that the inputs' is made up of: pairs of a and -a."""

_SHARE = {1: 0.75, 2: 0.9}
"""Share of the variance that a has, by the axes of an example: the tokens of a sequence are draws of their own."""

_MAX_NUMBERS = 100_000_000
"""Numbers that may be held at once: covariances, functions at their nodes and parameters' gradients, under all laws that are
followed together.
"""

_DECIDED = 1.0, 100.0
"""Variance of the outputs about their mean from which on a softmax is no longer nearly linear, and beyond which no training on
labels brings it: weights that explode as they were drawn.
"""

_BEYOND = 1.15
"""Largest singular value of a weight over that of independent elements from which on it was trained; of small matrices that
were not, it is up to 1.06.
"""

_NOTHING = float(np.finfo(np.float64).eps)
"""Share of the mean square under several laws that is none under one."""

_PRODUCTS = 30
"""Products with a weight that find its largest singular value."""


def mixed(state: Propagation) -> Propagation:
    """Gradients by several laws where one law is not enough and they fit the budget; the values stay those of one law."""
    value = _dense_input(state)
    if value is None or not _fits(state) or not gathers_examples(state):
        return state
    return of_laws(state, list(_laws(state, value)))


def gathers_examples(state: Propagation) -> bool:
    """Whether one law is not enough: examples are vectors or sequences, the network was trained, every op of it has a rule."""
    if _dense_input(state) is None or any(note.is_unknown for note in state.notes):
        return False
    return _decides(state) or _has_learned(state)


def of_laws(state: Propagation, pairs: Sequence[tuple[Assumptions, Assumptions]]) -> Propagation:
    """The same with the gradients of inputs that follow each of these laws equally often.

    Args:
        state: By one law.
        pairs: Laws; those of different pairs are independent draws.
    """
    total, laws = _Total(len(pairs)), [law for pair in pairs for law in pair]
    together = [laws] if _normalises_batches(state) else pairs
    for some in together:
        states = propagate_together(state.gradients, some, means=True)
        for first, second in zip(states[::2], states[1::2], strict=True):
            total.add([first, second])
    return replace(
        state,
        arrived={value: total.arrived(value, held) for value, held in state.arrived.items()},
        shared={value: total.shared(value, held) for value, held in state.shared.items()},
        laws=sum(len(pair) for pair in pairs),
    )


def _normalises_batches(state: Propagation) -> bool:
    return any(BATCH_STATISTICS in node.metadata_props for node in state.nodes)


def _dense_input(state: Propagation) -> ir.Value | None:
    """The only input, where an example of it is a vector of numbers, which no places in a table are, or a few of them."""
    inputs = [v for v, m in state.values.items() if v.producer() is None and isinstance(m, Moments)]
    if len(inputs) != 1 or not is_floating(inputs[0]):
        return None
    rank = len(_moments(state, inputs[0]).shape)
    return inputs[0] if rank == 1 or (rank in _SHARE and not _mixes_tokens(state)) else None


def _mixes_tokens(state: Propagation) -> bool:
    """Whether tokens meet in more than sums: in a recurrence, whose steps one law follows well, or in products."""
    products = (node for node in state.nodes if node.op_type in ("MatMul", "Einsum"))
    return has_recurrent_nodes(state.gradients) or any(
        all(isinstance(state.values.get(value), Moments) for value in node.inputs if value is not None)
        for node in products
    )


def _decides(state: Propagation) -> bool:
    output = _moments(state, state.output)
    spread = np.mean(output.variance) - (0.0 if output.covariance is None else np.mean(output.covariance))
    return bool(_DECIDED[0] < spread < _DECIDED[1])


def _has_learned(state: Propagation) -> bool:
    """Whether a weight of a dense layer has a direction that independent elements have not."""
    layers = (node for node in state.nodes if node.op_type in ("Gemm", "MatMul"))
    weights = [state.values[v] for node in layers for v in node.inputs[1:2] if v in state.values]
    return any(_beyond(w) > _BEYOND for w in weights if isinstance(w, np.ndarray) and w.ndim == 2)


def _beyond(weight: Array) -> float:
    """Largest singular value over that of independent elements, by power iteration, of float32 weights in float32."""
    weight, vector = aligned(weight), np.random.default_rng(0).standard_normal(weight.shape[1])
    vector = vector.astype(np.float32) if weight.dtype == np.float32 else vector
    for _ in range(_PRODUCTS):
        vector = weight.T @ (weight @ vector)
        vector = vector / max(float(np.linalg.norm(vector)), float(np.finfo(np.float32).tiny))
    edge = np.sqrt(mean_square(weight)) * sum(np.sqrt(weight.shape))
    return float(np.linalg.norm(weight @ vector) / edge) if edge > 0 else 0.0


def _moments(state: Propagation, value: ir.Value) -> Moments:
    moments = state.values[value]
    assert isinstance(moments, Moments)
    return moments


def _fits(state: Propagation) -> bool:
    seconds = propagation_seconds(state.values, state.full_covariance, state.all_steps)
    moments = [value for value in state.values.values() if isinstance(value, Moments)]
    numbers = sum(each.covariance.size for each in moments if each.covariance is not None)
    numbers += sum(each.curve.values.size for each in moments if each.curve is not None)
    numbers += sum(state.gradients.source.sizes.values())
    together = LAWS if _normalises_batches(state) else 2
    return LAWS * seconds <= state.assumptions.budget and together * numbers <= _MAX_NUMBERS


def _laws(state: Propagation, value: ir.Value) -> Iterator[tuple[Assumptions, Assumptions]]:
    x, rng = _moments(state, value), np.random.default_rng(0)
    share = _SHARE[len(x.shape)]
    for _ in range(LAWS // 2):
        a = np.sqrt(share * x.variance) * rng.standard_normal(x.shape)
        first, second = (
            replace(state.assumptions, mean=x.mean + sign * a, variance=(1.0 - share) * x.variance)
            for sign in (1.0, -1.0)
        )
        yield first, second


@dataclass
class _Total:
    """What the laws' propagations add up to, by the names of tensors."""

    pairs: int
    second: defaultdict[str | None, float] = field(default_factory=lambda: defaultdict(float))
    largest: defaultdict[str | None, float] = field(default_factory=lambda: defaultdict(float))
    means: dict[str | None, Array] = field(default_factory=dict)
    squares: defaultdict[str | None, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, states: Sequence[Propagation]) -> None:
        """Those of one pair."""
        share = 1.0 / (self.pairs * len(states))
        for state in states:
            for value, summary in (*state.arrived.items(), *state.shared.items()):
                self.second[value.name] += share * (summary.means + summary.variances)
                self.largest[value.name] = float(np.maximum(self.largest[value.name], summary.largest))
        means = [{value.name: mean for value, mean in state.means.items()} for state in states]
        for name in means[0]:
            mean = np.mean([gradients[name] for gradients in means], 0) / self.pairs
            self.means[name] = self.means.get(name, 0.0) + mean
            self.squares[name] += float(np.sum(mean**2))

    def arrived(self, value: ir.Value, held: GradientSummary) -> GradientSummary:
        """Of a tensor that depends on the example; its mean is that of one law."""
        second = self.second[value.name]
        means = min(held.means, second)
        return GradientSummary(means, second - means, self.largest[value.name], held.size)

    def shared(self, value: ir.Value, held: GradientSummary) -> GradientSummary:
        """Of a tensor that does not."""
        if value.name not in self.means or held.mean_square(1) <= _NOTHING * self.second[value.name]:
            return held  # what is 0 in every batch need not be so under every law
        second, squares = self.second[value.name], self.squares[value.name]
        coherent = (float(np.sum(self.means[value.name] ** 2)) - squares) * self.pairs / (self.pairs - 1)
        means = float(np.clip(coherent, 0.0, second))
        return GradientSummary(means, second - means, self.largest[value.name], held.size)
