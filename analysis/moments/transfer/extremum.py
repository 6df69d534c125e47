"""The largest or smallest of the elements along some axes: over all positions, over tokens or steps, over pieces of a maxout.

The largest of n elements is taken over fixed draws of their latents, correlated as is known of them. Backward one of them
receives the gradient g. With F the distribution of their values v, and of n_e independent ones E F(largest) = n_e / (n_e + 1)
(David and Nagaraja 2003, ch. 2), which says how many independent ones they are worth,

    n P(v) = F(v)^(n_e - 1) / E F^(n_e - 1)      E[dx] = E g E[phi' P]      E[dx^2] = E g^2 E[phi'^2 P]      E[dx dx'] = 0

of two elements x, x' of one row, phi the activation before: a chain of slope sqrt(n P), as in `max_pool`. Of two rows the
largest stand at the same place as often as they do in the draws, q; then E[dx dy] = E[g g'] q / n at one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from .. import skewness
from ..autocovariance import Autocovariance
from ..blocks import blocks_of
from ..channel_covariance import ChannelCovariance
from ..curves import Seed
from ..draws import token_deviations
from ..errors import UnknownTransferError
from ..fields import fields
from ..picks import Picks
from ..quadrature import NODES, WEIGHTS, Array, expectation
from ..site import Contribution, Site, batch_axis
from ..state import GradientMoments, Moments
from ..tokens import MATRIX_LIMIT, TokenCorrelation, TokenResponse, from_rows
from .max_pool import by_channel, rank, read, values_of
from .pooling import reduced_axes
from .reordered import at, before

__all__ = ["backward", "forward", "index_backward", "index_forward", "taken_backward", "taken_forward"]

_DRAWS = 512
_MAX_NUMBERS = 8_000_000
_MAX_STEPS = 1024
"""Elements of a sequence of states whose covariance is drawn as one matrix."""


@dataclass(frozen=True)
class _Found:
    """What the backward pass needs of the draws.

    Attributes:
        independent: n_e of each different row, on the axes that are kept.
        together: q of each pair of rows; None where rows are not known to be correlated.
    """

    independent: Array
    together: Array | None


@dataclass(frozen=True)
class _Rows:
    """What the largest is taken of.

    Attributes:
        axes: Of one example, along which it is taken.
        sign: -1 where the smallest is.
        values: As functions of their latents, `[NODES, *elements]`, of length 1 along axes where they are all the same: of
            rows that are alike it has one.
    """

    axes: tuple[int, ...]
    sign: float
    values: Array

    @classmethod
    def of(cls, site: Site, axes: tuple[int, ...], smallest: bool) -> _Rows:
        return cls(axes, -1.0 if smallest else 1.0, values_of(site.x))

    @property
    def _kept(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(self.values.ndim - 1) if axis not in self.axes)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the axes that are kept, 1 where rows are alike."""
        return tuple(self.values.shape[1 + axis] for axis in self._kept)

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self._kept, *self.axes)

    def by_row(self, elements: Array) -> Array:
        """`[any, *elements]` as `[any, rows, n]`."""
        moved = np.transpose(elements, (0, *(1 + np.array(self._order))))
        kept = moved.shape[1 : moved.ndim - len(self.axes)]
        return moved.reshape(len(elements), int(np.prod(kept)), -1)

    def by_element(self, rows: Array) -> Array:
        """The way back, of the values' shape."""
        lengths = [self.values.shape[1 + axis] for axis in self._order]
        return np.transpose(rows.reshape(len(rows), *lengths), (0, *(1 + np.argsort(self._order))))

    def of_alike(self, largest: Array, shape: tuple[int, ...]) -> Array:
        """`[draws, *rows]` of elements of this shape as `[different rows, any]`."""
        drawn = largest.reshape(len(largest), *(shape[axis] for axis in self._kept))
        different = [1 + place for place, length in enumerate(self.lengths) if length > 1]
        moved = np.moveaxis(drawn, different, range(len(different)))
        return moved.reshape(int(np.prod(moved.shape[: len(different)])), -1)

    def below(self) -> Array:
        """The share of a row's values below each, `[NODES, rows, n]`."""
        return by_channel(rank, self.sign * self.by_row(self.values))


def forward(site: Site) -> Sequence[Moments]:
    """Moments of the largest."""
    origin, rows = _origin(site)
    y = _largest(origin, rows, _keeps(site))
    shape = _reduced_shape(site, _axes_of(site))
    if shape == y.shape:
        return [y]
    return [replace(y, mean=y.mean.reshape(shape), variance=y.variance.reshape(shape), skewness=None)]


def backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """The formulas above."""
    assert gradients[0] is not None
    origin, rows = _origin(site)
    seed, left = _received(origin, rows, gradients[0]), before(site)
    if origin is site or left is None:
        return [seed]
    left.seed = seed
    size = len(site.x.mean.reshape(-1))
    index, apart = left.index, (seed.gradient.mean, seed.gradient.variance)
    mean, variance = (part.reshape(size)[index] for part in apart)
    return [GradientMoments.of(mean, variance)]


def _origin(site: Site) -> tuple[Site, _Rows]:
    """The maximum as of the tensor before a transposition, where that keeps the rows in their order."""
    left, axes, smallest = before(site), _axes_of(site), site.node.op_type == "ReduceMin"
    known = None if left is None else left.axes(axes)
    if left is None or known is None:
        return site, _Rows.of(site, axes, smallest)
    origin = at(site, left)
    return origin, _Rows.of(origin, known, smallest)


def _reduced_shape(site: Site, axes: tuple[int, ...]) -> tuple[int, ...]:
    lengths = enumerate(site.x.shape)
    if _keeps(site):
        return tuple(1 if axis in axes else n for axis, n in lengths)
    return tuple(n for axis, n in lengths if axis not in axes)


def index_forward(site: Site) -> Sequence[Moments]:
    """The place of the largest, which is any with the same chance."""
    (axis,) = _axes_of(site)
    shape = _reduced_shape(site, (axis,))
    count = site.x.shape[axis]
    return [Moments(np.full(shape, 0.5 * (count - 1)), np.full(shape, (count**2 - 1) / 12.0))]


def index_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """No gradient flows through places."""
    return [None]


def taken_forward(site: Site) -> Sequence[Moments]:
    """The element at the place of the largest is the largest."""
    return [_largest(site, _taken_rows(site), keep=True)]


def taken_backward(site: Site, gradients: Sequence[GradientMoments | None]) -> Sequence[Contribution]:
    """As of the largest."""
    assert gradients[0] is not None
    return [_received(site, _taken_rows(site), gradients[0]), None]


def _axes_of(site: Site) -> tuple[int, ...]:
    """Of a reduction, of a maximum over all positions, or of a search."""
    if site.node.op_type == "GlobalMaxPool":
        return tuple(range(1, site.x.mean.ndim))
    if site.node.op_type in ("ArgMax", "ArgMin"):
        return (_example_axis(site, site.attribute("axis", 0)),)
    return reduced_axes(site)


def _example_axis(site: Site, axis: int) -> int:
    value = site.node.inputs[0]
    assert value is not None
    axis, batch = axis % (site.x.mean.ndim + 1), batch_axis(value)
    if axis == batch:
        raise UnknownTransferError("it compares examples")
    return axis - (axis > batch)


def _keeps(site: Site) -> bool:
    return site.node.op_type == "GlobalMaxPool" or bool(site.attribute("keepdims", 1))


def _taken_rows(site: Site) -> _Rows:
    search = _producer(site.node.inputs[1])
    if search is not None and search.op_type == "Cast":
        search = _producer(search.inputs[0])
    if (
        search is None
        or search.op_type not in ("ArgMax", "ArgMin")
        or search.inputs[0] is not site.node.inputs[0]
    ):
        raise UnknownTransferError("it takes elements from places that depend on the example")
    axis = _example_axis(site, site.attribute("axis", 0))
    attribute = search.attributes.get("axis")
    if axis != _example_axis(site, 0 if attribute is None else int(attribute.value)):
        raise UnknownTransferError("it takes elements along another axis than they were searched along")
    return _Rows.of(site, (axis,), search.op_type == "ArgMin")


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _largest(site: Site, rows: _Rows, keep: bool) -> Moments:
    x, count = site.x, _count(site.x)
    latents, together = _latents(site, rows.axes, count)
    drawn = np.empty(latents.shape)
    for part in blocks_of(len(latents), latents.size):
        drawn[part] = rows.sign * read(rows.values, latents[part])
    largest = drawn.max(tuple(axis + 1 for axis in rows.axes), keepdims=keep)
    independent = _independent(rows, rows.of_alike(largest, x.shape)).reshape(rows.lengths)
    site.memory[site.node] = _Found(independent, _together(rows, drawn) if together else None)
    covariance = None
    if together and largest.ndim == 2:
        covariance = np.cov(largest.T, bias=True).reshape(2 * largest.shape[1:])
    skew = skewness.of_values(largest, np.full(count, 1.0 / count)) * rows.sign
    positive = x.curve is not None and bool(np.all(rows.values >= 0))
    return Moments(rows.sign * largest.mean(0), largest.var(0), covariance, positive=positive, skewness=skew)


def _together(rows: _Rows, drawn: Array) -> Array | None:
    """How often the largest of two rows stand at the same place."""
    by_row = rows.by_row(drawn)
    if by_row.shape[1] > MATRIX_LIMIT:
        return None
    places = by_row.argmax(2)
    return np.stack([np.mean(places == own[:, None], 0) for own in places.T])


def _count(x: Moments) -> int:
    return int(np.clip(_MAX_NUMBERS // max(x.mean.size, 1), 32, _DRAWS)) // 2 * 2


def _independent(rows: _Rows, largest: Array) -> Array:
    """n_e of each different row."""
    values, below = rows.sign * rows.by_row(rows.values), rows.below()
    reached = np.empty(len(largest))
    for row, drawn in enumerate(largest):
        own = values[:, row].reshape(-1)
        order = np.argsort(own, kind="stable")
        reached[row] = np.interp(drawn, own[order], below[:, row].reshape(-1)[order]).mean()
    return np.maximum(reached / np.maximum(1.0 - reached, 1e-6), 1.0)


def _latents(site: Site, axes: tuple[int, ...], count: int) -> tuple[Array, bool]:
    """Fixed antithetic draws of the standardised latents, `[count, *elements]`; whether rows are correlated in them too."""
    x, rng = site.x, np.random.default_rng(0)
    half = _half(x, axes, count // 2, rng)
    if half is None:
        if int(np.prod([x.shape[axis] for axis in axes])) > 1:
            site.notes.append("the elements it takes the largest of are taken as independent")
        half = rng.standard_normal((count // 2, *x.shape))
        return np.concatenate([half, -half]), False
    together = x.tokens is not None or x.steps is not None or x.channels is not None
    return np.concatenate([half, -half]), together


def _half(x: Moments, axes: tuple[int, ...], count: int, rng: np.random.Generator) -> Array | None:
    if x.tokens is not None:
        if x.tokens.axes != axes:
            return None
        one = np.ones((int(np.prod([x.shape[axis] for axis in axes])), len(x.tokens.within)))
        rows = token_deviations(x.tokens, rng, count, one)
        return np.stack([from_rows(row, axes, x.shape) for row in rows])
    if x.steps is not None and x.steps.place.size <= _MAX_STEPS:
        covariance = x.steps.matrix()
        deviation = np.sqrt(np.maximum(np.diag(covariance), np.finfo(float).tiny))
        values, vectors = np.linalg.eigh(covariance / np.outer(deviation, deviation))
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return np.asarray(rng.standard_normal((count, len(root))) @ root.T).reshape(count, *x.shape)
    if x.lags is None or not _are_positions(x, axes):
        return None
    rho = x.known_lags.correlation() if x.curve is None else x.curve.rho
    if x.curve is None and x.channels is not None:
        rho = x.channels.correlation()
    return None if rho is None or isinstance(rho, np.ndarray) else fields(rho, rng, count)


def _are_positions(x: Moments, axes: tuple[int, ...]) -> bool:
    """Whether these are all positions of channels."""
    return x.mean.ndim > 1 and axes == tuple(range(1, x.mean.ndim))


def _received(site: Site, rows: _Rows, dy: GradientMoments) -> Seed:
    x, found = site.x, site.memory[site.node]
    assert isinstance(found, _Found)
    chance = _chance(rows, found.independent)
    root, slope = np.sqrt(chance), np.gradient(rows.values, NODES, axis=0)
    wanted, given = expectation(slope * chance), expectation(slope * root)
    scale = np.divide(wanted, given, out=np.zeros_like(given), where=given != 0)
    kept = [1 if axis in rows.axes else n for axis, n in enumerate(x.shape)]
    count = int(np.prod([x.shape[axis] for axis in rows.axes]))
    mean = np.broadcast_to(dy.mean.reshape(kept) / count * scale, x.shape)
    variance = np.maximum(dy.second.reshape(kept) / count - mean**2, 0.0)
    back = GradientMoments.of(mean, variance)
    if x.tokens is not None:
        return Seed(_of_tokens(back, dy, x.tokens, found.together), rows.values, root)
    if _are_positions(x, rows.axes):
        return _seed_of_positions(site, rows, back, dy, chance)
    return Seed(back, rows.values, root)


def _chance(rows: _Rows, independent: Array) -> Array:
    """n P at the nodes, of the shape of the values."""
    # On the way back the values may be known of all rows together, or of each.
    alike = tuple(axis for axis, length in enumerate(rows.lengths) if length == 1)
    exponent = np.broadcast_to(independent.mean(alike, keepdims=True), rows.lengths) - 1.0
    power = rows.below() ** exponent.reshape(-1, 1)
    average = expectation(power).mean(-1, keepdims=True)
    return rows.by_element(power / np.maximum(average, np.finfo(float).tiny))


def _seed_of_positions(
    site: Site, rows: _Rows, back: GradientMoments, dy: GradientMoments, chance: Array
) -> Seed:
    """Sums over positions are what each row passes."""
    x, found, positions = site.x, site.memory[site.node], tuple(range(1, site.x.mean.ndim))
    assert isinstance(found, _Found)
    square = np.mean(back.mean**2, positions)
    lags = Autocovariance.constant(-square, x.shape[1:]).with_lag0(back.variance.mean(positions))
    back = replace(back, lags=lags)
    if x.channels is not None and found.together is not None:
        matrix, hessian = _between(dy)
        back = replace(
            back,
            channels=_scattered(matrix, found.together, x.shape[1:]).with_lags(lags),
            channel_hessian=None if hessian is None else _scattered(hessian, found.together, x.shape[1:]),
        )
    column = (len(x.mean), *[1] * len(positions))
    single = Autocovariance.white(np.ones(len(x.mean)), column[1:])
    g = GradientMoments.of(dy.mean.reshape(column), dy.variance.reshape(column))
    weights, root = WEIGHTS.reshape(-1, *[1] * x.mean.ndim) * chance, np.sqrt(chance)
    return Seed(back, rows.values, root, Picks(replace(g, cancelled=dy.cancelled), weights, root, single))


def _between(dy: GradientMoments) -> tuple[Array, Array | None]:
    """Covariance and hessian of the gradient, `[C, C]`."""
    if dy.mean.ndim == 1:
        return dy.known_covariance, dy.hessian
    return dy.known_channels.lag0, None if dy.channel_hessian is None else dy.channel_hessian.lag0


def _scattered(matrix: Array, together: Array, lengths: tuple[int, ...]) -> ChannelCovariance:
    """Of pairs of rows that pass theirs to the same of n places as often as `together` says, otherwise to any two."""
    own, others = _shares(matrix, together, int(np.prod(lengths)))
    spread = ChannelCovariance.constant(others, lengths)
    return ChannelCovariance(spread.pairs.with_lag0(own.reshape(-1)))


def _shares(matrix: Array, together: Array, count: int) -> tuple[Array, Array]:
    """At one place, and at two places."""
    return matrix * together / count, matrix * (1.0 - together) / max(count * (count - 1), 1)


def _of_tokens(
    back: GradientMoments, dy: GradientMoments, tokens: TokenCorrelation, together: Array | None
) -> GradientMoments:
    if dy.mean.ndim != 1 or together is None:
        return replace(back, tokens=TokenCorrelation.white(tokens.axes, back.mean.shape))
    count = back.mean.size // dy.mean.size
    squares = np.diag(dy.mean**2) / count**2
    within, between = _shares(dy.known_covariance, together, count)
    np.fill_diagonal(within, np.maximum(dy.second / count - np.diag(squares), 0.0))
    deviation = np.broadcast_to(np.sqrt(np.diag(within)), (count, dy.mean.size))
    known = TokenCorrelation.of_covariances(tokens.axes, within, between - squares, deviation)
    response = None
    if dy.hessian is not None:
        response = TokenResponse(tokens.axes, *_shares(dy.hessian, together, count))
    return replace(back, tokens=known, response=response)
