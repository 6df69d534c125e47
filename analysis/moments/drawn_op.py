"""Ops on draws: every draw is one example, on the first axis. Values, and gradients by the chain rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .elementwise_op import evaluate_node, partial_derivatives
from .errors import UnknownTransferError
from .moves import given_back, joined, taken
from .quadrature import Array
from .site import batch_axis
from .transfer import elementwise
from .transfer.shape import moved_indices
from .transfer.table import MOVES

__all__ = ["CARRIED", "DrawnNode", "contraction"]


@dataclass(frozen=True)
class DrawnNode:
    """A node whose operands that depend on the example are draws, `[draws, *elements]`.

    Attributes:
        node: The node.
        operands: Draws, values of what all examples share, or None.
        varying: Which operands are draws.
    """

    node: ir.Node
    operands: tuple[Array | None, ...]
    varying: tuple[bool, ...]

    def draws(self, index: int) -> Array:
        """Operand `index`, which must be draws."""
        operand = self.operands[index]
        if operand is None or not self.varying[index]:
            raise UnknownTransferError(f"its input {index} does not depend on the example")
        return operand

    @property
    def count(self) -> int:
        """Draws."""
        return len(self.draws(self.varying.index(True)))

    def forward(self) -> list[Array]:
        """The outputs' draws."""
        op = self.node.op_type
        if op in ("MatMul", "Einsum"):
            inputs, output = contraction(self)
            return [_contract(inputs, self._present(), output)]
        if op in ("Softmax", "LogSoftmax"):
            return [self._softmax()]
        if op in MOVES:
            return self._moved()
        if op == "Gemm":
            return [self._gemm()]
        if op == "Dropout":
            return [self.draws(0) * self._mask()] * len(self.node.outputs)
        if op in elementwise.OPS:
            return [r.astype(np.float32) for r in evaluate_node(self.node, self.aligned())]
        if op in _REDUCTIONS:
            y = _REDUCTIONS[op](self.draws(0), self._axes(), keepdims=True)
            return [y if self._keeps_axes() else np.squeeze(y, self._axes())]
        raise UnknownTransferError("no rule carries draws through it")

    def backward(self, result: Sequence[Array], dy: Sequence[Array | None]) -> list[Array | None]:
        """The gradient of each operand, with one axis of draws for shared operands too."""
        op, first = self.node.op_type, dy[0]
        if op in MOVES:
            return self._moved_back(dy)
        if first is None:
            return [None] * len(self.operands)
        if op in ("MatMul", "Einsum"):
            return self._contracted_back(first)
        if op in ("Softmax", "LogSoftmax"):
            return [self._softmax_back(result[0], first)]
        if op == "Gemm":
            return self._gemm_back(first)
        if op == "Dropout":
            return [first * self._mask()]
        if op in elementwise.OPS:
            return self._elementwise_back(first)
        if op in _REDUCTIONS:
            return [self._reduced_back(first)]
        raise UnknownTransferError("no rule carries gradients of draws through it")

    # operands beside the draws

    def aligned(self) -> list[Array | None]:
        """Operands that broadcast against `[draws, *elements]`."""
        return [
            operand if operand is None or varies else self._beside(operand)
            for operand, varies in zip(self.operands, self.varying, strict=True)
        ]

    def _present(self) -> list[Array]:
        """The operands of a product, none of which is optional."""
        return [np.asarray(operand, np.float32) for operand in self.aligned() if operand is not None]

    def _beside(self, operand: Array) -> Array:
        """A shared operand without the batch's axis of length 1, where draws stand on the first."""
        output = self.node.outputs[0]
        rank = max(self.draws(i).ndim for i, varies in enumerate(self.varying) if varies)
        full = len(output.shape) if output.shape is not None else rank
        if rank > full or operand.ndim < 2:
            return operand  # the batch is part of a longer axis
        axis = batch_axis(output) - (full - operand.ndim)
        if self.node.op_type in ("MatMul", "Einsum", "Gemm"):
            return operand[0] if axis == 0 and operand.ndim == full and operand.shape[0] == 1 else operand
        if axis < 0 or operand.shape[axis] != 1:
            return operand
        return np.squeeze(operand, axis)

    def _axis(self, default: int = -1) -> int:
        """The node's axis, counted from the end."""
        attribute = self.node.attributes.get("axis")
        axis = default if attribute is None else int(attribute.value)
        shape = self.node.outputs[0].shape
        rank = self.draws(0).ndim if shape is None else len(shape)
        return axis if axis < 0 else axis - rank

    # single ops

    def _softmax(self) -> Array:
        x, axis = self.draws(0), self._axis()
        shifted = x - x.max(axis, keepdims=True)
        powers = np.exp(shifted)
        total = powers.sum(axis, keepdims=True)
        return np.asarray(powers / total if self.node.op_type == "Softmax" else shifted - np.log(total))

    def _softmax_back(self, y: Array, dy: Array) -> Array:
        axis = self._axis()
        if self.node.op_type == "LogSoftmax":
            return np.asarray(dy - np.exp(y) * dy.sum(axis, keepdims=True))
        return np.asarray(y * (dy - np.sum(y * dy, axis, keepdims=True)))

    def _mask(self) -> Array:
        """Fixed draws of a dropout's mask over what it keeps."""
        training, ratio = (self.operands[i] if len(self.operands) > i else None for i in (2, 1))
        if training is None or not training.item():
            return np.ones((), np.float32)
        kept = 1.0 - (0.5 if ratio is None else float(ratio.item()))
        drawn = np.random.default_rng(0).random(self.draws(0).shape, np.float32) < kept
        return np.asarray(drawn / np.float32(kept), np.float32)

    def _axes(self) -> tuple[int, ...]:
        """The axes of a reduction, among those of the draws."""
        value = self.node.inputs[0]
        assert value is not None
        x = self.draws(0)
        rank = x.ndim if value.shape is None else len(value.shape)
        second = self.operands[1] if len(self.operands) > 1 else None
        attribute = self.node.attributes.get("axes")
        listed = second if second is not None else (range(rank) if attribute is None else attribute.value)
        axes, batch = {int(axis) % rank for axis in listed}, batch_axis(value)
        if rank == x.ndim - 1:
            return tuple(sorted(axis + 1 for axis in axes))
        if batch in axes:
            raise UnknownTransferError("it reduces over the batch")
        return tuple(sorted(axis + (axis < batch) for axis in axes))

    def _keeps_axes(self) -> bool:
        return self._scalar("keepdims") != 0.0

    def _reduced_back(self, dy: Array) -> Array:
        x, axes = self.draws(0), self._axes()
        full = dy if self._keeps_axes() else np.expand_dims(dy, axes)
        if self.node.op_type == "ReduceMax":
            largest = x.max(axes, keepdims=True)
            return np.asarray(full * (x == largest), np.float32)
        share = x.size / full.size if self.node.op_type == "ReduceMean" else 1.0
        return np.asarray(np.broadcast_to(full / share, x.shape), np.float32)

    def _moved(self) -> list[Array]:
        row = joined([draws for draws in self._varying() if draws is not None], 1)
        return [taken(row, index) for index in self._indices()]

    def _varying(self) -> list[Array | None]:
        """The draws among the operands."""
        return [
            operand if varies else None for operand, varies in zip(self.operands, self.varying, strict=True)
        ]

    def _indices(self) -> list[Array]:
        shapes, shared = [], []
        for operand, varies in zip(self.operands, self.varying, strict=True):
            shapes.append(operand.shape[1:] if varies and operand is not None else None)
            shared.append(None if varies else operand)
        return moved_indices(self.node, shapes, shared)

    def _moved_back(self, dy: Sequence[Array | None]) -> list[Array | None]:
        sizes = [0 if draws is None else draws[0].size for draws in self._varying()]
        total = np.zeros((self.count, sum(sizes)), np.float32)
        for index, gradient in zip(self._indices(), dy, strict=False):
            if gradient is not None:
                total += given_back(gradient, index, sum(sizes))
        parts = np.split(total, np.cumsum(sizes)[:-1], 1)
        return [
            None if draws is None else part.reshape(draws.shape)
            for draws, part in zip(self._varying(), parts, strict=True)
        ]

    def _gemm(self) -> Array:
        y = self.draws(0) @ self._gemm_weight()
        bias = self.operands[2] if len(self.operands) > 2 else None
        return np.asarray(y if bias is None else y + self._scalar("beta") * bias, np.float32)

    def _gemm_weight(self) -> Array:
        weight = self.operands[1]
        if weight is None or self.varying[1] or self._scalar("transA", 0.0):
            raise UnknownTransferError("its weight depends on the example, or its input is transposed")
        turned = weight.T if self._scalar("transB", 0.0) else weight
        return np.asarray(self._scalar("alpha") * turned, np.float32)

    def _scalar(self, name: str, default: float = 1.0) -> float:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else float(attribute.value)

    def _gemm_back(self, dy: Array) -> list[Array | None]:
        x = self.draws(0)
        if x.ndim < 3:
            x, dy = x[:, None], dy[:, None]
        dweight = self._scalar("alpha") * np.einsum("ntf,ntg->nfg", x, dy, optimize=True)
        if self._scalar("transB", 0.0):
            dweight = np.swapaxes(dweight, 1, 2)
        bias = self.operands[2] if len(self.operands) > 2 else None
        dbias = None if bias is None else self._scalar("beta") * _summed(dy, bias.shape)
        return [(dy @ self._gemm_weight().T).reshape(self.draws(0).shape), dweight, dbias]

    def _contracted_back(self, dy: Array) -> list[Array | None]:
        inputs, output = contraction(self)
        operands = self._present()
        received: list[Array | None] = []
        for index, labels in enumerate(inputs):
            others = [(inputs[i], operands[i]) for i in range(len(inputs)) if i != index]
            wanted = labels if labels[0] == _DRAW else _DRAW + labels
            if not self.varying[index] and (step := self._step(operands[index])) > 1:
                received.append(self._some_rows(dy, output, inputs, operands, step))
                continue
            known = set(output).union(*(set(other) for other, _ in others))
            kept = "".join(label for label in wanted if label in known)
            terms = [output, *(other for other, _ in others)]
            part = _contract(terms, [dy, *(operand for _, operand in others)], kept)
            original = self.operands[index]
            assert original is not None
            shape = original.shape if self.varying[index] else (len(dy), *original.shape)
            received.append(_spread(part, kept, wanted, operands[index], self.varying[index]).reshape(shape))
        return received

    def _step(self, weight: Array) -> int:
        """Of a large weight only every so many rows are drawn."""
        if self.node.op_type != "MatMul" or weight.ndim != 2 or not self.varying[0]:
            return 1
        return int(min(-(-weight.size * self.count // _MAX_WEIGHTS), weight.shape[0]))

    def _some_rows(
        self, dy: Array, output: str, inputs: Sequence[str], operands: Sequence[Array], step: int
    ) -> Array:
        x = operands[0][..., ::step]
        return _contract([output, inputs[0]], [dy, x], _DRAW + inputs[1])

    def _elementwise_back(self, dy: Array) -> list[Array | None]:
        operands = self.aligned()
        received: list[Array | None] = []
        for operand, partial in zip(operands, partial_derivatives(self.node, operands), strict=True):
            if operand is None or partial is None:
                received.append(None)
                continue
            whole = np.asarray(dy * partial, np.float32)
            index = len(received)
            if self.varying[index]:
                received.append(_summed(whole, operand.shape[1:]).reshape(operand.shape))
            elif operand.dtype.kind == "f":
                original = self.operands[index]
                assert original is not None
                received.append(_summed(whole, operand.shape).reshape(len(dy), *original.shape))
            else:
                received.append(None)
        return received


_REDUCTIONS: Mapping[str, Callable[..., Array]] = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceMax": np.max,
}

CARRIED = frozenset(
    {*elementwise.OPS, *MOVES, *_REDUCTIONS, "MatMul", "Einsum", "Gemm", "Softmax", "LogSoftmax", "Dropout"}
)
"""Ops that carry draws forward and their gradients back."""

_MAX_WEIGHTS = 4_000_000
"""Numbers in the draws of one weight's gradient."""

_DRAW = "Z"
_LETTERS = "abcdefghijklmnopqrstuvwxy"


def contraction(drawn: DrawnNode) -> tuple[list[str], str]:
    """Labels of the axes of each operand of a product, and of its result; the draws are `Z`."""
    if drawn.node.op_type == "MatMul":
        return _matmul_labels(drawn)
    equation = str(drawn.node.attributes["equation"].value).replace(" ", "")
    if "." in equation or "->" not in equation:
        raise UnknownTransferError("its equation has an ellipsis or no result")
    left, output = equation.split("->")
    inputs = left.split(",")
    first = drawn.varying.index(True)
    value = drawn.node.inputs[first]
    assert value is not None
    batch = inputs[first][batch_axis(value)]
    if drawn.draws(first).ndim > len(inputs[first]):
        return [
            _DRAW + labels if varies else labels for labels, varies in zip(inputs, drawn.varying, strict=True)
        ], (_DRAW + output)
    front = [
        _DRAW + labels.replace(batch, "") if varies else labels
        for labels, varies in zip(inputs, drawn.varying, strict=True)
    ]
    return front, _DRAW + output.replace(batch, "")


def _matmul_labels(drawn: DrawnNode) -> tuple[list[str], str]:
    a, b = drawn.aligned()
    assert a is not None
    assert b is not None
    ranks = [operand.ndim - varies for operand, varies in zip((a, b), drawn.varying, strict=True)]
    if min(ranks) < 2:
        raise UnknownTransferError("one of its operands is a vector")
    leading = _LETTERS[: max(ranks) - 2]
    row, inner, column = "x", "y", "w"
    labels = [
        (_DRAW if varies else "") + leading[len(leading) - (rank - 2) :] + ends
        for rank, varies, ends in zip(ranks, drawn.varying, (row + inner, inner + column), strict=True)
    ]
    return labels, _DRAW + leading + row + column


def _contract(inputs: Sequence[str], operands: Sequence[Array], output: str) -> Array:
    """Einstein summation; of two operands as a batched matrix product, which is many times faster."""
    if len(operands) != 2 or any(len(set(labels)) < len(labels) for labels in (*inputs, output)):
        return np.asarray(np.einsum(",".join(inputs) + "->" + output, *operands, optimize=True))
    (la, lb), (a, b) = inputs, operands
    a, la = _reduced(a, la, lb + output)
    b, lb = _reduced(b, lb, la + output)
    both = [label for label in la if label in lb]
    batch, inner = [x for x in both if x in output], [x for x in both if x not in output]
    rows, columns = [x for x in la if x not in lb], [x for x in lb if x not in la]
    length = {label: max(a.shape[la.index(label)], b.shape[lb.index(label)]) for label in both}
    length |= {label: a.shape[la.index(label)] for label in rows}
    length |= {label: b.shape[lb.index(label)] for label in columns}
    left = _arranged(a, la, (batch, rows, inner), length)
    right = _arranged(b, lb, (batch, inner, columns), length)
    product = (left @ right).reshape([length[label] for label in (*batch, *rows, *columns)])
    labels = [*batch, *rows, *columns]
    return np.transpose(product, [labels.index(label) for label in output])


def _reduced(array: Array, labels: str, needed: str) -> tuple[Array, str]:
    """Summed over the labels that nothing else has."""
    axes = tuple(axis for axis, label in enumerate(labels) if label not in needed)
    return (array.sum(axes), "".join(x for x in labels if x in needed)) if axes else (array, labels)


def _arranged(array: Array, labels: str, groups: Sequence[Sequence[str]], length: dict[str, int]) -> Array:
    """Axes in the order of the groups, each of which becomes one axis; lengths of 1 are repeated."""
    order = [label for group in groups for label in group]
    moved = np.transpose(array, [labels.index(label) for label in order])
    full = np.broadcast_to(moved, [length[label] for label in order])
    return full.reshape([int(np.prod([length[label] for label in group])) for group in groups])


def _spread(part: Array, kept: str, wanted: str, operand: Array, varies: bool) -> Array:
    """Repeat along labels that only this operand has."""
    lengths = dict(zip(wanted if varies else wanted[1:], operand.shape, strict=True))
    lengths[_DRAW] = len(part)
    shape = [lengths[label] if label in kept else 1 for label in wanted]
    return np.broadcast_to(part.reshape(shape), [lengths[label] for label in wanted])


def _summed(whole: Array, shape: tuple[int, ...]) -> Array:
    """`[draws, *elements]` summed to `[draws, *shape]`, where an operand of this shape was broadcast."""
    missing = whole.ndim - 1 - len(shape)
    if missing < 0:
        shape = shape[-missing:]
        missing = 0
    padded = (1,) * missing + tuple(shape)
    axes = tuple(
        i + 1 for i, (n, k) in enumerate(zip(whole.shape[1:], padded, strict=True)) if k == 1 and n != 1
    )
    return np.asarray(whole.sum(axes, keepdims=True))
