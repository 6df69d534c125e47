"""How true the predictions of `gradfuse report` are, and what they cost.

Networks of several families are built at random - seed, depth, width - and their gradients are measured by PyTorch's
autograd: mean of squares over 64 batches of 32 N(0, 1) inputs with random labels, in train mode, at initialisation or after
`--steps` steps of training. Printed is the share
of parameters whose predicted RMS lies within a factor of the measured one; a missing or undefined prediction counts as
a miss. `in interval` is the share whose measured RMS lies within the report's own interval. `--seed N` draws other networks.
`--probe` scores what a report says with its probe of 4 other batches, in place of the prediction.

Where a few rare examples make up a gradient's mean square, 64 batches do not measure it. `repeats` is the share of parameters
whose measured RMS is the same, within a factor of 1.5, over either half of the batches; the `w2` behind it is of those alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from gradfuse.analysis import analyse, probe
from gradfuse.analysis.moments import Assumptions
from gradfuse.converters import convert
from gradfuse.graph import GradientGraph
from gradfuse.graph.source import source_layer

from .analysis_networks import CLASSES, FAMILIES, Build

BATCHES, BATCH_SIZE, THREADS = 64, 32, 2

_REPEATS = 1.5
"""Factor within which two measurements of an RMS count as the same."""


@dataclass(frozen=True)
class Score:
    """One network.

    Attributes:
        parameters: Predicted / measured gradient RMS of each parameter.
        covered: Whether the measured RMS of each parameter lies in its interval.
        repeated: Whether either half of the batches measures the same of each parameter.
        activations: Predicted / measured RMS of each layer's output.
        report: Seconds for a report.
        step: Seconds for a training step.
    """

    parameters: tuple[float, ...]
    covered: tuple[bool, ...]
    repeated: tuple[bool, ...]
    activations: tuple[float, ...]
    report: float
    step: float


def main(arguments: list[str]) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks analysis", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="which networks to draw (default: 0)")
    parser.add_argument("--count", type=int, default=6, help="networks of each family (default: 6)")
    parser.add_argument("--family", nargs="*", choices=list(FAMILIES), help="only these families")
    parser.add_argument(
        "--steps", type=int, default=0, help="SGD steps on a teacher's labels first (default: 0)"
    )
    parser.add_argument("--probe", action="store_true", help="score the probe in place of the prediction")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    print(
        f"{'family':15} {'params':>6} {'median':>7} {'5 %':>6} {'95 %':>6} {'w1.25':>6} {'w1.5':>6} {'w2':>6}",
        end="",
    )
    print(f" {'repeats':>7} {'w2':>6} {'in interval':>11} {'act. w1.15':>10} {'report':>8} {'/ step':>7}")
    for family in options.family or FAMILIES:
        build = FAMILIES[family]
        scores = [
            score(build, options.seed, index, options.steps, probed=options.probe)
            for index in range(options.count)
        ]
        print(_row(family, scores), flush=True)
    return 0


def score(build: Build, seed: int, index: int, steps: int = 0, *, probed: bool = False) -> Score:
    """Build, train for some steps, predict or probe, measure."""
    rng = np.random.default_rng([seed, index])
    torch.manual_seed(int(rng.integers(2**31)))
    module, shape = build(rng)
    _train(module, shape, steps)
    graph = GradientGraph.of(convert(module, example_input=shape, verify=False).model)
    analyse(graph)
    started = time.perf_counter()
    report = analyse(graph, measurement=probe(graph, Assumptions()) if probed else None)
    seconds = time.perf_counter() - started
    predicted = {entry.tensor: entry for entry in report.profile if entry.kind == "parameter"}
    halves, step = _measure(module, shape)
    gradients = {name: float(np.sqrt(np.mean(squares))) for name, squares in halves.items()}
    ratios = [
        predicted[name].gradient / rms if name in predicted else float("nan")
        for name, rms in gradients.items()
    ]
    covered = [
        name in predicted and predicted[name].low <= rms <= predicted[name].high
        for name, rms in gradients.items()
    ]
    repeated = [max(squares) <= _REPEATS**2 * min(squares) for squares in halves.values()]
    activations = tuple(_activation_ratios(module, shape, graph, report))
    return Score(tuple(ratios), tuple(covered), tuple(repeated), activations, seconds, step)


def _train(module: nn.Module, shape: tuple[int, ...], steps: int) -> None:
    """SGD with momentum on N(0, 1) inputs; the label is the class that a frozen random projection of the input favours."""
    generator, optimizer = torch.Generator().manual_seed(3), torch.optim.SGD(module.parameters(), 0.02, 0.9)
    projection = torch.randn(int(np.prod(shape)), CLASSES, generator=generator)
    for _ in range(steps):
        x = torch.randn(BATCH_SIZE, *shape, generator=generator)
        optimizer.zero_grad()
        labels = (x.flatten(1) @ projection).argmax(1)
        torch.autograd.backward(nn.functional.cross_entropy(module(x), labels))
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()


def _measure(module: nn.Module, shape: tuple[int, ...]) -> tuple[dict[str, list[float]], float]:
    """Mean square of each parameter's gradient over either half of the batches, and the median seconds of a step."""
    generator, times = torch.Generator().manual_seed(1), []
    squares = {name: [0.0, 0.0] for name, _ in module.named_parameters()}
    for index in range(BATCHES):
        x = torch.randn(BATCH_SIZE, *shape, generator=generator)
        labels = torch.randint(CLASSES, (BATCH_SIZE,), generator=generator)
        module.zero_grad()
        started = time.perf_counter()
        torch.autograd.backward(nn.functional.cross_entropy(module(x), labels))
        times.append(time.perf_counter() - started)
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            square = parameter.grad.double().square().mean().item()
            squares[name][2 * index // BATCHES] += 2.0 * square / BATCHES
    return squares, float(np.median(times))


def _activation_ratios(
    module: nn.Module, shape: tuple[int, ...], graph: GradientGraph, report: Any
) -> Iterator[float]:
    """Predicted / measured RMS of the output of each dense or convolutional layer that is called, by the layer's name."""
    measured: dict[str, float] = {}

    def record(name: str, output: torch.Tensor) -> None:
        measured[name] = output.double().square().mean().sqrt().item()

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: record(name, output))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        module(torch.randn(1024, *shape, generator=torch.Generator().manual_seed(2)))
    for hook in hooks:
        hook.remove()
    predicted = _of_layers(graph, report)
    for name, rms in measured.items():
        yield predicted.get(name, float("nan")) / rms


def _of_layers(graph: GradientGraph, report: Any) -> dict[str, float]:
    """The predicted RMS of the last tensor of each layer; that of a recurrent network is followed in a graph of its own."""
    values = {entry.tensor: entry.value for entry in report.profile if entry.kind == "activation"}
    nodes = [node for node in graph.source.onnx.graph if node.outputs[0].name in values]
    return {source_layer(node) or "": values[node.outputs[0].name or ""] for node in nodes}


def _row(family: str, scores: list[Score]) -> str:
    ratios = np.array([ratio for score in scores for ratio in score.parameters])
    values = np.array([ratio for score in scores for ratio in score.activations])
    low, high = np.nanpercentile(ratios, (5, 95))
    covered = np.mean([inside for score in scores for inside in score.covered])
    repeated = np.array([same for score in scores for same in score.repeated])
    seconds = float(np.median([score.report for score in scores]))
    relative = float(np.median([score.report / score.step for score in scores]))
    shares = " ".join(f"{_share(ratios, factor):6.3f}" for factor in (1.25, 1.5, 2.0))
    return (
        f"{family:15} {len(ratios):6} {np.nanmedian(ratios):7.3f} {low:6.2f} {high:6.2f} {shares}"
        f" {np.mean(repeated):7.3f} {_share(ratios[repeated], 2.0):6.3f}"
        f" {covered:11.3f} {_share(values, 1.15):10.3f} {seconds:7.2f}s {relative:7.1f}"
    )


def _share(ratios: np.ndarray[Any, Any], factor: float) -> float:
    """Share within the factor; what is undefined lies outside."""
    return float(np.mean((ratios > 1.0 / factor) & (ratios < factor)))
