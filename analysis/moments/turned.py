"""A sequence whose features are taken as its tokens, and its tokens as its features: a mixture of tokens treats features alike.

With r the mean correlation of one feature in two tokens, s that of two features in one, u that of two features in two, what
were features are exchangeable tokens, of which each, in two of what were tokens, has the correlation r with itself:

    within = I + r (11' - I)          between = s I + u (11' - I)
"""

from __future__ import annotations

import numpy as np

from .quadrature import Array
from .state import GradientMoments, Moments
from .tokens import MATRIX_LIMIT, TokenCorrelation

__all__ = ["turned_to"]


def turned_to(moments: Moments | GradientMoments, axes: tuple[int, ...]) -> TokenCorrelation | None:
    """The correlation of a sequence as one with tokens on `axes`; None where these are neither its tokens nor all others."""
    tokens, shape = moments.tokens, moments.mean.shape
    if tokens is None or tokens.axes == axes:
        return tokens
    if sorted((*tokens.axes, *axes)) != list(range(len(shape))):
        return None
    count = int(np.prod([shape[axis] for axis in tokens.axes]))
    r, s, u = float(np.mean(tokens.shared)), _off_diagonal(tokens.within), _off_diagonal(tokens.between)
    if count > MATRIX_LIMIT:
        return TokenCorrelation(axes, np.ones(count), np.full(count, s))
    alone = np.eye(count)
    return TokenCorrelation(axes, alone + r * (1.0 - alone), s * alone + u * (1.0 - alone))


def _off_diagonal(matrix: Array) -> float:
    """Mean of the elements off the diagonal; 0 where only that is carried."""
    if matrix.ndim == 1 or len(matrix) < 2:
        return 0.0
    return float((matrix.sum() - np.trace(matrix)) / (len(matrix) * (len(matrix) - 1)))
