"""Execution providers: which device runs a graph, and the session that runs it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.checks import check_elements, empty_operand
from ..graph.errors import InputError
from ..graph.rewriting import without_weights

__all__ = ["DEVICES", "Session", "onnxruntime_for", "open_session"]

DEVICES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""The execution provider of each device."""

_INSTALL = {
    "cpu": "pip install 'gradfuse[train]'",
    "cuda": "pip uninstall onnxruntime-training-cpu, then pip install 'gradfuse[cuda]' (Linux, Python < 3.12)",
}

_IN_MEMORY = 1 << 30
"""Bytes of constants up to which they are part of the graph; protobuf itself ends at 2 GiB."""


def onnxruntime_for(device: str) -> Any:
    """The installed onnxruntime module, which can run on `device`.

    Raises:
        InputError: The device is unknown, or there is no onnxruntime that has its execution provider.
    """
    if device not in DEVICES:
        raise InputError(f"unknown device {device!r}", expected=f"one of {', '.join(DEVICES)}")
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("onnxruntime is not installed", remedy=_INSTALL[device]) from error
    available = onnxruntime.get_available_providers()
    if DEVICES[device] not in available:
        raise InputError(
            f"no {DEVICES[device]} in the installed onnxruntime {onnxruntime.__version__}",
            expected=f"one of its providers: {', '.join(available)}",
            remedy=_INSTALL[device],
        )
    return onnxruntime


@dataclass(frozen=True)
class Session:
    """A graph, ready to run; of large constants it reads the memory that they lie in, which a graph of its own would copy."""

    _session: Any
    _constants: Mapping[str, Any]

    def binding(self) -> Any:
        """A new IOBinding, in which the large constants are bound."""
        binding = self._session.io_binding()
        for name, value in self._constants.items():
            binding.bind_ortvalue_input(name, value)
        return binding

    def run(self, binding: Any) -> None:
        """Run the graph on what is bound.

        Raises:
            ConversionError: A tensor turned out empty that onnxruntime needs elements of.
        """
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime has exceptions of its own for each status
            if empty := empty_operand(error):
                raise empty from error
            raise


def open_session(
    model: ir.Model, device: str = "cpu", threads: int = 0, *, in_order: bool = False
) -> Session:
    """A session of `model`.

    Args:
        model: A complete graph, of any size.
        device: One of `DEVICES`.
        threads: Threads within an operator; 0 leaves it to onnxruntime, which takes one per core.
        in_order: Run the nodes in the graph's order; onnxruntime's own is a few percent quicker.

    Raises:
        InputError: The device cannot be had.
    """
    onnxruntime = onnxruntime_for(device)
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    if in_order:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Operators that a device lacks run on the CPU.
    providers = list(dict.fromkeys((DEVICES[device], DEVICES["cpu"])))
    model = check_elements(model)
    # What is constant in the graph itself can be folded and packed.
    model, tensors = without_weights(model) if _constant_bytes(model) > _IN_MEMORY else (model, {})
    constants = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.require(tensor.numpy(), requirements="A"), device)
        for name, tensor in tensors.items()
    }
    serialized = ir.serde.serialize_model(model).SerializeToString()
    return Session(onnxruntime.InferenceSession(serialized, options, providers=providers), constants)


def _constant_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
