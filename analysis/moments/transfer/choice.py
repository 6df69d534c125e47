"""Where, with a condition c that depends on the example: one operand or the other, y = c a + (1 - c) b.

With q = E c, and c independent of a and b, which may depend on each other,

    E y = q E a + (1 - q) E b      E y^2 = q E a^2 + (1 - q) E b^2      E da = q E dy      E da^2 = q E dy^2

and b likewise with 1 - q. A dropout's own mask chooses what the dropout kept, which changes nothing (`graph.training_form`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UnknownTransferError
from ..quadrature import Array
from ..site import Contribution, Operand, Site, batch_axis
from ..state import GradientMoments, Moments, ParameterGradient
from .elementwise import sum_to, to_shared

__all__ = ["backward", "forward"]


def forward(site: Site) -> Sequence[Moments]:
    """Moments of what is chosen."""
    if _is_own_mask(site):
        return [site.moments(1)]
    if not isinstance(site.operands[0], Moments):
        raise UnknownTransferError("its operands are no functions of one Gaussian")
    q, a, b = _parts(site)
    if not all(np.isfinite(part).all() for part in (*a, *b)):
        raise UnknownTransferError("it chooses infinite numbers, as masks do, by a condition that varies")
    site.notes.append("its condition is taken as independent of what it chooses from")
    mean, second = (q * of_a + (1.0 - q) * of_b for of_a, of_b in zip(a, b, strict=True))
    return [Moments(mean, np.maximum(second - mean**2, 0.0))]


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The gradient to the chosen one."""
    dy = gradients[0]
    assert dy is not None
    if _is_own_mask(site):
        return [None, dy, None]
    q, _, _ = _parts(site)
    return [None, _to(site, dy, q, 1), _to(site, dy, 1.0 - q, 2)]


def _is_own_mask(site: Site) -> bool:
    mask, y = (None if value is None else value.producer() for value in site.node.inputs[:2])
    return mask is not None and mask is y and mask.op_type == "Dropout"


def _parts(site: Site) -> tuple[Array, tuple[Array, Array], tuple[Array, Array]]:
    """The share of the first operand, and mean and mean square of both, of one example's shape."""
    condition, a, b = (_mean_and_square(site, operand) for operand in site.operands)
    shape = np.broadcast_shapes(*(mean.shape for mean, _ in (condition, a, b)))
    q = np.broadcast_to(np.clip(condition[0], 0.0, 1.0), shape)
    first, second = ((np.broadcast_to(m, shape), np.broadcast_to(s, shape)) for m, s in (a, b))
    return q, first, second


def _mean_and_square(site: Site, operand: Operand) -> tuple[Array, Array]:
    if isinstance(operand, Moments):
        return operand.mean, operand.second
    value = np.asarray(operand, np.float64)
    value = value.reshape(_of_one_example(site, value.shape))
    return value, value**2


def _of_one_example(site: Site, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an operand that all examples share, without the batch's axis if it has that."""
    chosen = site.node.outputs[0]
    axis = batch_axis(chosen) + len(shape) - len(chosen.shape or ())
    return shape[:axis] + shape[axis + 1 :] if axis >= 0 and shape[axis : axis + 1] == (1,) else shape


def _to(site: Site, dy: GradientMoments, share: Array, index: int) -> Contribution:
    mean, operand = dy.mean * share, site.operands[index]
    back = GradientMoments.of(mean, np.maximum(dy.second * share - mean**2, 0.0))
    if isinstance(operand, Moments):
        return sum_to(back, operand.shape)
    if operand is None or operand.dtype.kind != "f":
        return None
    given = to_shared(back, _of_one_example(site, operand.shape))
    return ParameterGradient(given.mean.reshape(operand.shape), given.variance.reshape(operand.shape))
