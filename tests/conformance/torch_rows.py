"""The rows of the suite: a layer, or a few tensor operations, as a user would write them. To cover one more, add a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Tensor = torch.Tensor
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One module to convert.

    Attributes:
        name: What the table calls it.
        make: Builds the module; its forward takes one tensor for each shape.
        shapes: Shape of each input without the batch.
        labels: For an input of integers, the number of values it can take, by the input's position.
        least: The smallest batch that the module trains on.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    labels: dict[int, int] = field(default_factory=dict)
    least: int = 1


class _Function(nn.Module):
    """A function of the input and of parameters of the given shapes."""

    def __init__(self, function: Callable[..., Tensor], shapes: tuple[Shape, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.weights)


class _Loss(nn.Module):
    """A loss of an input and a target, with a weight for each of four classes as a constant."""

    weights: Tensor

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("weights", torch.tensor([0.5, 1.0, 2.0, 0.7]), persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.function(x, target, self.weights)


class _Recurrent(nn.Module):
    """A recurrent layer whose first state is an input."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.initial, self.layer = nn.Linear(2, 4), kind(3, 4, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        h = self.initial(state)[None]
        result: Tensor = self.layer(x, (h, h) if isinstance(self.layer, nn.LSTM) else h)[0]
        return result


class _SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x, x)[0]
        return result


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


def _layer(name: str, make: Callable[[], nn.Module], *shapes: Shape, least: int = 1) -> Row:
    return Row(name, make, shapes, least=least)


def _tokens(name: str, make: Callable[[], nn.Module]) -> Row:
    return Row(name, make, ((5,),), {0: 7})


def _op(name: str, function: Callable[..., Any], shape: Shape = (4, 5), *weights: Shape) -> Row:
    return Row(name, lambda: _Function(function, weights), (shape,))


def _loss(
    name: str, function: Callable[[Tensor, Tensor, Tensor], Tensor], shape: Shape = (4,), classes: int = 0
) -> Row:
    target = shape[1:] if classes else shape
    return Row(f"loss: {name}", lambda: _Loss(function), (shape, target), {1: classes} if classes else {})


def _named(kind: str, *arguments: Any, **options: Any) -> Row:
    """An activation layer, by its class."""
    shown = ", ".join([*map(str, arguments), *(f"{key}={value}" for key, value in options.items())])
    return Row(
        f"{kind}({shown})" if shown else kind, lambda: getattr(nn, kind)(*arguments, **options), ((4, 6),)
    )


ACTIVATIONS = [
    *map(_named, ["ReLU", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid"]),
    *map(_named, ["LogSigmoid", "Tanh", "Softplus", "Softsign", "Hardswish", "Hardsigmoid", "Hardtanh"]),
    *map(_named, ["ReLU6", "Tanhshrink", "Softshrink", "Hardshrink", "GLU"]),
    _named("Threshold", 0.1, 20.0),
    _named("GELU", approximate="tanh"),
    *(_named(kind, dim=dim) for kind in ("Softmax", "LogSoftmax", "Softmin") for dim in (1, -1)),
]

_SMOOTH = [
    "exp",
    "erf",
    "sin",
    "cos",
    "tan",
    "atan",
    "abs",
    "sinh",
    "cosh",
    "asinh",
    "square",
    "neg",
    "expm1",
    "sigmoid",
]
_POSITIVE = ["log", "sqrt", "rsqrt", "reciprocal", "log1p", "log2", "log10"]

ELEMENTWISE = [
    *(_op(name, getattr(torch, name)) for name in _SMOOTH),
    *(_op(name, lambda x, name=name: getattr(torch, name)(x.abs() + 0.5)) for name in _POSITIVE),
    *(
        _op(name, lambda x, name=name: getattr(torch, name)(0.5 * torch.tanh(x)))
        for name in ("asin", "acos", "atanh")
    ),
    *(
        _op(name, lambda x, name=name: getattr(torch, name)(x) * x)
        for name in ("sign", "floor", "ceil", "round", "trunc")
    ),
    _op("acosh", lambda x: torch.acosh(x.abs() + 1.5)),
    _op("pow: scalar exponents", lambda x: x**3 + x.abs() ** 2.5),
    _op("pow: tensor exponent", lambda x, w: (x.abs() + 0.1) ** w, (4, 5), (5,)),
    _op("pow: scalar base", lambda x: 2.0**x),
    _op("clamp", lambda x: x.clamp(-0.5, 0.5)),
    _op("clamp: min", lambda x: x.clamp(min=0.1)),
    _op("clamp: max", lambda x: x.clamp(max=0.1)),
    _op("clamp: tensor bound", lambda x, w: torch.clamp(x, min=w), (4, 5), (5,)),
    _op("where", lambda x, w: torch.where(x > 0, x, w), (4, 5), (5,)),
    _op("maximum", torch.maximum, (4, 5), (5,)),
    _op("minimum", torch.minimum, (4, 5), (5,)),
    _op("remainder", lambda x: torch.remainder(x, 0.7)),
    _op("fmod", lambda x: torch.fmod(x, 0.7)),
    _op("lerp", lambda x, w: torch.lerp(x, w, 0.3), (4, 5), (5,)),
    _op("addcmul", torch.addcmul, (4, 5), (5,), (4, 1)),
    _op("atan2", torch.atan2, (4, 5), (5,)),
    _op("logaddexp", torch.logaddexp, (4, 5), (5,)),
    _op("logit", lambda x: torch.logit(x.sigmoid())),
]

LINEAR = [
    _layer("Linear", lambda: nn.Linear(5, 3), (4, 5)),
    _layer("Linear(bias=False)", lambda: nn.Linear(5, 3, bias=False), (4, 5)),
    _layer("Bilinear", lambda: nn.Bilinear(5, 4, 3), (5,), (4,)),
    _op("matmul: 3D by 2D", lambda x, w: x @ w, (4, 5), (5, 3)),
    _op("matmul: 3D by 1D", lambda x, w: x @ w, (4, 5), (5,)),
    _op("matmul: 3D by 4D", lambda x, w: x[:, None] @ w, (4, 5), (2, 5, 3)),
    _op("matmul: 1D by 3D", lambda x, w: w @ x, (4, 5), (4,)),
    _op("bmm", lambda x: torch.bmm(x, x.transpose(1, 2))),
    _op("baddbmm", lambda x, w: torch.baddbmm(w, x, x.transpose(1, 2)), (4, 5), (4, 4)),
    _op("tensordot", lambda x, w: torch.tensordot(x, w, ([1, 2], [0, 1])), (4, 5), (4, 5, 3)),
    _op("outer product", lambda x, w: x[..., None] * w, (4, 5), (3,)),
    *(
        _op(f"einsum {equation}", lambda x, *w, e=equation: torch.einsum(e, x, *w), (4, 5), *weights)
        for equation, weights in (
            ("bij,jk->bik", [(5, 3)]),
            ("bij,ij->b", [(4, 5)]),
            ("bij->bj", []),
            ("bij,k->bijk", [(3,)]),
        )
    ),
    _op("einsum bij,bkj->bik", lambda x: torch.einsum("bij,bkj->bik", x, 2 * x)),
    _op("einsum: diagonal", lambda x: torch.einsum("bii->bi", x[:, :, :4])),
]

CONVOLUTIONS = [
    _layer("Conv1d", lambda: nn.Conv1d(4, 3, 3), (4, 8)),
    _layer(
        "Conv2d(stride, dilation, padding)",
        lambda: nn.Conv2d(4, 3, 3, stride=2, dilation=2, padding=1),
        (4, 8, 8),
    ),
    _layer("Conv3d", lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    _layer("Conv2d(groups)", lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 8, 8)),
    _layer("Conv2d(depthwise)", lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8)),
    _layer("Conv2d(padding=same)", lambda: nn.Conv2d(4, 3, 4, padding="same"), (4, 8, 8)),
    *(
        _layer(
            f"Conv2d(padding_mode={mode})",
            lambda mode=mode: nn.Conv2d(4, 3, 3, padding=1, padding_mode=mode),
            (4, 8, 8),
        )
        for mode in ("reflect", "replicate", "circular")
    ),
    _layer(
        "ConvTranspose1d", lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1), (4, 8)
    ),
    _layer("ConvTranspose2d", lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), (4, 8, 8)),
    _layer("ConvTranspose2d(groups)", lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2), (4, 8, 8)),
    _layer("ConvTranspose3d", lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 4, 4, 4)),
    _layer("Unfold", lambda: nn.Unfold(2, padding=1, stride=2), (4, 8, 8)),
    _layer("PixelShuffle", lambda: nn.PixelShuffle(2), (4, 8, 8)),
    _layer("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), (4, 8, 8)),
    _layer("ChannelShuffle", lambda: nn.ChannelShuffle(2), (4, 8, 8)),
    *(
        _layer(f"{kind}2d", lambda kind=kind: getattr(nn, f"{kind}2d")((1, 2, 0, 1)), (4, 8, 8))
        for kind in ("ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad", "ConstantPad")
        if kind != "ConstantPad"
    ),
]

POOLS = [
    _layer("MaxPool1d", lambda: nn.MaxPool1d(2), (4, 8)),
    _layer("MaxPool2d(padding)", lambda: nn.MaxPool2d(3, 2, 1), (4, 8, 8)),
    _layer("MaxPool2d(ceil_mode)", lambda: nn.MaxPool2d(3, 2, ceil_mode=True), (4, 8, 8)),
    _layer("MaxPool3d", lambda: nn.MaxPool3d(2), (2, 4, 4, 4)),
    _layer("AvgPool1d", lambda: nn.AvgPool1d(2), (4, 8)),
    _layer("AvgPool2d(padding)", lambda: nn.AvgPool2d(3, 2, 1), (4, 8, 8)),
    _layer("AvgPool2d(ceil_mode)", lambda: nn.AvgPool2d(3, 2, ceil_mode=True), (4, 8, 8)),
    _layer("AvgPool2d(ceil_mode, padding)", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (4, 8, 8)),
    _layer(
        "AvgPool2d(count_include_pad=False)",
        lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        (4, 8, 8),
    ),
    *(
        _layer(
            f"Adaptive{kind}Pool2d({size})",
            lambda kind=kind, size=size: getattr(nn, f"Adaptive{kind}Pool2d")(size),
            (4, 8, 8),
        )
        for kind, sizes in (("Avg", (1, 2, 3)), ("Max", (1, 2)))
        for size in sizes
    ),
    _layer("AdaptiveAvgPool1d", lambda: nn.AdaptiveAvgPool1d(4), (4, 8)),
    _layer("LPPool1d", lambda: nn.LPPool1d(3, 2), (4, 8)),
    _layer("LPPool2d", lambda: nn.LPPool2d(2, 2), (4, 8, 8)),
    *(
        _layer(
            f"Upsample({', '.join(f'{k}={v}' for k, v in options.items())})",
            lambda options=options: nn.Upsample(**options),
            (4, 8, 8),
        )
        for options in (
            {"scale_factor": 2, "mode": "nearest"},
            {"size": (7, 9), "mode": "nearest"},
            {"scale_factor": 2, "mode": "bilinear"},
            {"size": (3, 9), "mode": "bilinear"},
            {"scale_factor": 2, "mode": "bilinear", "align_corners": True},
            {"scale_factor": 2, "mode": "bicubic"},
            {"size": (7, 9), "mode": "bicubic", "align_corners": True},
        )
    ),
    _layer("Upsample(mode=linear)", lambda: nn.Upsample(scale_factor=2, mode="linear"), (4, 8)),
    _layer("Upsample(mode=trilinear)", lambda: nn.Upsample(scale_factor=2, mode="trilinear"), (2, 4, 4, 4)),
]

NORMALIZATION = [
    _layer("BatchNorm1d", lambda: nn.BatchNorm1d(4), (4, 8)),
    _layer("BatchNorm1d of vectors", lambda: nn.BatchNorm1d(4), (4,), least=2),
    _layer("BatchNorm2d", lambda: nn.BatchNorm2d(4), (4, 8, 8)),
    _layer("BatchNorm3d", lambda: nn.BatchNorm3d(2), (2, 4, 4, 4)),
    _layer(
        "BatchNorm2d(affine=False, momentum)",
        lambda: nn.BatchNorm2d(4, affine=False, momentum=0.3),
        (4, 8, 8),
    ),
    _layer("LayerNorm", lambda: nn.LayerNorm(5), (4, 5)),
    _layer("LayerNorm(two axes, no affine)", lambda: nn.LayerNorm((4, 5), elementwise_affine=False), (4, 5)),
    _layer("RMSNorm", lambda: nn.RMSNorm(5), (4, 5)),
    _layer("GroupNorm", lambda: nn.GroupNorm(2, 4), (4, 8, 8)),
    _layer("GroupNorm(affine=False)", lambda: nn.GroupNorm(2, 4, affine=False), (4, 8, 8)),
    _layer("InstanceNorm1d(affine=True)", lambda: nn.InstanceNorm1d(4, affine=True), (4, 8)),
    _layer("InstanceNorm2d", lambda: nn.InstanceNorm2d(4), (4, 8, 8)),
    _layer("LocalResponseNorm", lambda: nn.LocalResponseNorm(3, alpha=0.1), (4, 8, 8)),
    _layer("Dropout", lambda: nn.Dropout(0.3), (4, 5)),
    _layer("Dropout2d", lambda: nn.Dropout2d(0.3), (4, 8, 8)),
    _layer("weight_norm", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), (4, 5)),
    _op("normalize", functional.normalize),
]

_RNNS: tuple[type[nn.RNNBase], ...] = (nn.RNN, nn.LSTM, nn.GRU)

SEQUENCES = [
    *(_layer(kind.__name__, lambda kind=kind: kind(3, 4, batch_first=True), (5, 3)) for kind in _RNNS),
    *(
        _layer(
            f"{kind.__name__}(num_layers=2, bidirectional)",
            lambda kind=kind: kind(3, 4, num_layers=2, bidirectional=True, batch_first=True),
            (5, 3),
        )
        for kind in _RNNS
    ),
    *(
        _layer(
            f"{kind.__name__}(bias=False)",
            lambda kind=kind: kind(3, 4, bias=False, batch_first=True),
            (5, 3),
        )
        for kind in _RNNS
    ),
    *(
        _layer(f"{kind.__name__} from a given state", lambda kind=kind: _Recurrent(kind), (5, 3), (2,))
        for kind in _RNNS
    ),
    _layer("RNN(nonlinearity=relu)", lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True), (5, 3)),
    _layer("RNNCell", lambda: nn.RNNCell(4, 3), (4,)),
    _layer("LSTMCell", lambda: nn.LSTMCell(4, 3), (4,)),
    _layer("GRUCell", lambda: nn.GRUCell(4, 3), (4,)),
    _layer("MultiheadAttention", _SelfAttention, (5, 4)),
    _layer(
        "TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu", norm_first=True),
        (5, 4),
    ),
    _layer(
        "TransformerEncoder",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
        (5, 4),
    ),
    _layer(
        "TransformerDecoderLayer",
        lambda: nn.TransformerDecoderLayer(4, 2, 8, batch_first=True),
        (5, 4),
        (3, 4),
    ),
    _layer("Transformer", lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True), (5, 4), (3, 4)),
    _op(
        "scaled_dot_product_attention",
        lambda x: functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]),
    ),
    _op(
        "scaled_dot_product_attention(is_causal)",
        lambda x: functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], is_causal=True),
    ),
    _op(
        "scaled_dot_product_attention(attn_mask)",
        lambda x, w: functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=w),
        (4, 5),
        (4, 4),
    ),
    _tokens("Embedding", lambda: nn.Embedding(7, 3)),
    _tokens("tied weights", _Tied),
    _layer("shared module", _Shared, (4,)),
    _layer("CosineSimilarity", nn.CosineSimilarity, (5,), (5,)),
    _layer("PairwiseDistance", nn.PairwiseDistance, (5,), (5,)),
]


def _assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1] = y[:, 0] * 2
    return y


def _placed(x: Tensor, places: list[list[int]]) -> Tensor:
    return torch.tensor([places]).expand(x.shape[0], -1, -1)


_PLACES = [[0, 1, 2, 3, 3], [1, 2, 0, 0, 2]]

MOVES = [
    _op("gather", lambda x: x.gather(1, _placed(x, _PLACES))),
    _op("scatter", lambda x: torch.zeros_like(x).scatter(1, _placed(x, _PLACES), x[:, :2])),
    _op("scatter_add", lambda x: x.scatter_add(1, _placed(x, [[0, 1, 2, 3, 3], [1, 1, 2, 0, 2]]), x[:, :2])),
    _op(
        "scatter_reduce(amax)",
        lambda x: x.scatter_reduce(1, _placed(x, _PLACES), x[:, :2] * 2, "amax"),
    ),
    _op("index_select", lambda x: x.index_select(1, torch.tensor([0, 2, 2]))),
    _op("advanced indexing", lambda x: x[:, torch.tensor([0, 2, 2]), torch.tensor([1, 1, 4])]),
    _op(
        "index_add",
        lambda x, w: x.index_add(1, torch.tensor([0, 0]), w.expand(x.shape[0], -1, -1)),
        (4, 5),
        (2, 5),
    ),
    _op(
        "index_copy",
        lambda x, w: x.index_copy(1, torch.tensor([0, 2]), w.expand(x.shape[0], -1, -1)),
        (4, 5),
        (2, 5),
    ),
    _op(
        "index_put",
        lambda x, w: x.index_put((torch.arange(x.shape[0])[:, None], torch.tensor([0, 2])), w),
        (4, 5),
        (2, 5),
    ),
    _op(
        "index_put(accumulate)",
        lambda x, w: x.index_put(
            (torch.arange(x.shape[0])[:, None], torch.tensor([1, 1])), w, accumulate=True
        ),
        (4, 5),
        (2, 5),
    ),
    _op("assignment to a slice", _assigned),
    _op("roll", lambda x: x.roll((1, -2), (1, 2))),
    _op("flip", lambda x: x.flip(1)),
    _op("stack", lambda x: torch.stack((x, x * 2), 1)),
    _op("chunk", lambda x: x.chunk(2, 1)[1]),
    _op("split", lambda x: x.split([1, 3], 1)[1]),
    _op("unbind", lambda x: x.unbind(1)[2]),
    _op("expand", lambda x: x[:, :1].expand(-1, 4, -1)),
    _op("repeat", lambda x: x.repeat(1, 2, 3)),
    _op("repeat_interleave", lambda x: x.repeat_interleave(2, 1)),
    _op("tile", lambda x: x.tile(1, 2, 1)),
    _op("permute", lambda x: x.permute(0, 2, 1)),
    _op("squeeze", lambda x: x[:, :1].squeeze(1)),
    _op("tril", lambda x: x.tril()),
    _op("triu", lambda x: x.triu(1)),
    _op("masked_fill", lambda x: x.masked_fill(x > 0.5, -3.0)),
    _op("diagonal", lambda x: x.diagonal(0, 1, 2)),
    _op("slices with steps", lambda x: x[:, ::2, 1:]),
    _op("rot90", lambda x: x.rot90(1, (1, 2))),
    _op("Tensor.unfold", lambda x: x.unfold(1, 2, 1)),
    _op("diff", lambda x: x.diff(dim=1)),
    _op("sort", lambda x: x.sort(1).values),
    _op("sort(descending)", lambda x: x.sort(1, descending=True).values),
    _op("topk", lambda x: x.topk(3, 1).values),
    _op("argmax (no gradient)", lambda x: x * x.argmax(1, keepdim=True)),
    _op(
        "one_hot",
        lambda x: functional.one_hot(x.argmax(1), 4).float() * x.sum(1, keepdim=True).transpose(1, 2),
    ),
    *(
        _op(f"pad({mode})", lambda x, mode=mode: functional.pad(x, (1, 2), mode=mode))
        for mode in ("reflect", "replicate", "circular", "constant")
    ),
    _layer("Flatten", nn.Flatten, (4, 5)),
    _layer("Unflatten", lambda: nn.Unflatten(1, (2, 2)), (4, 5)),
]

REDUCTIONS = [
    *(
        _op(f"{name}{dims}", lambda x, name=name, dims=dims: getattr(x, name)(dim=dims))
        for name in ("sum", "mean", "amax", "amin", "logsumexp", "norm", "var", "std")
        for dims in ((1,), (1, 2), (-1,))
    ),
    _op("prod", lambda x: x.prod(1)),
    _op("prod(keepdim)", lambda x: x.prod(-1, keepdim=True)),
    _op("max", lambda x: x.max(1).values),
    _op("min", lambda x: x.min(1).values),
    _op("max of all", lambda x: x * x.max()),
    _op("norm 1", lambda x: x.norm(1, dim=1)),
    _op("norm 3", lambda x: x.norm(3, dim=1)),
    _op("norm inf", lambda x: x.norm(float("inf"), dim=1)),
    _op("cumsum", lambda x: x.cumsum(1)),
    _op("logcumsumexp", lambda x: x.logcumsumexp(1)),
]

_F = functional

LOSSES = [
    _loss("cross_entropy", lambda x, t, w: _F.cross_entropy(x, t), (4,), 4),
    _loss("cross_entropy(weight)", _F.cross_entropy, (4,), 4),
    _loss("cross_entropy(ignore_index)", lambda x, t, w: _F.cross_entropy(x, t, ignore_index=2), (4,), 4),
    _loss(
        "cross_entropy(label_smoothing)", lambda x, t, w: _F.cross_entropy(x, t, label_smoothing=0.1), (4,), 4
    ),
    _loss(
        "cross_entropy(weight, ignore_index), classes in the middle",
        lambda x, t, w: _F.cross_entropy(x, t, w, ignore_index=1),
        (4, 3, 2),
        4,
    ),
    _loss(
        "cross_entropy(reduction=sum)", lambda x, t, w: _F.cross_entropy(x, t, w, reduction="sum"), (4,), 4
    ),
    _loss(
        "cross_entropy(reduction=none)",
        lambda x, t, w: _F.cross_entropy(x, t, w, reduction="none", ignore_index=3, label_smoothing=0.2),
        (4,),
        4,
    ),
    _loss(
        "cross_entropy of probabilities",
        lambda x, t, w: _F.cross_entropy(x, t.softmax(1), w, label_smoothing=0.2),
    ),
    _loss(
        "focal loss",
        lambda x, t, w: (1 - (-_F.cross_entropy(x, t, reduction="none")).exp()).square().mean(),
        (4,),
        4,
    ),
    _loss("nll_loss", lambda x, t, w: _F.nll_loss(x.log_softmax(1), t, w), (4,), 4),
    _loss("mse_loss", lambda x, t, w: _F.mse_loss(x, t)),
    _loss("l1_loss", lambda x, t, w: _F.l1_loss(x, t)),
    _loss("smooth_l1_loss", lambda x, t, w: _F.smooth_l1_loss(x, t, beta=0.5)),
    _loss("huber_loss", lambda x, t, w: _F.huber_loss(x, t, delta=0.5)),
    _loss("binary_cross_entropy", lambda x, t, w: _F.binary_cross_entropy(x.sigmoid(), t.sigmoid())),
    _loss(
        "binary_cross_entropy_with_logits(pos_weight)",
        lambda x, t, w: _F.binary_cross_entropy_with_logits(x, t.sigmoid(), pos_weight=w),
    ),
    _loss(
        "binary_cross_entropy_with_logits of 1e4",
        lambda x, t, w: _F.binary_cross_entropy_with_logits(1e4 * x, t.sigmoid()),
    ),
    _loss("kl_div", lambda x, t, w: _F.kl_div(x.log_softmax(1), t.softmax(1), reduction="batchmean")),
    _loss("hinge_embedding_loss", lambda x, t, w: _F.hinge_embedding_loss(x, t.sign())),
    _loss("cosine_embedding_loss", lambda x, t, w: _F.cosine_embedding_loss(x, t, t[:, 0].sign())),
    _loss("margin_ranking_loss", lambda x, t, w: _F.margin_ranking_loss(x, t, t.sign(), margin=0.3)),
    _loss("soft_margin_loss", lambda x, t, w: _F.soft_margin_loss(x, t.detach().sign())),
    _loss("triplet_margin_loss", lambda x, t, w: _F.triplet_margin_loss(x, t, t * 2)),
    _loss("poisson_nll_loss", lambda x, t, w: _F.poisson_nll_loss(x, t.exp())),
]

FAMILIES = {
    "Activations": ACTIVATIONS,
    "Elementwise": ELEMENTWISE,
    "Linear maps": LINEAR,
    "Convolutions and images": CONVOLUTIONS,
    "Pooling and resizing": POOLS,
    "Normalisation and dropout": NORMALIZATION,
    "Sequences and attention": SEQUENCES,
    "Moving elements": MOVES,
    "Reductions": REDUCTIONS,
    "Losses inside the module": LOSSES,
}

REFUSED = [
    (_named("RReLU"), "cannot translate rrelu_with_noise"),
    (_layer("AlphaDropout", lambda: nn.AlphaDropout(0.3), (5,)), "draws random numbers"),
    (
        _layer("AdaptiveMaxPool2d(3) of 8", lambda: nn.AdaptiveMaxPool2d(3), (4, 8, 8)),
        "cannot translate adaptive_max_pool2d",
    ),
    (_op("hypot", torch.hypot, (4, 5), (5,)), "cannot translate hypot"),
    (_op("cumprod", lambda x: x.cumprod(1)), "cannot translate prod"),
    (_op("cummax", lambda x: x.cummax(1).values), "cannot translate cummax"),
    (_op("median", lambda x: x.median(1).values), "cannot translate median"),
    (_op("kthvalue", lambda x: x.kthvalue(2, 1).values), "cannot translate kthvalue"),
    (_op("cdist", torch.cdist, (4, 5), (3, 5)), "cannot translate _cdist_forward"),
    (_tokens("EmbeddingBag", lambda: nn.EmbeddingBag(7, 3)), "no gradient for ConcatFromSequence"),
]
"""What is refused, and words of the reason."""
