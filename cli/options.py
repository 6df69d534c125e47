"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Clip", "Edges", "InputShape", "Loss", "NoVerify", "Output", "Source", "Tolerance", "Trainable"]

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="The model: module:callable, file.py:callable, a .keras file, or an .onnx file.",
        show_default=False,
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write.", show_default=False)]
InputShape = Annotated[
    str | None,
    typer.Option(
        metavar="1x28x28",
        help="Shape of one input, without the batch; needed for a PyTorch model whose first layer does not tell.",
        show_default=False,
    ),
]
Loss = Annotated[
    str, typer.Option(help="cross-entropy, mse, l1, bce-with-logits, or output (the output is the loss).")
]
Tolerance = Annotated[
    float, typer.Option(help="Largest relative difference to the framework's own gradients.")
]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Skip the comparison with the framework's gradients.")
]
Trainable = Annotated[
    list[str] | None,
    typer.Option(
        "--train", metavar="PATTERN", help="Parameters to train, as 'layer4.*'; may be given several times."
    ),
]
Clip = Annotated[
    str,
    typer.Option(
        metavar="KIND", help="auto, none, value=V, norm=N or global-norm=N; auto takes the report's plan."
    ),
]
Edges = Annotated[
    list[str] | None,
    typer.Option(
        "--at",
        metavar="PATTERN",
        help="Parameters or activations to clip, as 'fc*'; default: every parameter.",
    ),
]
