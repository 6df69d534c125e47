"""Recurrent layers, attention and embeddings."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .row import Tensor, layer, op, tokens


class _Recurrent(nn.Module):
    """A recurrent layer whose first state is an input."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.initial, self.layer = nn.Linear(2, 4), kind(3, 4, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        h = self.initial(state)[None]
        result: Tensor = self.layer(x, (h, h) if isinstance(self.layer, nn.LSTM) else h)[0]
        return result


class _TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x.transpose(0, 1))[0]
        return result.transpose(0, 1)


class _SelfAttention(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x, x)[0]
        return result


class _MaskedAttention(_SelfAttention):
    """Each position sees those before it, and none sees where the second input is not positive."""

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
        padding = torch.cat([torch.zeros_like(kept[:, :1]), -kept[:, 1:]], 1) > 0
        result: Tensor = self.attention(x, x, x, key_padding_mask=padding, attn_mask=causal)[0]
        return result


class _Bag(nn.Module):
    """Bags of two tokens each, by offsets into all tokens."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 3, mode=mode)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens[:, :4].reshape(-1)
        result: Tensor = self.bag(tokens, torch.arange(0, tokens.shape[0], 2))
        return result.reshape(-1, 6)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.embedding(tokens))
        return result


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(self.layer(x).tanh())
        return result


_RNNS: tuple[type[nn.RNNBase], ...] = (nn.RNN, nn.LSTM, nn.GRU)

SEQUENCES = [
    *(layer(kind.__name__, lambda kind=kind: kind(3, 4, batch_first=True), (3, 3)) for kind in _RNNS),
    *(
        layer(
            f"{kind.__name__}(num_layers=2, bidirectional)",
            lambda kind=kind: kind(3, 4, num_layers=2, bidirectional=True, batch_first=True),
            (3, 3),
        )
        for kind in _RNNS
    ),
    *(
        layer(
            f"{kind.__name__}(bias=False)",
            lambda kind=kind: kind(3, 4, bias=False, batch_first=True),
            (3, 3),
        )
        for kind in _RNNS
    ),
    *(
        layer(f"{kind.__name__} from a given state", lambda kind=kind: _Recurrent(kind), (3, 3), (2,))
        for kind in _RNNS
    ),
    layer("LSTM(batch_first=False)", _TimeFirst, (3, 3)),
    layer("RNN(nonlinearity=relu)", lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True), (3, 3)),
    layer("RNNCell", lambda: nn.RNNCell(4, 3), (4,)),
    layer("LSTMCell", lambda: nn.LSTMCell(4, 3), (4,)),
    layer("GRUCell", lambda: nn.GRUCell(4, 3), (4,)),
    *(
        layer(
            f"{kind.__name__}(dropout between layers)",
            lambda kind=kind: kind(3, 4, num_layers=2, dropout=0.2, batch_first=True),
            (3, 3),
        )
        for kind in _RNNS
    ),
    layer("LSTM(proj_size)", lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True), (3, 3)),
    layer(
        "LSTM(proj_size, bidirectional, bias=False)",
        lambda: nn.LSTM(3, 4, proj_size=2, bidirectional=True, bias=False, batch_first=True),
        (3, 3),
    ),
    layer("MultiheadAttention", _SelfAttention, (5, 4)),
    layer("MultiheadAttention(add_bias_kv)", lambda: _SelfAttention(add_bias_kv=True), (5, 4)),
    layer("MultiheadAttention(add_zero_attn)", lambda: _SelfAttention(add_zero_attn=True), (5, 4)),
    layer("MultiheadAttention(key_padding_mask, attn_mask)", _MaskedAttention, (5, 4), (5,)),
    layer(
        "TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu", norm_first=True),
        (5, 4),
    ),
    layer(
        "TransformerEncoder",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
        (5, 4),
    ),
    layer(
        "TransformerDecoderLayer",
        lambda: nn.TransformerDecoderLayer(4, 2, 8, batch_first=True),
        (5, 4),
        (3, 4),
    ),
    layer("Transformer", lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True), (5, 4), (3, 4)),
    op(
        "scaled_dot_product_attention",
        lambda x: functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]),
    ),
    op(
        "scaled_dot_product_attention(is_causal)",
        lambda x: functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True),
    ),
    op(
        "scaled_dot_product_attention(attn_mask)",
        lambda x, w: functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=w),
        (4, 5),
        (4, 4),
    ),
    op("scaled_dot_product_attention of 3-D", lambda x: functional.scaled_dot_product_attention(x, x, x)),
    tokens("Embedding", lambda: nn.Embedding(7, 3)),
    tokens("Embedding(padding_idx)", lambda: nn.Embedding(7, 3, padding_idx=2)),
    *(
        tokens(f"EmbeddingBag({mode})", lambda mode=mode: nn.EmbeddingBag(7, 3, mode=mode))
        for mode in ("sum", "mean", "max")
    ),
    *(
        tokens(f"EmbeddingBag({mode}) by offsets", lambda mode=mode: _Bag(mode))
        for mode in ("sum", "mean", "max")
    ),
    tokens("EmbeddingBag(padding_idx)", lambda: nn.EmbeddingBag(7, 3, padding_idx=2)),
    tokens("tied weights", _Tied),
    layer("shared module", _Shared, (4,)),
    layer("CosineSimilarity", nn.CosineSimilarity, (5,), (5,)),
    layer("PairwiseDistance", nn.PairwiseDistance, (5,), (5,)),
]
