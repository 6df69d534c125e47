"""Networks for the tests of the prediction, and what autograd measures on them."""

import io
import warnings
from collections.abc import Sequence

import onnx
import onnx_ir as ir
import torch
from torch import nn

from gradfuse.converters import convert
from gradfuse.graph import GradientGraph, TrainableModel
from gradfuse.graph.lowering import infer_shapes


def gradient_graph(module: nn.Module, shape: Sequence[int], loss: str = "cross-entropy") -> GradientGraph:
    """By PyTorch's old exporter, which takes a thirtieth of the time that `convert` takes, for the same predictions."""
    if any(
        isinstance(part, nn.Dropout) for part in module.modules()
    ):  # of which that exporter leaves nothing
        return GradientGraph.of(convert(module, example_input=tuple(shape), verify=False).model, loss)
    file, batch = io.BytesIO(), {0: "batch"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(2, *shape),), file, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": batch, "y": batch}, opset_version=18, dynamo=False, do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )  # fmt: skip
    model = ir.from_proto(onnx.load_model_from_string(file.getvalue()))
    infer_shapes(model)
    return GradientGraph.of(TrainableModel(model, tuple(name for name, _ in module.named_parameters())), loss)


def mlp(
    activation: type[nn.Module], inputs: int = 16, width: int = 32, depth: int = 5, gain: float | None = None
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layer = nn.Linear(inputs if index == 0 else width, 10 if index == depth - 1 else width)
        if gain is not None:
            nn.init.normal_(layer.weight, 0.0, gain * layer.in_features**-0.5)
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def cnn(
    norm: bool = False, pool: nn.Module | None = None, channels: Sequence[int] = (12, 12, 16)
) -> nn.Sequential:
    layers: list[nn.Module] = []
    before = 3
    for after in channels:
        layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(after)] if norm else []
        layers.append(nn.ReLU())
        before = after
    layers += [] if pool is None else [pool]
    side = 8 if pool is None else 4
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, 10))


def measured_rms(
    module: nn.Module, shape: Sequence[int], batches: int = 48, batch_size: int = 32
) -> dict[str, float]:
    """RMS of each parameter's gradient over batches of N(0, 1) inputs with random labels, in train mode."""
    generator = torch.Generator().manual_seed(1)
    squares = dict.fromkeys((name for name, _ in module.named_parameters()), 0.0)
    for _ in range(batches):
        x = torch.randn(batch_size, *shape, generator=generator)
        labels = torch.randint(10, (batch_size,), generator=generator)
        module.zero_grad()
        nn.functional.cross_entropy(module(x), labels).backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            squares[name] += parameter.grad.double().square().mean().item() / batches
    return {name: square**0.5 for name, square in squares.items()}
