"""Einsum of a tensor and a weight that contracts the tensor's last axes, as Keras writes dense layers: `abc,cde->abde`.

Contracted axes in one row, it is the product of a sequence's features with a matrix (`sequence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import UnknownTransferError
from ..quadrature import Array
from ..site import Contribution, Site, batch_axis
from ..state import GradientMoments, Moments, ParameterGradient
from ..tokens import TokenCorrelation
from .sequence import dense, dense_backward, weight_gradient

__all__ = ["backward", "forward"]


@dataclass(frozen=True)
class _Dense:
    """The product as one with a matrix `[contracted, own]`.

    Attributes:
        order: Axes of the weight: contracted ones, then its own.
        contracted: How many there are.
        tokens: Shape of the axes of x that stay.
        weight: The weight.
    """

    order: tuple[int, ...]
    contracted: int
    tokens: tuple[int, ...]
    weight: Array

    @classmethod
    def of(cls, site: Site) -> _Dense:
        if len(site.operands) != 2 or site.varying != [0]:
            raise UnknownTransferError("it is no product of a tensor that varies with a weight")
        left, output = str(site.attribute("equation", "")).replace(" ", "").split("->")
        x_labels, w_labels = left.split(",")
        shared = [label for label in x_labels if label in w_labels]
        own = [label for label in w_labels if label not in shared]
        kept = x_labels[: len(x_labels) - len(shared)]
        if "." in left or list(x_labels[len(kept) :]) != shared or output != kept + "".join(own):
            raise UnknownTransferError("its equation does not contract the tensor's last axes")
        value = site.node.inputs[0]
        assert value is not None
        if batch_axis(value) >= len(kept) or site.x.mean.ndim != len(x_labels) - 1 or len(kept) < 2:
            raise UnknownTransferError("the batch is none of the axes that stay")
        order = tuple(w_labels.index(label) for label in (*shared, *own))
        weight = site.array(1).astype(np.float64)
        return cls(order, len(shared), site.x.shape[: len(kept) - 1], weight)

    @property
    def matrix(self) -> Array:
        """`[contracted, own]`."""
        turned = self.weight.transpose(self.order)
        rows = int(np.prod(turned.shape[: self.contracted]))
        return turned.reshape(rows, -1)

    @property
    def features(self) -> tuple[int, ...]:
        """The shape of one token of the result."""
        shape: tuple[int, ...] = self.weight.transpose(self.order).shape
        return shape[self.contracted :]

    def in_rows(self, moments: Moments) -> Moments:
        """x with its contracted axes in one."""
        shape = (*self.tokens, -1)
        tokens = _leading(moments.tokens, len(self.tokens))
        mean, variance = moments.mean.reshape(shape), moments.variance.reshape(shape)
        return Moments(mean, variance, tokens=tokens)

    def restored(self, gradient: ParameterGradient) -> ParameterGradient:
        """The gradient of the matrix as that of the weight."""
        shape = [self.weight.shape[axis] for axis in self.order]
        back = np.argsort(self.order)
        return ParameterGradient(
            gradient.mean.reshape(shape).transpose(back), gradient.variance.reshape(shape).transpose(back)
        )


def forward(site: Site) -> Sequence[Moments]:
    """y = x W."""
    product = _Dense.of(site)
    y = dense(product.in_rows(site.x), product.matrix, full=True)
    shape = (*product.tokens, *product.features)
    return [replace(y, mean=y.mean.reshape(shape), variance=y.variance.reshape(shape))]


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """dx = dy W', and the weight's gradient."""
    product, dy = _Dense.of(site), gradients[0]
    assert dy is not None
    x, flat = product.in_rows(site.x), (*product.tokens, -1)
    axes = tuple(range(len(product.tokens)))
    rows = replace(
        dy,
        mean=dy.mean.reshape(flat),
        variance=dy.variance.reshape(flat),
        tilt=dy.tilt.reshape(flat),
        tokens=_leading(dy.tokens, len(axes)),
    )
    tokens = x.tokens or TokenCorrelation.white(axes, x.shape)
    back = dense_backward(rows, product.matrix, tokens, full=True)
    shaped = replace(
        back,
        mean=back.mean.reshape(site.x.shape),
        variance=back.variance.reshape(site.x.shape),
        tilt=np.zeros(site.x.shape),
    )
    return [shaped, product.restored(weight_gradient(x, rows, product.matrix).whole())]


def _leading(tokens: TokenCorrelation | None, count: int) -> TokenCorrelation | None:
    """The correlation where its tokens are on the leading axes."""
    return tokens if tokens is not None and tokens.axes == tuple(range(count)) else None
