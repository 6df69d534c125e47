"""Where a propagation works with draws, and how they hang together.

Draws start at a root: the nearest tensor before them that is known by its moments. What is an affine function of one root
(queries, keys and values of one sequence, split into heads) is computed from the root's draws, so that it is correlated as
it should be. A product of two sequences over their features stays drawn, through masks and softmax, until a product over
tokens makes a sequence of it again, whose moments are then fitted to the draws. Backward the same way: draws of the
gradient go from there to the root.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .drawn_op import CARRIED, DrawnNode, contraction
from .draws import drawn_gradient, drawn_parameter, drawn_value, fitted_value, sample, sample_gradient
from .errors import UnknownTransferError
from .quadrature import Array
from .site import Contribution, Operand
from .state import GradientDraws, GradientMoments, Moments, ParameterGradient
from .transfer.table import MOVES

__all__ = ["Drawing"]

_LEAST, _MOST = 8, 128
_MAX_NUMBERS = 16_000_000
"""Numbers drawn in all, at about four tensors for each softmax."""

_AFFINE = frozenset(
    {*MOVES, "Identity", "Cast", "Neg", "Add", "Sub", "Sum", "Mul", "Div", "MatMul", "Gemm", "Einsum"}
)


class Drawing:
    """The draws of one propagation."""

    def __init__(self, nodes: Sequence[ir.Node], values: Mapping[ir.Value, Operand]) -> None:
        self.values = values
        self.nodes: set[ir.Node] = set()
        self._softmaxes = sum(node.op_type == "Softmax" for node in nodes) + 1
        self._count = 0
        self._roots: dict[ir.Value, ir.Value] = {}
        self._draws: dict[ir.Value, Array] = {}

    def root(self, value: ir.Value) -> ir.Value:
        """The tensor whose draws a tensor's are computed from."""
        return self._roots.get(value, value)

    def note_root(self, node: ir.Node) -> None:
        """Follow an affine op."""
        varying = [v for v in node.inputs if v is not None and isinstance(self.values.get(v), Moments)]
        roots = {self.root(value) for value in varying}
        if len(roots) == 1 and node.op_type in _AFFINE and self._is_affine(node, varying):
            root = roots.pop()
            self._roots.update((value, root) for value in node.outputs)

    def _is_affine(self, node: ir.Node, varying: Sequence[ir.Value]) -> bool:
        if any(self._moments(value).drawn is not None for value in varying):
            return False
        if node.op_type in ("Mul", "MatMul", "Div", "Gemm", "Gather", "Einsum"):
            return len(varying) == 1 and (node.op_type == "Mul" or node.inputs[0] is varying[0])
        return node.op_type != "Concat" or len(varying) == len(node.inputs)

    def _moments(self, value: ir.Value) -> Moments:
        moments = self.values[value]
        assert isinstance(moments, Moments)
        return moments

    def of(self, value: ir.Value) -> Array:
        """Draws of a tensor that depends on the example."""
        if value not in self._draws:
            producer = value.producer()
            if producer is None or (self.root(value) is value and producer not in self.nodes):
                self._draws[value] = sample(self._moments(value), value.name or "", self._count)
            else:
                results = self._node(producer).forward()
                self._draws.update(zip(producer.outputs, results, strict=False))
        return self._draws[value]

    def _node(self, node: ir.Node) -> DrawnNode:
        varying = tuple(
            value is not None and isinstance(self.values[value], Moments) for value in node.inputs
        )
        return DrawnNode(node, tuple(self._operand(value) for value in node.inputs), varying)

    def _operand(self, value: ir.Value | None) -> Array | None:
        if value is None:
            return None
        operand = self.values[value]
        return self.of(value) if isinstance(operand, Moments) else operand

    # forward

    def starts_at(self, node: ir.Node, operands: Sequence[Operand]) -> bool:
        """Whether a node is one that only draws carry: a product of two that vary, or what is done to draws."""
        varying = [operand for operand in operands if isinstance(operand, Moments)]
        if node.op_type == "MatMul" and not isinstance(operands[0], Moments):
            return True
        if node.op_type in ("MatMul", "Einsum") and len(varying) > 1:
            return True
        drawn = any(operand.drawn is not None for operand in varying)
        return node.op_type in ("Softmax", "LogSoftmax") or (drawn and node.op_type in CARRIED)

    def forward(self, node: ir.Node, shapes: Sequence[tuple[int, ...]]) -> list[Moments]:
        """Moments of the outputs of a node, from draws of its inputs.

        Raises:
            UnknownTransferError: The node has no values for draws of its inputs.
        """
        try:
            return self._forward(node, shapes)
        except (ValueError, IndexError) as error:  # axes that are not what they were taken for
            raise UnknownTransferError("draws of its inputs do not fit together") from error

    def _forward(self, node: ir.Node, shapes: Sequence[tuple[int, ...]]) -> list[Moments]:
        self._decide_count(node, shapes)
        drawn = self._node(node)
        results = drawn.forward()
        # A mask may be minus infinity.
        if any(np.any(np.isnan(result) | np.isposinf(result)) for result in results):
            raise UnknownTransferError("draws of it are not finite")
        self.nodes.add(node)
        self._draws.update(zip(node.outputs, results, strict=False))
        moments = self._of_results(drawn, results)
        if not any(each.drawn is not None for each in moments):
            # What led to a sequence is large, and quick to compute again for the way back.
            self.forget(value for each in self.nodes for value in each.outputs)
        return moments

    def _of_results(self, drawn: DrawnNode, results: Sequence[Array]) -> list[Moments]:
        node = drawn.node
        if node.op_type in ("MatMul", "Einsum"):
            return [self._of_product(drawn, results[0])]
        axes = self._axes(node, results[0])
        drawn_before = any(m is not None and m.drawn is not None for m in self._inputs(node))
        if drawn_before or (axes and node.op_type == "Softmax"):
            return [drawn_value(result, axes or ()) for result in results]
        return [fitted_value(result, axes) for result in results]

    def _decide_count(self, node: ir.Node, shapes: Sequence[tuple[int, ...]]) -> None:
        """The same number of draws everywhere, so that they belong together."""
        if self._count == 0:
            inputs = [m.mean.size for m in self._inputs(node) if m is not None]
            size = max(int(np.prod(shape)) for shape in shapes) if shapes else 1
            if node.op_type == "MatMul" and len(inputs) == 2:
                rows, columns = (m.shape for m in self._inputs(node) if m is not None)
                size = max(size, int(np.prod(rows[:-1])) * columns[-1])
            largest = max(size, *inputs) * self._softmaxes * 4
            self._count = int(np.clip(_MAX_NUMBERS // largest, _LEAST, _MOST)) // 2 * 2

    def _inputs(self, node: ir.Node) -> list[Moments | None]:
        found = (None if value is None else self.values[value] for value in node.inputs)
        return [m if isinstance(m, Moments) else None for m in found]

    def _of_product(self, drawn: DrawnNode, result: Array) -> Moments:
        """A matrix between tokens of one and tokens of the other stays drawn; what has tokens of one is a sequence."""
        inputs, output = contraction(drawn)
        token_labels = []
        for labels, moments in zip(inputs, self._inputs(drawn.node), strict=True):
            # Rows of a matrix that all examples share are tokens too: learned queries, or a mixture of tokens.
            rows = {labels[-2]} if moments is None else {labels[axis + 1] for axis in _token_axes(moments)}
            token_labels.append(rows)
        left, right = token_labels
        kept = tuple(axis for axis, label in enumerate(output[1:]) if label in left | right)
        apart = (left - right) & set(output), (right - left) & set(output)
        if all(apart) or not kept:
            return drawn_value(result, kept)
        return fitted_value(result, kept)

    def _axes(self, node: ir.Node, result: Array) -> tuple[int, ...] | None:
        """Axes of tokens after an op that keeps the shape, or moves elements."""
        for moments in self._inputs(node):
            if moments is not None and (axes := _token_axes(moments)):
                if moments.shape == result.shape[1:]:
                    return axes
                if node.op_type in MOVES:
                    return self._moved_axes(node, axes)
        return None

    def _moved_axes(self, node: ir.Node, axes: tuple[int, ...]) -> tuple[int, ...]:
        """Follow the number of the token that each element belongs to."""
        drawn = self._node(node)
        moved: set[int] = set()
        for axis in axes:
            operands = tuple(
                _numbered(operand, axis) if varies and operand is not None else operand
                for operand, varies in zip(drawn.operands, drawn.varying, strict=True)
            )
            labels = DrawnNode(node, operands, drawn.varying).forward()[0][0]
            moved |= {i for i in range(labels.ndim) if np.any(labels != labels.take([0], i))}
        return tuple(sorted(moved))

    # backward

    def goes_back(self, node: ir.Node, gradient: GradientMoments | None) -> bool:
        """Whether a node's gradients are carried by draws."""
        between = gradient is not None and gradient.drawn is not None and node.outputs[0] in self._roots
        return node in self.nodes or between

    def backward(self, node: ir.Node, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
        """What each input receives.

        Raises:
            UnknownTransferError: No rule carries gradients of draws through the node.
        """
        try:
            return self._backward(node, gradients)
        except (ValueError, IndexError) as error:
            raise UnknownTransferError("draws of its gradient do not fit together") from error

    def _backward(self, node: ir.Node, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
        drawn, results = self._node(node), [self.of(value) for value in node.outputs]
        draws = [
            None if gradient is None else gradient.drawn or self._sampled(value, gradient)
            for value, gradient in zip(node.outputs, gradients, strict=True)
        ]
        coherent = drawn.backward(results, [None if d is None else d.coherent for d in draws])
        scattered = drawn.backward(results, [None if d is None else d.scattered for d in draws])
        received: list[Contribution] = []
        for index, (mean, about) in enumerate(zip(coherent, scattered, strict=True)):
            value = node.inputs[index]
            operand = None if value is None else self.values.get(value)
            if mean is None or about is None or operand is None:
                received.append(None)
            elif isinstance(operand, Moments):
                received.append(drawn_gradient(GradientDraws(mean, about), None))
            else:
                received.append(_widened(drawn_parameter(mean, about), np.shape(operand)))
        return received

    def _sampled(self, value: ir.Value, gradient: GradientMoments) -> GradientDraws:
        return sample_gradient(gradient, value.name or "", self.of(value))

    def forget(self, values: Iterable[ir.Value]) -> None:
        """Let go of draws; who asks for them again has them computed again."""
        for value in values:
            self._draws.pop(value, None)

    def settled(self, value: ir.Value, gradient: GradientMoments) -> GradientMoments:
        """At a root, with the correlations that the draws of all ways back have together."""
        if gradient.drawn is None or self.root(value) is not value:
            return gradient
        moments = self._moments(value)
        axes = _token_axes(moments) or tuple(range(moments.mean.ndim - 1))
        return drawn_gradient(gradient.drawn, axes)


def _widened(gradient: ParameterGradient, shape: tuple[int, ...]) -> ParameterGradient:
    """Of a weight some of whose rows were drawn, each standing for its neighbours."""
    if gradient.mean.shape == shape:
        return gradient
    rows = np.arange(shape[0]) * len(gradient.mean) // shape[0]
    return ParameterGradient(gradient.mean[rows], gradient.variance[rows])


def _token_axes(moments: Moments | None) -> tuple[int, ...]:
    if moments is None:
        return ()
    if moments.drawn is not None:
        return moments.drawn.axes
    return () if moments.tokens is None else moments.tokens.axes


def _numbered(draws: Array, axis: int) -> Array:
    """One draw whose elements hold the number of their token."""
    shape = draws.shape[1:]
    numbers = np.arange(shape[axis], dtype=np.float32)
    column = numbers.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.broadcast_to(column, shape)[None] + np.zeros((1, *shape), np.float32)
