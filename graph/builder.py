"""Writing ONNX nodes as mathematics.

A `Builder` appends nodes to a graph; what it returns are `Tensor`s, thin wrappers around `onnx_ir.Value` whose operators
append further nodes. A Python number beside a `Tensor` becomes a constant of the tensor's element type:

    y = x.sigmoid()
    dx = dy * y * (1 - y)

Gradients, losses, optimizers and the training form are all written in this notation.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

__all__ = ["Builder", "Dim", "Operand", "Tensor", "where"]

Dim: TypeAlias = "int | str | None"
Operand: TypeAlias = "Tensor | float | int"

_OUTPUT_TYPES = {
    **dict.fromkeys(
        ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or"), ir.DataType.BOOL
    ),
    **dict.fromkeys(("Shape", "Size", "NonZero", "ArgMax", "ArgMin"), ir.DataType.INT64),
}


class Builder:
    """Appends nodes to the end of `graph`, giving each a unique name and the metadata of the current scope.

    Args:
        graph: The graph to write to. Its opset must be at least 18.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._names = {value.name for part in (graph, *graph.subgraphs()) for value in _named(part)}
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self._prefix = "op"
        self._metadata: dict[str, str] = {}

    def inside(self, body: ir.Graph) -> Builder:
        """A builder for the body of one of this graph's nodes: names stay unique, constants are its own."""
        inner = copy.copy(self)
        inner.graph, inner._constants = body, {}
        return inner

    def copying(self, body: ir.Graph) -> Builder:
        """A builder for a copy of a body, with new names for all that is in it; it refers to the same values outside."""
        inner = self.inside(body.clone(allow_outer_scope_values=True))
        for part in (inner.graph, *inner.graph.subgraphs()):
            for named in list(_named(part)):
                named.name = self.unique_name(named.name or "unnamed")
        return inner

    def input(self, name: str, dtype: ir.DataType) -> Tensor:
        """A further input of the graph, of unknown shape."""
        value = ir.Value(name=self.unique_name(f"{self._prefix}/{name}"), type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return Tensor(value, self)

    @contextlib.contextmanager
    def scope(self, prefix: str, metadata: Mapping[str, str] | None = None) -> Iterator[None]:
        """Within this context, node names begin with `prefix` and nodes carry `metadata`."""
        outer = self._prefix, self._metadata
        self._prefix, self._metadata = prefix, {**self._metadata, **(metadata or {})}
        try:
            yield
        finally:
            self._prefix, self._metadata = outer

    def op(
        self,
        op_type: str,
        *inputs: Tensor | None,
        dtype: ir.DataType | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Tensor:
        """Append a node with one output; `dtype` is its element type where it is not the first input's."""
        return self.ops(op_type, *inputs, dtypes=(dtype,), domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: Tensor | None,
        dtypes: Sequence[ir.DataType | None],
        domain: str = "",
        **attributes: Any,
    ) -> tuple[Tensor, ...]:
        """Append a node with one output for each entry of `dtypes` (None: the element type of the first input)."""
        name = self.unique_name(f"{self._prefix}/{op_type}")
        node = ir.node(
            op_type,
            [None if tensor is None else tensor.value for tensor in inputs],
            attributes,
            domain=domain,
            num_outputs=len(dtypes),
            name=name,
            metadata_props=dict(self._metadata),
        )
        inherited = _OUTPUT_TYPES.get(op_type) or next((t.dtype for t in inputs if t is not None), None)
        for index, (output, dtype) in enumerate(zip(node.outputs, dtypes, strict=True)):
            output.name = name if index == 0 else f"{name}:{index}"
            known = dtype or inherited
            output.type = None if known is None else ir.TensorType(known)
        self.graph.append(node)
        return tuple(Tensor(output, self) for output in node.outputs)

    def unique_name(self, stem: str) -> str:
        """A name for a node or value that this graph does not use yet: `stem`, or `stem_2`, `stem_3`, ..."""
        name, count = stem, 1
        while name in self._names:
            count += 1
            name = f"{stem}_{count}"
        self._names.add(name)
        return name

    def constant(self, value: Any, dtype: ir.DataType) -> Tensor:
        """An initializer holding `value` as `dtype`; equal constants share one initializer."""
        array = np.asarray(value, dtype=dtype.numpy())
        key = (dtype.name, array.tobytes(), array.shape)
        if key not in self._constants:
            tensor = ir.tensor(array, dtype=dtype, name=self.unique_name(_constant_name(array, dtype)))
            initializer = ir.Value(
                name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor
            )
            self.graph.register_initializer(initializer)
            self._constants[key] = initializer
        return Tensor(self._constants[key], self)

    def ints(self, *values: int) -> Tensor:
        """A constant int64 vector: axes, shapes, pads."""
        return self.constant(values, ir.DataType.INT64)

    def arange(self, length: Tensor | int) -> Tensor:
        """The int64 vector 0, 1, ..., length - 1; a constant where the length is static."""
        if isinstance(length, int):
            return self.ints(*range(length))
        bounds = (self.constant(0, ir.DataType.INT64), length.squeeze(0), self.constant(1, ir.DataType.INT64))
        return self.op("Range", *bounds)

    def concat(self, *parts: Tensor | int) -> Tensor:
        """One int64 vector from vectors and single numbers; a constant where every part is a number."""
        if all(isinstance(part, int) for part in parts):
            return self.ints(*(part for part in parts if isinstance(part, int)))
        vectors = [self.ints(part) if isinstance(part, int) else part for part in parts]
        return vectors[0] if len(vectors) == 1 else self.op("Concat", *vectors, axis=0)

    def tensor(self, value: ir.Value) -> Tensor:
        """The `Tensor` of a value that is in the graph already."""
        return Tensor(value, self)


class Tensor:
    """A value of the graph under construction, with operators that append nodes.

    Comparison operators give bool tensors, so that two `Tensor`s never compare equal: compare their `value`s.
    """

    __slots__ = ("builder", "value")
    __hash__ = None  # type: ignore[assignment]  # `==` is not defined, so hashing would mislead

    def __init__(self, value: ir.Value, builder: Builder) -> None:
        self.value, self.builder = value, builder

    def __repr__(self) -> str:
        return f"Tensor({self.value})"

    @property
    def dtype(self) -> ir.DataType:
        """The element type; float32 where inference left it open."""
        return self.value.dtype or ir.DataType.FLOAT

    @property
    def dims(self) -> tuple[Dim, ...] | None:
        """The shape: a number, a symbol or None (unknown) for each axis; None where even the rank is unknown."""
        if self.value.shape is None:
            return None
        return tuple(dim if isinstance(dim, int) else dim.value for dim in self.value.shape)

    @property
    def rank(self) -> int | None:
        """Number of axes, or None where it is unknown."""
        return None if self.value.shape is None else len(self.value.shape)

    def _lift(self, other: Operand) -> Tensor:
        return other if isinstance(other, Tensor) else self.builder.constant(other, self.dtype)

    def _op(self, op_type: str, *inputs: Operand, **attributes: Any) -> Tensor:
        return self.builder.op(op_type, self, *(self._lift(other) for other in inputs), **attributes)

    def _reflected(self, op_type: str, other: Operand) -> Tensor:
        return self.builder.op(op_type, self._lift(other), self)

    def __add__(self, other: Operand) -> Tensor:
        return self._op("Add", other)

    def __radd__(self, other: Operand) -> Tensor:
        return self._reflected("Add", other)

    def __sub__(self, other: Operand) -> Tensor:
        return self._op("Sub", other)

    def __rsub__(self, other: Operand) -> Tensor:
        return self._reflected("Sub", other)

    def __mul__(self, other: Operand) -> Tensor:
        return self._op("Mul", other)

    def __rmul__(self, other: Operand) -> Tensor:
        return self._reflected("Mul", other)

    def __truediv__(self, other: Operand) -> Tensor:
        return self._op("Div", other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return self._reflected("Div", other)

    def __pow__(self, other: Operand) -> Tensor:
        return self._op("Pow", other)

    def __neg__(self) -> Tensor:
        return self._op("Neg")

    def __matmul__(self, other: Tensor) -> Tensor:
        return self._op("MatMul", other)

    def __gt__(self, other: Operand) -> Tensor:
        return self._op("Greater", other)

    def __ge__(self, other: Operand) -> Tensor:
        return self._op("GreaterOrEqual", other)

    def __lt__(self, other: Operand) -> Tensor:
        return self._op("Less", other)

    def __le__(self, other: Operand) -> Tensor:
        return self._op("LessOrEqual", other)

    def __and__(self, other: Tensor) -> Tensor:
        return self._op("And", other)

    def __or__(self, other: Tensor) -> Tensor:
        return self._op("Or", other)

    def __invert__(self) -> Tensor:
        return self._op("Not")

    def equals(self, other: Operand) -> Tensor:
        """Elementwise equality, bool."""
        return self._op("Equal", other)

    def exp(self) -> Tensor:
        """Elementwise e to the power of this tensor."""
        return self._op("Exp")

    def log(self) -> Tensor:
        """Elementwise natural logarithm."""
        return self._op("Log")

    def sqrt(self) -> Tensor:
        """Elementwise square root."""
        return self._op("Sqrt")

    def abs(self) -> Tensor:
        """Elementwise absolute value."""
        return self._op("Abs")

    def sign(self) -> Tensor:
        """Elementwise sign: -1, 0 or 1."""
        return self._op("Sign")

    def tanh(self) -> Tensor:
        """Elementwise hyperbolic tangent."""
        return self._op("Tanh")

    def sigmoid(self) -> Tensor:
        """Elementwise logistic function."""
        return self._op("Sigmoid")

    def erf(self) -> Tensor:
        """Elementwise error function."""
        return self._op("Erf")

    def square(self) -> Tensor:
        """Elementwise square."""
        return self * self

    def cast(self, dtype: ir.DataType) -> Tensor:
        """The same numbers as `dtype`; this tensor itself where it has that type already."""
        return (
            self if self.value.dtype == dtype else self.builder.op("Cast", self, dtype=dtype, to=int(dtype))
        )

    def cast_like(self, other: Tensor) -> Tensor:
        """The same numbers in the element type of `other`."""
        return self.cast(other.dtype)

    def sum(self, axes: Sequence[int] | Tensor | None = None, *, keepdims: bool = True) -> Tensor:
        """Sum over `axes` (None: over all)."""
        return self._reduce("ReduceSum", axes, keepdims)

    def mean(self, axes: Sequence[int] | Tensor | None = None, *, keepdims: bool = True) -> Tensor:
        """Mean over `axes` (None: over all)."""
        return self._reduce("ReduceMean", axes, keepdims)

    def _reduce(self, op_type: str, axes: Sequence[int] | Tensor | None, keepdims: bool) -> Tensor:
        if axes is not None and not isinstance(axes, Tensor):
            axes = self.builder.ints(*axes)
        inputs = (self,) if axes is None else (self, axes)
        return self.builder.op(op_type, *inputs, keepdims=int(keepdims))

    def transpose(self, *perm: int) -> Tensor:
        """Axes in the order `perm`; this tensor itself where that changes nothing."""
        return self if perm == tuple(range(len(perm))) else self._op("Transpose", perm=perm)

    def reshape(self, *shape: Tensor | int) -> Tensor:
        """A new shape from numbers and int64 vectors; 0 keeps the axis, one -1 is worked out."""
        return self.builder.op("Reshape", self, self.builder.concat(*shape))

    def reshape_like(self, other: Tensor) -> Tensor:
        """The shape of `other`, as a constant where at most one dimension of it is dynamic."""
        dims = other.dims
        if dims is not None and sum(not isinstance(dim, int) for dim in dims) <= 1 and 0 not in dims:
            return self.reshape(*(dim if isinstance(dim, int) else -1 for dim in dims))
        return self.builder.op("Reshape", self, other.shape(), allowzero=1)

    def expand_like(self, other: Tensor) -> Tensor:
        """Broadcast to the shape of `other`."""
        return self.builder.op("Expand", self, other.shape())

    def unsqueeze(self, *axes: int) -> Tensor:
        """Insert axes of length 1."""
        return self.builder.op("Unsqueeze", self, self.builder.ints(*axes))

    def squeeze(self, *axes: int) -> Tensor:
        """Remove axes of length 1."""
        return self.builder.op("Squeeze", self, self.builder.ints(*axes))

    def slice(
        self,
        starts: Sequence[Tensor | int],
        ends: Sequence[Tensor | int],
        axes: Sequence[int],
        steps: Sequence[int],
    ) -> Tensor:
        """The ONNX Slice; starts and ends may be int64 vectors of length 1."""
        concat, ints = self.builder.concat, self.builder.ints
        return self.builder.op("Slice", self, concat(*starts), concat(*ends), ints(*axes), ints(*steps))

    def shape(self, start: int = 0, end: int | None = None) -> Tensor:
        """The dimensions from `start` to before `end` as an int64 vector; a constant where they are static."""
        if self.dims is not None:
            known = self.dims[start:end]
            if all(isinstance(dim, int) for dim in known):
                return self.builder.ints(*(dim for dim in known if isinstance(dim, int)))
        bounds: dict[str, Any] = {} if end is None else {"end": end}
        return self.builder.op("Shape", self, dtype=ir.DataType.INT64, start=start, **bounds)

    def length(self, axis: int) -> Tensor | int:
        """The length of one axis: a number where it is static, else an int64 vector of length 1."""
        if self.dims is not None and isinstance(dim := self.dims[axis], int):
            return dim
        return self.shape(axis, axis + 1 or None)

    def count(self, axes: Sequence[int] | None = None) -> Tensor:
        """The number of elements along `axes` (None: along all), as a scalar of this element type; a constant if static."""
        if axes is None:
            if self.dims is None:
                return self.builder.op("Size", self).cast_like(self)
            axes = range(len(self.dims))
        lengths = [self.length(axis) for axis in axes]
        if all(isinstance(length, int) for length in lengths):
            return self.builder.constant(
                np.prod([length for length in lengths if isinstance(length, int)]), self.dtype
            )
        vector = self.builder.concat(*lengths)
        return self.builder.op("ReduceProd", vector, keepdims=0).cast_like(self)

    def zeros_like(self) -> Tensor:
        """Zeros of this shape and element type."""
        zero = ir.tensor(np.zeros(1, self.dtype.numpy()), dtype=self.dtype)
        return self.builder.op("ConstantOfShape", self.shape(), dtype=self.dtype, value=zero)


def where(condition: Tensor, yes: Operand, no: Operand) -> Tensor:
    """`yes` where `condition` holds, else `no`; at least one of the two is a `Tensor`."""
    like = yes if isinstance(yes, Tensor) else no
    if not isinstance(like, Tensor):
        raise TypeError("where() needs a Tensor on at least one side")
    yes, no = (side if isinstance(side, Tensor) else like._lift(side) for side in (yes, no))
    return condition.builder.op("Where", condition, yes, no, dtype=like.dtype)


def _named(graph: ir.Graph) -> Iterator[ir.Node | ir.Value]:
    """What has a name of its own in a graph: nodes, their outputs, inputs and initializers."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield node
        yield from node.outputs


def _constant_name(array: np.ndarray[Any, Any], dtype: ir.DataType) -> str:
    text = "x".join(str(number) for number in array.flatten()[:4])
    return f"constant/{text or 'empty'}_{dtype.name.lower()}"
