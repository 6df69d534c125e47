"""The public API: the rooms composed. Every function takes a model in any form: a module, a Keras model, a path, a SOURCE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .graph import Fuse, GradientGraph, InputError, TrainableModel, fuses, insert_fuses
from .graph.files import load_model, save_model
from .runtime import Examples, Optimizer, Schedule, TrainingResult, optimizer_named
from .runtime import train as run_training
from .runtime.data import fit_data, fixed_batch
from .runtime.run_folder import finite

if TYPE_CHECKING:
    from .analysis import FusePlan, Measurement, Numbers, RiskReport
    from .graph.losses import Loss

    LossLike: TypeAlias = str | Loss | Callable[..., Any]
    from .converters import Conversion
    from .models.comparison import Comparison

__all__ = [
    "Trained",
    "analyse",
    "compare",
    "convert",
    "convert_with_parity",
    "fuse",
    "list_fuses",
    "load",
    "plan_fuses",
    "remedy",
    "remove_fuses",
    "train",
]


def convert(
    source: Any,
    *,
    input_shape: Sequence[int] | str | None = None,
    opset: int = 18,
    tolerance: float = 1e-4,
    verify: bool = True,
    train: Sequence[str] | None = None,
) -> TrainableModel:
    """Convert a model to a trainable ONNX graph and check its gradients against the framework's own.

    Args:
        source: A `torch.nn.Module`, a `keras.Model`, a path, a SOURCE as `file.py:callable`, or a TrainableModel (returned
            as it is).
        input_shape: Shape of one input without the batch, as `(1, 28, 28)` or `"1x28x28"`, where the model does not tell.
        opset: Opset of the graph, 18 to 21.
        tolerance: Largest relative difference to the framework's outputs, gradients and running statistics.
        verify: Whether to compare with the framework.
        train: Patterns that choose the parameters of an ONNX file, as `["layer4.*"]`.

    Raises:
        InputError: The source is not there or is no model.
        ConversionError: The framework's exporter refused the model.
        ParityError: The converted model computes something else than its source.
        UnsupportedError: An op has no gradient.
    """
    return convert_with_parity(
        source, input_shape=input_shape, opset=opset, tolerance=tolerance, verify=verify, train=train
    ).model


def convert_with_parity(
    source: Any, *, input_shape: Sequence[int] | str | None = None, **options: Any
) -> Conversion:
    """What `convert` does, and how well the result agrees with its source."""
    from . import converters

    return converters.convert(source, example_input=_shape(input_shape), **options)


@dataclass(frozen=True)
class Trained(TrainingResult):
    """What a training leaves (see TrainingResult), what a probe measured before it, and the way home.

    Attributes:
        probe: The gradients before the first step; None where no probe was made.
        plan: What was clipped, and why.
    """

    probe: Measurement | None
    plan: FusePlan

    def remedied_source(self, model: Any) -> Any:
        """A copy of a framework's model with the remedies that were trained (see `remedy`), and with the trained weights.

        Args:
            model: The `torch.nn.Module` or `keras.Model` that was converted; it stays as it is.

        Raises:
            ConversionError: A remedy has no layer of its own there, as an activation that is called as a function.
        """
        from . import converters

        return converters.remedied(self.model, model)

    def to_source(self, model: Any) -> None:
        """Fill a framework's model with the trained parameters and running statistics; all of them or none.

        Args:
            model: The `torch.nn.Module` or `keras.Model` that was converted, or one built alike.

        Raises:
            InputError: A parameter is missing in `model`, or has another shape there, or the model was trained with remedies.
        """
        from . import converters

        converters.refuse_remedies(self.model)
        converters.to_source(self.weights, model)


def load(path: str | Path) -> TrainableModel:
    """Read a model that `TrainableModel.save` or `gradfuse convert` wrote.

    Raises:
        InputError: The file is missing, damaged, or not from gradfuse (use `convert` for any other ONNX file).
    """
    return TrainableModel.load(path)


def analyse(
    source: Any,
    *,
    loss: LossLike = "cross-entropy",
    batch_size: int = 32,
    probe: bool = False,
    data: Any = None,
    input_mean: Numbers | None = None,
    input_variance: Numbers | None = None,
    label_frequencies: Sequence[float] | None = None,
    budget: float = 10.0,
    lr: float = 0.01,
    momentum: float = 0.9,
    precision: str = "float32",
    thresholds: Mapping[str, float] | None = None,
    input_shape: Sequence[int] | str | None = None,
    train: Sequence[str] | None = None,
) -> RiskReport:
    """Predict, from graph and weights alone, where the model's gradients will explode or vanish, and why.

    Args:
        source: The model, as for `convert`, or a GradientGraph, whose loss is then taken.
        loss: The loss that it will be trained with, as for `train`.
        batch_size: Examples in a batch.
        probe: Also run the gradient graph on a few batches, put what is measured beside what is predicted, and let it
            decide the verdict.
        data: Examples, as for `train`. The prediction takes only mean, variance and label frequencies of them; a probe draws
            its batches from them.
        input_mean: Mean of the inputs: one number, or one for each channel. None: that of `data`, or 0.
        input_variance: Their variance. None: that of `data`, or 1.
        label_frequencies: Share of each class. None: those in `data`, or equal ones.
        budget: Seconds that may be spent on covariances between channels, and again on remedies, by an estimate from
            shapes, so that the report is the same on every machine.
        lr: Learning rate of the training, for GF501.
        momentum: Momentum of the training, for GF501.
        precision: `float32`, `float16` or `bfloat16`: what the training will compute in, for GF401 and GF402.
        thresholds: Thresholds of rules in place of the defaults, as `{"GF101.growth": 50.0}`: see the rules' pages.
        input_shape: As for `convert`.
        train: As for `convert`.

    Raises:
        InputError: A number is out of range, or the data does not fit the model.
    """
    from . import analysis

    gradients = _gradients(source, loss, input_shape, train)
    arrays = (
        None if data is None else fit_data(data, gradients.source, gradients.target, gradients.loss_function)
    )
    assumptions = analysis.assume(
        gradients,
        batch_size=batch_size,
        mean=input_mean,
        variance=input_variance,
        label_frequencies=label_frequencies,
        budget=budget,
        data=arrays,
    )
    limit = analysis.thresholds_with(thresholds)["GF101.norm"]
    measured = analysis.probe(gradients, assumptions, data=arrays, limit=limit) if probe else None
    setup = analysis.TrainingSetup(lr, momentum, precision)
    return analysis.analyse(gradients, assumptions, measurement=measured, thresholds=thresholds, setup=setup)


def fuse(
    source: Any,
    *,
    clip: str | Sequence[Fuse] = "auto",
    at: Sequence[str] | None = None,
    loss: LossLike = "cross-entropy",
    input_shape: Sequence[int] | str | None = None,
    train: Sequence[str] | None = None,
) -> GradientGraph:
    """The model's gradient graph with clipping nodes.

    Args:
        source: The model, as for `convert`, or a GradientGraph, whose loss is then taken.
        clip: `auto` (the report's plan), `none`, `value=V`, `norm=N`, `global-norm=N`, `adaptive=R`, `quantile=Q`, `zscore=Z`
            (see `graph.fuses`), or fuses of your own.
        at: Patterns for the parameters or activations whose gradients are clipped, each for itself, as `["fc*"]`; default: all
            parameters, and for `adaptive` all but those of the last layer.
        loss: The loss that it will be trained with, as for `train`.
        input_shape: As for `convert`.
        train: As for `convert`.

    Raises:
        InputError: `clip` is not understood, or `at` matches nothing.
    """
    gradients = _gradients(source, loss, input_shape, train)
    return insert_fuses(gradients, _plan(gradients, clip, at).fuses)


def plan_fuses(
    source: Any,
    *,
    clip: str | Sequence[Fuse] = "auto",
    at: Sequence[str] | None = None,
    loss: LossLike = "cross-entropy",
) -> FusePlan:
    """The fuses that `fuse` puts into the model's gradient graph for the same arguments, and why these or none."""
    return _plan(_gradients(source, loss, None, None), clip, at)


def list_fuses(path: str | Path) -> list[Fuse]:
    """The fuses of an `.onnx` file, whoever wrote it.

    Raises:
        InputError: The file is missing or damaged, or a fuse in it is.
    """
    return fuses.list_fuses(load_model(path))


def remove_fuses(path: str | Path, output: str | Path, pattern: str = "*") -> list[Fuse]:
    """Write an `.onnx` file without its fuses on the targets that match a pattern.

    Returns:
        The fuses that are left.

    Raises:
        InputError: The file is missing or damaged, or the pattern matches none of its fuses.
    """
    model = fuses.remove_fuses(load_model(path), pattern)
    save_model(model, output)
    return fuses.list_fuses(model)


def remedy(
    source: Any,
    *,
    swap_activation: str | None = None,
    insert: str | None = None,
    where: str = "before",
    match_gain: bool = True,
    at: Sequence[str] | None = None,
    **options: Any,
) -> TrainableModel:
    """The model with other activations, or with batch normalisation beside them.

    Args:
        source: The model, as for `convert`.
        swap_activation: What takes whose place, as `relu=leaky_relu:0.01` or `relu=prelu:0.25` (see `graph.remedies`).
        insert: `batch-norm`, or None.
        where: `before` or `after` the activations.
        match_gain: Scale the weights before a swapped activation so that the gradient keeps its size.
        at: Patterns for the layers of the activations, as `["block3.*"]`; None: all of them.
        options: Those of `convert`.

    Raises:
        InputError: There is no such remedy, or no such activation in the model.
        UnsupportedError: The graph does not tell the channels to normalise over.
    """
    from .graph import remedies

    model = convert(source, **options)
    if swap_activation:
        old, _, new = swap_activation.partition("=")
        model = remedies.swap_activation(model, old, new, at=at, match_gain=match_gain)
    if insert == "batch-norm":
        return remedies.insert_batch_norm(model, where, at=at)
    if insert is not None:
        raise InputError(f"nothing called {insert!r} to insert", expected="batch-norm")
    return model


def train(
    source: Any,
    data: Any = "digits",
    *,
    out: str | Path | None = None,
    epochs: int = 10,
    batch_size: int = 64,
    optimizer: str | Optimizer = "sgd",
    lr: float = 0.01,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float | None = None,
    schedule: str | Schedule = "constant",
    decay: float | None = None,
    warmup: int = 0,
    clip: str | Sequence[Fuse] = "none",
    at: Sequence[str] | None = None,
    loss: LossLike = "cross-entropy",
    input_shape: Sequence[int] | str | None = None,
    tolerance: float = 1e-4,
    verify: bool = True,
    trainable: Sequence[str] | None = None,
    probe: bool = True,
    on_probe: Callable[[Measurement], None] | None = None,
    **options: Any,
) -> Trained:
    """Train a model on ONNX Runtime.

    Args:
        source: The model, as for `convert`, or a GradientGraph, whose loss and fuses are then taken.
        data: `digits`, a file, `module:callable`, (x, y), or arrays by name.
        out: Folder for metrics, checkpoints and the trained model; None writes nothing.
        epochs: Passes over the training examples.
        batch_size: Examples in a batch.
        optimizer: `sgd`, `adamw`, or an Optimizer.
        lr: Learning rate.
        momentum: Momentum of `sgd`; None is 0.9.
        nesterov: Nesterov momentum for `sgd`.
        weight_decay: Weight decay; None is the optimizer's default.
        schedule: A name of `runtime.SCHEDULES`, as `cosine`, or a Schedule.
        decay: Factor of `exponential`, `step` and `reduce-on-plateau`; None: 0.95, 0.1 and 0.1.
        warmup: Steps over which the learning rate rises.
        clip: As for `fuse`.
        at: As for `fuse`.
        loss: The name of one of `graph.LOSSES`, with parameters as `huber(delta=0.5)`, or of one of Keras's, as
            `keras.losses.Huber(delta=0.5)`; a Loss or a `keras.losses.Loss`; or a function, itself or as `file.py:callable`,
            of PyTorch tensors `loss(output, target)` or of Keras's `loss(y_true, y_pred)`: the names of its arguments tell
            which (see `converters.find_loss`).
        input_shape: As for `convert`.
        tolerance: As for `convert`.
        verify: As for `convert`.
        trainable: As `train` for `convert`.
        probe: Whether to measure the gradients on a few batches, before the fuses, first; it changes nothing of the training.
        on_probe: Called with what was measured, before the first step.
        options: `validation`, `seed`, `device`, `threads`, `overwrite`, `resume`, `progress`, `on_epoch`: see `runtime.train`.

    Raises:
        GradfuseError: The model, the data, the output folder or an option is not what it should be.
    """
    if isinstance(source, GradientGraph):
        gradients = source
    else:
        model = convert(source, input_shape=input_shape, tolerance=tolerance, verify=verify, train=trainable)
        gradients = _differentiated(model, loss)
    if isinstance(optimizer, str):
        optimizer = _optimizer(optimizer, momentum, nesterov, weight_decay)
    if isinstance(schedule, str):
        schedule = Schedule(lr, schedule, decay=decay, warmup=warmup)
    arrays = fit_data(data, gradients.source, gradients.target, gradients.loss_function)
    measured = _probe(gradients, batch_size, arrays) if probe else None
    if measured is not None and on_probe is not None:
        on_probe(measured)
    inputs = dict(zip((spec.name for spec in gradients.source.inputs), arrays, strict=False))
    plan = _plan(gradients, clip, at, batch_size)
    result = run_training(
        insert_fuses(gradients, plan.fuses),
        Examples(inputs, arrays[-1] if gradients.target else None),
        out=out,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        schedule=schedule,
        probed=None if measured is None else _numbers(measured),
        **options,
    )
    return Trained(**vars(result), probe=measured, plan=plan)


def _probe(gradients: GradientGraph, batch_size: int, arrays: Sequence[Any]) -> Measurement:
    from . import analysis

    size = fixed_batch(gradients.source) or batch_size
    return analysis.probe(gradients, analysis.assume(gradients, batch_size=size), data=arrays)


def _numbers(measured: Measurement) -> dict[str, float | None]:
    """What a probe says of the training as a whole."""
    return {
        "loss": finite(measured.loss),
        "gradient_norm": finite(measured.global_norm),
        "batches": measured.batches,
    }


def compare(network: str = "mlp", data: str = "digits", **options: Any) -> Comparison:
    """Train the PyTorch and Keras twins of a network with each remedy, on ONNX Runtime and natively.

    Args:
        network: Module of `gradfuse.models`, or any module or file with `pytorch` and `keras`.
        data: As for `gradfuse train`.
        options: `loss`, `out`, `epochs`, `batch_size`, `lr`, `momentum`, `seed`, `remedies`, `overwrite`, `on_cell`: see
            `models.comparison.compare`.

    Raises:
        GradfuseError: The network, the data or an option is not what it should be, or a training could not be run.
    """
    from .models import comparison

    return comparison.compare(network, data, **options)


def _optimizer(name: str, momentum: float | None, nesterov: bool, weight_decay: float | None) -> Optimizer:
    given: dict[str, float | None] = {"momentum": momentum, "weight_decay": weight_decay}
    if name == "sgd" and momentum is None:
        given["momentum"] = 0.9
    options = {option: value for option, value in given.items() if value is not None}
    return optimizer_named(name, **options, **({"nesterov": True} if nesterov else {}))


def _gradients(
    source: Any, loss: LossLike, input_shape: Sequence[int] | str | None, train: Sequence[str] | None
) -> GradientGraph:
    if isinstance(source, GradientGraph):
        return source
    # Only what is written or trained must be proven equal to its source.
    model = convert(source, input_shape=input_shape, train=train, verify=False)
    return _differentiated(model, loss)


def _differentiated(model: TrainableModel, loss: LossLike) -> GradientGraph:
    from . import converters

    return GradientGraph.of(model, converters.find_loss(loss))


def _plan(
    gradients: GradientGraph, clip: str | Sequence[Fuse], at: Sequence[str] | None, batch_size: int = 32
) -> FusePlan:
    from .analysis import FusePlan

    if not isinstance(clip, str):
        return FusePlan(clip, "as given")
    if clip == "auto" and not at:
        return analyse(gradients, batch_size=batch_size).plan
    return FusePlan(fuses.fuses_of(clip, at, gradients), f"as {clip!r} asks for")


def _shape(shape: Sequence[int] | str | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    try:
        lengths = tuple(int(length) for length in (shape.split("x") if isinstance(shape, str) else shape))
    except ValueError:
        lengths = ()
    if not lengths or min(lengths) < 1:
        raise InputError(f"input shape {shape!r}", expected="the lengths of one example's axes, as 1x28x28")
    return lengths
