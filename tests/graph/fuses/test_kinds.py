"""The kinds that look at weights or remember, against their papers' formulas in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from gradfuse.graph import ALL_PARAMETERS, Fuse, GradientGraph, TrainableModel, evaluate, insert_fuses
from gradfuse.graph.fuses import fuse_bits, fuse_states
from gradfuse.graph.fuses.units import summed_axes
from gradfuse.graph.lowering import infer_shapes

Array = np.ndarray[Any, Any]
Build = Callable[..., TrainableModel]
HUGE = float(np.finfo(np.float32).max)


def unit_norm(x: Array) -> Array:
    """Brock et al. 2021, section 4.1, with the output units on the last axis: optax's unitwise_norm for dense and HWIO."""
    axes = None if np.squeeze(x).ndim <= 1 else tuple(range(x.ndim - 1))
    return np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=axes, keepdims=True))


def adaptive(gradient: Array, weight: Array, clipping: float, eps: float = 1e-3) -> Array:
    norm, most = unit_norm(gradient), clipping * np.maximum(unit_norm(weight), eps)
    return np.where(norm < most, gradient, gradient * (most / np.maximum(norm, 1e-6)))


NETWORKS = {
    "gemm": ("y = Gemm <transB = 1> (x, w, b)", {"w": (2, 3), "b": (2,)}, (1, 0), "float[batch, 3] x"),
    "matmul": ("z = MatMul (x, w) y = Add (z, b)", {"w": (3, 2), "b": (2,)}, (0, 1), "float[batch, 3] x"),
    "conv": (
        "c = Conv (x, w, b) p = GlobalAveragePool (c) y = Flatten (p)",
        {"w": (2, 3, 2, 2), "b": (2,)},
        (2, 3, 1, 0),
        "float[batch, 3, 4, 4] x",
    ),
    "keras conv": (
        "k = Transpose <perm = [3, 2, 0, 1]> (w) c = Conv (x, k, b) p = GlobalAveragePool (c) y = Flatten (p)",
        {"w": (2, 2, 3, 2), "b": (2,)},
        (0, 1, 2, 3),
        "float[batch, 3, 4, 4] x",
    ),
    "transposed conv": (
        "c = ConvTranspose (x, w, b) p = GlobalAveragePool (c) y = Flatten (p)",
        {"w": (3, 2, 2, 2), "b": (2,)},
        (2, 3, 0, 1),
        "float[batch, 3, 4, 4] x",
    ),
    "dead unit": ("y = Gemm <transB = 1> (x, w, b)", {"w": (2, 3), "b": (2,)}, (1, 0), "float[batch, 3] x"),
}


@pytest.mark.parametrize("clipping", [1e-3, 0.3, 1.0, 1e3])
@pytest.mark.parametrize("network", NETWORKS)
def test_adaptive_is_the_formula_of_the_paper(build: Build, network: str, clipping: float) -> None:
    body, shapes, units_last, inputs = NETWORKS[network]
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    if network == "dead unit":
        arrays["w"][0] = 0.0
    graph = GradientGraph.of(build(body, arrays, inputs=inputs), "mse")
    shape = (5, 3, 4, 4) if "4, 4" in inputs else (5, 3)
    feeds = {
        "x": rng.standard_normal(shape).astype(np.float32),
        "target": rng.standard_normal((5, 2)).astype(np.float32),
    }
    fused = insert_fuses(graph, [Fuse("adaptive", name, clipping) for name in arrays])
    before, after = evaluate(graph.onnx, feeds), evaluate(fused.onnx, feeds)
    for name, perm in (("w", units_last), ("b", (0,))):
        gradient, weight = before[graph.gradients[name]], arrays[name]
        expected = adaptive(gradient.transpose(perm), weight.transpose(perm), clipping)
        np.testing.assert_allclose(after[graph.gradients[name]].transpose(perm), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "merged", "summed"),
    [((3, 2, 4), (3, 8), [0]), ((2, 4, 3), (8, 3), [0, 1]), ((6, 2, 2), (3, 8), [1, 2])],
    ids=["attention's query", "attention's output", "cut"],
)
def test_adaptive_knows_units_that_a_layer_merges(
    build: Build, shape: tuple[int, ...], merged: tuple[int, ...], summed: list[int]
) -> None:
    """An axis that is cut tells nothing: the units are then the framework's, the first axis."""
    model = build(
        "k = Reshape (w, s) y = MatMul (x, k)",
        {"w": np.ones(shape, np.float32)},
        inputs=f"float[batch, {merged[0]}] x",
        outputs=f"float[batch, {merged[1]}] y",
        state={"s": np.array(merged)},
    )
    infer_shapes(model.onnx)
    assert summed_axes(model, "w") == summed


def steps(graph: GradientGraph, scales: Sequence[float]) -> Iterator[tuple[Array, bool]]:
    """The gradient of `w` and whether the fuse bit, for x of each scale in turn, the state carried from step to step."""
    model = graph.clone().onnx
    (bit,) = fuse_bits(model).values()
    model.graph.outputs.append(bit)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)
    ((old, new),) = fuse_states(model).items()
    state: dict[str, Array] = {}
    for scale in scales:
        x = np.full((1, 3), scale, np.float32)
        gradient, bitten, state[old] = session.run([graph.gradients["w"], bit.name, new], {"x": x, **state})
        yield gradient, bool(bitten)


def linear(build: Build, fuse: Fuse) -> GradientGraph:
    """y = mean(x w): the gradient of w is proportional to x, and has norm |x| / sqrt(2)."""
    model = build("y = MatMul (x, w)", {"w": np.ones((3, 2), np.float32)})
    return insert_fuses(GradientGraph.of(model, "output"), [fuse])


def drawn_norms(count: int) -> Array:
    """Norms that drift, with spikes."""
    rng = np.random.default_rng(3)
    return np.exp(0.4 * rng.standard_normal(count) - np.arange(count) / 100) * (
        1 + 20 * (rng.random(count) < 0.04)
    )


def scaled(norms: Array) -> list[float]:
    return [float(norm * np.sqrt(2 / 3)) for norm in norms]


TARGETS = ["w", ALL_PARAMETERS]


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("target", TARGETS)
def test_quantile_clips_to_the_quantile_of_the_last_100_norms(
    build: Build, target: str, quantile: float
) -> None:
    norms = drawn_norms(260)
    window = [HUGE] * 100
    bites = 0
    graph = linear(build, Fuse("quantile", target, quantile))
    for norm, (gradient, bit) in zip(norms, steps(graph, scaled(norms)), strict=True):
        limit = float(np.quantile(window, quantile))
        assert np.linalg.norm(gradient) == pytest.approx(min(norm, limit), rel=2e-5)
        assert bit == (norm > limit)
        bites += bit
        window = [*window[1:], norm]
    assert bites > 3


class ZClip:
    """Kumar et al. 2025, algorithm 1: alpha 0.97, 25 steps of warm-up, reciprocal rescaling of spikes."""

    def __init__(self, z_threshold: float) -> None:
        self.z_threshold, self.warm_up, self.mean, self.variance = z_threshold, list[float](), 0.0, 0.0

    def clip(self, norm: float) -> float:
        if len(self.warm_up) < 25:
            self.warm_up.append(norm)
            self.mean, self.variance = float(np.mean(self.warm_up)), float(np.var(self.warm_up))
            return norm
        deviation = np.sqrt(self.variance)
        z = (norm - self.mean) / (deviation + 1e-6)
        if z > self.z_threshold:
            norm = self.mean + self.z_threshold**2 / z * deviation
        self.mean = 0.97 * self.mean + 0.03 * norm
        self.variance = 0.97 * self.variance + 0.03 * (norm - self.mean) ** 2
        return float(norm)


@pytest.mark.parametrize("z_threshold", [0.5, 2.5])
@pytest.mark.parametrize("target", TARGETS)
def test_zscore_is_zclip(build: Build, target: str, z_threshold: float) -> None:
    norms, judge, bites = drawn_norms(150), ZClip(z_threshold), 0
    graph = linear(build, Fuse("zscore", target, z_threshold))
    for norm, (gradient, bit) in zip(norms, steps(graph, scaled(norms)), strict=True):
        expected = judge.clip(norm)
        assert np.linalg.norm(gradient) == pytest.approx(expected, rel=1e-4)
        assert bit == (expected < norm)
        bites += bit
    assert bites > 3


@pytest.mark.parametrize("kind", ["quantile", "zscore"])
def test_a_norm_that_is_not_finite_does_not_spoil_the_memory(build: Build, kind: str) -> None:
    norms = drawn_norms(150)
    clean, spoilt = (linear(build, Fuse(kind, "w", 0.5)) for _ in range(2))
    expected = [gradient for gradient, _ in steps(clean, scaled(norms))]
    broken = np.array([*norms[:60], np.inf, *norms[60:]])
    found = [gradient for gradient, _ in steps(spoilt, scaled(broken))]
    assert not np.isfinite(found.pop(60)).any()
    assert np.isfinite(found).all()
    if kind == "zscore":
        np.testing.assert_array_equal(found, expected)
