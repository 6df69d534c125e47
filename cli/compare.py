"""`gradfuse compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    network: Annotated[
        str,
        typer.Argument(
            help="A network of gradfuse.models, as mlp or exponential, or any module or file with pytorch() and keras()."
        ),
    ] = "mlp",
    data: Annotated[str, typer.Option(help="As for gradfuse train.")] = "digits",
    loss: Annotated[str, typer.Option(help="cross-entropy or mse.")] = "cross-entropy",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results as they come; what it holds goes on.", show_default=False),
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option("--output", "-o", help="A .md or .html file to write; may be given several times."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training data.")] = 10,
    batch_size: Annotated[int, typer.Option(min=2, help="Examples in a batch.")] = 64,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 0.01,
    momentum: Annotated[float, typer.Option(min=0, help="Momentum of SGD.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split and the shuffling.")] = 0,
    remedy: Annotated[
        list[str] | None,
        typer.Option(
            help="A remedy to compare, may be given several times; default: all that change the network."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget what the folder holds.")] = False,
) -> None:
    """Train a network's PyTorch and Keras twins with each remedy, on ONNX Runtime and natively, side by side."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .. import api
    from ..graph.files import atomic_path
    from ..models.comparison import TRAINERS, Cell, render, renderer_for

    renderers = [renderer_for(path) for path in output or ()]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("the first training", total=None)

        def show(cell: Cell, done: int, total: int) -> None:
            text = f"{cell.remedy}, {TRAINERS[cell.trainer].title}"
            bar.update(task, completed=done, total=total, description=text)

        comparison = api.compare(
            network,
            data,
            loss=loss,
            out=out,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            momentum=momentum,
            seed=seed,
            remedies=remedy,
            overwrite=overwrite,
            on_cell=show,
        )
    print(render(comparison))
    for path, render_as in zip(output or (), renderers, strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(render_as(comparison), encoding="utf-8")
        print(f"wrote {path}")
