"""What a transfer rule sees: one forward node with what is known of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar, cast

import onnx_ir as ir

from ...graph.gradients.engine import DIFFERENTIATES
from .constraint import Constraint
from .curves import Seed
from .errors import UnknownTransferError
from .quadrature import Array
from .state import GradientByRows, GradientMoments, Moments, ParameterGradient

__all__ = [
    "Backward",
    "Batch",
    "Contribution",
    "Operand",
    "Site",
    "Transfer",
    "arrays_of",
    "batch_axis",
    "example_shape",
    "only_reader",
]

Operand: TypeAlias = "Moments | Array | None"
"""A tensor that depends on the example, one that does not (its value), or an absent input."""

Contribution: TypeAlias = "GradientMoments | ParameterGradient | GradientByRows | Seed | None"
"""What an input receives: its gradient, that of a shared tensor, or one that has a slope on the input's latent."""

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """What a node receives under each law that the examples of a batch follow.

    Attributes:
        inputs: Its first input; none where there is but one law.
        gradients: The gradient of its output, on the way back.
        kept: What its rule works out once for all laws.
    """

    inputs: tuple[Moments, ...] = ()
    gradients: tuple[GradientMoments, ...] = ()
    kept: dict[str, object] = field(default_factory=dict)

    def once(self, name: str, result: Callable[[], T]) -> T:
        """What is the same for all laws, worked out for the first that asks."""
        if name not in self.kept:
            self.kept[name] = result()
        return cast(T, self.kept[name])

    @property
    def constraints(self) -> list[Constraint]:
        """On the gradients; empty where not all of them have one."""
        known = [g.constraint for g in self.gradients if g.constraint is not None]
        return known if len(known) == len(self.inputs) else []


@dataclass(frozen=True)
class Site:
    """One forward node.

    Attributes:
        node: The node.
        operands: Its inputs.
        results: Moments of its outputs; empty while they are being worked out.
        batch_size: Examples in a batch.
        full_covariance: Whether the covariance between channels is carried through it.
        all_steps: Whether, through a recurrent layer, that of all channels of all steps is.
        batch: What it receives under every law of the inputs.
        memory: What the forward pass of a rule keeps for its backward pass, by node.
        notes: Approximations that rules have made here, in words.
    """

    node: ir.Node
    operands: tuple[Operand, ...]
    results: tuple[Moments, ...]
    batch_size: int
    full_covariance: bool = False
    all_steps: bool = False
    batch: Batch = field(default_factory=Batch)
    memory: dict[ir.Node, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def x(self) -> Moments:
        """The first input, which depends on the example."""
        return self.moments(0)

    @property
    def y(self) -> Moments:
        """The first output."""
        return self.results[0]

    def moments(self, index: int) -> Moments:
        """Input `index`, which depends on the example; else UnknownTransferError."""
        operand = self.operands[index]
        if not isinstance(operand, Moments):
            raise UnknownTransferError(f"its input {index} does not depend on the example")
        return operand

    def array(self, index: int) -> Array:
        """Input `index`, which does not depend on the example; else UnknownTransferError."""
        operand = self.operands[index]
        if isinstance(operand, Moments | None):
            raise UnknownTransferError(f"its input {index} depends on the example")
        return operand

    def is_static(self, index: int) -> bool:
        """Whether input `index` is present and does not depend on the example."""
        return index < len(self.operands) and not isinstance(self.operands[index], Moments | None)

    def attribute(self, name: str, default: T) -> T:
        """The attribute's value, or `default` where the node does not have it."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.value

    @property
    def varying(self) -> list[int]:
        """Indices of the inputs that depend on the example."""
        return [index for index, operand in enumerate(self.operands) if isinstance(operand, Moments)]


def arrays_of(operands: Sequence[Operand]) -> list[Array | None]:
    """The operands of a node none of whose inputs depends on the example."""
    return [None if isinstance(operand, Moments) else operand for operand in operands]


def batch_axis(value: ir.Value) -> int:
    """The first axis without a fixed length; the first where all are fixed."""
    dims = value.shape or ()
    return next((axis for axis, dim in enumerate(dims) if not isinstance(dim, int)), 0)


def example_shape(value: ir.Value) -> tuple[int, ...]:
    """The other axes; those of unknown length count as 1."""
    batch = batch_axis(value)
    dims = enumerate(value.shape or ())
    return tuple(dim if isinstance(dim, int) else 1 for axis, dim in dims if axis != batch)


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, those of the gradient aside; None where there are more or none."""
    readers = [user for user, _ in value.uses() if DIFFERENTIATES not in user.metadata_props]
    return readers[0] if len(readers) == 1 else None


Backward: TypeAlias = Callable[[Site, Sequence[GradientMoments | None]], Sequence[Contribution]]


@dataclass(frozen=True)
class Transfer:
    """An entry of the table of transfer rules.

    Attributes:
        forward: Moments of each output; it notes what it passes over in `site.notes`.
        backward: What each input receives, given the gradient of each output (None where the loss does not depend on it).
    """

    forward: Callable[[Site], Sequence[Moments]]
    backward: Backward
