from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradfuse.graph import InputError
from gradfuse.runtime.schedules import Progress, Schedule

STEPS, PER_EPOCH = 1000, 37

RNG = np.random.default_rng(0)
LOSSES = [float(loss) for loss in np.exp(-np.arange(STEPS) / 300) + 0.05 * RNG.standard_normal(STEPS)]


def ours(schedule: Schedule, steps: int = STEPS, per_epoch: int = PER_EPOCH) -> list[float]:
    return [
        schedule.at(Progress(step, per_epoch, steps, LOSSES[: step // per_epoch])) for step in range(steps)
    ]


def theirs(
    build: Callable[..., Any], warmup: int = 0, every: int = 1, losses: list[float] | None = None
) -> list[float]:
    """The rates of a torch scheduler that steps after each `every` steps, after a warm-up by LinearLR."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    schedulers, rates = torch.optim.lr_scheduler, []
    scheduler = build(schedulers, optimizer)
    if warmup:
        first = schedulers.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
        with warnings.catch_warnings():
            # SequentialLR of torch 2.13 calls its own step with an argument that it deprecates.
            warnings.simplefilter("ignore", UserWarning)
            scheduler = schedulers.SequentialLR(optimizer, [first, scheduler], milestones=[warmup])
    for step in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                scheduler.step(*([losses[step // every]] if losses else []))
    return rates


def assert_same(found: list[float], expected: list[float]) -> None:
    assert len(set(found)) > 3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "build"),
    [
        (
            Schedule(0.3, "exponential", decay=0.9),
            lambda module, optimizer: module.ExponentialLR(optimizer, gamma=0.9),
        ),
        (Schedule(0.3, "step", every=4), lambda module, optimizer: module.StepLR(optimizer, 4, gamma=0.1)),
        (
            Schedule(0.3, "step", decay=0.7, every=1),
            lambda module, optimizer: module.StepLR(optimizer, 1, gamma=0.7),
        ),
    ],
    ids=["exponential", "step", "step every epoch"],
)
def test_what_torch_steps_once_an_epoch(schedule: Schedule, build: Callable[..., Any]) -> None:
    assert_same(ours(schedule), theirs(build, every=PER_EPOCH))


def linear(module: Any, optimizer: Any, steps: int) -> Any:
    return module.LinearLR(optimizer, start_factor=1.0, end_factor=0.01 / 0.3, total_iters=steps)


def polynomial(module: Any, optimizer: Any, steps: int) -> Any:
    return module.PolynomialLR(optimizer, total_iters=steps, power=1.7)


def cosine(module: Any, optimizer: Any, steps: int) -> Any:
    return module.CosineAnnealingLR(optimizer, T_max=steps, eta_min=0.01)


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize(
    ("name", "options", "build"),
    [
        ("linear", {"floor": 0.01}, linear),
        ("polynomial", {"power": 1.7}, polynomial),
        ("cosine", {"floor": 0.01}, cosine),
    ],
)
def test_what_torch_steps_every_step(
    name: str, options: dict[str, float], build: Callable[..., Any], warmup: int
) -> None:
    expected = theirs(lambda module, optimizer: build(module, optimizer, STEPS - warmup), warmup)
    assert_same(ours(Schedule(0.3, name, warmup=warmup, **options)), expected)


@pytest.mark.parametrize("warmup", [0, 50])
def test_one_cycle_is_torch_one_cycle_lr(warmup: int) -> None:
    rise = warmup / STEPS if warmup else 0.3
    expected = theirs(
        lambda module, optimizer: module.OneCycleLR(
            optimizer, 0.3, total_steps=STEPS, pct_start=rise, cycle_momentum=False
        )
    )
    assert_same(ours(Schedule(0.3, "one-cycle", warmup=warmup)), expected)


@pytest.mark.parametrize(("decay", "patience", "floor"), [(0.5, 2, 0.0), (0.1, 0, 1e-3), (0.1, 1, 0.0)])
def test_reduce_on_plateau_is_torchs(decay: float, patience: int, floor: float) -> None:
    expected = theirs(
        lambda module, optimizer: module.ReduceLROnPlateau(
            optimizer, factor=decay, patience=patience, min_lr=floor
        ),
        every=PER_EPOCH,
        losses=LOSSES,
    )
    found = ours(Schedule(0.3, "reduce-on-plateau", decay=decay, patience=patience, floor=floor))
    assert_same(found, expected)


def test_a_loss_that_is_not_finite_is_no_improvement() -> None:
    schedule = Schedule(1.0, "reduce-on-plateau", patience=1)
    assert schedule.at(Progress(0, 1, 9, [2.0, None, None])) == pytest.approx(0.1)
    assert schedule.at(Progress(0, 1, 9, [2.0, None, 1.0])) == 1.0


def test_constant_rises_to_its_rate_and_stays() -> None:
    rates = ours(Schedule(0.2, warmup=4))
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2], rel=0, abs=1e-15)
    assert set(rates[4:]) == {0.2}


@pytest.mark.parametrize("name", ["linear", "polynomial", "cosine"])
def test_no_steps_beyond_the_warmup(name: str) -> None:
    assert Schedule(0.2, name, warmup=60).at(Progress(59, 7, 60)) == 0.2


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_over_few_steps_stays_within_its_range(steps: int) -> None:
    for rate in ours(Schedule(0.2, "one-cycle"), steps, 1):
        assert 0.1999 / 25e4 < rate <= 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "gentle"},
            "unknown schedule 'gentle'; one of constant, exponential, step, linear, polynomial, cosine, one-cycle, "
            "reduce-on-plateau",
        ),
        ({"learning_rate": 0.0}, "learning rate 0; a number above 0"),
        ({"learning_rate": float("nan")}, "learning rate nan; a number above 0"),
        ({"decay": 1.5}, "decay 1.5 of the learning rate; a number in (0, 1]"),
        ({"floor": 1.0}, "final learning rate 1; a number from 0 to the learning rate"),
        ({"warmup": -1}, "-1 steps of warm-up; a number of at least 0"),
        ({"every": 0}, "0 epochs between decays; a number of at least 1"),
        ({"power": 0.0}, "power 0 of the learning rate; a number above 0"),
        ({"patience": -1}, "-1 epochs of patience; a number of at least 0"),
    ],
)
def test_errors_say_what_there_is(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Schedule(**{"learning_rate": 0.1, **options})
    assert str(error.value) == message
