"""`gradfuse train`."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    ActivationsAt,
    Clip,
    Edges,
    InputShape,
    Insert,
    KeepGain,
    Loss,
    NoVerify,
    Source,
    SwapActivation,
    Tolerance,
    Trainable,
    Where,
)

if TYPE_CHECKING:
    from ..analysis import Measurement
    from ..api import Trained
    from ..runtime import EpochMetrics


def train(
    source: Source,
    out: Annotated[
        Path, typer.Option(help="Folder for the trained model, metrics and checkpoints.", show_default=False)
    ],
    data: Annotated[
        str,
        typer.Option(
            help="digits, an .npz, .csv or .parquet file, x.npy,y.npy, a folder of IDX files, or module:callable."
        ),
    ] = "digits",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 64,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    lr: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 0.01,
    momentum: Annotated[
        float | None, typer.Option(help="Momentum of sgd.", show_default="0.9 for sgd")
    ] = None,
    nesterov: Annotated[bool, typer.Option("--nesterov", help="Nesterov momentum for sgd.")] = False,
    weight_decay: Annotated[
        float | None, typer.Option(help="Weight decay.", show_default="0 for sgd, 0.01 for adamw")
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="Learning rate over time: constant, exponential, step, linear, polynomial, cosine, one-cycle"
            " or reduce-on-plateau."
        ),
    ] = "constant",
    decay: Annotated[
        float | None,
        typer.Option(
            help="Factor of exponential, step and reduce-on-plateau.", show_default="0.95, 0.1 and 0.1"
        ),
    ] = None,
    warmup: Annotated[int, typer.Option(help="Steps over which the learning rate rises.")] = 0,
    final_lr: Annotated[
        float, typer.Option(help="Where linear, polynomial, cosine and reduce-on-plateau end at the lowest.")
    ] = 0.0,
    every: Annotated[int, typer.Option(help="Epochs between two decays of the step schedule.")] = 10,
    power: Annotated[float, typer.Option(help="Exponent of the polynomial schedule.")] = 1.0,
    patience: Annotated[
        int, typer.Option(help="Epochs without improvement that reduce-on-plateau bears.")
    ] = 10,
    clip: Clip = "none",
    at: Edges = None,
    swap_activation: SwapActivation = None,
    insert: Insert = None,
    where: Where = "before",
    activations_at: ActivationsAt = None,
    keep_gain: KeepGain = False,
    loss: Loss = "cross-entropy",
    validation: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the data held out.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, the shuffling and dropout.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run that the folder holds.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that the folder holds.")
    ] = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Skip the measurement of the gradients before the first step.")
    ] = False,
    input_shape: InputShape = None,
    tolerance: Tolerance = 1e-4,
    no_verify: NoVerify = False,
    trainable: Trainable = None,
) -> None:
    """Train a model on ONNX Runtime and write it for inference."""
    import sys

    from .. import api
    from ..runtime import Schedule

    rates = Schedule(lr, schedule, decay, final_lr, warmup, every, power, patience)
    model = api.remedy(
        source,
        swap_activation=swap_activation,
        insert=insert,
        where=where,
        at=activations_at,
        match_gain=not keep_gain,
        input_shape=input_shape,
        tolerance=tolerance,
        verify=not no_verify,
        train=trainable,
    )
    trained = api.train(
        model,
        data,
        out=out,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        schedule=rates,
        clip=clip,
        at=at,
        loss=loss,
        validation=validation,
        seed=seed,
        device=device,
        overwrite=overwrite,
        resume=resume,
        progress=sys.stderr.isatty(),
        on_epoch=_print_epoch,
        probe=not no_probe,
        on_probe=partial(_print_probe, clip),
    )
    _print_fuses(trained, clip)
    if trained.diverged:
        _print_divergence(trained, clip)
        raise typer.Exit(1)
    print(f"wrote {out / 'model.onnx'}")


def _print_fuses(trained: Trained, clip: str) -> None:
    for name, share in trained.fuse_bites.items():
        print(f"{name} bit in {100 * share:.0f} % of {trained.history[-1].step} steps")
    if clip == "auto" and not trained.plan.fuses:
        print(f"fuse plan: {trained.plan.reason}")


def _print_divergence(trained: Trained, clip: str) -> None:
    print(
        f"diverged at step {trained.diverged_at}: loss or weights are no longer finite; no model was written"
    )
    advice = "" if clip == "auto" else "; --clip auto puts fuses where they are needed"
    print(f"gradfuse report says why{advice}")


def _print_probe(clip: str, measured: Measurement) -> None:
    from ..analysis import THRESHOLDS

    norm = measured.global_norm
    print(
        f"probe: loss {_number(measured.loss)}, gradient norm {_number(norm)} on {measured.batches} batches"
    )
    if not norm < THRESHOLDS["GF101.norm"]:
        advice = ", --clip auto bounds them" if clip == "none" else ""
        print(f"gradients this large mostly end a training: gradfuse report says why{advice}")
    elif norm == 0:
        print("no parameter receives a gradient, and nothing will be learnt: gradfuse report says why")


def _print_epoch(metrics: EpochMetrics) -> None:
    parts = [f"epoch {metrics.epoch}: loss {_number(metrics.train_loss)}"]
    if metrics.validation_loss is not None:
        parts.append(f"validation loss {_number(metrics.validation_loss)}")
    if metrics.validation_accuracy is not None:
        parts.append(f"accuracy {metrics.validation_accuracy:.4f}")
    parts.append(f"gradient norm at most {_number(metrics.gradient_norm)}, {metrics.seconds:.1f} s")
    print(", ".join(parts))


def _number(value: float | None) -> str:
    return f"{value:.4g}" if value is not None and math.isfinite(value) else "not finite"
