from __future__ import annotations

import warnings

import pytest

from gradfuse.graph import InputError
from gradfuse.runtime.schedules import Schedule

STEPS, PER_EPOCH = 60, 7


def ours(schedule: Schedule) -> list[float]:
    return [schedule.at(step, PER_EPOCH, STEPS) for step in range(STEPS)]


def test_exponential_is_torch_exponential_lr_stepped_once_an_epoch():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    theirs = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    expected = []
    for step in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % PER_EPOCH == 0:
            theirs.step()
    assert ours(Schedule(0.3, "exponential", decay=0.9)) == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("warmup", [0, 5])
def test_cosine_is_torch_cosine_annealing_lr_stepped_every_step(warmup):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    schedulers = torch.optim.lr_scheduler
    theirs = schedulers.CosineAnnealingLR(optimizer, T_max=STEPS - warmup, eta_min=0.01)
    if warmup:
        first = schedulers.LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
        with warnings.catch_warnings():
            # SequentialLR of torch 2.13 calls its own step with an argument that it deprecates.
            warnings.simplefilter("ignore", UserWarning)
            theirs = schedulers.SequentialLR(optimizer, [first, theirs], milestones=[warmup])
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            theirs.step()
    assert ours(Schedule(0.3, "cosine", floor=0.01, warmup=warmup)) == pytest.approx(
        expected, rel=0, abs=1e-12
    )


def test_constant_rises_to_its_rate_and_stays():
    rates = ours(Schedule(0.2, warmup=4))
    assert rates[:4] == pytest.approx([0.05, 0.1, 0.15, 0.2], rel=0, abs=1e-15)
    assert set(rates[4:]) == {0.2}


def test_cosine_without_steps_beyond_the_warmup_stays_finite():
    assert Schedule(0.2, "cosine", warmup=60).at(59, PER_EPOCH, STEPS) == 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "linear"}, "unknown schedule 'linear'; one of constant, exponential, cosine"),
        ({"learning_rate": 0.0}, "learning rate 0; a number above 0"),
        ({"learning_rate": float("nan")}, "learning rate nan; a number above 0"),
        ({"decay": 1.5}, "decay 1.5 of the learning rate; a number in (0, 1]"),
        ({"floor": 1.0}, "final learning rate 1; a number from 0 to the learning rate"),
        ({"warmup": -1}, "-1 steps of warm-up; a number of at least 0"),
    ],
)
def test_errors_say_what_there_is(options, message):
    with pytest.raises(InputError) as error:
        Schedule(**{"learning_rate": 0.1, **options})
    assert str(error.value) == message
