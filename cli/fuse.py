"""`gradfuse fuse`."""

from __future__ import annotations

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
    Source,
    SwapActivation,
    Trainable,
    Where,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..graph import Fuse


def fuse(
    source: Source,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default=False)
    ] = None,
    clip: Clip = "auto",
    at: Edges = None,
    swap_activation: SwapActivation = None,
    insert: Insert = None,
    where: Where = "before",
    activations_at: ActivationsAt = None,
    keep_gain: KeepGain = False,
    listing: Annotated[
        bool, typer.Option("--list", help="Show the fuses of an .onnx file, and write nothing.")
    ] = False,
    remove: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Write an .onnx file without its fuses on the targets that match; '*' for all of them.",
            show_default=False,
        ),
    ] = None,
    loss: Loss = "cross-entropy",
    input_shape: InputShape = None,
    trainable: Trainable = None,
) -> None:
    """Write the model's training graph - forward, loss, backward - with clipping nodes on its gradients."""
    from .. import api
    from ..graph import InputError, list_fuses

    if listing:
        _print(api.list_fuses(source), "no fuse")
        return
    if output is None:
        raise InputError("no file to write to", expected="-o FILE, or --list")
    if remove is not None:
        left = api.remove_fuses(source, output, remove)
        print(f"wrote {output}: {_count(left)} left")
        _print(left, "no fuse is left")
        return
    model = api.remedy(
        source,
        swap_activation=swap_activation,
        insert=insert,
        where=where,
        at=activations_at,
        match_gain=not keep_gain,
        input_shape=input_shape,
        train=trainable,
        verify=False,
    )
    plan = api.plan_fuses(model, clip=clip, at=at, loss=loss)
    fused = api.fuse(model, clip=plan.fuses, loss=loss)
    fuses = list_fuses(fused.onnx)
    print(f"wrote {fused.save(output)}: {_count(fuses)}")
    _print(fuses, f"fuse plan: {plan.reason}")


def _count(fuses: Sequence[Fuse]) -> str:
    return f"{len(fuses)} fuse{'' if len(fuses) == 1 else 's'}"


def _print(fuses: Sequence[Fuse], otherwise: str) -> None:
    for fuse in fuses:
        print(f"  {fuse.name}  {fuse.kind} {fuse.threshold:g}{f'  {fuse.reason}' if fuse.reason else ''}")
    if not fuses:
        print(f"  {otherwise}")
