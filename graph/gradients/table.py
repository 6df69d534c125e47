"""The table of gradients: every op that gradfuse differentiates, and where its mathematics stands."""

from __future__ import annotations

from collections.abc import Mapping

from . import (
    activation,
    arithmetic,
    control_flow,
    convolution,
    einsum,
    indexing,
    linear,
    loss,
    normalization,
    pooling,
    reduction,
    resizing,
    shape,
)
from .engine import Gradient

__all__ = ["TABLE"]

_BROADCASTING = {
    "Add": arithmetic.add,
    "Sub": arithmetic.sub,
    "Mul": arithmetic.mul,
    "Div": arithmetic.div,
    "Pow": arithmetic.pow_,
    "Sum": arithmetic.sum_,
    "Mean": arithmetic.mean,
    "Max": arithmetic.max_,
    "Min": arithmetic.min_,
    "Where": arithmetic.where_,
    "Clip": arithmetic.clip,
    "Mod": arithmetic.mod,
    "PRelu": activation.prelu,
}

_PLAIN = {
    # elementwise
    "Neg": arithmetic.neg,
    "Abs": arithmetic.abs_,
    "Sqrt": arithmetic.sqrt,
    "Exp": arithmetic.exp,
    "Log": arithmetic.log,
    "Reciprocal": arithmetic.reciprocal,
    "Erf": arithmetic.erf,
    "Sin": arithmetic.sin,
    "Cos": arithmetic.cos,
    "Tan": arithmetic.tan,
    "Asin": arithmetic.asin,
    "Acos": arithmetic.acos,
    "Atan": arithmetic.atan,
    "Sinh": arithmetic.sinh,
    "Cosh": arithmetic.cosh,
    "Asinh": arithmetic.asinh,
    "Acosh": arithmetic.acosh,
    "Atanh": arithmetic.atanh,
    "Identity": arithmetic.identity,
    "Cast": arithmetic.cast,
    "CastLike": arithmetic.cast,
    "Sign": arithmetic.constant,
    "Floor": arithmetic.constant,
    "Ceil": arithmetic.constant,
    "Round": arithmetic.constant,
    # activations
    "Relu": activation.relu,
    "LeakyRelu": activation.leaky_relu,
    "Elu": activation.elu,
    "Selu": activation.selu,
    "Celu": activation.celu,
    "Sigmoid": activation.sigmoid,
    "HardSigmoid": activation.hard_sigmoid,
    "Tanh": activation.tanh,
    "Softplus": activation.softplus,
    "Softsign": activation.softsign,
    "Gelu": activation.gelu,
    "Softmax": activation.softmax,
    "LogSoftmax": activation.log_softmax,
    # matrix products and convolutions
    "MatMul": linear.matmul,
    "Gemm": linear.gemm,
    "Einsum": einsum.einsum,
    "Conv": convolution.conv,
    "ConvTranspose": convolution.conv_transpose,
    "Col2Im": convolution.column_to_image,
    # normalisation
    "BatchNormalization": normalization.batch_normalization,
    "LayerNormalization": normalization.layer_normalization,
    "InstanceNormalization": normalization.instance_normalization,
    "LpNormalization": normalization.lp_normalization,
    "LRN": normalization.local_response_normalization,
    "Dropout": normalization.dropout,
    # pooling
    "MaxPool": pooling.max_pool,
    "AveragePool": pooling.average_pool,
    "LpPool": pooling.lp_pool,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "GlobalLpPool": pooling.global_lp_pool,
    # reductions
    "ReduceSum": reduction.reduce_sum,
    "ReduceMean": reduction.reduce_mean,
    "ReduceSumSquare": reduction.reduce_sum_square,
    "ReduceL1": reduction.reduce_l1,
    "ReduceL2": reduction.reduce_l2,
    "ReduceProd": reduction.reduce_prod,
    "CumSum": reduction.cumulative_sum,
    "ReduceLogSum": reduction.reduce_log_sum,
    "ReduceLogSumExp": reduction.reduce_log_sum_exp,
    "ReduceMax": reduction.reduce_extremum,
    "ReduceMin": reduction.reduce_extremum,
    # shape
    "Reshape": shape.reshape,
    "Flatten": shape.reshape,
    "Squeeze": shape.reshape,
    "Unsqueeze": shape.reshape,
    "Transpose": shape.transpose,
    "ReverseSequence": shape.reverse_sequence,
    "Expand": shape.expand,
    "Tile": shape.tile,
    "Concat": shape.concat,
    "Split": shape.split,
    "Pad": shape.pad,
    "Resize": resizing.resize,
    "Trilu": shape.triangle,
    "DepthToSpace": shape.depth_to_space,
    "SpaceToDepth": shape.space_to_depth,
    # indexing
    "Slice": indexing.slice_,
    "Gather": indexing.gather,
    "GatherElements": indexing.gather_elements,
    "GatherND": indexing.gather_nd,
    "ScatterElements": indexing.scatter_elements,
    "ScatterND": indexing.scatter_nd,
    "TopK": indexing.top_k,
    # control flow
    "If": control_flow.if_,
    "Scan": control_flow.scan,
    "Loop": control_flow.loop,
    # losses
    "SoftmaxCrossEntropyLoss": loss.softmax_cross_entropy,
    "NegativeLogLikelihoodLoss": loss.negative_log_likelihood,
}

TABLE: Mapping[tuple[str, str], Gradient] = {
    **{("", op_type): Gradient(rule, broadcasts=True) for op_type, rule in _BROADCASTING.items()},
    **{("", op_type): Gradient(rule) for op_type, rule in _PLAIN.items()},
}
"""Gradient of each op, by domain and op type."""
