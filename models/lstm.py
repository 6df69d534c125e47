"""An LSTM for the adding problem (Hochreiter and Schmidhuber 1997), see `recurrent`."""

from functools import partial

from . import recurrent

__all__ = ["keras", "pytorch"]

pytorch = partial(recurrent.pytorch, "LSTM")
keras = partial(recurrent.keras, "LSTM")
