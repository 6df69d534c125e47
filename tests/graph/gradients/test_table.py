"""Every gradient of the table against PyTorch's autograd, with static, symbolic and unknown dimensions, in both precisions."""

from __future__ import annotations

import numpy as np
import pytest

from .cases import CASES
from .oracle import DIFFERENTIATES, TABLE, Case, backward_nodes, check, gradient_graph, op_types, run

VARIANTS = [
    pytest.param(case, dims, dtype, id=f"{case.name}-{dims}-{dtype}")
    for case in CASES
    for dims in case.dims
    for dtype in case.dtypes
    if dtype == "float" or dims in ("static", "anonymous")
]


@pytest.mark.parametrize(("case", "dims", "dtype"), VARIANTS)
def test_gradients_are_those_of_pytorch(case: Case, dims: str, dtype: str) -> None:
    model = check(case, dims, dtype)
    for node in backward_nodes(model):
        assert node.metadata_props[DIFFERENTIATES]
    gradients = [output.name for output in model.graph.outputs]
    assert len(set(gradients)) == len(gradients)


def test_every_entry_of_the_table_has_a_row() -> None:
    covered = set().union(*(op_types(case.body) for case in CASES))
    assert {op_type for _, op_type in TABLE} <= covered


def test_relu_passes_an_infinite_gradient_where_x_is_positive() -> None:
    case = Case("Relu", "r = Relu (x) y = Exp (r)", {"x": np.array([-1.0, 1000.0])}, lambda x: x)
    data = case.data("float")
    model = gradient_graph(case, {**data, "cotangent_y": np.ones(2, np.float32)}, "static", "float")
    found = run(model, {**data, "cotangent_y": np.ones(2, np.float32)})["x_grad"]
    assert found[0] == 0
    assert np.isinf(found[1])
