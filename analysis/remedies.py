"""Remedies, each with the gain predicted once it is applied. One that does not help is not offered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import onnx_ir as ir

from ..graph.fuses import Fuse
from ..graph.gradient_graph import GradientGraph
from .activations import bounded_steps, fast_steps, is_replaceable
from .attribution import by_cause
from .findings import Remedy
from .moments import Moments
from .prediction import Prediction
from .recomputation import Recomputation
from .trunk import path_lengths
from .verdict import Summary
from .weights import LayerWeight, layer_weights, trunk_weights
from .what_if import (
    with_batch_norm,
    with_layer_norm,
    with_orthogonal_weights,
    with_relu,
    with_scaled_branches,
    with_scaled_weights,
)

__all__ = ["OFFERS", "ROUNDS", "fuse_remedy", "learning_rate_remedy"]

_HELPS = 0.3
"""Decades by which the danger must fall for a remedy to be offered: a factor of two."""

ROUNDS, _CLOSE = 4, 0.15
"""Steps of the search for a weight scale, each of which predicts the gain anew, and the decades from 1 that will do."""

_STEP, _FARTHEST = 0.15, 0.5
"""Decades of its first step, and of its farthest."""

_RECURRENT_LAYERS = {"RNN": ("SimpleRNN", 1), "GRU": ("GRU", 3), "LSTM": ("LSTM", 4)}
"""Keras's name of each recurrent layer, and the gates whose matrices its recurrent weights hold."""

_HE = math.sqrt(2.0)
"""Standard deviation of weights before a ReLU, times the square root of the number of inputs (He 2015)."""


@dataclass(frozen=True)
class _Lines:
    """What to write in each framework, and here where there is a way."""

    pytorch: str
    keras: str
    gradfuse: str = ""


def _init(recomputed: Recomputation) -> Remedy | None:
    """Weights of one scale in all layers that brings the gain to 1, unless what they do is less than what time does."""
    prediction = recomputed.prediction
    causes = by_cause(prediction.attribution)
    through_time = causes["recurrence"] and abs(causes["recurrence"]) == max(map(abs, causes.values()))
    weights = [] if through_time else layer_weights(prediction)

    def drawn(gain: float) -> GradientGraph:
        return with_scaled_weights(_graph(prediction), {w.name: gain / w.scale for w in weights if w.scale})

    gain, found = _search(recomputed, weights, drawn)
    return _remedy(
        "init",
        f"draw the weights with standard deviation {gain:.3g} / sqrt(inputs), now {_median(weights):.3g} / sqrt(inputs)",
        _Lines(
            f"torch.nn.init.normal_(w, std={gain:.3g} * w[0].numel() ** -0.5)",
            f'keras.initializers.VarianceScaling({gain**2:.3g}, "fan_in", "untruncated_normal")',
        ),
        prediction,
        found,
    )


def _recurrent_init(recomputed: Recomputation) -> Remedy | None:
    """Orthogonal recurrent weights of a gain that brings that of the gradient to 1."""
    prediction = recomputed.prediction
    weights = [_of_gates(weight) for weight in trunk_weights(prediction, "recurrence")]

    def drawn(gain: float) -> GradientGraph:
        return with_orthogonal_weights(_graph(prediction), {weight.name: gain for weight in weights})

    gain, found = _search(recomputed, weights, drawn)
    layer, _ = _RECURRENT_LAYERS.get(weights[0].node.op_type if weights else "", _RECURRENT_LAYERS["RNN"])
    return _remedy(
        "init",
        f"draw orthogonal recurrent weights with gain {gain:.3g}; the present ones have {_median(weights):.3g}",
        _Lines(
            f"torch.nn.init.orthogonal_(rnn.weight_hh_l0, gain={gain:.3g})",
            f"keras.layers.{layer}(n, recurrent_initializer=keras.initializers.Orthogonal(gain={gain:.3g}))",
        ),
        prediction,
        found,
    )


def _of_gates(weight: LayerWeight) -> LayerWeight:
    """With the gain of an orthogonal matrix of all gates as its scale: each gate has its share of the columns' lengths."""
    _, gates = _RECURRENT_LAYERS.get(weight.node.op_type, _RECURRENT_LAYERS["RNN"])
    return replace(weight, scale=weight.scale * math.sqrt(gates))


def _activation(recomputed: Recomputation) -> Remedy | None:
    """ReLU with He's initialisation in place of fast-growing activations; where gradients vanish, of bounded ones."""
    prediction = recomputed.prediction
    vanishes = prediction.summary.log10_gain < 0
    state, trunk = prediction.state, prediction.steps
    fast = fast_steps(state, trunk, prediction.thresholds)
    unsuitable = bounded_steps(state, trunk) if vanishes else [step for step, _ in fast]
    steps = [step for step in unsuitable if is_replaceable(state, step)]
    if not steps:
        return None
    weights = layer_weights(prediction)
    factors = {weight.name: _HE / max(weight.scale, 1e-30) for weight in weights}
    return _remedy(
        "activation",
        "use ReLU, which grows linearly, with He's initialisation",
        _Lines(
            'torch.nn.ReLU()  # and torch.nn.init.kaiming_normal_(w, nonlinearity="relu")',
            'keras.layers.Dense(n, "relu", kernel_initializer="he_normal")',
        ),
        prediction,
        recomputed.predict(lambda: with_relu(with_scaled_weights(_graph(prediction), factors), steps)),
    )


def _normalisation(recomputed: Recomputation) -> Remedy | None:
    """LayerNorm before every activation of the trunk, or in place of its BatchNorm."""
    prediction = recomputed.prediction
    causes = {step.nodes[0].op_type for step in prediction.steps if step.cause == "normalisation"}
    if causes - {"BatchNormalization"}:
        return None
    steps = [step for step in prediction.steps if step.nodes[0].op_type == "BatchNormalization"]
    places = [(step.before, step.after) for step in steps]
    if not causes:
        places = [(place, place) for place in _before_activations(prediction)]
    if not places or any(len(place.shape or ()) < 2 for place, _ in places):
        return None
    convolutions = any(node.op_type == "Conv" for node in prediction.state.nodes)
    why = "; BatchNorm in a plain deep network makes gradients grow"
    where = f"in place of BatchNorm (LayerNorm){why}" if causes else "before every activation (LayerNorm)"
    return _remedy(
        "normalisation",
        f"normalise each example {where}",
        _Lines("torch.nn.GroupNorm(1, channels)", "keras.layers.GroupNormalization(groups=1)")
        if convolutions
        else _Lines("torch.nn.LayerNorm(features)", "keras.layers.LayerNormalization()"),
        prediction,
        recomputed.predict(lambda: with_layer_norm(_graph(prediction), places, 1 if convolutions else -1)),
    )


def _batch_norm(recomputed: Recomputation) -> Remedy | None:
    """BatchNorm before every activation of a trunk without normalisation, where its channels are on axis 1."""
    prediction = recomputed.prediction
    places = _before_activations(prediction)
    convolutions = any(node.op_type == "Conv" for node in prediction.state.nodes)
    rank = 4 if convolutions else 2
    normalised = any(step.cause == "normalisation" for step in prediction.steps)
    if not places or normalised or any(len(place.shape or ()) != rank for place in places):
        return None
    return _remedy(
        "normalisation",
        "normalise every channel over the batch before every activation (BatchNorm)",
        _Lines(
            "torch.nn.BatchNorm2d(channels)" if convolutions else "torch.nn.BatchNorm1d(features)",
            "keras.layers.BatchNormalization()",
            'gradfuse.remedy(model, insert="batch-norm")',
        ),
        prediction,
        recomputed.predict(lambda: with_batch_norm(_graph(prediction), [(place, place) for place in places])),
    )


def _residual(recomputed: Recomputation) -> Remedy | None:
    """Every residual branch of the trunk times 1 / sqrt(number of branches), or its square where that is not enough."""
    prediction = recomputed.prediction
    branches = list(dict.fromkeys(_branches(prediction)))
    if len(branches) < 2:
        return None
    milder = _scaled_branches(recomputed, branches, 0.5)
    if (milder is not None and milder.cures) or not recomputed.fits:
        return milder
    return _scaled_branches(recomputed, branches, 1.0) or milder


def _scaled_branches(recomputed: Recomputation, branches: Sequence[ir.Value], power: float) -> Remedy | None:
    prediction = recomputed.prediction
    factor = float(f"{len(branches) ** -power:.2g}")
    return _remedy(
        "residual",
        f"multiply each of the {len(branches)} residual branches by {factor:g}",
        _Lines(
            f"x = x + {factor:g} * branch(x)",
            f"x = keras.layers.add([x, keras.layers.Rescaling({factor:g})(branch(x))])",
        ),
        prediction,
        recomputed.predict(lambda: with_scaled_branches(_graph(prediction), branches, factor)),
    )


def _before_activations(prediction: Prediction) -> list[ir.Value]:
    return [step.before for step in prediction.steps if is_replaceable(prediction.state, step)]


OFFERS: Mapping[str, Callable[[Recomputation], Remedy | None]] = {
    "recurrent-init": _recurrent_init,
    "init": _init,
    "activation": _activation,
    "residual": _residual,
    "normalisation": _normalisation,
    "batch-norm": _batch_norm,
}
"""Remedies for growth and shrinking, the least change to the model first; each gives None where it does not help, and raises
BudgetSpentError where that is not recomputed."""


def fuse_remedy(fuses: Sequence[Fuse], summary: Summary) -> Remedy | None:
    """Clipping as planned. Its predicted gain is the present one: a fuse bounds the update, not the flow."""
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
        summary.log10_gain,
        summary.global_norm,
        cures=False,
    )


def learning_rate_remedy(rate: float, summary: Summary) -> Remedy:
    """A learning rate at which the step is small beside the weights. It does not touch the gradient."""
    return Remedy(
        "learning-rate",
        f"a learning rate of at most {rate:.1g}: bounds the first steps, and leaves the gradient as it is",
        f"gradfuse.train(model, data, lr={rate:.1g})",
        f"torch.optim.SGD(model.parameters(), lr={rate:.1g}, momentum=0.9)",
        f"keras.optimizers.SGD({rate:.1g}, momentum=0.9)",
        summary.log10_gain,
        summary.global_norm,
        cures=False,
    )


def _remedy(
    kind: str, text: str, lines: _Lines, before: Prediction, after: Prediction | None
) -> Remedy | None:
    if after is None or not _helps(after.summary, before.summary):
        return None
    cures = after.summary.danger < 0 and after.summary.verdict != "vanishes"
    gain, norm = after.summary.log10_gain, after.summary.global_norm
    return Remedy(kind, text, lines.gradfuse, lines.pytorch, lines.keras, gain, norm, cures)


def _helps(after: Summary, before: Summary) -> bool:
    """Whether the danger falls; where gradients vanish, whether the gain comes nearer to 1 and does not explode."""
    if before.verdict == "vanishes":
        return after.danger < 0 and abs(after.log10_gain) < abs(before.log10_gain) - _HELPS
    return after.danger < before.danger - _HELPS


@dataclass(frozen=True)
class _Trial:
    """A gain of weights that was tried, in decades, the decades of growth that are left, and the prediction."""

    at: float
    excess: float
    prediction: Prediction


def _search(
    recomputed: Recomputation, weights: Sequence[LayerWeight], drawn: Callable[[float], GradientGraph]
) -> tuple[float, Prediction | None]:
    """The gain of weights that brings that of the gradient nearest to 1 and the norm within bounds, and what it leads to."""
    start = _median(weights)
    if not start > 0:
        return 0.0, None
    trials = [_Trial(math.log10(start), _excess(recomputed.prediction.summary), recomputed.prediction)]
    while len(trials) == 1 or (len(trials) <= ROUNDS and abs(trials[-1].excess) > _CLOSE and recomputed.fits):
        gain = float(f"{10.0 ** _next_scale(trials):.3g}")
        after = recomputed.predict(partial(drawn, gain))
        trials.append(_Trial(math.log10(gain), _excess(after.summary), after))
    best = min(trials[1:], key=lambda trial: _distance(trial.prediction.summary))
    return 10.0**best.at, best.prediction


def _median(weights: Sequence[LayerWeight]) -> float:
    return median(weight.scale for weight in weights) if weights else 0.0


def _next_scale(trials: Sequence[_Trial]) -> float:
    """By the secant method; by steps where there is no slope yet, or none that helps, as while float32 overflows."""
    last, before = trials[-1], trials[-2] if len(trials) > 1 else trials[-1]
    step = -math.copysign(_STEP if math.isfinite(last.excess) else 2 * _STEP, last.excess)
    if math.isfinite(last.excess) and math.isfinite(before.excess) and last.at != before.at:
        slope = (last.excess - before.excess) / (last.at - before.at)
        step = max(-_FARTHEST, min(-last.excess / slope, _FARTHEST)) if slope > 0 else step
    return last.at + step


def _distance(summary: Summary) -> tuple[bool, float]:
    return summary.danger > -_HELPS, abs(summary.log10_gain)


def _excess(summary: Summary) -> float:
    """Decades of growth, or those by which the danger is too near to the thresholds where they are more."""
    if summary.overflow or math.isnan(summary.log10_gain):
        return math.inf
    crowded = summary.danger + 2 * _HELPS
    return max(summary.log10_gain, crowded) if crowded > 0 else summary.log10_gain


def _graph(prediction: Prediction) -> GradientGraph:
    return prediction.state.gradients


def _branches(prediction: Prediction) -> Iterable[ir.Value]:
    """What the trunk's residual sums add to a skip, the summand with the shortest way from an input."""
    lengths = path_lengths(prediction.state)
    for step in prediction.steps:
        if step.cause == "residual":
            summands = (value for value in step.nodes[0].inputs if value is not None)
            varying = (value for value in summands if isinstance(prediction.state.values.get(value), Moments))
            yield from sorted(varying, key=lambda value: lengths.get(value, 0))[1:]
