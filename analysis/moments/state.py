"""What is known of a tensor: moments of its value over the inputs, and of its gradient.

A tensor `[batch, *elements]` is described by one example's elements. Its elements are `[C]` (dense) or `[C, *positions]`.

Of dense tensors the covariance is the matrix `[C, C]`; of tensors with positions the autocovariance of each channel is known,
and, within the budget, that of each pair of channels. None stands for uncorrelated elements. Sequences carry `tokens`.

Where the positions of an image are alike, its arrays are views that repeat one number (`blocks`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .autocovariance import Autocovariance
from .blocks import blocks_of, each, one_of, repeats
from .channel_covariance import ChannelCovariance
from .constraint import Constraint
from .flattened import Flattened, Projected
from .quadrature import Array
from .steps import Steps
from .tokens import TokenCorrelation, TokenResponse, TokenTilt, of_sum

__all__ = [
    "COVARIANCE_LIMIT",
    "Curve",
    "GradientByRows",
    "GradientDraws",
    "GradientMoments",
    "GradientSummary",
    "Moments",
    "ParameterGradient",
    "ValueDraws",
    "are_alike",
]

_LARGEST_SQUARE = float(np.finfo(np.float32).max) ** 2
"""That of the largest finite float32."""

COVARIANCE_LIMIT = 2048
"""Features beyond which no covariance between them is carried, whatever the budget: it would take more than 32 MB."""


@dataclass(frozen=True)
class Curve:
    """A tensor as an elementwise function of a Gaussian tensor, its latent.

    Attributes:
        latent: Name of the latent tensor, each element N(mean, variance).
        known: `values`, or what works them out anew whenever they are asked for, as those of the latent itself.
        correlated: `rho`, or the autocovariance of each channel.
    """

    latent: str
    known: Array | Callable[[], Array]
    correlated: Array | Autocovariance | ChannelCovariance | None

    @property
    def values(self) -> Array:
        """The function at the quadrature nodes of the latent, `[NODES, *elements]`.

        Its positions have length 1 where they share one function.
        """
        return self.known() if callable(self.known) else self.known

    @property
    def rho(self) -> Array | Autocovariance | ChannelCovariance | None:
        """Correlation of the latent's elements, `[C, C]` or by lags, of each channel or each pair; None where there is none."""
        known = self.correlated
        return known.correlation() if isinstance(known, Autocovariance) else known


@dataclass(frozen=True)
class ValueDraws:
    """That a tensor is no function of one Gaussian per element, so that fixed draws stand for it (see `drawing`).

    Attributes:
        shape: Theirs, `[draws, *elements]`.
        axes: Axes of tokens among one example's.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]


@dataclass(frozen=True)
class GradientDraws:
    """What draws of a tensor's value make of the mean of the gradient that arrived, and of draws about that mean.

    Attributes:
        coherent: From the mean, `[draws, *elements]`.
        scattered: From what varies about it, of mean 0.
    """

    coherent: Array
    scattered: Array

    def __add__(self, other: GradientDraws) -> GradientDraws:
        return GradientDraws(self.coherent + other.coherent, self.scattered + other.scattered)


@dataclass(frozen=True)
class Moments:
    """Moments of a tensor's value over the distribution of inputs.

    Attributes:
        mean: Mean of each element.
        variance: Variance of each element.
        covariance: Of the elements of dense tensors, `[C, C]`.
        lags: Covariance of the positions of each channel.
        curve: The tensor as a function of its latent; None where it is itself nearest to a Gaussian.
        positive: Whether it is known to have no negative elements, as a variance; it is then nearest to a log-normal.
        tokens: Correlation of a sequence's elements; None where the tensor is not known to be one.
        drawn: That draws of it are what is known best.
        steps: What is known of it as states of a sequence.
        norm_spread: Relative variance of the squared norm of one token's features, where a normalisation before has fixed it
            (`norm_spread`); None where the moments say it.
        skewness: E[(x - mean)^3] / variance^1.5 of each channel, `[C, 1, ...]`, of a tensor without a curve; None counts as 0.
        channels: Covariance between the channels of a tensor with positions, whose `lags` are then those of each channel;
            None where they are taken as uncorrelated.
        flattened: The same of a tensor whose positions lie in one row.
    """

    mean: Array
    variance: Array
    covariance: Array | None = None
    curve: Curve | None = None
    positive: bool = False
    tokens: TokenCorrelation | None = None
    drawn: ValueDraws | None = None
    steps: Steps | None = None
    norm_spread: float | None = None
    lags: Autocovariance | None = None
    skewness: Array | None = None
    channels: ChannelCovariance | None = None
    flattened: Flattened | None = None

    @property
    def second(self) -> Array:
        """E x^2 of each element."""
        return each(_second, self.mean, self.variance)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.mean.shape)

    @property
    def known_covariance(self) -> Array:
        """The covariance of a dense tensor, with uncorrelated elements written out."""
        return _diagonal(self.variance) if self.covariance is None else self.covariance

    @property
    def known_lags(self) -> Autocovariance:
        """The autocovariance of a tensor with positions, with uncorrelated ones written out."""
        return _white(self.variance) if self.lags is None else self.lags

    @property
    def known_channels(self) -> ChannelCovariance:
        """The covariance between the channels of a tensor with positions, with uncorrelated ones written out."""
        return ChannelCovariance.of_lags(self.known_lags) if self.channels is None else self.channels

    @property
    def varies_evenly(self) -> bool:
        """Whether each channel has one variance for all positions."""
        return repeats(self.variance, tuple(range(1, self.variance.ndim)))

    @property
    def lag_correlation(self) -> Autocovariance:
        """Of each channel's positions: their covariance over the mean product of the deviations of two of them."""
        if self.varies_evenly:
            return self.known_lags.correlation()
        return self.known_lags.over(Autocovariance.of_products(np.sqrt(self.variance)))

    @property
    def channel_correlation(self) -> ChannelCovariance:
        """The same between the channels."""
        if self.varies_evenly:
            return self.known_channels.correlation()
        deviation = np.sqrt(self.variance)
        scale = ChannelCovariance.of_products(deviation, deviation)
        return ChannelCovariance(self.known_channels.pairs.over(scale.pairs))

    @property
    def apart(self) -> Moments:
        """A tensor with positions without what its channels have to do with each other."""
        if self.channels is None and self.flattened is None:
            return self
        curve = None if self.curve is None else replace(self.curve, correlated=None)
        # Lags of each channel may be a view of those of all pairs.
        lags = None if self.lags is None else self.lags * 1.0
        return replace(self, lags=lags, channels=None, flattened=None, curve=curve)

    @property
    def narrow(self) -> Moments:
        """With one position in place of all, where they are alike; `lags` then still tells their number."""
        if not are_alike(self.mean, self.variance):
            return self
        return replace(
            self,
            mean=_narrow(self.mean),
            variance=_narrow(self.variance),
            lags=self.known_lags,
        )

    def repeated(self, shape: tuple[int, ...]) -> Moments:
        """The way back from `narrow`, to a tensor of this shape."""
        if self.mean.shape == shape == self.variance.shape:
            return self
        return replace(
            self,
            mean=np.broadcast_to(self.mean, shape),
            variance=np.broadcast_to(self.variance, shape),
        )


@dataclass(frozen=True)
class GradientMoments:
    """Moments of the gradient of one example's loss with respect to that example's elements, over inputs and targets.

    Attributes:
        mean: Mean of each element: the part that a batch does not average away.
        variance: Variance of each element.
        covariance: As for values.
        cancelled: Per channel, how much batch normalisation has taken from the variance of the sum over a batch and its
            positions, divided by the batch size; without batch normalisation examples are independent and it is 0.
        tilt: E[gradient x standardised value] of each element, which an elementwise function brings about.
        tilted_total: Per channel, variance over examples of sum over positions of gradient x standardised value; None
        where no
            elementwise function has said it.
        normalised_total: The same of a value that is standardised over its positions, too, as by a batch normalisation; None
            where it is not known.
        hessian: E[d gradient_c / d value_d] of dense tensors, `[C, C]`: the gradient moves with the value that it
        belongs to, and
            so with everything that this value moves with. None counts as 0.
        skew: E[gradient^2 x standardised value], `[C]` of dense tensors, mean over positions `[C, 1, ...]` of others. None
            counts as 0.
        tokens: Correlation of the elements of a sequence's gradient; None where the tensor is not known to be one.
        response: The hessian of a sequence. None counts as 0.
        drawn: Draws of it that belong to those of the value, on the way back from where values were drawn.
        steps: What is known of it as gradients of the states of a sequence.
        lags: As for values.
        channels: As for values.
        channel_hessian: E[d gradient_c(p) / d value_d(p + lag)] of a tensor with positions, averaged over the positions p. None
            counts as 0.
        projected: It as the product of a weight and a gradient of few elements, where it is known to be one.
        scale_free: Of which channels a normalisation behind takes out the scale, so that over a batch and its positions the sum
            of gradient x value is 0, `[C]`. None counts as none.
        constraint: What batch normalisation behind takes from sums over a batch, where the inputs follow several laws.
        token_tilt: What `tilted_total` is for a sequence; None where no elementwise function has said it.
    """

    mean: Array
    variance: Array
    covariance: Array | None
    cancelled: Array
    tilt: Array
    tilted_total: Array | None = None
    hessian: Array | None = None
    skew: Array | None = None
    tokens: TokenCorrelation | None = None
    response: TokenResponse | None = None
    drawn: GradientDraws | None = None
    steps: Steps | None = None
    lags: Autocovariance | None = None
    channels: ChannelCovariance | None = None
    channel_hessian: ChannelCovariance | None = None
    projected: Projected | None = None
    scale_free: Array | None = None
    constraint: Constraint | None = None
    token_tilt: TokenTilt | None = None
    normalised_total: Array | None = None

    @property
    def second(self) -> Array:
        """E[gradient^2] of each element."""
        return each(_second, self.mean, self.variance)

    @property
    def known_covariance(self) -> Array:
        """The covariance of a dense tensor, with uncorrelated elements written out."""
        return _diagonal(self.variance) if self.covariance is None else self.covariance

    @property
    def known_lags(self) -> Autocovariance:
        """The autocovariance of a tensor with positions, with uncorrelated ones written out."""
        return _white(self.variance) if self.lags is None else self.lags

    @property
    def known_channels(self) -> ChannelCovariance:
        """The covariance between the channels of a tensor with positions, with uncorrelated ones written out."""
        return ChannelCovariance.of_lags(self.known_lags) if self.channels is None else self.channels

    @property
    def narrow(self) -> GradientMoments:
        """With one position in place of all, where they are alike; `lags` then still tells their number."""
        if not are_alike(self.mean, self.variance, self.tilt):
            return self
        return replace(
            self,
            mean=_narrow(self.mean),
            variance=_narrow(self.variance),
            tilt=_narrow(self.tilt),
            lags=self.known_lags,
        )

    def repeated(self, shape: tuple[int, ...]) -> GradientMoments:
        """The way back from `narrow`, to a tensor of this shape."""
        if all(part.shape == shape for part in (self.mean, self.variance, self.tilt)):
            return self
        return replace(
            self,
            mean=np.broadcast_to(self.mean, shape),
            variance=np.broadcast_to(self.variance, shape),
            tilt=np.broadcast_to(self.tilt, shape),
        )

    @property
    def total(self) -> Array:
        """Per channel, variance of the gradient's sum over a batch and its positions, divided by the batch size."""
        if self.mean.ndim < 2:
            return np.asarray(np.maximum(self.variance - self.cancelled, 0.0))
        lags = self.known_lags
        return np.asarray(np.maximum(lags.count * lags.total() - self.cancelled, 0.0))

    @classmethod
    def of(
        cls,
        mean: Array,
        variance: Array,
        covariance: Array | None = None,
        hessian: Array | None = None,
        tokens: TokenCorrelation | None = None,
        steps: Steps | None = None,
        lags: Autocovariance | None = None,
        channels: ChannelCovariance | None = None,
        channel_hessian: ChannelCovariance | None = None,
    ) -> GradientMoments:
        """Moments of independent examples."""
        none, flat = np.zeros(mean.shape[:1]), np.broadcast_to(0.0, mean.shape)
        return cls(
            mean,
            variance,
            covariance,
            none,
            flat,
            hessian=hessian,
            tokens=tokens,
            steps=steps,
            lags=lags if channels is None else channels.lags,
            channels=channels,
            channel_hessian=channel_hessian,
        )

    def summary(self) -> GradientSummary:
        """What is kept of it in the end."""
        one = self.narrow
        return GradientSummary.of(one.mean, one.variance, self.mean.size)

    def with_draws(self, drawn: GradientDraws) -> GradientMoments:
        """The same, with draws of it."""
        return replace(self, drawn=drawn)

    def __add__(self, other: GradientMoments) -> GradientMoments:
        """The sum of what two consumers send back, as uncorrelated."""
        covariance = None
        if self.covariance is not None or other.covariance is not None:
            covariance = self.known_covariance + other.known_covariance
        lags = None
        if self.lags is not None or other.lags is not None:
            lags = self.known_lags + other.known_lags
        channels = None
        if self.channels is not None or other.channels is not None:
            channels = self.known_channels + other.known_channels
        totals = [t for t in (self.tilted_total, other.tilted_total) if t is not None]
        hessians = [h for h in (self.hessian, other.hessian) if h is not None]
        by_lags = [h for h in (self.channel_hessian, other.channel_hessian) if h is not None]
        responses = [r for r in (self.response, other.response) if r is not None]
        skews = [s for s in (self.skew, other.skew) if s is not None]
        variance = each(np.add, self.variance, other.variance)
        return GradientMoments(
            each(np.add, self.mean, other.mean),
            variance,
            covariance,
            self.cancelled + other.cancelled,
            each(np.add, self.tilt, other.tilt),
            sum(totals[1:], totals[0]) if totals else None,
            sum(hessians[1:], hessians[0]) if hessians else None,
            sum(skews[1:], skews[0]) if skews else None,
            of_sum([(self.tokens, self.variance), (other.tokens, other.variance)], variance),
            functools.reduce(TokenResponse.__add__, responses) if responses else None,
            None if self.drawn is None or other.drawn is None else self.drawn + other.drawn,
            None if self.steps is None or other.steps is None else self.steps + other.steps,
            lags,
            channels,
            functools.reduce(ChannelCovariance.__add__, by_lags) if by_lags else None,
        )


@dataclass(frozen=True)
class ParameterGradient:
    """The gradient of a tensor that all examples share.

    Attributes:
        mean: Mean of each element, over batches.
        variance: Variance of each element for a batch of one.
    """

    mean: Array
    variance: Array

    @property
    def second(self) -> Array:
        """E[gradient^2] of each element, for a batch of one."""
        return np.asarray(self.variance + self.mean**2)

    def __add__(self, other: ParameterGradient) -> ParameterGradient:
        return ParameterGradient(self.mean + other.mean, self.variance + other.variance)

    @property
    def transposed(self) -> ParameterGradient:
        """That of a matrix's transpose."""
        return ParameterGradient(self.mean.T, self.variance.T)

    def scaled(self, factor: float) -> ParameterGradient:
        """The gradient of what is multiplied by a factor before it is used."""
        return ParameterGradient(factor * self.mean, factor**2 * self.variance)

    def whole(self) -> ParameterGradient:
        """Itself."""
        return self

    def summary(self) -> GradientSummary:
        """What is kept of it in the end."""
        return GradientSummary.of(self.mean, self.variance, self.mean.size)


@dataclass(frozen=True)
class GradientByRows:
    """The gradient of a large matrix that all examples share, worked out some rows at a time.

    Attributes:
        shape: The matrix's.
        rows: The gradient of a slice of its rows.
        sums: Sum over all elements of the mean's square, and of the variance, where they are quicker known than the elements.
        is_transposed: Whether the tensor is the matrix's transpose.
    """

    shape: tuple[int, ...]
    rows: Callable[[slice], ParameterGradient]
    sums: Callable[[], tuple[float, float]] | None = None
    is_transposed: bool = False

    @property
    def transposed(self) -> GradientByRows:
        """That of the matrix's transpose."""
        return replace(self, is_transposed=not self.is_transposed)

    def scaled(self, factor: float) -> GradientByRows:
        """The gradient of what is multiplied by a factor before it is used."""
        sums = self.sums
        return replace(
            self,
            rows=lambda part: self.rows(part).scaled(factor),
            sums=None if sums is None else lambda: (factor**2 * sums()[0], factor**2 * sums()[1]),
        )

    def whole(self) -> ParameterGradient:
        """All rows at once."""
        gradient = self.rows(slice(0, self.shape[0]))
        return gradient.transposed if self.is_transposed else gradient

    def summary(self) -> GradientSummary:
        """From the sums where no element may be too large for float32, else row by row."""
        if self.sums is not None and sum(sums := self.sums()) < _LARGEST_SQUARE:
            return GradientSummary(*sums, sum(sums), math.prod(self.shape))
        parts = [self.rows(part).summary() for part in blocks_of(self.shape[0], math.prod(self.shape))]
        return functools.reduce(GradientSummary.__add__, parts)


@dataclass(frozen=True)
class GradientSummary:
    """What is kept of a gradient: that of a batch of one for a tensor that all examples share, that of one example for others.

    Attributes:
        means: Sum over its elements of the square of the mean.
        variances: Sum of the variances.
        largest: The largest E[gradient^2], or what it is smaller than where it is no danger.
        size: Number of elements.
    """

    means: float
    variances: float
    largest: float
    size: int

    @classmethod
    def of(cls, mean: Array, variance: Array, size: int) -> GradientSummary:
        """Of a tensor of this size, which may be several times these elements."""
        squares, repeated = mean**2, size / max(mean.size, 1)
        means, variances = (float(np.sum(part)) * repeated for part in (squares, variance))
        return cls(means, variances, float(np.max(squares + variance, initial=0.0)), size)

    def __add__(self, other: GradientSummary) -> GradientSummary:
        """Of two parts of a tensor."""
        return GradientSummary(
            self.means + other.means,
            self.variances + other.variances,
            float(np.maximum(self.largest, other.largest)),
            self.size + other.size,
        )

    def mean_square(self, batch_size: int) -> float:
        """E of the mean of squares over the elements, for the mean over a batch."""
        return (self.variances / batch_size + self.means) / max(self.size, 1)


def _diagonal(variance: Array) -> Array:
    return np.diag(variance) if variance.ndim else variance


def _second(mean: Array, variance: Array) -> Array:
    return np.asarray(variance + mean**2)


def _white(variance: Array) -> Autocovariance:
    positions = tuple(range(1, variance.ndim))
    return Autocovariance.white(_narrow(variance).mean(positions), variance.shape[1:])


def are_alike(*arrays: Array) -> bool:
    """Whether these views repeat one number for all positions of a channel, of which there is more than one."""
    positions = tuple(range(1, arrays[0].ndim))
    return arrays[0].size > math.prod(arrays[0].shape[:1]) > 0 and all(
        repeats(array, positions) for array in arrays
    )


def _narrow(array: Array) -> Array:
    return one_of(array, tuple(range(1, array.ndim)))
