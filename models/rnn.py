"""A vanilla tanh RNN for the adding problem, whose recurrence is drawn with a spectral radius above 1, see `recurrent`."""

from functools import partial

from . import recurrent

__all__ = ["keras", "pytorch"]

pytorch = partial(recurrent.pytorch, "RNN", radius=1.4)
keras = partial(recurrent.keras, "RNN", radius=1.4)
