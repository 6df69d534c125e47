from __future__ import annotations

import pytest

from gradfuse.graph import InputError
from gradfuse.runtime.optimizers import SGD, AdamW, optimizer_named


def test_optimizers_are_found_by_name():
    assert optimizer_named("sgd", momentum=0.9, nesterov=True) == SGD(0.9, nesterov=True)
    assert optimizer_named("adamw", weight_decay=0.1) == AdamW(weight_decay=0.1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rmsprop", {}, "unknown optimizer 'rmsprop'; one of sgd, adamw"),
        ("sgd", {"beta1": 0.9}, "sgd has no option 'beta1'; one of momentum, weight_decay, nesterov"),
        ("sgd", {"momentum": 1.0}, "momentum 1; a number in [0, 1)"),
        ("sgd", {"momentum": float("nan")}, "momentum nan; a number in [0, 1)"),
        ("sgd", {"nesterov": True}, "Nesterov's method without momentum; a momentum above 0, as 0.9"),
        ("adamw", {"weight_decay": -1.0}, "weight decay -1; a number of at least 0"),
        ("adamw", {"beta2": 1.5}, "beta2 1.5; a number in [0, 1)"),
    ],
)
def test_errors_say_what_there_is(name, options, message):
    with pytest.raises(InputError) as error:
        optimizer_named(name, **options)
    assert str(error.value) == message
