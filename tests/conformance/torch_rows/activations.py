"""Activations and other elementwise functions."""

from __future__ import annotations

import torch
from torch import nn

from .row import layer, named, op

ACTIVATIONS = [
    *map(named, ["ReLU", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Sigmoid"]),
    *map(named, ["LogSigmoid", "Tanh", "Softplus", "Softsign", "Hardswish", "Hardsigmoid", "Hardtanh"]),
    *map(named, ["ReLU6", "Tanhshrink", "Softshrink", "Hardshrink", "GLU"]),
    named("Threshold", 0.1, 20.0),
    named("GELU", approximate="tanh"),
    layer("RReLU, eval", lambda: nn.RReLU().eval(), (4, 6)),
    *(named(kind, dim=dim) for kind in ("Softmax", "LogSoftmax", "Softmin") for dim in (1, -1)),
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
    *(op(name, getattr(torch, name)) for name in _SMOOTH),
    *(op(name, lambda x, name=name: getattr(torch, name)(x.abs() + 0.5)) for name in _POSITIVE),
    *(
        op(name, lambda x, name=name: getattr(torch, name)(0.5 * torch.tanh(x)))
        for name in ("asin", "acos", "atanh")
    ),
    *(
        op(name, lambda x, name=name: getattr(torch, name)(x) * x)
        for name in ("sign", "floor", "ceil", "round", "trunc")
    ),
    op("acosh", lambda x: torch.acosh(x.abs() + 1.5)),
    op("pow: scalar exponents", lambda x: x**3 + x.abs() ** 2.5),
    op("pow: tensor exponent", lambda x, w: (x.abs() + 0.1) ** w, (4, 5), (5,)),
    op("pow: scalar base", lambda x: 2.0**x),
    op("clamp", lambda x: x.clamp(-0.5, 0.5)),
    op("clamp: min", lambda x: x.clamp(min=0.1)),
    op("clamp: max", lambda x: x.clamp(max=0.1)),
    op("clamp: tensor bound", lambda x, w: torch.clamp(x, min=w), (4, 5), (5,)),
    op("where", lambda x, w: torch.where(x > 0, x, w), (4, 5), (5,)),
    op("maximum", torch.maximum, (4, 5), (5,)),
    op("minimum", torch.minimum, (4, 5), (5,)),
    op("remainder", lambda x: torch.remainder(x, 0.7)),
    op("fmod", lambda x: torch.fmod(x, 0.7)),
    op("lerp", lambda x, w: torch.lerp(x, w, 0.3), (4, 5), (5,)),
    op("addcmul", torch.addcmul, (4, 5), (5,), (4, 1)),
    op("atan2", torch.atan2, (4, 5), (5,)),
    op("logaddexp", torch.logaddexp, (4, 5), (5,)),
    op("hypot", torch.hypot, (4, 5), (5,)),
    op("logit", lambda x: torch.logit(x.sigmoid())),
]
