"""Layers of Keras, end to end: traced, differentiated, run, and compared with tf.GradientTape; and their weights home."""

from __future__ import annotations

from itertools import chain

import pytest

from .keras_outcomes import TOLERANCE, difference_after_training, families, head, key, outcome, refusal
from .keras_rows import FAMILIES, REFUSED, Row
from .page import check_section

ROWS = [pytest.param(row, id=row.name) for row in chain.from_iterable(FAMILIES.values())]
KEYS = list(dict.fromkeys(key(row) for row in chain.from_iterable(FAMILIES.values())))


@pytest.mark.parametrize("row", ROWS)
def test_gradients_are_those_of_the_gradient_tape(row: Row) -> None:
    found = outcome(row)
    assert found.variables <= set(found.errors)
    assert max(found.errors.values()) <= TOLERANCE


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=[row.name for row, _ in REFUSED])
def test_what_is_refused_says_why_in_one_line(index: int) -> None:
    assert REFUSED[index][1] in refusal(index)
    assert "\n" not in refusal(index)


def test_the_page_tells_what_the_run_found() -> None:
    check_section("Keras", head(), families())


@pytest.mark.parametrize("shared", KEYS, ids=[str(shared[0]) for shared in KEYS])
def test_weights_go_home_and_compute_what_the_graph_computes(shared: object) -> None:
    assert difference_after_training(shared) < 1e-5
