"""`gradfuse fuse`."""

from __future__ import annotations

from .options import Clip, Edges, InputShape, Loss, Output, Source, Trainable


def fuse(
    source: Source,
    output: Output,
    clip: Clip = "auto",
    at: Edges = None,
    loss: Loss = "cross-entropy",
    input_shape: InputShape = None,
    trainable: Trainable = None,
) -> None:
    """Write the model's training graph - forward, loss, backward - with clipping nodes on its gradients."""
    from .. import api
    from ..graph.fuses import list_fuses

    fused = api.fuse(source, clip=clip, at=at, loss=loss, input_shape=input_shape, train=trainable)
    path = fused.save(output)
    fuses = list_fuses(fused.onnx)
    print(f"wrote {path}: {len(fuses)} fuse{'' if len(fuses) == 1 else 's'}")
    for item in fuses:
        print(f"  {item.name}  {item.kind} {item.threshold:g}")
    if not fuses:
        print("  the plan is empty: the predicted gradients need no clipping")
