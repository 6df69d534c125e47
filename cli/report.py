"""`gradfuse report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .numbers import parse_numbers, parse_thresholds
from .options import InputShape, Loss, Source, Trainable


def report(
    source: Source,
    loss: Loss = "cross-entropy",
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 32,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Also run 4 batches or more and let what is measured decide the verdict."
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Examples as for train: their statistics for the prediction, batches of them for the probe.",
            show_default=False,
        ),
    ] = None,
    input_mean: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Mean of the inputs: a number, one for each channel as 0.49,0.46,0.41, or a file.",
            show_default="0, or that of --data",
        ),
    ] = None,
    input_variance: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS", help="Variance, in the same way.", show_default="1, or that of --data"
        ),
    ] = None,
    label_frequencies: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS", help="Share of each class.", show_default="equal, or those in --data"
        ),
    ] = None,
    budget: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds that may be spent on covariances between channels, and again on remedies."
        ),
    ] = 10.0,
    lr: Annotated[float, typer.Option(help="Learning rate of the training, for GF501.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="Momentum of the training, for GF501.")] = 0.9,
    precision: Annotated[
        str, typer.Option(help="float32, float16 or bfloat16: what the training will compute in.")
    ] = "float32",
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=NUMBER",
            help="A rule's threshold, as GF101.growth=50; may be given several times.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write instead of the terminal.", show_default=False),
    ] = None,
    fail_on: Annotated[
        str,
        typer.Option(
            help="Exit with 1 on a finding of this severity or above: error, warning, note or never."
        ),
    ] = "error",
    input_shape: InputShape = None,
    trainable: Trainable = None,
) -> None:
    """Say, before a step is run, where the model's gradients will explode or vanish, and why. Runs nothing but --probe."""
    from .. import api
    from ..graph.files import atomic_path

    found = api.analyse(
        source,
        loss=loss,
        batch_size=batch_size,
        probe=probe,
        data=data,
        input_mean=parse_numbers(input_mean, "--input-mean"),
        input_variance=parse_numbers(input_variance, "--input-variance"),
        label_frequencies=parse_numbers(label_frequencies, "--label-frequencies"),
        budget=budget,
        lr=lr,
        momentum=momentum,
        precision=precision,
        thresholds=parse_thresholds(threshold),
        input_shape=input_shape,
        train=trainable,
    )
    text, failed = found.render(format), found.fails(fail_on)
    if output is None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        with atomic_path(output) as path:
            path.write_text(text, encoding="utf-8")
    if failed:
        raise typer.Exit(1)
