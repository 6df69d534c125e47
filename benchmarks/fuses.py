"""What fuses do for a training, and what they cost.

adding    a tanh RNN of spectral radius 1.4 on the adding problem, with and without `--clip auto`
auto      networks that the report calls `explodes` or `stable`, trained with and without its plan
cost      a step with `global-norm` on every parameter beside the same step without: CPU time on one thread
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gradfuse.analysis import THRESHOLDS, FusePlan, analyse
from gradfuse.analysis.moments import Assumptions
from gradfuse.analysis.plan import plan_fuses
from gradfuse.analysis.prediction import predict
from gradfuse.converters import convert
from gradfuse.graph import ALL_PARAMETERS, Fuse, GradientGraph, insert_fuses
from gradfuse.models import adding, cnn, mlp, pre_ln, resnet, rnn
from gradfuse.runtime import SGD, Schedule, StepGraph, TrainingResult, TrainingSession, train

from .verdict_networks import CLASSES, FAMILIES, Network, draw

_STEPS, _BATCH = 1500, 64


def adding_problem(seeds: int, steps: int) -> None:
    """Acceptance: not finite without a fuse in 4 of 5 and finite with it in 5 of 5 at 0.05; a lower loss in 4 of 5 at 0.01."""
    print(
        f"adding problem, length 30, {steps} steps of {_BATCH}, momentum 0.9; loss: mean over the last 100 steps"
    )
    print(f"{'lr':>5} {'seed':>4}  {'without a fuse':18} {'--clip auto':18} {'the plan bit in':>15}")
    data = adding.data(_BATCH * 100, seed=100)
    for lr in (0.05, 0.01):
        for seed in range(seeds):
            model = convert(rnn.pytorch(seed=seed), example_input=(30, 2), verify=False).model
            gradients = GradientGraph.of(model, "mse")
            fused = insert_fuses(gradients, analyse(gradients).fuses)
            bare, clipped = (
                _train(graph, data, epochs=steps // 100, lr=lr, seed=seed, batch=_BATCH)
                for graph in (gradients, fused)
            )
            print(
                f"{lr:5} {seed:4}  {_outcome(bare):18} {_outcome(clipped):18} {_share(clipped):>15}",
                flush=True,
            )


def auto_plan(count: int, seed: int) -> None:
    """Acceptance: 28 of 30 that explode end finite, and of 30 that are stable none ends worse by more than 1 %."""
    for verdict in ("explodes", "stable"):
        print(f"\nnetworks called `{verdict}`: 384 steps of 32, learning rate 0.01, momentum 0.9")
        print(f"{'family':16} {'without a fuse':22} {'--clip auto':22} plan")
        counted: list[tuple[TrainingResult, TrainingResult]] = []
        hopeless: list[TrainingResult] = []
        for network, gradients, plan in _networks(verdict, seed):
            data = _teacher(gradients, seed)
            bare = _train(gradients, data, epochs=24, lr=0.01, seed=seed, batch=32)
            if plan.reason.startswith("none would help"):
                hopeless.append(bare)
                continue
            fused = bare
            if plan.fuses:
                clipped = insert_fuses(gradients, plan.fuses)
                fused = _train(clipped, data, epochs=24, lr=0.01, seed=seed, batch=32)
            counted.append((bare, fused))
            kinds = (
                ", ".join(f"{fuse.kind} {fuse.threshold:g}" for fuse in plan.fuses) or "none: one training"
            )
            print(f"{network.family:16} {_learnt(bare):22} {_learnt(fused):22} {kinds}", flush=True)
            if len(counted) == count:
                break
        _print_outcomes(counted, hopeless)
    _print_healthy_share()


def _print_outcomes(
    counted: list[tuple[TrainingResult, TrainingResult]], hopeless: list[TrainingResult]
) -> None:
    """How many ended finite, and better than by chance; how those that were finite without the plan compare with it."""
    for title, column in zip(("without", "with the plan"), zip(*counted, strict=True), strict=True):
        finite, learnt = sum(not result.diverged for result in column), sum(map(_has_learnt, column))
        print(f"{title}: {finite} of {len(column)} finite, {learnt} with twice the accuracy of chance")
    survivors = [(_loss(bare), _loss(fused)) for bare, fused in counted if not bare.diverged]
    worse = sum(fused > 1.01 * bare for bare, fused in survivors)
    better = sum(fused < 0.99 * bare for bare, fused in survivors)
    print(
        f"of the {len(survivors)} finite without, the loss with it is more than 1 % worse in {worse}, better in {better}"
    )
    if hopeless:
        print(
            f"not counted: {len(hopeless)} whose values overflow in the forward pass, of which the report says that no fuse"
            f" would help; finite of them without one: {sum(not result.diverged for result in hopeless)}"
        )


def _learnt(result: TrainingResult) -> str:
    """The loss in the last epoch, and the share of right answers."""
    accuracy = result.history[-1].train_accuracy
    return _outcome(result) + ("" if result.diverged or accuracy is None else f", {accuracy:.0%} right")


def _has_learnt(result: TrainingResult) -> bool:
    return not result.diverged and (result.history[-1].train_accuracy or 0.0) > 2 / CLASSES


def _print_healthy_share() -> None:
    """Acceptance: of the steps of a normal training, fewer than 2 % are clipped."""
    print("\nreference models on digits, 5 epochs: verdict, and share of the steps that the plan clips")
    for network in (mlp, cnn, resnet, pre_ln):
        gradients = GradientGraph.of(convert(network.pytorch(), verify=False).model)
        report = analyse(gradients)
        result = _train(insert_fuses(gradients, report.fuses), "digits", epochs=5, lr=0.01, seed=0, batch=64)
        name = network.__name__.rsplit(".", 1)[-1]
        print(f"  {name:10} {report.summary.verdict:10} {_share(result)}", flush=True)


def cost(turns: int) -> None:
    """Acceptance: at most 3 % for the CNN and the transformer, 10 % for the MLP."""
    cases: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
        "MLP 784-128-10": (lambda: mlp.pytorch(inputs=784), (784,)),
        "CNN 28x28": (lambda: cnn.pytorch(size=28), (784,)),
        "transformer, 4 layers of 128": (
            lambda: pre_ln.pytorch(size=16, width=128, hidden=512, layers=4),
            (256,),
        ),
    }
    print(f"{'':30} {'ms without':>10} {'ms with':>8}   added (median of {turns} turns, SGD with momentum)")
    for title, (build, shape) in cases.items():
        gradients = GradientGraph.of(convert(build(), example_input=shape, verify=False).model)
        fused = insert_fuses(gradients, [Fuse("global-norm", ALL_PARAMETERS, 1.0)])
        sessions = [_session(graph, shape) for graph in (gradients, fused)]
        rounds = [[_milliseconds(session) for session in sessions] for _ in range(turns)]
        without, with_fuse = (statistics.median(column) for column in zip(*rounds, strict=True))
        added = statistics.median(fuse / bare - 1 for bare, fuse in rounds)
        print(f"{title:30} {without:10.2f} {with_fuse:8.2f}   {added:+.1%}", flush=True)


def _train(
    gradients: GradientGraph, data: Any, *, epochs: int, lr: float, seed: int, batch: int
) -> TrainingResult:
    return train(
        gradients,
        data,
        epochs=epochs,
        batch_size=batch,
        optimizer=SGD(0.9),
        schedule=Schedule(lr),
        validation=0.0,
        seed=seed,
        threads=1,
    )


def _networks(verdict: str, seed: int) -> Iterator[tuple[Network, GradientGraph, FusePlan]]:
    """Networks of that verdict, drawn from each family in turn, with the plan that their report has."""
    for index in itertools.count():
        for family in FAMILIES:
            network = draw(family, seed, index)
            gradients = network.gradients()
            # The report's verdict and plan, without what it works out beside them.
            prediction = predict(gradients, Assumptions(), THRESHOLDS)
            if prediction.summary.verdict == verdict:
                yield network, gradients, plan_fuses(prediction, prediction.summary)


def _teacher(gradients: GradientGraph, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """512 normal examples; their labels are a linear function's, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    shape = [dim for dim in gradients.source.inputs[0].dims[1:] if isinstance(dim, int)]
    x = rng.standard_normal((512, *shape)).astype(np.float32)
    flat = x.reshape(512, -1)
    return x, (flat @ rng.standard_normal((flat.shape[1], CLASSES))).argmax(1)


def _loss(result: TrainingResult) -> float:
    loss = None if result.diverged else result.history[-1].train_loss
    return math.inf if loss is None else loss


def _outcome(result: TrainingResult) -> str:
    return f"not finite at {result.diverged_at}" if result.diverged else f"{_loss(result):.4g}"


def _share(result: TrainingResult) -> str:
    share = max(result.fuse_bites.values(), default=0.0)
    return f"{share:.1%} of the steps" if result.fuse_bites else "no fuse"


def _session(gradients: GradientGraph, shape: tuple[int, ...]) -> TrainingSession:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((1024, *shape), np.float32), rng.integers(0, 10, 1024)
    return TrainingSession(StepGraph.of(gradients, SGD(0.9)), data, threads=1)


def _milliseconds(session: TrainingSession, seconds: float = 0.4) -> float:
    rows, steps, started = np.arange(_BATCH), 0, time.process_time()
    while (spent := time.process_time() - started) < seconds:
        session.run(rows, 1e-4, steps)
        steps += 1
    return 1e3 * spent / steps


def main(arguments: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks fuses", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=("adding", "auto", "cost"), help="only this part")
    parser.add_argument("--seeds", type=int, default=5, help="adding: how many (default: 5)")
    parser.add_argument(
        "--steps", type=int, default=_STEPS, help="adding: how many, in hundreds (default: 1500)"
    )
    parser.add_argument("--count", type=int, default=30, help="auto: networks of each verdict (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="auto: which networks to draw (default: 0)")
    parser.add_argument("--turns", type=int, default=25, help="cost: how many (default: 25)")
    options = parser.parse_args(arguments)
    parts: dict[str, Callable[[], None]] = {
        "adding": lambda: adding_problem(options.seeds, options.steps),
        "auto": lambda: auto_plan(options.count, options.seed),
        "cost": lambda: cost(options.turns),
    }
    for name, part in parts.items():
        if options.part in (None, name):
            part()
    return 0
