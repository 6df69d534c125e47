"""A blend y = b + z (a - b), as exporters write a GRU's state: both of its summands have b, so they are not independent.

With a, b and the gate z independent, and c = 1 - z,

    E y = E z E a + E c E b        E y^2 = E z^2 E a^2 + E c^2 E b^2 + 2 E[z c] E a E b        da = dy z,  db = dy c

and of two elements likewise. The sum gives b all of dy c, the difference nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..quadrature import Array
from ..site import Operand, Site, only_reader
from ..state import GradientMoments, Moments

__all__ = ["Blend", "blend_of", "gives_nothing_more", "note_operands"]


@dataclass(frozen=True)
class Blend:
    """The operands of a sum that is a blend.

    Attributes:
        index: Which operand of the sum is b.
        a: What is blended with b.
        b: It.
        z: The share of a.
    """

    index: int
    a: Moments
    b: Moments
    z: Moments

    @property
    def _kept(self) -> Moments:
        """1 - z."""
        return Moments(1.0 - self.z.mean, self.z.variance, self.z.covariance)

    def moments(self) -> Moments:
        """Of y."""
        z, c = self.z, self._kept
        mean = z.mean * self.a.mean + c.mean * self.b.mean
        crossed = 2.0 * (z.mean * c.mean - z.variance) * self.a.mean * self.b.mean
        second = z.second * self.a.second + c.second * self.b.second + crossed
        variance = np.maximum(second - mean**2, 0.0)
        if mean.ndim != 1 or all(x.covariance is None for x in (self.a, self.b, z)):
            return Moments(mean, variance)
        both = (_raw(z) * _raw(self.a), _raw(c) * _raw(self.b))
        mixed = (np.outer(z.mean, c.mean) - z.known_covariance) * np.outer(self.a.mean, self.b.mean)
        covariance = both[0] + both[1] + mixed + mixed.T - np.outer(mean, mean)
        np.fill_diagonal(covariance, variance)
        return Moments(mean, variance, covariance)

    def to_b(self, dy: GradientMoments) -> GradientMoments:
        """dy (1 - z)."""
        return times(dy, self._kept)


def times(dy: GradientMoments, factor: Moments) -> GradientMoments:
    """A gradient times an independent tensor."""
    mean = dy.mean * factor.mean
    variance = np.maximum(dy.second * factor.second - mean**2, 0.0)
    if mean.ndim != 1 or mean.shape != factor.shape:
        return GradientMoments.of(mean, variance)
    covariance = (dy.known_covariance + np.outer(dy.mean, dy.mean)) * _raw(factor) - np.outer(mean, mean)
    np.fill_diagonal(covariance, variance)
    return GradientMoments.of(mean, variance, covariance)


def _raw(x: Moments) -> Array:
    """E x x'."""
    return np.asarray(x.known_covariance + np.outer(x.mean, x.mean))


def note_operands(site: Site) -> None:
    """Remember the operands of a difference that a product alone reads, and of that product: they may belong to a blend."""
    reader = only_reader(site.node.outputs[0])
    if site.node.op_type == "Sub" and reader is not None and reader.op_type == "Mul":
        site.memory[site.node] = tuple(map(_without_positions, site.operands))
    if site.node.op_type == "Mul" and any(_written_by(value, "Sub") for value in site.node.inputs):
        site.memory[site.node] = tuple(map(_without_positions, site.operands))


def _without_positions(operand: Operand) -> Operand:
    """What a blend asks for: the rest would be held for as long as the prediction is."""
    if isinstance(operand, Moments):
        return Moments(operand.mean, operand.variance, operand.covariance)
    return operand


def blend_of(site: Site) -> Blend | None:
    """A sum's operands, if it is a blend of tensors of one shape whose parts nothing else reads."""
    if site.node.op_type != "Add" or len(site.varying) != 2:
        return None
    for index, value in enumerate(site.node.inputs):
        product = _written_by(site.node.inputs[1 - index], "Mul")
        for place in (0, 1) if product is not None else ():
            assert product is not None
            difference = _written_by(product.inputs[place], "Sub")
            if difference is not None and difference.inputs[1] is value:
                return _blend(site, index, product, 1 - place, difference)
    return None


def _written_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of this op that gives a value to one reader alone."""
    producer = None if value is None or only_reader(value) is None else value.producer()
    return producer if producer is not None and producer.op_type == op_type else None


def _blend(site: Site, index: int, product: ir.Node, gate: int, difference: ir.Node) -> Blend | None:
    factors, parts = site.memory.get(product), site.memory.get(difference)
    if not isinstance(factors, tuple) or not isinstance(parts, tuple):
        return None
    b = _without_positions(site.moments(index))
    assert isinstance(b, Moments)
    shape = b.shape
    a, z = (_as_moments(operand, shape) for operand in (parts[0], factors[gate]))
    if a is None or z is None:
        return None
    site.memory[difference] = _TAKEN
    return Blend(index, a, b, z)


_TAKEN = "blended"


def gives_nothing_more(site: Site, index: int) -> bool:
    """Whether this operand of a difference is given all by the sum."""
    return index == 1 and site.memory.get(site.node) is _TAKEN


def _as_moments(operand: Operand, shape: tuple[int, ...]) -> Moments | None:
    if isinstance(operand, Moments):
        return operand if operand.shape == shape else None
    if operand is None or operand.size not in (1, int(np.prod(shape))):
        return None
    value = np.broadcast_to(operand.astype(np.float64).reshape(-1), int(np.prod(shape))).reshape(shape)
    return Moments(value, np.zeros(shape))
