"""Carries moments forward through a gradient graph's forward part, and gradient moments back. Nothing is executed.

The engine does once what every rule would otherwise repeat: it follows shared tensors (weights, and what is computed
from weights alone), finds the latent of a chain of elementwise ops, adds up what several consumers send back, and
passes an op that no rule knows, saying so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from ...graph.errors import InputError
from ...graph.gradient_graph import GradientGraph
from ...graph.gradients.engine import DIFFERENTIATES, operands_of
from ...graph.gradients.normalization import BATCH_STATISTICS
from ...graph.losses import base_name
from ...graph.mapping import release
from .budget import all_steps_plan, covariance_plan
from .curves import Seed, as_latent, through
from .drawing import Drawing
from .elementwise_op import evaluate_node, is_floating, partial_derivatives
from .errors import UnknownTransferError
from .forward_graph import forward_graph
from .loss import HEADS, output_gradient
from .quadrature import NODES, Array
from .site import Backward, Batch, Contribution, Operand, Site, arrays_of, batch_axis, example_shape
from .state import GradientByRows, GradientMoments, GradientSummary, Moments, ParameterGradient
from .transfer import elementwise, shape, unknown
from .transfer.linear import static_gemm_backward
from .transfer.table import MOVES, TABLE

__all__ = ["Assumptions", "Note", "Propagation", "propagate", "propagate_together"]


@dataclass(frozen=True)
class Assumptions:
    """What a prediction takes for granted.

    Attributes:
        batch_size: Examples in a batch.
        mean: Mean of every input element, or an array that broadcasts against one example's shape, `[C, 1, 1]` for one
            number per channel of an image.
        variance: Variance of every input element, in the same way.
        label_frequencies: Share of each class among the labels of cross-entropy, `[classes]`; None for equal shares.
        budget: Seconds that may be spent on full covariances, and again on remedies, by an estimate from shapes.
    """

    batch_size: int = 32
    mean: float | Array = 0.0
    variance: float | Array = 1.0
    label_frequencies: Array | None = None
    budget: float = 10.0


@dataclass(frozen=True)
class Note:
    """An approximation that the propagation made at a node, in words."""

    node: ir.Node
    text: str

    @property
    def is_unknown(self) -> bool:
        """Whether no rule carried the moments: gradients behind the node are a guess."""
        return unknown.APPROXIMATION in self.text


@dataclass
class Propagation:
    """The moments of every tensor on the way from the inputs to the loss.

    Attributes:
        gradients: The graph.
        assumptions: What was taken for granted.
        graph: The graph that is followed (`forward_graph`).
        nodes: The forward nodes that the loss depends on, in order.
        output: The model's output that the loss is taken of.
        values: Moments of each tensor that depends on the example, in the end without the covariances between channels of
            those with positions; the value of each that does not.
        arrived: What is kept of the gradient of each tensor that depends on the example.
        shared: Gradient of each tensor that does not.
        notes: Approximations.
        full_covariance: For each layer with a weight matrix, whether the covariance between its channels was carried within
            the budget, or only the variance of each.
        all_steps: The recurrent layers of which it was carried for all channels of all steps.
        memory: What rules keep from the forward pass for the backward pass.
        means: Mean gradients of tensors that do not depend on the example, element by element, where they were asked for.
        laws: How many laws of the inputs the gradients are the mean of (see `mixture`).
    """

    gradients: GradientGraph
    assumptions: Assumptions
    graph: ir.Graph
    nodes: tuple[ir.Node, ...]
    output: ir.Value
    values: dict[ir.Value, Operand] = field(default_factory=dict)
    arrived: dict[ir.Value, GradientSummary] = field(default_factory=dict)
    shared: dict[ir.Value, GradientSummary] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    full_covariance: Mapping[ir.Node, bool] = field(default_factory=dict)
    all_steps: frozenset[ir.Node] = frozenset()
    memory: dict[ir.Node, object] = field(default_factory=dict, repr=False)
    means: dict[ir.Value, Array] = field(default_factory=dict, repr=False)
    laws: int = 1

    def site(
        self,
        node: ir.Node,
        operands: tuple[Operand, ...],
        results: tuple[Moments, ...] = (),
        batch: Batch | None = None,
    ) -> Site:
        """What a rule sees of `node`."""
        full = self.full_covariance.get(node, False)
        every = node in self.all_steps
        return Site(
            node, operands, results, self.assumptions.batch_size, full, every, batch or Batch(), self.memory
        )


def propagate(gradients: GradientGraph, assumptions: Assumptions) -> Propagation:
    """Moments of every value and gradient of `gradients` at the present weights."""
    return propagate_together(gradients, [assumptions])[0]


def propagate_together(
    gradients: GradientGraph, laws: Sequence[Assumptions], *, means: bool = False
) -> list[Propagation]:
    """The same for several laws of the inputs, of whose examples every batch holds equally many.

    Args:
        gradients: The graph.
        laws: What is taken for granted of each; they differ in mean and variance alone.
        means: Whether to keep each element of the parameters' mean gradients.
    """
    graph, output = forward_graph(gradients)
    nodes = _ancestors(graph, output)
    plan = covariance_plan(nodes, laws[0].budget)
    all_steps = all_steps_plan(plan, laws[0].budget)
    states = [
        Propagation(gradients, law, graph, nodes, output, full_covariance=plan, all_steps=all_steps)
        for law in laws
    ]
    drawings = [Drawing(nodes, state.values) for state in states]
    with np.errstate(all="ignore"):
        _forward([_Forward(state, drawing) for state, drawing in zip(states, drawings, strict=True)], nodes)
        _backward(
            [_Backward(state, drawing, means) for state, drawing in zip(states, drawings, strict=True)], nodes
        )
    return states


def _forward(laws: Sequence[_Forward], nodes: Sequence[ir.Node]) -> None:
    for law in laws:
        law.start()
    for node in nodes:
        inputs = _inputs(node, laws)
        for law in laws:
            law.step(node, Batch(inputs))


def _backward(laws: Sequence[_Backward], nodes: Sequence[ir.Node]) -> None:
    for law in laws:
        law.start()
    for node in reversed(nodes):
        inputs = _inputs(node, laws)
        arrived = [law.gathered(node.outputs[0]) for law in laws] if inputs else []
        batch = Batch(inputs, tuple(gradient for gradient in arrived if gradient is not None))
        for law in laws:
            law.step(node, batch)
    for law in laws:
        law.finish()


def _inputs(node: ir.Node, laws: Sequence[_Forward] | Sequence[_Backward]) -> tuple[Moments, ...]:
    """The first input under every law, for the rules that see more of a batch than one law; none where there is but one."""
    if len(laws) == 1 or not node.inputs or node.op_type not in OF_BATCHES:
        return ()
    x = node.inputs[0]
    values = [] if x is None else [law.values.get(x) for law in laws]
    return tuple(held for held in values if isinstance(held, Moments))


def differentiable_inputs(node: ir.Node) -> Sequence[ir.Value | None]:
    """The inputs that moments flow through, and what bodies of control flow take from outside.

    The statistics of a batch belong to its BatchNormalization.
    """
    return node.inputs[:3] if BATCH_STATISTICS in node.metadata_props else operands_of(node)


def _ancestors(graph: ir.Graph, output: ir.Value) -> tuple[ir.Node, ...]:
    needed, kept = {output}, []
    for node in reversed(list(graph)):
        if DIFFERENTIATES not in node.metadata_props and any(value in needed for value in node.outputs):
            kept.append(node)
            needed.update(value for value in differentiable_inputs(node) if value is not None)
    return tuple(reversed(kept))


class _Forward:
    """Values, from the inputs to the output."""

    def __init__(self, state: Propagation, drawing: Drawing) -> None:
        self.state, self.values, self.drawing = state, state.values, drawing
        self.latents: dict[str, ir.Value] = {}

    def start(self) -> None:
        """The inputs."""
        for spec in self.state.gradients.source.inputs:
            value = next((v for v in self.state.graph.inputs if v.name == spec.name), None)
            if value is not None:
                self.values[value] = self._input(value)

    def step(self, node: ir.Node, batch: Batch) -> None:
        """What a node makes of its inputs."""
        for value, moments in zip(node.outputs, self._node(node, batch), strict=False):
            self.values[value] = moments
        self.drawing.note_root(node)
        _release_weights(node, self.values)

    def _input(self, value: ir.Value) -> Moments:
        shape = example_shape(value)
        assumed = self.state.assumptions
        return Moments(
            _filled("mean", assumed.mean, value, shape), _filled("variance", assumed.variance, value, shape)
        )

    def _operand(self, value: ir.Value | None) -> Operand:
        if value is None:
            return None
        if value not in self.values:
            assert value.const_value is not None, f"{value.name} has neither a producer nor a value"
            self.values[value] = value.const_value.numpy()
        return self.values[value]

    def _node(self, node: ir.Node, batch: Batch) -> Sequence[Operand]:
        operands = tuple(self._operand(value) for value in differentiable_inputs(node))
        if node.op_type == "CastLike":  # its second input gives a type only
            return [_cast(node, operands[0])]
        if node.op_type in ("Shape", "Size") and isinstance(operands[0], Moments):
            # Shapes are those of a batch of one example.
            return evaluate_node(node, [_one_example(node.inputs[0], operands[0])])
        if node.op_type == "Dropout" and isinstance(operands[0], np.ndarray):
            # What is dropped varies, even from something that does not: masks of whole channels are made so.
            operands = (Moments(operands[0][0], np.zeros(operands[0].shape[1:])), *operands[1:])
        site = self.state.site(node, operands, batch=batch)
        try:
            if not site.varying:
                return evaluate_node(node, arrays_of(operands))
            results = self._known(site)
            _check_shapes(node, results)
        except UnknownTransferError as error:
            self.state.notes.append(Note(node, f"{error}; {unknown.APPROXIMATION}"))
            return unknown.forward(site, [example_shape(value) for value in node.outputs])
        self.state.notes.extend(Note(node, text) for text in site.notes)
        return results

    def _known(self, site: Site) -> Sequence[Moments]:
        if self.drawing.starts_at(site.node, site.operands):
            return self.drawing.forward(site.node, [example_shape(value) for value in site.node.outputs])
        if site.node.op_type in elementwise.OPS and site.node.domain == "":
            return self._elementwise(site)
        return self._transfer(site, "no rule carries moments through it")

    def _transfer(self, site: Site, otherwise: str) -> Sequence[Moments]:
        entry = TABLE.get(site.node.op_type) if site.node.domain == "" else None
        if entry is None:
            raise UnknownTransferError(otherwise)
        return entry.forward(site)

    def _elementwise(self, site: Site) -> Sequence[Moments]:
        inputs = differentiable_inputs(site.node)
        latents = {self._latent_name(inputs[index]) for index in site.varying}
        shape = {site.moments(index).shape for index in site.varying} | {_broadcast_shape(site)}
        if len(latents) > 1 or len(shape) > 1:
            if site.node.op_type in elementwise.INDEPENDENT:
                return elementwise.independent_forward(site)
            return self._transfer(site, "its operands are no functions of one Gaussian")
        for index in site.varying:
            value = inputs[index]
            assert value is not None
            if site.moments(index).curve is None:
                self.values[value] = as_latent(value.name or "", site.moments(index))
                self.latents[value.name or ""] = value
        operands, name = tuple(self._operand(value) for value in inputs), latents.pop()
        alone = self._goes_on(site.node.outputs[0], name)
        return elementwise.forward(replace(site, operands=operands), self._latent(name), alone=alone)

    def _goes_on(self, value: ir.Value, latent: str) -> bool:
        """Whether nothing but further functions of the same latent reads a value."""
        readers = [node for node, _ in value.uses() if DIFFERENTIATES not in node.metadata_props]
        others = {v for node in readers for v in node.inputs if v is not None and v is not value}
        return (
            bool(readers)
            and value is not self.state.output
            and all(node.op_type in elementwise.OPS and node.domain == "" for node in readers)
            and all(self._is_static(v) or self._follows(v, latent) for v in others)
        )

    def _is_static(self, value: ir.Value) -> bool:
        return value.const_value is not None or isinstance(self.values.get(value), np.ndarray)

    def _follows(self, value: ir.Value, latent: str) -> bool:
        return isinstance(self.values.get(value), Moments) and self._latent_name(value) == latent

    def _latent_name(self, value: ir.Value | None) -> str:
        assert value is not None
        moments = self.values[value]
        assert isinstance(moments, Moments)
        return (value.name or "") if moments.curve is None else moments.curve.latent

    def _latent(self, name: str) -> Moments:
        moments = self.values[self.latents[name]]
        assert isinstance(moments, Moments)
        return moments


class _Backward:
    """Gradients, from the output to the inputs and parameters."""

    def __init__(self, state: Propagation, drawing: Drawing, means: bool) -> None:
        self.state, self.values, self.drawing = state, state.values, drawing
        self.plain: dict[ir.Value, GradientMoments] = {}
        self.seeds: dict[ir.Value, dict[int, Seed]] = defaultdict(dict)
        self.by_name = {value.name: value for value in state.values}
        self.trained = _made_of_parameters(state)
        self.keeps_means, self.read_once = means, set() if means else _read_once(state)
        self.shared: dict[ir.Value, ParameterGradient] = {}

    def start(self) -> None:
        """The gradient of the output."""
        output = self.state.output
        moments = self.values[output]
        assert isinstance(moments, Moments)
        self.plain[output] = output_gradient(
            self.state.gradients.loss, moments, self.state.assumptions.label_frequencies
        )
        self._note_unlisted_loss(output)

    def step(self, node: ir.Node, batch: Batch) -> None:
        """What a node's inputs receive."""
        self._node(node, batch)
        for value in node.outputs:
            self.plain.pop(value, None)
            self.seeds.pop(value, None)
            self._forget_pairs(value)
        self.drawing.forget(node.outputs)
        _release_weights(node, self.values)

    def gathered(self, value: ir.Value) -> GradientMoments | None:
        """What has arrived at a tensor whose chains end here, added up once."""
        total = self._settle(value)
        if total is not None:
            self.plain[value] = total
            self.seeds.pop(value, None)
        return total

    def finish(self) -> None:
        """What is kept of the inputs and parameters."""
        for value in list(self.values):
            if value.producer() is None and isinstance(self.values[value], Moments):
                self._settle(value)
        self.state.shared.update((value, gradient.summary()) for value, gradient in self.shared.items())
        if self.keeps_means:
            self.state.means.update((value, gradient.mean) for value, gradient in self.shared.items())

    def _forget_pairs(self, value: ir.Value) -> None:
        """At all lags they take most of the memory, and no gradient asks for them behind the value's own node."""
        moments = self.values.get(value)
        if isinstance(moments, Moments) and value is not self.state.output:
            self.values[value] = moments.apart

    def _note_unlisted_loss(self, output: ir.Value) -> None:
        name, producer = self.state.gradients.loss, output.producer()
        if base_name(name) not in HEADS and producer is not None:
            text = f"the loss {name} is none whose gradient is known; it is taken as the mean square's"
            self.state.notes.append(Note(producer, text))

    def _node(self, node: ir.Node, batch: Batch) -> None:
        inputs = differentiable_inputs(node)
        operands = tuple(None if value is None else self.values[value] for value in inputs)
        results = tuple(self.values.get(value) for value in node.outputs)
        if not any(isinstance(result, Moments) for result in results):
            self._static(node, operands)
        elif self._is_drawn(node):
            self._drawn(node)
        elif self._is_on_curve(node.outputs[0]):
            self._curve(node, operands)
        else:
            self._transfer(node, operands, results, batch)

    def _is_on_curve(self, value: ir.Value) -> bool:
        moments = self.values[value]
        return (
            isinstance(moments, Moments) and moments.curve is not None and moments.curve.latent != value.name
        )

    def _is_drawn(self, node: ir.Node) -> bool:
        value = node.outputs[0]
        if node in self.drawing.nodes:
            return True
        return value not in self.seeds and self.drawing.goes_back(node, self.plain.get(value))

    def _drawn(self, node: ir.Node) -> None:
        gradients = [self._settle(value) for value in node.outputs]
        if all(gradient is None for gradient in gradients):
            return
        try:
            received = self.drawing.backward(node, gradients)
        except UnknownTransferError as error:
            self.state.notes.append(Note(node, f"{error}; {unknown.APPROXIMATION}"))
            operands = tuple(None if value is None else self.values[value] for value in node.inputs)
            received = unknown.backward(self.state.site(node, operands), gradients)
        for value, contribution in zip(node.inputs, received, strict=False):
            self._add(value, contribution)

    def _transfer(
        self, node: ir.Node, operands: tuple[Operand, ...], results: Sequence[Operand], batch: Batch
    ) -> None:
        gradients = [self._settle(value) for value in node.outputs]
        if all(gradient is None for gradient in gradients):
            return
        moments = tuple(result for result in results if isinstance(result, Moments))
        site = self.state.site(node, operands, moments, batch)
        for value, contribution in zip(
            differentiable_inputs(node), self._rule(site)(site, gradients), strict=False
        ):
            self._add(value, contribution)

    def _rule(self, site: Site) -> Backward:
        if any(note.node is site.node and note.is_unknown for note in self.state.notes):
            return unknown.backward
        if site.node.op_type in elementwise.INDEPENDENT:
            return elementwise.independent_backward
        return TABLE[site.node.op_type].backward

    def _curve(self, node: ir.Node, operands: tuple[Operand, ...]) -> None:
        value = node.outputs[0]
        moments = self.values[value]
        assert isinstance(moments, Moments)
        assert moments.curve is not None
        latent = self.values[self.by_name[moments.curve.latent]]
        assert isinstance(latent, Moments)
        # Of what lies within a chain only the element's own moments are kept.
        self._settle(value, replace(latent, covariance=None, channels=None))
        seeds = dict(self.seeds.pop(value, {}))
        if value in self.plain:
            own = self.drawing.settled(value, self.plain[value])
            seeds[id(own)] = Seed(own, moments.curve.values, np.ones((NODES.size, *[1] * len(latent.shape))))
        if not seeds:
            return
        site = self.state.site(node, operands, (moments,))
        received = elementwise.backward(site, list(seeds.values()), latent)
        for target, contribution in zip(differentiable_inputs(node), received, strict=True):
            if isinstance(contribution, list):
                assert target is not None
                for seed in contribution:
                    self._add_seed(target, seed)
            else:
                self._add(target, contribution)

    def _add_seed(self, value: ir.Value, seed: Seed) -> None:
        """Paths from one end of a chain add up before they are squared."""
        key, held = id(seed.gradient), self.seeds[value]
        held[key] = replace(seed, slope=held[key].slope + seed.slope) if key in held else seed

    def _add(self, value: ir.Value | None, contribution: Contribution) -> None:
        if value is None or contribution is None or not is_floating(value):
            return
        if isinstance(contribution, ParameterGradient | GradientByRows):
            self._add_shared(value, contribution)
        elif isinstance(contribution, Seed):
            self._add_seed(value, contribution)
        else:
            held = self.plain.get(value)
            self.plain[value] = contribution if held is None else held + contribution

    def _add_shared(self, value: ir.Value, contribution: ParameterGradient | GradientByRows) -> None:
        """Of a weight that is read once, only what is kept in the end is worked out."""
        if value not in self.trained:
            return
        if value in self.read_once:
            self.state.shared[value] = contribution.summary()
        else:
            whole, earlier = contribution.whole(), self.shared.get(value)
            self.shared[value] = whole if earlier is None else earlier + whole

    def _settle(self, value: ir.Value, latent: Moments | None = None) -> GradientMoments | None:
        """Add up what has arrived at a tensor, from the ends of its chains too."""
        moments = self.values.get(value)
        if not isinstance(moments, Moments):
            return None
        total = self.plain.get(value)
        for seed in self.seeds.get(value, {}).values():
            passed = through(seed, latent or moments)
            total = passed if total is None else total + passed
        if total is not None:
            total = self.drawing.settled(value, total)
            self.state.arrived[value] = total.summary()
        return total

    def _static(self, node: ir.Node, operands: tuple[Operand, ...]) -> None:
        """Weights that are moved or scaled before they are used."""
        moved = node.outputs[0]
        if moved in self.read_once and moved in self.state.shared and node.inputs[0] is not None:
            self.state.shared[node.inputs[0]] = self.state.shared[moved]
            return
        gradients = [self.shared.get(value) for value in node.outputs]
        integers = node.outputs[0].dtype is not None and not node.outputs[0].dtype.is_floating_point()
        if integers or node.outputs[0] not in self.trained or all(g is None for g in gradients):
            return
        site = self.state.site(node, operands)
        for value, contribution in zip(node.inputs, self._shared(site, gradients), strict=False):
            self._add(value, contribution)

    def _shared(self, site: Site, gradients: Sequence[ParameterGradient | None]) -> Sequence[Contribution]:
        if site.node.op_type == "CastLike":
            return gradients
        if site.node.op_type in MOVES:
            return shape.static_backward(site, gradients)
        if site.node.op_type in elementwise.OPS and gradients[0] is not None:
            return _scaled(site.node, site.operands, gradients[0])
        if site.node.op_type == "Gemm":
            return static_gemm_backward(site, gradients)
        text = f"no rule carries gradients of weights through it; {unknown.APPROXIMATION}"
        self.state.notes.append(Note(site.node, text))
        return unknown.backward(site, gradients)


def _made_of_parameters(state: Propagation) -> set[ir.Value]:
    """Tensors that depend on a parameter; the gradients of others, such as masks, are of no use."""
    found = {value for value in state.values if value.name in state.gradients.source.parameters}
    for node in state.nodes:
        if any(value in found for value in node.inputs if value is not None):
            found.update(node.outputs)
    return found


def _release_weights(node: ir.Node, values: Mapping[ir.Value, Operand]) -> None:
    """Keep no more of a mapped file in memory than the node at hand reads."""
    for value in node.inputs:
        if value is not None and isinstance(values.get(value), np.ndarray):
            release(values[value])


def _read_once(state: Propagation) -> set[ir.Value]:
    """Parameters that one node reads, be it a node that only puts them in another order."""
    readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in state.nodes:
        for value in node.inputs:
            if value is not None:
                readers[value].append(node)
    found = {value for value in readers if value.producer() is None and len(readers[value]) == 1}
    for node in state.nodes:
        if node.op_type in REORDERED and node.inputs[0] in found and len(readers[node.outputs[0]]) == 1:
            found.update(node.outputs)
    # What is read by another node than these is asked for element by element.
    for node in reversed(state.nodes):
        if not isinstance(state.values.get(node.outputs[0]), Moments) and node.outputs[0] not in found:
            found.difference_update(value for value in node.inputs if value is not None)
    return found


def _filled(what: str, assumed: float | Array, value: ir.Value, shape: tuple[int, ...]) -> Array:
    try:
        return np.broadcast_to(np.asarray(assumed, np.float64), shape)
    except ValueError as error:
        raise InputError(
            f"an input {what} of shape {list(np.shape(assumed))} does not fit {value.name}",
            expected=f"a number, or an array that broadcasts to one example's shape {list(shape)}",
        ) from error


def _scaled(
    node: ir.Node, operands: Sequence[Operand], gradient: ParameterGradient
) -> list[ParameterGradient | None]:
    """An elementwise function of weights: each receives the gradient times the function's slope there."""
    received: list[ParameterGradient | None] = []
    arrays = arrays_of(operands)
    for operand, slope in zip(arrays, partial_derivatives(node, arrays), strict=True):
        if slope is None or operand is None:
            received.append(None)
        else:
            mean, variance = gradient.mean * slope, gradient.variance * slope**2
            received.append(
                ParameterGradient(_unbroadcast(mean, operand.shape), _unbroadcast(variance, operand.shape))
            )
    return received


def _unbroadcast(array: Array, shape: tuple[int, ...]) -> Array:
    padded = (1,) * (array.ndim - len(shape)) + shape
    axes = tuple(i for i, (n, k) in enumerate(zip(array.shape, padded, strict=True)) if k == 1 and n != 1)
    return np.asarray(array.sum(axes, keepdims=True).reshape(shape))


def _broadcast_shape(site: Site) -> tuple[int, ...]:
    shapes = [
        (1, *operand.shape) if isinstance(operand, Moments) else operand.shape
        for operand in site.operands
        if operand is not None
    ]
    try:
        return tuple(np.broadcast_shapes(*shapes)[1:])
    except ValueError as error:
        raise UnknownTransferError("its operands have the batch on different axes") from error


OF_BATCHES = ("BatchNormalization", "Gemm", "MatMul")
"""Ops whose rules see what a node receives under every law of the inputs."""

REORDERED = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
"""Ops that keep every element of their first input, once each."""


def _reordered(node: ir.Node, operands: Sequence[Operand]) -> list[Array]:
    """The transpose of a weight, as a view of it."""
    if node.op_type != "Transpose" or not isinstance(operands[0], np.ndarray):
        return []
    return [operands[0].transpose(node.attributes.get_ints("perm"))]


def _cast(node: ir.Node, operand: Operand) -> Operand:
    dtype = node.outputs[0].dtype
    return operand if dtype is None or not isinstance(operand, np.ndarray) else operand.astype(dtype.numpy())


def _one_example(value: ir.Value | None, moments: Moments) -> Array:
    """Zeros of the tensor's shape, for a batch of one."""
    assert value is not None
    if value.shape is not None and len(value.shape) == moments.mean.ndim:
        return np.zeros(moments.shape)  # the batch is part of a longer axis
    return np.expand_dims(np.zeros(moments.shape), min(batch_axis(value), moments.mean.ndim))


def _check_shapes(node: ir.Node, results: Sequence[Moments]) -> None:
    """A rule that gives another shape than the graph has taken the axes for what they are not."""
    for value, moments in zip(node.outputs, results, strict=False):
        merged = value.shape is not None and len(value.shape) == moments.mean.ndim
        held = batch_axis(value) if not merged else None
        dims = [dim for axis, dim in enumerate(value.shape or ()) if axis != held]
        fits = len(dims) == moments.mean.ndim and all(
            length == dim or not isinstance(dim, int) for length, dim in zip(moments.shape, dims, strict=True)
        )
        if value.shape is not None and not fits:
            raise UnknownTransferError("one example of its output is no array of the output's shape")
