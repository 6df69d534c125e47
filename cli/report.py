"""`gradfuse report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import InputShape, Loss, Source, Trainable


def report(
    source: Source,
    loss: Loss = "cross-entropy",
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 32,
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
    """Say, before a step is run, where the model's gradients will explode or vanish, and why. Runs nothing."""
    from .. import api
    from ..graph.files import atomic_path

    found = api.analyse(source, loss=loss, batch_size=batch_size, input_shape=input_shape, train=trainable)
    text = found.render(format)
    if output is None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        with atomic_path(output) as path:
            path.write_text(text, encoding="utf-8")
    if found.fails(fail_on):
        raise typer.Exit(1)
