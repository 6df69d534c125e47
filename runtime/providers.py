"""Execution providers: which device runs a graph, and the session that runs it there."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..graph.errors import InputError
from ..graph.files import save_model
from ..graph.mapping import is_mapped

__all__ = ["DEVICES", "onnxruntime_for", "open_session"]

DEVICES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""The execution provider of each device."""

_INSTALL = {
    "cpu": "pip install 'gradfuse[train]'",
    "cuda": "pip uninstall onnxruntime-training-cpu, then pip install 'gradfuse[cuda]' (Linux, Python < 3.12)",
}

_IN_MEMORY = 1 << 30
"""Bytes of constants up to which a graph is handed over in memory; protobuf itself ends at 2 GiB."""


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


def open_session(model: ir.Model, device: str = "cpu", threads: int = 0) -> Any:
    """An onnxruntime.InferenceSession of `model`.

    Args:
        model: A complete graph, of any size.
        device: One of `DEVICES`.
        threads: Threads within an operator; 0 leaves it to onnxruntime, which takes one per core.

    Raises:
        InputError: The device cannot be had.
    """
    onnxruntime = onnxruntime_for(device)
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Operators that a device lacks run on the CPU.
    providers = list(dict.fromkeys((DEVICES[device], DEVICES["cpu"])))
    tensors = [
        value.const_value for value in model.graph.initializers.values() if value.const_value is not None
    ]
    mapped = [tensor for tensor in tensors if is_mapped(tensor)]
    if sum(tensor.nbytes for tensor in tensors) - sum(tensor.nbytes for tensor in mapped) <= _IN_MEMORY:
        # Those that lie in a file are handed over as they are mapped, whatever their size.
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy()) for tensor in mapped]
        options.add_external_initializers([tensor.name for tensor in mapped], values)
        serialized = ir.serde.serialize_model(_without_data(model, mapped)).SerializeToString()
        return onnxruntime.InferenceSession(serialized, options, providers=providers)
    with tempfile.TemporaryDirectory(prefix="gradfuse-") as folder:
        path = save_model(model, Path(folder) / "model.onnx")
        return onnxruntime.InferenceSession(str(path), options, providers=providers)


def _without_data(model: ir.Model, mapped: Sequence[ir.TensorProtocol]) -> ir.Model:
    """A copy that says of these tensors that they lie elsewhere, as onnxruntime wants it of what it is handed."""
    clone = model.clone()
    for tensor in mapped:
        name = tensor.name or ""
        clone.graph.initializers[name].const_value = ir.ExternalTensor(
            "elsewhere", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.numpy().shape), name=name
        )
    return clone
