"""Every layer, operation and loss that gradfuse must cover has a row in the suites.

Of control flow, `torch.while_loop` has none: the gradient that PyTorch itself gives is not that of all its iterations
(`tests/converters/test_pytorch.py` compares it with the unrolled loop).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import pytest

from . import keras_rows, torch_rows

PYTORCH = """
    ReLU LeakyReLU PReLU RReLU,_eval ELU SELU CELU GELU GELU(approximate=tanh) SiLU Mish Sigmoid LogSigmoid Tanh Softplus
    Softsign Hardswish Hardsigmoid Hardtanh ReLU6 Threshold GLU Softmax LogSoftmax Softmin exp log sqrt rsqrt
    pow:_scalar_exponents pow:_tensor_exponent erf sin cos tan atan abs sign clamp clamp:_min clamp:_max reciprocal where
    maximum minimum
    Linear Bilinear Conv1d Conv2d(stride,_dilation,_padding) Conv2d(groups) Conv2d(depthwise) Conv2d(padding=same)
    Conv2d(padding_mode=reflect) Conv2d(padding_mode=replicate) Conv2d(padding_mode=circular) Conv3d ConvTranspose1d
    ConvTranspose2d Embedding Embedding(padding_idx) EmbeddingBag LayerNorm RMSNorm GroupNorm InstanceNorm1d InstanceNorm2d
    BatchNorm1d BatchNorm2d BatchNorm2d(affine=False,_momentum) BatchNorm2d,_frozen BatchNorm3d LocalResponseNorm Dropout
    Dropout2d AlphaDropout MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d
    AdaptiveMaxPool1d AdaptiveMaxPool2d LPPool1d LPPool2d Upsample(scale_factor=2,_mode=nearest)
    Upsample(scale_factor=2,_mode=bilinear) Upsample(scale_factor=2,_mode=bilinear,_align_corners=True) PixelShuffle Unfold
    Fold pad(constant) pad(reflect) pad(replicate) pad(circular) Flatten RNN LSTM GRU RNN(num_layers=2,_bidirectional)
    LSTM(num_layers=2,_bidirectional) GRU(num_layers=2,_bidirectional) RNN_from_a_given_state LSTM_from_a_given_state
    GRU_from_a_given_state LSTM(batch_first=False) MultiheadAttention TransformerEncoderLayer TransformerDecoderLayer
    scaled_dot_product_attention scaled_dot_product_attention(attn_mask) scaled_dot_product_attention(is_causal)
    CosineSimilarity PairwiseDistance weight_norm spectral_norm,_frozen tied_weights shared_module
    matmul:_1D_by_3D matmul:_3D_by_1D matmul:_3D_by_2D matmul:_3D_by_4D einsum_bij,jk->bik cumsum cumprod sort topk gather
    scatter scatter_add index_select index_put roll flip stack chunk expand repeat permute squeeze tril triu masked_fill sum
    mean prod max min amax logsumexp norm var std argmax torch.cond scan
    loss:_cross_entropy loss:_cross_entropy(weight) loss:_cross_entropy(ignore_index) loss:_cross_entropy(label_smoothing)
    loss:_cross_entropy(weight,_ignore_index),_classes_in_the_middle loss:_nll_loss loss:_mse_loss loss:_l1_loss
    loss:_smooth_l1_loss loss:_huber_loss loss:_binary_cross_entropy loss:_binary_cross_entropy_with_logits(pos_weight)
    loss:_binary_cross_entropy_with_logits_of_1e4 loss:_kl_div loss:_hinge_embedding_loss loss:_cosine_embedding_loss
"""
KERAS = """
    Dense Conv1D Conv2D Conv3D SeparableConv1D SeparableConv2D DepthwiseConv1D DepthwiseConv2D Conv2DTranspose Embedding
    BatchNormalization LayerNormalization GroupNormalization UnitNormalization PReLU LeakyReLU Dropout SpatialDropout1D
    SpatialDropout2D SpatialDropout3D GaussianNoise MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D
    AveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GlobalAveragePooling1D GlobalAveragePooling2D
    GlobalAveragePooling3D UpSampling2D ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D Reshape
    Permute RepeatVector Add Multiply Concatenate Dot SimpleRNN LSTM GRU Bidirectional TimeDistributed MultiHeadAttention
    Attention
"""


@pytest.mark.parametrize(
    ("listed", "families"),
    [(PYTORCH, torch_rows.FAMILIES), (KERAS, keras_rows.FAMILIES)],
    ids=["PyTorch", "Keras"],
)
def test_every_layer_has_a_row(listed: str, families: Mapping[str, Iterable[Any]]) -> None:
    rows = [row.name.replace(" ", "_") for row in chain.from_iterable(families.values())]
    assert [name for name in listed.split() if not _is_in(name, rows)] == []


def test_every_activation_of_keras_has_a_row() -> None:
    rows = [row.name for row in keras_rows.ACTIVATIONS]
    aliases = {"hard_swish": "hard_silu", "swish": "silu"}
    listed = [name for name, what in vars(keras_rows.keras.activations).items() if inspect.isfunction(what)]
    named = [aliases.get(name, name) for name in listed if name not in {"deserialize", "get", "serialize"}]
    assert [name for name in named if not any(name in row for row in rows)] == []


def _is_in(name: str, rows: Sequence[str]) -> bool:
    """Whether a row's name begins with it, as whole words."""
    return any(re.match(rf"{re.escape(name)}(?![A-Za-z0-9])", row) for row in rows)
