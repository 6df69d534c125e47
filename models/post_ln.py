"""A transformer encoder with LayerNorm after each sum (post-LN), see `transformer`."""

from functools import partial

from . import transformer

__all__ = ["keras", "pytorch"]

pytorch = partial(transformer.pytorch, norm_first=False)
keras = partial(transformer.keras, norm_first=False)
