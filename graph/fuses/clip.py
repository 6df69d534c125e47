"""What a user writes as `--clip KIND=NUMBER --at PATTERN`."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from ..errors import InputError, some
from ..gradient_graph import GradientGraph
from .fuse import ALL_PARAMETERS, FUSE_KINDS, GLOBAL_KINDS, Fuse
from .units import last_layer

__all__ = ["fuses_of"]


def fuses_of(clip: str, at: Sequence[str] | None, gradients: GradientGraph) -> list[Fuse]:
    """The fuses that `clip` asks for.

    Args:
        clip: `none`, or a kind and its threshold, as `norm=1.0`.
        at: Patterns for the parameters and activations whose gradients are clipped, each for itself. None: all parameters,
            together for GLOBAL_KINDS; `adaptive` leaves the last layer out, as Brock et al. (2021) do.
        gradients: The graph to put them into.

    Raises:
        InputError: `clip` is not understood, takes no place, or a pattern matches nothing.
    """
    kind, _, number = clip.partition("=")
    if at and kind in ("none", "auto", "global-norm"):
        raise InputError(
            f"a place for clip {clip!r}",
            expected="value, norm, adaptive, quantile or zscore together with a pattern",
        )
    if clip == "none":
        return []
    if kind not in FUSE_KINDS:
        kinds = ", ".join(f"{name}=NUMBER" for name in FUSE_KINDS)
        raise InputError(f"unknown clip {clip!r}", expected=f"auto, none, {kinds}")
    return [Fuse(kind, target, _number(clip, number)) for target in _targets(kind, at, gradients)]


def _targets(kind: str, at: Sequence[str] | None, gradients: GradientGraph) -> list[str]:
    if at:
        return _matching(at, gradients)
    if kind in GLOBAL_KINDS:
        return [ALL_PARAMETERS]
    spared = last_layer(gradients.source) if kind == "adaptive" else ()
    return [name for name in gradients.gradients if name not in spared]


def _number(clip: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"clip {clip!r} has no threshold", expected="a positive number, as norm=1.0"
        ) from None


def _matching(patterns: Sequence[str], gradients: GradientGraph) -> list[str]:
    """Names of parameters and activations that match a pattern; each pattern matches one at least."""
    names = dict.fromkeys(
        [*gradients.gradients, *gradients.activation_gradients, *gradients.recurrent_gradients]
    )
    matched: dict[str, None] = {}
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise InputError(
                f"no gradient flows through {pattern}", expected=f"a pattern for one of {some(names)}"
            )
        matched.update(dict.fromkeys(found))
    return list(matched)
