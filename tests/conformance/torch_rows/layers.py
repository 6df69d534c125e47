"""Linear maps, convolutions, pooling, normalisation and dropout."""

from __future__ import annotations

import torch
from torch import nn
from torch._higher_order_ops.scan import scan
from torch.nn import functional

from .row import Tensor, layer, op


def _without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.tanh()


class _Branches(nn.Module):
    """One layer or another, as the numbers of the batch decide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        def first(x: Tensor) -> Tensor:
            result: Tensor = self.first(x).tanh()
            return result

        def second(x: Tensor) -> Tensor:
            result: Tensor = self.second(x)
            return result

        result: Tensor = torch.cond(x.mean() > 0, first, second, (x,))
        return result


class _Scanned(nn.Module):
    """A recurrence of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        def step(h: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(h @ self.weight + at)
            return h, 2 * h

        result: Tensor = scan(step, x.new_zeros(x.shape[0], 5), x.transpose(0, 1))[1]
        return result.transpose(0, 1)


class _Sum(nn.Module):
    """Takes any number of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.linear(inputs[0]) * inputs[1]
        return result


LINEAR = [
    layer("Linear", lambda: nn.Linear(5, 3), (4, 5)),
    layer("Linear(bias=False)", lambda: nn.Linear(5, 3, bias=False), (4, 5)),
    layer("Bilinear", lambda: nn.Bilinear(5, 4, 3), (5,), (4,)),
    op("matmul: 3D by 2D", lambda x, w: x @ w, (4, 5), (5, 3)),
    op("matmul: 3D by 1D", lambda x, w: x @ w, (4, 5), (5,)),
    op("matmul: 3D by 4D", lambda x, w: x[:, None] @ w, (4, 5), (2, 5, 3)),
    op("matmul: 1D by 3D", lambda x, w: w @ x, (4, 5), (4,)),
    op("bmm", lambda x: torch.bmm(x, x.transpose(1, 2))),
    op("baddbmm", lambda x, w: torch.baddbmm(w, x, x.transpose(1, 2)), (4, 5), (4, 4)),
    op("tensordot", lambda x, w: torch.tensordot(x, w, ([1, 2], [0, 1])), (4, 5), (4, 5, 3)),
    op("outer product", lambda x, w: x[..., None] * w, (4, 5), (3,)),
    *(
        op(f"einsum {equation}", lambda x, *w, e=equation: torch.einsum(e, x, *w), (4, 5), *weights)
        for equation, weights in (
            ("bij,jk->bik", [(5, 3)]),
            ("bij,ij->b", [(4, 5)]),
            ("bij->bj", []),
            ("bij,k->bijk", [(3,)]),
        )
    ),
    op("einsum bij,bkj->bik", lambda x: torch.einsum("bij,bkj->bik", x, 2 * x)),
    layer("forward(*inputs)", _Sum, (5,), (4,)),
    layer("torch.cond", _Branches, (4, 5)),
    layer("scan", _Scanned, (4, 5)),
    op("cdist", torch.cdist, (4, 5), (3, 5)),
    op("einsum: diagonal", lambda x: torch.einsum("bii->bi", x[:, :, :4])),
]


CONVOLUTIONS = [
    layer("Conv1d", lambda: nn.Conv1d(4, 3, 3), (4, 8)),
    layer(
        "Conv2d(stride, dilation, padding)",
        lambda: nn.Conv2d(4, 3, 3, stride=2, dilation=2, padding=1),
        (4, 8, 8),
    ),
    layer("Conv3d", lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    layer("Conv2d(groups)", lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 8, 8)),
    layer("Conv2d(depthwise)", lambda: nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8)),
    layer("Conv2d(padding=same)", lambda: nn.Conv2d(4, 3, 4, padding="same"), (4, 8, 8)),
    *(
        layer(
            f"Conv2d(padding_mode={mode})",
            lambda mode=mode: nn.Conv2d(4, 3, 3, padding=1, padding_mode=mode),
            (4, 8, 8),
        )
        for mode in ("reflect", "replicate", "circular")
    ),
    layer(
        "ConvTranspose1d", lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1), (4, 8)
    ),
    layer("ConvTranspose2d", lambda: nn.ConvTranspose2d(4, 3, 3, stride=2), (4, 8, 8)),
    layer("ConvTranspose2d(groups)", lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, groups=2), (4, 8, 8)),
    layer("ConvTranspose3d", lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 4, 4, 4)),
    layer("Unfold", lambda: nn.Unfold(2, padding=1, stride=2), (4, 8, 8)),
    layer("Fold", lambda: nn.Fold((4, 4), 2, stride=2), (8, 4)),
    layer("Fold(padding, dilation)", lambda: nn.Fold((4, 5), (2, 3), (1, 2), 1, (2, 1)), (12, 9)),
    layer("PixelShuffle", lambda: nn.PixelShuffle(2), (4, 8, 8)),
    layer("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), (4, 8, 8)),
    layer("ChannelShuffle", lambda: nn.ChannelShuffle(2), (4, 8, 8)),
    *(
        layer(f"{kind}2d", lambda kind=kind: getattr(nn, f"{kind}2d")((1, 2, 0, 1)), (4, 8, 8))
        for kind in ("ZeroPad", "ReflectionPad", "ReplicationPad", "CircularPad", "ConstantPad")
        if kind != "ConstantPad"
    ),
]


POOLS = [
    layer("MaxPool1d", lambda: nn.MaxPool1d(2), (4, 8)),
    layer("MaxPool2d(padding)", lambda: nn.MaxPool2d(3, 2, 1), (4, 8, 8)),
    layer("MaxPool2d(ceil_mode)", lambda: nn.MaxPool2d(3, 2, ceil_mode=True), (4, 8, 8)),
    layer("MaxPool3d", lambda: nn.MaxPool3d(2), (2, 4, 4, 4)),
    layer("AvgPool1d", lambda: nn.AvgPool1d(2), (4, 8)),
    layer("AvgPool3d", lambda: nn.AvgPool3d(2), (2, 4, 4, 4)),
    layer("AvgPool2d(padding)", lambda: nn.AvgPool2d(3, 2, 1), (4, 8, 8)),
    layer("AvgPool2d(ceil_mode)", lambda: nn.AvgPool2d(3, 2, ceil_mode=True), (4, 8, 8)),
    layer("AvgPool2d(ceil_mode, padding)", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), (4, 8, 8)),
    layer(
        "AvgPool2d(count_include_pad=False)",
        lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        (4, 8, 8),
    ),
    *(
        layer(
            f"Adaptive{kind}Pool2d({size})",
            lambda kind=kind, size=size: getattr(nn, f"Adaptive{kind}Pool2d")(size),
            (4, 8, 8),
        )
        for kind, sizes in (("Avg", (1, 2, 3)), ("Max", (1, 2)))
        for size in sizes
    ),
    layer("AdaptiveMaxPool1d(3) of 8", lambda: nn.AdaptiveMaxPool1d(3), (4, 8)),
    layer("AdaptiveMaxPool2d(3, 5) of 8", lambda: nn.AdaptiveMaxPool2d((3, 5)), (4, 8, 8)),
    layer("AdaptiveMaxPool3d(3) of 4", lambda: nn.AdaptiveMaxPool3d(3), (2, 4, 4, 4)),
    layer("AdaptiveAvgPool1d", lambda: nn.AdaptiveAvgPool1d(4), (4, 8)),
    layer("LPPool1d", lambda: nn.LPPool1d(3, 2), (4, 8)),
    layer("LPPool2d", lambda: nn.LPPool2d(2, 2), (4, 8, 8)),
    *(
        layer(
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
    layer("Upsample(mode=linear)", lambda: nn.Upsample(scale_factor=2, mode="linear"), (4, 8)),
    layer("Upsample(mode=trilinear)", lambda: nn.Upsample(scale_factor=2, mode="trilinear"), (2, 4, 4, 4)),
]


NORMALIZATION = [
    layer("BatchNorm1d", lambda: nn.BatchNorm1d(4), (4, 8)),
    layer("BatchNorm1d of vectors", lambda: nn.BatchNorm1d(4), (4,), least=2),
    layer("BatchNorm2d", lambda: nn.BatchNorm2d(4), (4, 8, 8)),
    layer("BatchNorm3d", lambda: nn.BatchNorm3d(2), (2, 4, 4, 4)),
    layer(
        "BatchNorm2d(affine=False, momentum)",
        lambda: nn.BatchNorm2d(4, affine=False, momentum=0.3),
        (4, 8, 8),
    ),
    layer("BatchNorm2d, frozen", lambda: nn.BatchNorm2d(4).eval(), (4, 8, 8)),
    layer("LayerNorm", lambda: nn.LayerNorm(5), (4, 5)),
    layer("LayerNorm(two axes, no affine)", lambda: nn.LayerNorm((4, 5), elementwise_affine=False), (4, 5)),
    layer("RMSNorm", lambda: nn.RMSNorm(5), (4, 5)),
    layer("GroupNorm", lambda: nn.GroupNorm(2, 4), (4, 8, 8)),
    layer("GroupNorm(affine=False)", lambda: nn.GroupNorm(2, 4, affine=False), (4, 8, 8)),
    layer("InstanceNorm1d(affine=True)", lambda: nn.InstanceNorm1d(4, affine=True), (4, 8)),
    layer("InstanceNorm2d", lambda: nn.InstanceNorm2d(4), (4, 8, 8)),
    layer(
        "InstanceNorm1d(track_running_stats)",
        lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
        (4, 8),
    ),
    layer(
        "InstanceNorm2d(track_running_stats, momentum)",
        lambda: nn.InstanceNorm2d(4, momentum=0.3, track_running_stats=True),
        (4, 8, 8),
    ),
    layer(
        "InstanceNorm2d(track_running_stats), frozen",
        lambda: nn.InstanceNorm2d(4, track_running_stats=True).eval(),
        (4, 8, 8),
    ),
    layer("LocalResponseNorm", lambda: nn.LocalResponseNorm(3, alpha=0.1), (4, 8, 8)),
    layer("Dropout", lambda: nn.Dropout(0.3), (4, 5)),
    layer("Dropout2d", lambda: nn.Dropout2d(0.3), (4, 8, 8)),
    layer("AlphaDropout", lambda: nn.AlphaDropout(0.3), (4, 5)),
    layer("weight_norm", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)), (4, 5)),
    layer(
        "spectral_norm, frozen",
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)).eval(),
        (4, 5),
    ),
    op("normalize", functional.normalize),
    op("detach", lambda x: x * x.detach()),
    op("no_grad", lambda x: x * _without_gradient(x)),
]
