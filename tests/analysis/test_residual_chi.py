"""The factor on the squared gradient of residual networks whose branch W2 relu(W1 x) keeps the variance.

Without normalisation each block adds the branch's variance to the stream's, and its gradient as well: 2 per block (Yang 2017).
With LayerNorm before the branch, block l finds a stream of variance l and adds 1 / l of the gradient: L + 1 in all.
With LayerNorm after the sum, what the sum doubles the norm halves: 1 in all (Xiong 2020).
"""

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.analysis.moments import Assumptions, propagate
from gradfuse.analysis.profile import gradient_rms
from gradfuse.graph import GradientGraph, TrainableModel

WIDTH, DEPTH = 512, 12


def residual(norm: str) -> GradientGraph:
    """DEPTH blocks x + W2 relu(W1 x), `norm` in "", "pre" and "post"; then ten logits."""
    rng = np.random.default_rng(1)
    lines, weights, stream = [], {"gamma": np.ones(WIDTH), "beta": np.zeros(WIDTH)}, "x"
    for block in range(DEPTH):
        orthogonal = np.linalg.qr(rng.standard_normal((2, WIDTH, WIDTH)))[0]
        weights |= {f"w{block}": orthogonal[0] * 2**0.5, f"v{block}": orthogonal[1]}
        inner = stream
        if norm == "pre":
            inner = f"n{block}"
            lines.append(f"{inner} = LayerNormalization ({stream}, gamma, beta)")
        summed = f"s{block}" if norm == "post" else f"x{block}"
        lines += [
            f"a{block} = MatMul ({inner}, w{block})",
            f"r{block} = Relu (a{block})",
            f"b{block} = MatMul (r{block}, v{block})",
            f"{summed} = Add ({stream}, b{block})",
        ]
        if norm == "post":
            lines.append(f"x{block} = LayerNormalization ({summed}, gamma, beta)")
        stream = f"x{block}"
    weights["head"] = rng.standard_normal((WIDTH, 10))
    declared = ", ".join(f"float{list(w.shape)} {name} = {{0}}" for name, w in weights.items())
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 18]>\n'
        f"net (float[batch, {WIDTH}] x) => (float[batch, 10] y)\n<{declared}>\n"
        f"{{ {' '.join([*lines, f'y = MatMul ({stream}, head)'])} }}"
    )
    for name, weight in weights.items():
        model.graph.initializers[name].const_value = ir.tensor(weight.astype(np.float32), name=name)
    return GradientGraph.of(TrainableModel(model, tuple(weights)))


def gain(norm: str) -> float:
    """Of the squared gradient, from the last block's output to the first's input stream."""
    state = propagate(residual(norm), Assumptions(batch_size=256, budget=0.0))
    values = {value.name: value for value in state.arrived}
    return (gradient_rms(state, values["x"]) / gradient_rms(state, values[f"x{DEPTH - 1}"])) ** 2


@pytest.mark.parametrize(
    ("norm", "factor"),
    [("pre", DEPTH + 1.0), ("post", 1.0)],
)
def test_gain_of_all_blocks(norm: str, factor: float) -> None:
    assert gain(norm) == pytest.approx(factor, rel=0.03)


def test_gain_of_a_block_without_normalisation() -> None:
    assert gain("") ** (1.0 / DEPTH) == pytest.approx(2.0, rel=0.03)
