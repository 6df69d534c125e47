"""Gradients of matrix products."""

from __future__ import annotations

from collections.abc import Sequence

from ..builder import Dim, Tensor
from .broadcast import sum_to
from .engine import Adjoint

Gradients = Sequence["Tensor | None"]


def matmul(g: Adjoint) -> Gradients:
    """y = a b, batched and broadcast over the leading axes: da = dy b', db = a' dy."""
    a, b, dy = g.input(0), g.input(1), g.dy
    if a.rank is None or b.rank is None:
        raise g.unsupported("the rank of an operand is unknown")
    if a.rank > 2 and b.rank == 2:
        return dy @ b.transpose(1, 0), _shared_weight_gradient(a, b, dy)
    # A vector operand is a matrix with one row or one column, which the product's shape does not show.
    rows, columns = (a.unsqueeze(0) if a.rank == 1 else a), (b.unsqueeze(1) if b.rank == 1 else b)
    if b.rank == 1:
        dy = dy.unsqueeze(-1)
    if a.rank == 1:
        dy = dy.unsqueeze(-2)
    da = dy @ _transposed(columns, max(b.rank, 2))
    # Of an empty batch a Gemm is an error at run time; a MatMul (onnxruntime 1.19) gives out what happens to be in memory.
    plain = max(a.rank, b.rank) <= 2
    db = g.builder.op("Gemm", rows, dy, transA=1) if plain else _transposed(rows, max(a.rank, 2)) @ dy
    da, db = (da.squeeze(-2) if a.rank == 1 else da), (db.squeeze(-1) if b.rank == 1 else db)
    batch = None if g.y.dims is None else g.y.dims[: len(g.y.dims) - (a.rank > 1) - (b.rank > 1)]
    return _sum_batch(da, a, batch, b), _sum_batch(db, b, batch, a)


def gemm(g: Adjoint) -> Gradients:
    """y = alpha op(a) op(b) + beta c, where op transposes if asked."""
    a, b = g.input(0), g.input(1)
    alpha, beta = g.attribute("alpha", 1.0), g.attribute("beta", 1.0)
    a_transposed, b_transposed = g.attribute("transA", 0), g.attribute("transB", 0)
    op = g.builder.op
    if a_transposed:
        da = op("Gemm", b, g.dy, alpha=alpha, transA=b_transposed, transB=1)
    else:
        da = op("Gemm", g.dy, b, alpha=alpha, transB=1 - b_transposed)
    if b_transposed:
        db = op("Gemm", g.dy, a, alpha=alpha, transA=1, transB=a_transposed)
    else:
        db = op("Gemm", a, g.dy, alpha=alpha, transA=1 - a_transposed)
    c, dc = g.optional(2), g.dy if beta == 1.0 else g.dy * beta
    return da, db, None if c is None else sum_to(dc, c, g.y.dims, [None])


def _shared_weight_gradient(a: Tensor, b: Tensor, dy: Tensor) -> Tensor:
    """a' dy summed over all leading axes, as one product of two matrices."""
    rows, slopes = a.reshape(-1, b.length(0)), dy.reshape(-1, b.length(1))
    return b.builder.op("Gemm", rows, slopes, transA=1)


def _transposed(x: Tensor, rank: int) -> Tensor:
    return x.transpose(*range(rank - 2), rank - 1, rank - 2)


def _sum_batch(gradient: Tensor, operand: Tensor, batch: Sequence[Dim] | None, other: Tensor) -> Tensor:
    """Sum over the leading axes along which `operand` was broadcast against `other`."""
    if batch is None or operand.dims is None or other.dims is None:
        return sum_to(gradient, operand, None, [])
    if len(operand.dims) == 1:
        return gradient.sum(range(len(batch)), keepdims=False) if batch else gradient
    return sum_to(gradient, operand, (*batch, *operand.dims[-2:]), [(*other.dims[:-2], 1, 1)])
