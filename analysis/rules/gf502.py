"""The loss takes probabilities for logits.

## What it sees
The loss `cross-entropy` on the output of a Softmax, Sigmoid or HardSigmoid, and `bce-with-logits` on that of a Sigmoid,
HardSigmoid or Softmax. Reshapes between the two are looked through. LogSoftmax is no finding: its softmax is itself.

## Why it is bad
These losses apply the softmax or sigmoid themselves. Applied twice, it squeezes the logits into [0, 1]: the largest
probability of 10 classes is then at most 0.23, the loss cannot fall below 1.46, and the gradient is damped by the first
softmax's slope. The network trains, slowly, to a bad end, and nothing fails.

## Example
A Keras model that ends in `Dense(10, activation="softmax")`, trained with `cross-entropy`.

## Cure
Leave the last activation out of the model: `Dense(10)` with `from_logits=True` in Keras; no `nn.Softmax` before
`nn.CrossEntropyLoss` and no `nn.Sigmoid` before `nn.BCEWithLogitsLoss` in PyTorch. Apply it where the model is used.

## References
Documentation of `torch.nn.CrossEntropyLoss` and `keras.losses.CategoricalCrossentropy(from_logits)`.
"""

from __future__ import annotations

import onnx_ir as ir

from ...graph.losses import base_name
from ..evidence import Evidence
from ..findings import Finding
from .rule import Rule, finding

__all__ = ["RULE"]

_LOSSES = ("cross-entropy", "bce-with-logits")
_PROBABILITIES = ("Softmax", "Sigmoid", "HardSigmoid")
_LOOKED_THROUGH = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def check(evidence: Evidence) -> list[Finding]:
    """One finding, at the last activation."""
    gradients = evidence.prediction.state.gradients
    node = _last(gradients.source.onnx.graph)
    if base_name(gradients.loss) not in _LOSSES or node is None or node.op_type not in _PROBABILITIES:
        return []
    message = f"the loss {gradients.loss} takes logits, and the model ends in {node.op_type} {node.name}"
    return [finding("GF502", "warning", node, message, {"loss": gradients.loss}, phase="forward")]


RULE = Rule("GF502", check, __doc__)


def _last(graph: ir.Graph) -> ir.Node | None:
    """The node that makes the first output, moves of elements looked through."""
    node = graph.outputs[0].producer()
    while node is not None and node.op_type in _LOOKED_THROUGH and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node
