"""The model that gradfuse trains: a forward ONNX graph in inference form, and which of its tensors training changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from .builder import Dim
from .errors import InputError, some
from .files import load_model, save_model

__all__ = [
    "FROZEN",
    "OPEN_INTERVAL",
    "PER_INSTANCE",
    "STOP_GRADIENT",
    "UNBIASED_VARIANCE",
    "TensorSpec",
    "TrainableModel",
    "spec_of",
]

FROZEN = "gradfuse.frozen"
"""Metadata key of a BatchNormalization or Dropout node that stays in inference form while the model trains."""

UNBIASED_VARIANCE = "gradfuse.unbiased_variance"
"""Metadata key of a BatchNormalization node whose running variance takes the unbiased variance of the batch, as PyTorch's does;
ONNX and Keras take the biased one."""

PER_INSTANCE = "gradfuse.per_instance"
"""Metadata key of a BatchNormalization node that, while the model trains, normalises each example by statistics of its own."""

STOP_GRADIENT = "gradfuse.stop_gradient"
"""Metadata key of an Identity node through which no gradient flows: `torch.Tensor.detach`."""

OPEN_INTERVAL = "gradfuse.open_interval"
"""Metadata key of a Clip node whose bounds pass no gradient, as those of `torch.nn.Hardtanh`; those of `torch.clamp` do."""

_FACTS = "gradfuse.model"


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and dimensions of a graph input or output.

    Attributes:
        name: Name in the graph.
        dtype: Element type.
        dims: For each axis its length, its symbol (`"batch"`), or None where nothing is known.
    """

    name: str
    dtype: ir.DataType
    dims: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype.name.lower()}[{', '.join('?' if dim is None else str(dim) for dim in self.dims)}]"


@dataclass(frozen=True)
class TrainableModel:
    """A forward graph with its parameters.

    Attributes:
        onnx: The forward graph in inference form: real BatchNormalization and Dropout nodes, batch size dynamic. Not to be
            changed: what trains or analyses it works on a clone.
        parameters: Names of the initializers that training changes, in the graph's order.
        framework: Where it came from: `pytorch`, `keras` or `onnx`.
        source: The file or callable that it came from, as a user would write it.
        parity: What the comparison with its source found, in words; empty where they were not compared.
    """

    onnx: ir.Model
    parameters: tuple[str, ...]
    framework: str = "onnx"
    source: str = ""
    parity: str = ""

    def __post_init__(self) -> None:
        initializers = self.onnx.graph.initializers
        for name in self.parameters:
            if name not in initializers:
                raise InputError(
                    f"parameter {name!r} is no initializer of the graph",
                    expected=f"one of {some(initializers)}",
                )
            dtype = initializers[name].dtype
            if dtype is None or not dtype.is_floating_point():
                found = "unknown type" if dtype is None else dtype.name.lower()
                raise InputError(
                    f"parameter {name!r} is a tensor of {found}", expected="floating-point numbers"
                )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The data inputs: graph inputs that are no initializers."""
        return tuple(
            spec_of(value)
            for value in self.onnx.graph.inputs
            if value.name not in self.onnx.graph.initializers
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs."""
        return tuple(spec_of(value) for value in self.onnx.graph.outputs)

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the running statistics that the forward pass updates while training."""
        names = [
            value.name or ""
            for node in batch_norms(self.onnx.graph)
            for value in node.inputs[3:5]
            if value is not None
        ]
        return tuple(dict.fromkeys(names))

    @property
    def sizes(self) -> dict[str, int]:
        """Number of elements of each parameter, by name."""
        tensors = {name: self.onnx.graph.initializers[name].const_value for name in self.parameters}
        return {name: 0 if tensor is None else tensor.size for name, tensor in tensors.items()}

    def save(self, path: str | Path) -> Path:
        """Write to one `.onnx` file, atomically; weights beyond 1 GiB go to `<name>.data` beside it."""
        names = ("parameters", "framework", "source", "parity")
        facts = {name: getattr(self, name) for name in names}
        self.onnx.metadata_props[_FACTS] = json.dumps(facts)
        return save_model(self.onnx, path)

    @classmethod
    def load(cls, path: str | Path) -> TrainableModel:
        """Read a file that `save` wrote.

        Raises:
            InputError: The file is missing, is not ONNX, is damaged, or was not written by gradfuse.
        """
        model = load_model(path)
        if not cls.is_recorded(model):
            raise InputError(
                f"{path} does not say which of its tensors are parameters",
                remedy="convert it with gradfuse first",
            )
        return cls.from_recorded(model)

    @staticmethod
    def is_recorded(model: ir.Model) -> bool:
        """Whether the model carries the facts that `save` writes."""
        return _FACTS in model.metadata_props

    @classmethod
    def from_recorded(cls, model: ir.Model) -> TrainableModel:
        """The TrainableModel of a graph that carries the facts that `save` writes."""
        try:
            facts = json.loads(model.metadata_props[_FACTS])
            parameters = tuple(str(name) for name in facts["parameters"])
            texts = [str(facts.get(name, "")) for name in ("framework", "source", "parity")]
            return cls(model, parameters, *texts)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                "the model's gradfuse metadata is damaged", remedy="convert it with gradfuse again"
            ) from error


def batch_norms(graph: ir.Graph) -> Iterator[ir.Node]:
    """The BatchNormalization nodes whose running statistics training updates."""
    for node in graph:
        trains = (
            node.op_type == "BatchNormalization" and node.domain == "" and FROZEN not in node.metadata_props
        )
        if trains and all(
            value is not None and value.name in graph.initializers for value in node.inputs[3:5]
        ):
            yield node


def spec_of(value: ir.Value) -> TensorSpec:
    """Name, element type and dimensions of a value."""
    dims = (
        ()
        if value.shape is None
        else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    )
    return TensorSpec(value.name or "", value.dtype or ir.DataType.FLOAT, dims)
