"""Moving elements, and reductions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from .row import Tensor, layer, op


def _assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1] = y[:, 0] * 2
    return y


def _placed(x: Tensor, places: list[list[int]]) -> Tensor:
    return torch.tensor([places]).expand(x.shape[0], -1, -1)


_PLACES = [[0, 1, 2, 3, 3], [1, 2, 0, 0, 2]]

MOVES = [
    op("gather", lambda x: x.gather(1, _placed(x, _PLACES))),
    op("scatter", lambda x: torch.zeros_like(x).scatter(1, _placed(x, _PLACES), x[:, :2])),
    op("scatter_add", lambda x: x.scatter_add(1, _placed(x, [[0, 1, 2, 3, 3], [1, 1, 2, 0, 2]]), x[:, :2])),
    op(
        "scatter_reduce(amax)",
        lambda x: x.scatter_reduce(1, _placed(x, _PLACES), x[:, :2] * 2, "amax"),
    ),
    op("index_select", lambda x: x.index_select(1, torch.tensor([0, 2, 2]))),
    op("advanced indexing", lambda x: x[:, torch.tensor([0, 2, 2]), torch.tensor([1, 1, 4])]),
    op(
        "index_add",
        lambda x, w: x.index_add(1, torch.tensor([0, 0]), w.expand(x.shape[0], -1, -1)),
        (4, 5),
        (2, 5),
    ),
    op(
        "index_copy",
        lambda x, w: x.index_copy(1, torch.tensor([0, 2]), w.expand(x.shape[0], -1, -1)),
        (4, 5),
        (2, 5),
    ),
    op(
        "index_put",
        lambda x, w: x.index_put((torch.arange(x.shape[0])[:, None], torch.tensor([0, 2])), w),
        (4, 5),
        (2, 5),
    ),
    op(
        "index_put(accumulate)",
        lambda x, w: x.index_put(
            (torch.arange(x.shape[0])[:, None], torch.tensor([1, 1])), w, accumulate=True
        ),
        (4, 5),
        (2, 5),
    ),
    op("assignment to a slice", _assigned),
    op("roll", lambda x: x.roll((1, -2), (1, 2))),
    op("flip", lambda x: x.flip(1)),
    op("stack", lambda x: torch.stack((x, x * 2), 1)),
    op("chunk", lambda x: x.chunk(2, 1)[1]),
    op("split", lambda x: x.split([1, 3], 1)[1]),
    op("unbind", lambda x: x.unbind(1)[2]),
    op("expand", lambda x: x[:, :1].expand(-1, 4, -1)),
    op("repeat", lambda x: x.repeat(1, 2, 3)),
    op("repeat_interleave", lambda x: x.repeat_interleave(2, 1)),
    op("tile", lambda x: x.tile(1, 2, 1)),
    op("permute", lambda x: x.permute(0, 2, 1)),
    op("squeeze", lambda x: x[:, :1].squeeze(1)),
    op("tril", lambda x: x.tril()),
    op("triu", lambda x: x.triu(1)),
    op("masked_fill", lambda x: x.masked_fill(x > 0.5, -3.0)),
    op("diagonal", lambda x: x.diagonal(0, 1, 2)),
    op("slices with steps", lambda x: x[:, ::2, 1:]),
    op("rot90", lambda x: x.rot90(1, (1, 2))),
    op("Tensor.unfold", lambda x: x.unfold(1, 2, 1)),
    op("diff", lambda x: x.diff(dim=1)),
    op("sort", lambda x: x.sort(1).values),
    op("sort(descending)", lambda x: x.sort(1, descending=True).values),
    op("median", lambda x: x.median(1).values),
    op("kthvalue", lambda x: x.kthvalue(2, 1).values),
    op("topk", lambda x: x.topk(3, 1).values),
    op("argmax (no gradient)", lambda x: x * x.argmax(1, keepdim=True)),
    op(
        "one_hot",
        lambda x: functional.one_hot(x.argmax(1), 4).float() * x.sum(1, keepdim=True).transpose(1, 2),
    ),
    *(
        op(f"pad({mode})", lambda x, mode=mode: functional.pad(x, (1, 2), mode=mode))
        for mode in ("reflect", "replicate", "circular", "constant")
    ),
    layer("Flatten", nn.Flatten, (4, 5)),
    layer("Unflatten", lambda: nn.Unflatten(1, (2, 2)), (4, 5)),
]


REDUCTIONS = [
    *(
        op(f"{name}{dims}", lambda x, name=name, dims=dims: getattr(x, name)(dim=dims))
        for name in ("sum", "mean", "amax", "amin", "logsumexp", "norm", "var", "std")
        for dims in ((1,), (1, 2), (-1,))
    ),
    op("prod", lambda x: x.prod(1)),
    op("prod(keepdim)", lambda x: x.prod(-1, keepdim=True)),
    op("max", lambda x: x.max(1).values),
    op("min", lambda x: x.min(1).values),
    op("max of all", lambda x: x * x.max()),
    op("norm 1", lambda x: x.norm(1, dim=1)),
    op("norm 3", lambda x: x.norm(3, dim=1)),
    op("norm inf", lambda x: x.norm(float("inf"), dim=1)),
    op("cumprod", lambda x: x.cumprod(1)),
    op("cummax", lambda x: x.cummax(1).values),
    op("cummin", lambda x: x.cummin(-1).values),
    op("cumsum", lambda x: x.cumsum(1)),
    op("logcumsumexp", lambda x: x.logcumsumexp(1)),
]
