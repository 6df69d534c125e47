"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ActivationsAt",
    "Clip",
    "Edges",
    "InputShape",
    "Insert",
    "KeepGain",
    "Loss",
    "NoVerify",
    "Output",
    "Source",
    "SwapActivation",
    "Tolerance",
    "Trainable",
    "Where",
]

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="The model: module:callable, file.py:callable, a .keras file, a SavedModel folder, or an .onnx file.",
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
    str,
    typer.Option(
        help="A name, as mse, with parameters, as 'huber(delta=0.5)' or 'keras.losses.Huber(delta=0.5)', or file.py:callable: "
        "PyTorch's loss(output, target) or Keras's loss(y_true, y_pred)."
    ),
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
        metavar="KIND",
        help="auto, none, value=V, norm=N, global-norm=N, adaptive=R, quantile=Q or zscore=Z; auto takes the report's plan.",
    ),
]
Edges = Annotated[
    list[str] | None,
    typer.Option(
        "--at",
        metavar="PATTERN",
        help="Parameters or activations to clip, as 'fc*'; may be given several times; default: every parameter.",
    ),
]
SwapActivation = Annotated[
    str | None,
    typer.Option(
        metavar="OLD=NEW",
        help="Put one activation in the place of another, as relu=leaky_relu:0.01 or relu=prelu:0.25.",
        show_default=False,
    ),
]
Insert = Annotated[
    str | None,
    typer.Option(
        metavar="batch-norm", help="Insert batch normalisation beside the activations.", show_default=False
    ),
]
Where = Annotated[str, typer.Option(help="Batch normalisation before or after the activations.")]
ActivationsAt = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Layers whose activations are swapped or normalised, as 'block3.*'; default: all.",
    ),
]
KeepGain = Annotated[
    bool,
    typer.Option(
        "--keep-gain",
        help="Leave the weights before a swapped activation as they are, instead of matching the gain.",
    ),
]
