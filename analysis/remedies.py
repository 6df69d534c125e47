"""Remedies for growth, each with the gain predicted once it is applied. One that does not help is not offered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from ..graph.gradient_graph import GradientGraph
from .attribution import attribute
from .evidence import Evidence
from .findings import Remedy
from .moments import propagate
from .moments.transfer import elementwise
from .plan import plan_fuses
from .profile import Step, trunk
from .verdict import GROWTH_LIMIT
from .what_if import with_layer_norm, with_relu, with_scaled_weights

__all__ = ["activation_remedy", "fuse_remedy", "init_remedy", "normalisation_remedy"]

_HELPS = 0.3
"""Decades by which the gain must fall for a remedy to be offered: a factor of two."""

_ROUNDS = 4
"""Steps of the search for a weight scale; each predicts the gain anew."""

_AGAIN = "gradfuse report SOURCE  # again, after the change"


def fuse_remedy(evidence: Evidence) -> Remedy | None:
    """Clipping as planned. Its predicted gain is the present one: a fuse bounds the update, not the flow."""
    fuses = plan_fuses(evidence.state, evidence.summary)
    if not fuses:
        return None
    threshold = fuses[-1].threshold
    return Remedy(
        "fuse",
        f"clip the global norm at {threshold:g}: bounds every update, so that training stays finite; it does not mend the"
        " propagation, and the gradient itself grows as before",
        'gradfuse.train(model, data, clip="auto")',
        f"torch.nn.utils.clip_grad_norm_(model.parameters(), {threshold:g})",
        f"keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm={threshold:g})",
        evidence.summary.log10_gain,
    )


def init_remedy(evidence: Evidence) -> Remedy | None:
    """One factor on the weights along the trunk that brings the gain to 1."""
    weights = _trunk_weights(evidence.steps)
    if not weights:
        return None
    gradients, factor, best = evidence.state.gradients, 1.0, (math.inf, 1.0)
    gain = evidence.summary.log10_gain
    for _ in range(_ROUNDS):
        factor *= 10.0 ** -(gain / len(weights)) if math.isfinite(gain) and abs(gain) < 300 else 0.5
        gain = _gain(with_scaled_weights(gradients, dict.fromkeys(weights, factor)), evidence)
        best = min(best, (abs(gain), factor))
    if not _helps(best[0], evidence):
        return None
    gain, factor = best
    spread = factor * _median_gain(gradients, weights)
    return Remedy(
        "init",
        f"draw the weights with standard deviation {spread:.2f} / sqrt(inputs), {factor:.2f} times the present one",
        _AGAIN,
        f"torch.nn.init.normal_(w, std={spread:.2f} * w[0].numel() ** -0.5)",
        f'keras.initializers.VarianceScaling({spread**2:.2f}, "fan_in", "untruncated_normal")',
        gain,
    )


def normalisation_remedy(evidence: Evidence) -> Remedy | None:
    """LayerNorm before every activation of the trunk."""
    steps = [step for step in evidence.steps if step.cause == "activation" and _is_chain(step)]
    if not steps or any(row.normalisation for row in evidence.attribution):
        return None
    gain = _gain(with_layer_norm(evidence.state.gradients, steps), evidence)
    if not _helps(abs(gain), evidence):
        return None
    return Remedy(
        "normalisation",
        "normalise each example before every activation (LayerNorm); BatchNorm in a plain deep network makes gradients grow",
        _AGAIN,
        "torch.nn.LayerNorm(features)  # before the activation",
        "keras.layers.LayerNormalization()  # before the activation",
        gain,
    )


def activation_remedy(evidence: Evidence, steps: Sequence[Step]) -> Remedy | None:
    """ReLU in place of fast-growing activations."""
    gain = _gain(with_relu(evidence.state.gradients, steps), evidence)
    if not _helps(gain, evidence):
        return None
    return Remedy(
        "activation",
        "use an activation that grows linearly, with the initialisation that belongs to it",
        _AGAIN,
        "torch.nn.ReLU()  # and torch.nn.init.kaiming_normal_(w)",
        'keras.layers.Dense(n, "relu", kernel_initializer="he_normal")',
        gain,
    )


def _helps(gain: float, evidence: Evidence) -> bool:
    """Whether this gain is within the limit and nearer to 1 than the present one."""
    return abs(gain) < min(abs(evidence.summary.log10_gain) - _HELPS, math.log10(GROWTH_LIMIT))


def _gain(gradients: GradientGraph, evidence: Evidence) -> float:
    state = propagate(gradients, evidence.state.assumptions)
    gains = [row.log10_gain for row in attribute(trunk(state))]
    finite = all(np.all(np.isfinite(gradient.variance)) for gradient in state.arrived.values())
    return sum(gains) if finite else math.inf


def _is_chain(step: Step) -> bool:
    """Elementwise ops on a latent that a layer gives."""
    return step.before.producer() is not None and step.nodes[0].op_type in elementwise.OPS


def _trunk_weights(steps: Iterable[Step]) -> list[str]:
    """The initializers that the trunk's linear layers multiply by."""
    names = [_initializer(step.nodes[0].inputs[1]) for step in steps if step.cause == "weight"]
    return list(dict.fromkeys(name for name in names if name))


def _initializer(value: ir.Value | None) -> str:
    """The initializer that a weight is made of by moving its elements."""
    while value is not None and (node := value.producer()) is not None:
        value = node.inputs[0] if node.inputs else None
    return (value.name or "") if value is not None and value.const_value is not None else ""


def _median_gain(gradients: GradientGraph, names: Iterable[str]) -> float:
    """Median over weights of RMS times the square root of the number of inputs."""
    found = []
    for name in names:
        constant = gradients.onnx.graph.initializers[name].const_value
        assert constant is not None
        array = constant.numpy()
        fan_in = array[0].size if array.ndim > 2 else _fan_in(gradients, name, array.shape)
        found.append(float(np.sqrt(np.mean(array.astype(np.float64) ** 2) * fan_in)))
    return float(np.median(found))


def _fan_in(gradients: GradientGraph, name: str, shape: tuple[int, ...]) -> int:
    """Of a matrix, the length of the axis that is summed over."""
    uses = [node for node, _ in gradients.onnx.graph.initializers[name].uses()]
    transposed = any(node.op_type == "Transpose" or node.attributes.get_int("transB", 0) for node in uses)
    return shape[-1] if transposed else shape[0]
