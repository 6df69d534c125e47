"""Fuses: clipping nodes on gradient edges.

A fuse is one node of a model-local ONNX function, named `fuse/<target>`, whose body is a few standard ops: a viewer shows the
node and its threshold, a runtime sees the ops. Below its threshold a fuse multiplies by exactly 1, or clips nothing, and so
changes no bit of the gradient. With n = |g| the Euclidean norm, or that of all parameters' gradients together:

    value        g -> min(max(g, -t), t)                                    torch clip_grad_value_, Keras clipvalue
    norm         g -> g t / max(n, t), n of one tensor                      Keras clipnorm
    global-norm  g -> g t / max(n, t), n of all                             torch clip_grad_norm_, Keras global_clipnorm
    adaptive     g_u -> g_u m / max(|g_u|, m), m = t max(|w_u|, 1e-3)       Brock et al. 2021 (NFNets), optax adaptive_grad_clip
                 for each output unit u of a parameter w
    quantile     g -> g q / max(n, q), q the t-quantile of the last 100 n   Seetharaman et al. 2020 (AutoClip), over a window
    zscore       with mean m and deviation s of past n, z = (n - m) / s:    Kumar et al. 2025 (ZClip)
                 g -> g (m + t^2 s / z) / n where z > t

`clip_grad_norm_` divides by n + 1e-6 rather than n, and so leaves norms a millionth short of the threshold; the fuse divides by
n, as Keras does. `quantile` and `zscore` remember: their state is an input and an output of the graph, as the optimizer's is.

A fuse sits on the gradient of one tensor, or (`global-norm`, `quantile`, `zscore`) on those of all parameters together. On a
parameter's gradient it limits the update only, although the backward pass may use the same sum further on
(BatchNormalization's does); on an activation's gradient it limits what flows back to everything before it. The fuse on all
parameters comes after their own fuses.
"""

from .clip import fuses_of
from .fuse import ALL_PARAMETERS, FUSE_KINDS, GLOBAL_KINDS, Fuse
from .insertion import fuse_bits, fuse_states, insert_fuses, list_fuses, remove_fuses
from .units import last_layer

__all__ = [
    "ALL_PARAMETERS",
    "FUSE_KINDS",
    "GLOBAL_KINDS",
    "Fuse",
    "fuse_bits",
    "fuse_states",
    "fuses_of",
    "insert_fuses",
    "last_layer",
    "list_fuses",
    "remove_fuses",
]
