"""A network that really blows up: exponentials between dense layers, a genuine case of an activation as the cause.

What is normal before an exponential is log-normal behind it, with a mean square of exp(2 variance), and its slope is its
value. One example in a batch then outweighs all others, and the first steps throw the weights away.
"""

from functools import partial

from . import deep_mlp

__all__ = ["keras", "pytorch"]

pytorch = partial(deep_mlp.pytorch, depth=3, activation="exponential", gain=1.0)
keras = partial(deep_mlp.keras, depth=3, activation="exponential", gain=1.0)
