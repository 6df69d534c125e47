"""The check that every conversion makes of itself: the same numbers as the framework, forward and backward.

On a seeded random batch, of another size than the example's, the training form of the converted model computes its
outputs, the gradient of a loss for each parameter, and the new running statistics; so does the framework's own autograd.
Dropout is off on both sides, since no two frameworks draw the same masks. On the same batch, the inference form computes the
outputs of the framework's model at inference: the graph is made of what the forward does in train mode, so that a forward
which asks for its mode, and does something else at inference, would be lost without a word.

Two arrays agree if they differ by at most `tolerance` times the largest absolute value of the framework's array, or by what
rounding explains. Some gradients are 0 but for rounding, as that of a bias before BatchNormalization, and in a chaotic network
rounding grows from layer to layer. So the graph runs a second time, with data and parameters changed by a rounding error
each: what moves then is noise. Where they disagree even so it runs some times more, for an activation that rounding moves
across the kink of a ReLU changes a gradient in one run and not in the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..graph.errors import ParityError
from ..graph.evaluation import evaluate, evaluator
from ..graph.gradient_graph import GradientGraph
from ..graph.model import FROZEN, TensorSpec, TrainableModel

__all__ = ["Array", "DrawTarget", "ParityResult", "Reference", "check_outputs", "check_parity", "loss_for"]

Array: TypeAlias = "np.ndarray[Any, Any]"
DrawTarget: TypeAlias = Callable[[Array], Array]

_ROUNDING = float(np.finfo(np.float32).eps)
_NOISE_FACTOR = 32.0  # the noise of one draw is an estimate, for a scalar parameter a poor one
_DRAWS = 8  # an activation within rounding of a kink crosses it in about every second
_REMEDY = "a larger tolerance accepts it; if the difference is not rounding, the conversion is wrong: please report it"
_AT_INFERENCE = (
    "the graph is made of what the forward does in train mode: take out what asks for the mode, beside dropout and running "
    "statistics; if nothing does, the conversion is wrong: please report it"
)


@dataclass(frozen=True)
class Reference:
    """What the framework computes for one batch.

    Attributes:
        outputs: The outputs of the forward in train mode.
        target: The target that the loss was taken against.
        gradients: The loss's gradient for each parameter that it depends on.
        state: The running statistics after the forward.
        inference: The outputs of the forward at inference; None where the framework's model has one form only.
    """

    outputs: Sequence[Array]
    target: Array
    gradients: Mapping[str, Array]
    state: Mapping[str, Array]
    inference: Sequence[Array] | None = None


@dataclass(frozen=True)
class ParityResult:
    """How well a converted model agrees with the one it came from.

    Attributes:
        worst: The parameter, output or statistic that agrees least.
        error: Its relative error.
        tolerance: What was allowed.
        loss: The loss whose gradients were compared; empty where only outputs were, as for an ONNX file.
        errors: The relative error of each array compared, by what it is, as "the gradient of 'fc1.weight'".
    """

    worst: str
    error: float
    tolerance: float
    loss: str
    errors: Mapping[str, float] = field(repr=False)

    @property
    def compared(self) -> int:
        """Number of arrays compared."""
        return len(self.errors)

    def __str__(self) -> str:
        agree = "array agrees" if self.compared == 1 else "arrays agree"
        how = f"{self.loss} loss" if self.loss else "outputs only"
        return (
            f"{self.compared} {agree}: worst relative error {self.error:.1e} at {self.worst} "
            f"(tolerance {self.tolerance:.0e}, {how})"
        )


def check_parity(
    model: TrainableModel,
    compute: Callable[[Sequence[Array], str, DrawTarget], Reference],
    examples: Sequence[Array],
    *,
    tolerance: float = 1e-4,
    seed: int = 0,
    batches: Sequence[int] = (),
) -> ParityResult:
    """Compare a converted model with its source.

    Args:
        model: The converted model.
        compute: What the framework computes, from inputs, the loss's name, and a function that makes the target.
        examples: An example for each input: its shape, and for integers its largest value, bound what is drawn.
        tolerance: The largest relative error allowed.
        seed: Seed of inputs and targets.
        batches: Numbers of examples drawn, one after the other; by default 5, or 7 where the example's is 5.

    Raises:
        ParityError: They differ; the error names the array and both numbers.
    """
    rng = np.random.default_rng(seed)
    loss = loss_for(model.outputs[0])
    graph = GradientGraph.of(_without_dropout(model), loss)
    train, infer = evaluator(graph.onnx), evaluator(_with_open_parameters(model))
    errors: dict[str, float] = {}
    for size in batches or (5 if len(examples[0]) != 5 else 7,):
        inputs = [_draw(rng, size, np.asarray(example)) for example in examples]
        compute_again = partial(compute, inputs, loss)
        theirs = compute_again(lambda output: _draw_target(rng, output, loss))
        data = dict(zip((spec.name for spec in model.inputs), inputs, strict=True))
        feeds = data if graph.target is None else {**data, graph.target.name: theirs.target}
        draws = (train(_with_rounding_errors(rng, model, feeds)) for _ in range(_DRAWS))
        with _telling_changes(compute_again, theirs, model.framework):
            found = _checked_errors(
                list(_pairs(graph, theirs)), train(feeds), draws, model.framework, tolerance
            )
            if theirs.inference is not None:
                pairs = _inference_pairs(model, theirs.inference)
                draws = (infer(_with_rounding_errors(rng, model, data)) for _ in range(_DRAWS))
                found |= _checked_errors(pairs, infer(data), draws, model.framework, tolerance, _AT_INFERENCE)
        errors = {what: max(error, errors.get(what, 0.0)) for what, error in found.items()}
    worst = max(errors, key=errors.__getitem__)
    return ParityResult(worst, errors[worst], tolerance, loss, errors)


@contextlib.contextmanager
def _telling_changes(
    compute: Callable[[DrawTarget], Reference], first: Reference, framework: str
) -> Iterator[None]:
    """Where the comparison fails, say so if the framework's model, called again, computes something else itself."""
    try:
        yield
    except ParityError as error:
        again = compute(lambda output: first.target)
        for one, other in zip(first.outputs, again.outputs, strict=True):
            if (changed := _largest(one - other)) > _NOISE_FACTOR * _ROUNDING * _largest(one):
                raise ParityError(
                    f"called again with the same inputs, {framework}'s model gives outputs that differ by {changed:.2g}",
                    expected="a forward that depends on inputs and weights alone",
                    remedy="look for what counts calls, keeps what it saw, or draws random numbers",
                ) from error
        raise


def check_outputs(
    model: TrainableModel,
    compute: Callable[[Sequence[Array]], Sequence[Array]],
    examples: Sequence[Array],
    *,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> ParityResult:
    """Compare the outputs of a model, in inference form, with those of the ONNX file that it came from.

    Args:
        model: The converted model.
        compute: The outputs of the file, from inputs.
        examples: As for `check_parity`.
        tolerance: The largest relative error allowed.
        seed: Seed of the inputs.

    Raises:
        ParityError: They differ.
    """
    rng = np.random.default_rng(seed)
    fixed = model.inputs[0].dims[:1]
    size = fixed[0] if fixed and isinstance(fixed[0], int) else 3 * len(examples[0])
    inputs = [_draw(rng, size, example) for example in examples]
    theirs = compute(inputs)
    feeds = dict(zip((spec.name for spec in model.inputs), inputs, strict=True))
    ours = evaluate(model.onnx, feeds)
    noisy = evaluate(model.onnx, {name: _with_rounding_error(rng, array) for name, array in feeds.items()})
    errors = {
        f"output {name!r}": _checked_error(
            f"output {name!r}",
            ours[name],
            _noise(ours[name], noisy[name]),
            their_array,
            "the file",
            tolerance,
        )
        for name, their_array in zip(ours, theirs, strict=True)
    }
    worst = max(errors, key=errors.__getitem__)
    return ParityResult(worst, errors[worst], tolerance, "", errors)


def _draw(rng: np.random.Generator, batch: int, example: Array) -> Array:
    shape: tuple[int, ...] = (batch, *example.shape[1:])
    if example.dtype == np.bool_:
        return rng.random(shape) < 0.5
    if np.issubdtype(example.dtype, np.integer):
        return rng.integers(0, max(int(example.max()), 0) + 1, shape).astype(example.dtype)
    return np.asarray(rng.standard_normal(shape), example.dtype)


def loss_for(output: TensorSpec) -> str:
    """Cross-entropy where the output can be logits of two classes or more, else the mean square."""
    classes = output.dims[1] if len(output.dims) == 2 else 1
    return "cross-entropy" if isinstance(classes, int) and classes >= 2 else "mse"


def _draw_target(rng: np.random.Generator, output: Array, loss: str) -> Array:
    if loss == "cross-entropy":
        return rng.integers(0, output.shape[1], len(output))
    return np.asarray(rng.standard_normal(output.shape), output.dtype)


def _without_dropout(model: TrainableModel) -> TrainableModel:
    clone = model.onnx.clone()
    for node in clone.graph:
        if node.op_type == "Dropout":
            node.metadata_props[FROZEN] = "true"
    return replace(model, onnx=clone)


def _with_open_parameters(model: TrainableModel) -> ir.Model:
    """The inference form, whose parameters can be fed as its data is."""
    clone = model.onnx.clone()
    parameters = [clone.graph.initializers[name] for name in model.parameters]
    clone.graph.inputs.extend(value for value in parameters if value not in clone.graph.inputs)
    return clone


def _with_rounding_errors(
    rng: np.random.Generator, model: TrainableModel, feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """Data and parameters, each floating-point number changed by about one rounding error."""
    parameters = {name: model.onnx.graph.initializers[name].const_value for name in model.parameters}
    arrays = {**{name: tensor.numpy() for name, tensor in parameters.items() if tensor is not None}, **feeds}
    return {name: _with_rounding_error(rng, array) for name, array in arrays.items()}


def _with_rounding_error(rng: np.random.Generator, array: Array) -> Array:
    if not np.issubdtype(array.dtype, np.floating):
        return array
    return np.asarray(array * (1.0 + _ROUNDING * rng.uniform(-1.0, 1.0, array.shape)), array.dtype)


def _pairs(graph: GradientGraph, theirs: Reference) -> Iterator[tuple[str, str, Array]]:
    """In words what is compared, its name among the graph's outputs, and the framework's array."""
    for spec, output in zip(graph.source.outputs, theirs.outputs, strict=True):
        yield f"output {spec.name!r}", spec.name, output
    for name, gradient in theirs.gradients.items():
        yield f"the gradient of {name!r}", graph.gradients.get(name, ""), gradient
    for name, new in graph.new_state.items():
        yield f"the new {name!r}", new, theirs.state[name]


def _inference_pairs(model: TrainableModel, theirs: Sequence[Array]) -> list[tuple[str, str, Array]]:
    if len(theirs) != len(model.outputs):
        raise ParityError(
            f"the inference form has {len(model.outputs)} outputs, in {model.framework} {len(theirs)}",
            remedy=_AT_INFERENCE,
        )
    specs = zip(model.outputs, theirs, strict=True)
    return [(f"output {spec.name!r} of the inference form", spec.name, array) for spec, array in specs]


def _checked_errors(
    pairs: Sequence[tuple[str, str, Array]],
    ours: Mapping[str, Array],
    draws: Iterator[Mapping[str, Array]],
    framework: str,
    tolerance: float,
    remedy: str = _REMEDY,
) -> dict[str, float]:
    """The largest relative error of each array, from as many draws of the noise as it takes.

    Raises:
        ParityError: One is above `tolerance` after all draws.
    """
    noise, refused = dict.fromkeys(ours, 0.0), None
    for draw in draws:
        noise = {name: max(noise[name], _noise(array, draw[name])) for name, array in ours.items()}
        try:
            return {
                what: _checked_error(
                    what, ours.get(name), noise.get(name, 0.0), theirs, framework, tolerance, remedy
                )
                for what, name, theirs in pairs
            }
        except ParityError as error:
            refused = error
    assert refused is not None
    raise refused


def _noise(ours: Array, noisy: Array) -> float:
    """The largest difference that rounding errors make."""
    with np.errstate(invalid="ignore"):
        return _largest(ours - noisy)


def _checked_error(
    what: str,
    ours: Array | None,
    noise: float,
    theirs: Array,
    framework: str,
    tolerance: float,
    remedy: str = _REMEDY,
) -> float:
    """The largest relative error.

    Raises:
        ParityError: It is above `tolerance`.
    """
    if ours is None:
        raise ParityError(f"{what} is lost; in {framework} it reaches {_largest(theirs):.6g}", remedy=remedy)
    if ours.shape != theirs.shape:
        raise ParityError(
            f"{what} has shape {list(ours.shape)}, in {framework} {list(theirs.shape)}", remedy=remedy
        )
    error = _relative_error(ours, theirs, max(_largest(theirs), _NOISE_FACTOR * noise / tolerance))
    worst = float(error.max(initial=0.0))
    if worst > tolerance:
        at = np.unravel_index(int(error.argmax()), error.shape)
        raise ParityError(
            f"{what} at {[int(i) for i in at]} is {ours[at]:.8g}, in {framework} {theirs[at]:.8g}: relative error {worst:.1e}",
            expected=f"at most {tolerance:.0e}",
            remedy=remedy,
        )
    return worst


def _largest(array: Array) -> float:
    """The largest finite absolute value."""
    return float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))


def _relative_error(ours: Array, theirs: Array, scale: float) -> Array:
    """Elementwise; infinite where only one side is a finite number.

    In an array that overflows in the framework too, such elements agree: 0 times infinity depends on the formula, and an
    exploding model is what one converts to study.
    """
    finite = np.isfinite(ours) & np.isfinite(theirs)
    with np.errstate(all="ignore"):
        error = np.abs(ours.astype(np.float64) - theirs) / (scale or 1.0)
    return np.where(finite, error, np.inf if np.isfinite(theirs).all() else 0.0)
