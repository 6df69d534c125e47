"""Layers, operations and losses of PyTorch, end to end: exported, differentiated, run, and compared with autograd."""

from __future__ import annotations

from itertools import chain

import pytest

from .page import check_section
from .torch_outcomes import TOLERANCE, families, head, outcome, refusal
from .torch_rows import FAMILIES, REFUSED, Row

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
    pytest.mark.filterwarnings(
        "ignore:`torch.jit.script_method` is deprecated"
    ),  # PyTorch itself uses it in a scan
]

ROWS = [pytest.param(row, id=row.name) for row in chain.from_iterable(FAMILIES.values())]


@pytest.mark.parametrize("row", ROWS)
def test_gradients_are_those_of_autograd(row: Row) -> None:
    errors = outcome(row).errors
    scaled = {"scales.0"} - {f"scales.{index}" for index in row.labels}
    assert {f"row.{name}" for name, _ in row.make().named_parameters()} | scaled <= set(errors)
    assert max(errors.values()) <= TOLERANCE


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=[row.name for row, _ in REFUSED])
def test_what_is_refused_says_why_in_one_line(index: int) -> None:
    assert REFUSED[index][1] in refusal(index)
    assert "\n" not in refusal(index)


def test_the_page_tells_what_the_run_found() -> None:
    check_section("PyTorch", head(), families())
