"""`gradfuse convert`."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import InputShape, NoVerify, Output, Source, Tolerance, Trainable


def convert(
    source: Source,
    output: Output,
    opset: Annotated[int, typer.Option(min=18, max=21, help="ONNX opset of the file.")] = 18,
    input_shape: InputShape = None,
    tolerance: Tolerance = 1e-4,
    no_verify: NoVerify = False,
    trainable: Trainable = None,
) -> None:
    """Convert a model to ONNX, ready to train, and check its gradients against the framework's own."""
    from .. import api

    conversion = api.convert_with_parity(
        source,
        input_shape=input_shape,
        opset=opset,
        tolerance=tolerance,
        verify=not no_verify,
        train=trainable,
    )
    path = conversion.model.save(output)
    print(f"wrote {path}: {len(conversion.model.parameters)} parameters from {conversion.model.framework}")
    for note in conversion.notes:
        print(note)
    print(conversion.parity or _not_compared(no_verify))


def _not_compared(no_verify: bool) -> str:
    return (
        "not compared with its source (--no-verify)"
        if no_verify
        else "gradfuse's own file: nothing to compare with"
    )
