"""How often the verdict of `gradfuse report` is right, statically and with the probe.

Networks of every family are drawn by seed, gains and depths so that about half of them explode. What is true of each is
measured by running its gradient graph on 16 batches of 32 that neither report has seen, and on 112 more where those leave it
within a factor of 2 of a limit: it explodes where something is not finite, where the root mean square of the global gradient
norm is above 100, or where that of the gradient grows more than 100-fold from the last layer's output to the first's.
Printed are the area under the ROC curve of `risk`, precision and recall of `explodes`, and every network that was
misjudged. `--seed N` draws other networks, `--count N` more or fewer of each family.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from gradfuse.analysis import THRESHOLDS, probe
from gradfuse.analysis.moments import Assumptions
from gradfuse.analysis.prediction import predict
from gradfuse.analysis.verdict import Summary, measured_summary
from gradfuse.graph import GradientGraph
from gradfuse.graph.evaluation import evaluator

from .verdict_networks import BATCH_SIZE, CLASSES, FAMILIES, Network, draw

__all__ = ["Measured", "main", "measure"]

BATCHES, LIMIT, SEED = 16, 100.0, 12345
MORE, NEAR = 112, 2.0
"""Further batches where the first leave a network within this factor of a limit: the truth must be the surer side."""


@dataclass(frozen=True)
class Measured:
    """What is true of a network.

    Attributes:
        norm: Root mean square of the global gradient norm over the batches.
        growth: RMS of the gradient at the first layer's output over that at the last's.
    """

    norm: float
    growth: float

    @property
    def is_near(self) -> bool:
        """Whether more batches may change the label."""
        return 1 / NEAR < max(self.norm, self.growth) / LIMIT < NEAR

    @property
    def explodes(self) -> bool:
        """The label."""
        finite = math.isfinite(self.norm) and math.isfinite(self.growth)
        return not finite or self.norm > LIMIT or self.growth > LIMIT


@dataclass(frozen=True)
class Judged:
    """A network, what is true of it, and the two verdicts."""

    network: Network
    measured: Measured
    static: Summary
    probed: Summary


def measure(gradients: GradientGraph) -> Measured:
    """Run batches of N(0, 1) inputs with random labels, enough to be sure."""
    batches = _batches(gradients)
    squares = list(islice(batches, BATCHES))
    if _measured(squares).is_near:
        squares += islice(batches, MORE)
    return _measured(squares)


def _measured(squares: Sequence[Sequence[float]]) -> Measured:
    with np.errstate(all="ignore"):
        norm, first, last = np.sqrt(np.mean(squares, axis=0))
        return Measured(float(norm), float(first / last))


def _batches(gradients: GradientGraph) -> Iterator[list[float]]:
    """Of each batch, the squares of the global norm and of the gradient's RMS at the first layer's output and the last's."""
    model = gradients.onnx.clone()
    produced = {value.name: value for node in model.graph for value in node.outputs}
    ends = [gradients.activation_gradients[name] for name in ("first", "y")]
    model.graph.outputs.extend(produced[name] for name in ends)
    run, rng = evaluator(model), np.random.default_rng(SEED)
    shape = [dim for dim in gradients.source.inputs[0].dims[1:] if isinstance(dim, int)]
    while True:
        x = rng.standard_normal((BATCH_SIZE, *shape), np.float32)
        outputs = run({"x": x, "target": rng.integers(0, CLASSES, BATCH_SIZE)})
        with np.errstate(all="ignore"):
            norm = sum(_square(outputs[name]) for name in gradients.gradients.values())
            yield [norm, *(_square(outputs[name]) / outputs[name].size for name in ends)]


def _square(array: np.ndarray[Any, Any]) -> float:
    return float(np.sum(array.astype(np.float64) ** 2))


def judge(network: Network) -> Judged:
    """Measure, and let prediction and probe judge."""
    gradients = network.gradients()
    prediction = predict(gradients, Assumptions(), THRESHOLDS)
    probed = measured_summary(probe(gradients, Assumptions()), prediction.steps, THRESHOLDS)
    return Judged(network, measure(gradients), prediction.summary, probed)


def main(arguments: list[str]) -> int:
    """Print the table, the figures and the misjudged."""
    parser = argparse.ArgumentParser(prog="benchmarks verdict", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="which networks to draw (default: 0)")
    parser.add_argument("--count", type=int, default=12, help="networks of each family (default: 12)")
    parser.add_argument("--family", choices=FAMILIES, help="only this family")
    options = parser.parse_args(arguments)
    judged: list[Judged] = []
    print(
        f"{'family':14} {'n':>3} {'explode':>7} {'static':>7} {'probe':>6} {'seconds':>8}   (networks judged wrongly)"
    )
    for family in [options.family] if options.family else FAMILIES:
        started = time.perf_counter()
        rows = [judge(draw(family, options.seed, index)) for index in range(options.count)]
        _print_family(family, rows, time.perf_counter() - started)
        judged += rows
    _print_figures("static", judged, [row.static for row in judged])
    _print_figures("probe", judged, [row.probed for row in judged])
    _print_misjudged(judged)
    return 0


def _print_family(family: str, rows: Sequence[Judged], seconds: float) -> None:
    true = sum(row.measured.explodes for row in rows)
    wrong = [sum(_wrong(row, summary) for row, summary in pairs) for pairs in _pairs(rows)]
    print(f"{family:14} {len(rows):3} {true:7} {wrong[0]:7} {wrong[1]:6} {seconds:7.1f}s", flush=True)


def _pairs(rows: Sequence[Judged]) -> list[list[tuple[Judged, Summary]]]:
    return [[(row, row.static) for row in rows], [(row, row.probed) for row in rows]]


def _wrong(row: Judged, summary: Summary) -> bool:
    return row.measured.explodes != (summary.verdict == "explodes")


def _print_figures(kind: str, judged: Sequence[Judged], summaries: Sequence[Summary]) -> None:
    true = np.array([row.measured.explodes for row in judged])
    called = np.array([summary.verdict == "explodes" for summary in summaries])
    right = np.sum(true & called)
    print(
        f"{kind:6} ROC AUC {_auc(true, np.array([summary.risk for summary in summaries])):.4f}"
        f"   precision {right / max(called.sum(), 1):.3f}   recall {right / max(true.sum(), 1):.3f}"
        f"   over {len(judged)} networks, {true.sum()} of which explode"
    )


def _auc(
    true: np.ndarray[tuple[int], np.dtype[np.bool_]], risk: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float:
    """Share of pairs of one network that explodes and one that does not in which the first has the higher risk."""
    explode, others = risk[true][:, None], risk[~true][None, :]
    return float(np.mean((explode > others) + 0.5 * (explode == others)))


def _print_misjudged(judged: Sequence[Judged]) -> None:
    for row in judged:
        wrong = [
            name for name, summary in (("static", row.static), ("probe", row.probed)) if _wrong(row, summary)
        ]
        if wrong:
            network, truth = row.network, row.measured
            print(
                f"misjudged by {' and '.join(wrong)}: {network.family}, {network.activation}, {network.norm or 'no norm'},"
                f" depth {network.depth}, width {network.width}, gain {network.gain:.2f}:"
                f" measured growth {truth.growth:.3g}, norm {truth.norm:.3g};"
                f" static {10**row.static.log10_gain:.3g}, {row.static.global_norm:.3g};"
                f" probe {10**row.probed.log10_gain:.3g}, {row.probed.global_norm:.3g}"
            )
