"""A transformer encoder with LayerNorm before each branch (pre-LN), see `transformer`."""

from functools import partial

from . import transformer

__all__ = ["keras", "pytorch"]

pytorch = partial(transformer.pytorch, norm_first=True)
keras = partial(transformer.keras, norm_first=True)
