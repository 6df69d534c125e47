"""The table of transfer rules: every op that carries moments, and where its mathematics stands.

Elementwise ops are not listed here: one rule, `elementwise`, takes all of `elementwise.OPS` from the table of gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....graph.recurrence import RECURRENT
from ..site import Transfer
from . import (
    choice,
    concat,
    convolution,
    einsum,
    embedding,
    extremum,
    group_norm,
    linear,
    max_pool,
    normalization,
    pooling,
    recurrent,
    shape,
    transposed_convolution,
)

__all__ = ["MOVES", "TABLE"]

MOVES = (
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Expand",
    "Tile",
    "Concat",
    "Split",
    "Pad",
    "Slice",
    "Gather",
)
"""Ops that only move elements."""

TABLE: Mapping[str, Transfer] = {
    **dict.fromkeys(MOVES, Transfer(shape.forward, shape.backward)),
    "Concat": Transfer(concat.forward, concat.backward),
    "Gather": Transfer(embedding.gather_forward, embedding.gather_backward),
    # matrix products and convolutions
    "Gemm": Transfer(linear.gemm_forward, linear.gemm_backward),
    "MatMul": Transfer(linear.matmul_forward, linear.matmul_backward),
    "Einsum": Transfer(einsum.forward, einsum.backward),
    "Conv": Transfer(convolution.forward, convolution.backward),
    "ConvTranspose": Transfer(transposed_convolution.forward, transposed_convolution.backward),
    "Resize": Transfer(transposed_convolution.resize_forward, transposed_convolution.resize_backward),
    # recurrence
    **dict.fromkeys(RECURRENT, Transfer(recurrent.forward, recurrent.backward)),
    # normalisation
    "BatchNormalization": Transfer(normalization.batch_norm_forward, normalization.batch_norm_backward),
    "InstanceNormalization": Transfer(group_norm.forward, group_norm.backward),
    "LayerNormalization": Transfer(normalization.layer_norm_forward, normalization.layer_norm_backward),
    "Dropout": Transfer(normalization.dropout_forward, normalization.dropout_backward),
    "Where": Transfer(choice.forward, choice.backward),
    # pooling
    "AveragePool": Transfer(pooling.average_forward, pooling.average_backward),
    "MaxPool": Transfer(max_pool.forward, max_pool.backward),
    "GlobalAveragePool": Transfer(pooling.global_mean_forward, pooling.global_mean_backward),
    "ReduceMean": Transfer(pooling.mean_forward, pooling.mean_backward),
    # the largest or smallest along axes
    **dict.fromkeys(
        ("GlobalMaxPool", "ReduceMax", "ReduceMin"), Transfer(extremum.forward, extremum.backward)
    ),
    **dict.fromkeys(("ArgMax", "ArgMin"), Transfer(extremum.index_forward, extremum.index_backward)),
    "GatherElements": Transfer(extremum.taken_forward, extremum.taken_backward),
}
"""Transfer rule of each op of the standard's domain."""
