"""Matrix products with a weight that all examples share.

Forward, with y = x W: mean' W, covariance W' C W, without a covariance the variance by W o W. The same maps, transposed, carry
the gradient back. The weight's gradient is a sum over the batch of dy x', for which

    E = mu m' + C W H'                      (C: covariance of x, H: hessian; Stein's lemma: dy depends on x through y = x W)
    Var = (s v + total mu^2) / batch            (total: variance of the summed dy, which batch normalisation cancels)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ....graph.mapping import release
from .. import norm_spread
from ..blocks import blocks_of, multiplier, product
from ..constraint import Constraint, over_all_laws
from ..errors import UnknownTransferError
from ..flattened import Flattened, Projected
from ..quadrature import Array
from ..site import Contribution, Site
from ..state import COVARIANCE_LIMIT, GradientByRows, GradientMoments, Moments, ParameterGradient
from .sequence import dense, dense_backward, sequence, summed, weight_gradient

__all__ = ["gemm_backward", "gemm_forward", "matmul_backward", "matmul_forward", "static_gemm_backward"]


def gemm_forward(site: Site) -> Sequence[Moments]:
    """y = alpha x op(W) + beta c."""
    if site.attribute("transA", 0) or 2 in site.varying or site.x.mean.ndim == 0:
        raise UnknownTransferError("its input is transposed, or its summand depends on the example")
    y = _product(site.x, _gemm_weight(site), site.full_covariance)
    if site.is_static(2):
        bias = site.attribute("beta", 1.0) * site.array(2).reshape(-1)
        y = replace(y, mean=y.mean + bias)
    return [y]


def gemm_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The transposed maps."""
    dy, weight = gradients[0], _gemm_weight(site)
    assert dy is not None
    dweight = _weight_gradient(site, dy, weight).scaled(site.attribute("alpha", 1.0))
    dbias = None
    if site.is_static(2):
        total = summed(dy) if dy.mean.ndim > 1 else _of_bias(site, dy)
        total, shape = total.scaled(site.attribute("beta", 1.0)), site.array(2).shape
        dbias = ParameterGradient(total.mean.reshape(shape), total.variance.reshape(shape))
    turned = dweight.transposed if site.attribute("transB", 0) else dweight
    return _transposed(site, dy, weight), turned, dbias


def static_gemm_backward(site: Site, gradients: Sequence[ParameterGradient | None]) -> Sequence[Contribution]:
    """Of y = alpha A B + beta c, none of which depends on the example, as of a first state; elements of dy as uncorrelated."""
    dy = gradients[0]
    assert dy is not None
    left, right = _as_matrix(site, 0, "transA"), _as_matrix(site, 1, "transB")
    alpha = site.attribute("alpha", 1.0)
    first = ParameterGradient(dy.mean @ right.T, dy.variance @ (right**2).T).scaled(alpha)
    second = ParameterGradient(left.T @ dy.mean, (left**2).T @ dy.variance).scaled(alpha)
    dbias = None
    if site.is_static(2):
        shape = site.array(2).shape
        whole = ParameterGradient(_summed_to(dy.mean, shape), _summed_to(dy.variance, shape))
        dbias = whole.scaled(site.attribute("beta", 1.0))
    return (
        first.transposed if site.attribute("transA", 0) else first,
        second.transposed if site.attribute("transB", 0) else second,
        dbias,
    )


def _summed_to(matrix: Array, shape: tuple[int, ...]) -> Array:
    """Summed over the axes along which an array of this shape was broadcast."""
    padded = (1,) * (2 - len(shape)) + shape
    axes = tuple(axis for axis, length in enumerate(padded) if length == 1)
    return np.asarray(matrix.sum(axes, keepdims=True).reshape(shape))


def _as_matrix(site: Site, index: int, transposed: str) -> Array:
    matrix = site.array(index).astype(np.float64)
    return matrix.T if site.attribute(transposed, 0) else matrix


def matmul_forward(site: Site) -> Sequence[Moments]:
    """y = x W, over the last axis of x."""
    x, weight = site.x, site.array(1)
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[:1]:
        raise UnknownTransferError("its weight is no matrix for one example's last axis")
    return [_product(x, weight, site.full_covariance)]


def matmul_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The transposed maps."""
    dy, weight = gradients[0], site.array(1)
    assert dy is not None
    return _transposed(site, dy, weight), _weight_gradient(site, dy, weight)


def _gemm_weight(site: Site) -> Array:
    weight, alpha = site.array(1), site.attribute("alpha", 1.0)
    weight = weight.T if site.attribute("transB", 0) else weight
    return weight if alpha == 1.0 else alpha * weight.astype(np.float64)


def _product(x: Moments, weight: Array, full: bool) -> Moments:
    if x.mean.ndim > 1:
        return dense(x, weight, full)
    mean, spread_of_norm = product(x.mean, weight), norm_spread.of_product(x, weight.shape[1])
    if not full or weight.shape[1] > COVARIANCE_LIMIT:
        return Moments(mean, product(x.variance, weight, square=True), norm_spread=spread_of_norm)
    weight = weight.astype(np.float64)
    covariance = weight.T @ _spread(x, weight)
    return Moments(mean, np.maximum(np.diag(covariance), 0.0), covariance, norm_spread=spread_of_norm)


def _row_of_positions(x: Moments, weight: Array) -> Flattened | None:
    """What is known of a row of positions, unless it would take seconds to use."""
    return x.flattened if x.flattened is not None and x.flattened.serves(weight) else None


def _spread(x: Moments, weight: Array) -> Array:
    """Cov(x, x W), `[n, m]`."""
    known = _row_of_positions(x, weight) if x.covariance is None else x.covariance
    return np.asarray(x.variance[:, None] * weight if known is None else known @ weight)


def _transposed(site: Site, dy: GradientMoments, weight: Array) -> GradientMoments:
    if dy.mean.ndim > 1:
        return dense_backward(dy, weight, sequence(site.x), site.full_covariance)
    full = site.full_covariance
    if full and _row_of_positions(site.x, weight) is not None:
        return _projected(dy, weight)
    back = _product(Moments(dy.mean, dy.variance, dy.covariance), weight.T, full)
    cancelled = _cancelled(dy, weight, back.variance)
    small = full and len(weight) <= COVARIANCE_LIMIT
    hessian = weight @ dy.hessian @ weight.T if dy.hessian is not None and small else None
    return GradientMoments(
        back.mean,
        back.variance,
        back.covariance,
        cancelled,
        np.zeros(back.mean.shape),
        hessian=hessian,
        constraint=_constraint(site, dy, weight, back.variance),
    )


def _projected(dy: GradientMoments, weight: Array) -> GradientMoments:
    """What a row of positions receives: a covariance between them would be too large."""
    weight = weight.astype(np.float64)
    variance = np.maximum(np.sum((weight @ dy.known_covariance) * weight, 1), 0.0)
    back = GradientMoments.of(weight @ dy.mean, variance)
    return replace(
        back,
        cancelled=_cancelled(dy, weight, variance),
        projected=Projected(weight, dy.known_covariance, dy.hessian),
    )


def _cancelled(dy: GradientMoments, weight: Array, variance: Array) -> Array:
    """What batch normalisation has cancelled, correlated between channels as the gradient itself."""
    if not np.any(dy.cancelled):
        return np.zeros(variance.shape)
    apart, cancelled = (product(each, weight.T, square=True) for each in (dy.variance, dy.cancelled))
    return np.asarray(np.divide(cancelled * variance, apart, out=np.zeros_like(apart), where=apart > 0))


def _weight_gradient(site: Site, dy: GradientMoments, weight: Array) -> ParameterGradient | GradientByRows:
    x = site.x
    if dy.mean.ndim > 1:
        return weight_gradient(x, dy, weight)
    deviation = np.sqrt(site.y.variance)
    curvature = np.divide(dy.tilt, deviation, out=np.zeros(deviation.shape), where=deviation > 0)
    moved = _moved(x, dy, weight, curvature)
    if site.batch.inputs:
        return _of_law(site, dy, weight, moved(slice(None)))

    def mean(part: slice) -> Array:
        result = moved(part)
        result += np.outer(x.mean[part], dy.mean)
        return result

    def rows(part: slice) -> ParameterGradient:
        variance = np.outer(x.variance[part], dy.second) + np.outer(x.mean[part] ** 2, dy.total)
        return ParameterGradient(mean(part), variance)

    def sums() -> tuple[float, float]:
        variances = float(np.sum(x.variance) * np.sum(dy.second) + np.sum(x.mean**2) * np.sum(dy.total))
        if dy.hessian is not None:
            squares = 0.0
            for part in blocks_of(len(weight), 4 * weight.size):
                flat = mean(part).reshape(-1)
                squares += float(flat @ flat)
                release(weight)
            return squares, variances
        means = np.sum(x.mean**2) * np.sum(dy.mean**2)
        if np.any(curvature):
            means += 2.0 * product(x.mean * x.variance, weight) @ (dy.mean * curvature)
            means += product(x.variance**2, weight, square=True) @ curvature**2
        return float(means), variances

    return GradientByRows(weight.shape, rows, sums)


def _of_bias(site: Site, dy: GradientMoments) -> ParameterGradient:
    constraints = site.batch.constraints
    if dy.constraint is None or not constraints:
        return ParameterGradient(dy.mean, dy.total)
    one, none = np.ones(len(dy.mean)), np.zeros(len(dy.mean))
    shared = site.batch.once(
        "of a bias", lambda: over_all_laws(constraints, [(one, none)] * len(constraints))
    )
    mean, variance = dy.constraint.taken(one, none, shared)
    return ParameterGradient(dy.mean - mean, np.maximum(dy.variance - variance, 0.0))


def _of_law(site: Site, dy: GradientMoments, weight: Array, moved: Array) -> ParameterGradient:
    """Under one of several laws, less what a batch normalisation behind takes from it."""
    x, constraints = site.x, site.batch.constraints
    mean = moved + np.outer(x.mean, dy.mean)
    if dy.constraint is None or not constraints or not dy.constraint.is_own:
        # Of what is normalised further behind, the mean of x over all laws is cancelled.
        cancelled = np.outer(_batch_mean(site) ** 2, dy.variance - dy.total)
        variance = np.outer(x.variance, dy.second) + np.outer(x.mean**2, dy.variance) - cancelled
        return ParameterGradient(mean, np.maximum(variance, 0.0))

    def values() -> Iterator[tuple[Array, Array]]:
        for each in site.batch.inputs:
            yield each.mean[:, None], _tied(each, weight)

    shared = site.batch.once("of the weight", lambda: over_all_laws(constraints, values()))
    taken = dy.constraint.taken(x.mean[:, None], _tied(x, weight), shared)
    variance = np.outer(x.variance, dy.second) + np.outer(x.mean**2, dy.variance)
    return ParameterGradient(mean - taken[0], np.maximum(variance - taken[1], 0.0))


def _tied(x: Moments, weight: Array) -> Array:
    """Cov(x, xi) with xi the standardised output, `[n, m]`."""
    spread = _spread(x, weight)
    deviation = np.sqrt(np.sum(weight * spread, 0))
    return np.asarray(np.divide(spread, deviation, out=np.zeros_like(spread), where=deviation > 0))


def _batch_mean(site: Site) -> Array:
    return np.asarray(np.mean([x.mean for x in site.batch.inputs], 0))


def _constraint(site: Site, dy: GradientMoments, weight: Array, variance: Array) -> Constraint | None:
    """On what x receives, `[n]` of this variance, of a batch normalisation of y."""
    held = dy.constraint
    if held is None or not held.is_own or dy.scale_free is None:
        return None
    apart = product(dy.variance, weight.T, square=True)
    share = np.divide(variance, apart, out=np.zeros_like(apart), where=apart > 0)
    factor, one, none = held.slopes[0], np.ones(len(weight)), np.zeros(len(weight))
    scale = held.gain * np.sqrt(site.y.variance)
    inverse = np.divide(held.tied[:, 0], scale, out=np.zeros_like(scale), where=scale > 0)
    return Constraint(
        (weight * (factor * held.means[0][:, 0]), weight * (factor * held.means[1][:, 0])),
        weight**2 * dy.variance * share[:, None],
        held.level.T,
        held.square.T,
        _spread(site.x, weight) * inverse,
        (one, none, one),
        np.sqrt(site.x.variance),
    )


def _moved(x: Moments, dy: GradientMoments, weight: Array, curvature: Array) -> Callable[[slice], Array]:
    """Some rows of C W H', what the mean has because dy moves with x."""
    if dy.hessian is None:
        # Its diagonal alone, as it is where there are too many features for a matrix.
        return lambda part: np.asarray(weight[part] * np.outer(x.variance[part], curvature))
    row = _row_of_positions(x, weight)
    known = x.covariance if row is None else row
    if known is None:
        passed = multiplier(dy.hessian.T, weight.dtype)
        return lambda part: np.asarray(x.variance[part, None] * passed(weight[part]))
    spread, hessian = known @ weight, dy.hessian
    return lambda part: np.asarray(spread[part] @ hessian.T)
