"""Elements that are taken from rows, and given back, against numpy's own indexing."""

import numpy as np
import pytest

from gradfuse.analysis.moments.moves import given_back, taken
from gradfuse.analysis.moments.quadrature import Array

ROWS = np.random.default_rng(0).standard_normal((3, 24))
GRID = np.arange(24).reshape(2, 3, 4)

EVEN = {"transposed": GRID.transpose(2, 0, 1), "sliced": GRID[:, ::-1, 1::2], "one": GRID[1, 2, 3]}
UNEVEN = {
    "split and merged": GRID.transpose(1, 0, 2).reshape(6, 4),
    "repeated": np.broadcast_to(GRID[:, :, :1], GRID.shape),
    "filled in": np.pad(GRID, 1, constant_values=-1),
    "gathered": GRID[:, [0, 2, 2]],
    "nothing": GRID[:0],
}


@pytest.mark.parametrize("places", [*EVEN.values(), *UNEVEN.values()], ids=[*EVEN, *UNEVEN])
def test_elements_are_taken_and_given_back(places: Array) -> None:
    padded = np.concatenate([ROWS, np.zeros((3, 1))], 1)
    found = taken(ROWS, places)
    assert np.array_equal(found, padded[:, places])
    back = np.zeros_like(padded)
    np.add.at(back.T, places.reshape(-1), found.reshape(3, -1).T)
    assert given_back(found, places, 24) == pytest.approx(back[:, :24])


@pytest.mark.parametrize("places", EVEN.values(), ids=EVEN)
def test_evenly_spaced_elements_are_no_copy(places: Array) -> None:
    assert np.shares_memory(taken(ROWS, places), ROWS)


@pytest.mark.parametrize("places", UNEVEN.values(), ids=UNEVEN)
def test_others_are_a_copy(places: Array) -> None:
    assert not np.shares_memory(taken(ROWS, places), ROWS)
