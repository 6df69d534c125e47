"""Large weights of a file, mapped instead of read: the system reads what is used, and takes it back where it needs room.

An ONNX file is a protobuf message, which can only be parsed whole, weights included. So that they need not be, the message is
taken apart here by its wire format (a field is a number, a type and a length): weights stay where they are, and the message
says of each the place in its own file, as ONNX says of weights in another file.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google.protobuf.message
import numpy as np
import onnx
import onnx_ir as ir

__all__ = ["LARGE", "MAPPED", "is_large", "is_mapped", "map_tensors", "parse_model", "release", "writable"]

LARGE = 1 << 18
"""Elements from which a weight is handed to onnxruntime as an input instead of copied."""

MAPPED = 1 << 16
"""Elements from which a weight is mapped instead of read."""

_FEWEST_BYTES = 2 * MAPPED
"""Of so many elements of _NUMBERS."""

_NUMBERS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
"""Numbers of fields: of a ModelProto, a GraphProto, a TensorProto."""

_BYTES = 2
"""The wire type of strings, bytes and messages."""

_FIXED_LENGTH = {1: 8, 5: 4}
"""Bytes of the wire types whose values all have one length."""


def is_large(tensor: ir.TensorProtocol, above: int = LARGE) -> bool:
    """Whether a tensor holds floating-point numbers, so many that it is better not copied."""
    return tensor.size >= above and tensor.dtype in _NUMBERS


def parse_model(path: Path) -> onnx.ModelProto:
    """The message in a file, in which large raw data of the main graph's initializers is external data in that same file.

    Raises:
        google.protobuf.message.DecodeError: It is no such message.
    """
    if path.stat().st_size < _FEWEST_BYTES:
        return onnx.ModelProto.FromString(path.read_bytes())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _without_raw_data(content, path.name)


def _without_raw_data(content: mmap.mmap, name: str) -> onnx.ModelProto:
    model, rest = onnx.ModelProto(), bytearray()
    for number, whole, start, stop in _fields(content, 0, len(content)):
        if number != _GRAPH:
            rest += content[whole:stop]
            continue
        graph, others = onnx.GraphProto(), bytearray()
        for inner, inner_whole, inner_start, inner_stop in _fields(content, start, stop):
            if inner == _INITIALIZER:
                graph.initializer.append(_tensor(content, inner_start, inner_stop, name))
            else:
                others += content[inner_whole:inner_stop]
        graph.MergeFromString(bytes(others))
        model.graph.MergeFrom(graph)
    model.MergeFromString(bytes(rest))
    return model


def _tensor(content: mmap.mmap, start: int, stop: int, name: str) -> onnx.TensorProto:
    rest, place = bytearray(), None
    for number, whole, inner, end in _fields(content, start, stop):
        if number == _RAW_DATA and end - inner >= _FEWEST_BYTES:
            place = inner, end - inner
        else:
            rest += content[whole:end]
    tensor = onnx.TensorProto.FromString(bytes(rest))
    if place is not None:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in zip(("location", "offset", "length"), (name, *place), strict=True):
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def _fields(content: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, start, start of the value and end of each field of a message that lies in [start, stop)."""
    place = start
    while place < stop:
        whole = place
        key, place = _varint(content, place, stop)
        number, wire_type = key >> 3, key & 7
        if wire_type == _BYTES:
            length, place = _varint(content, place, stop)
        elif wire_type == 0:
            length = _varint(content, place, stop)[1] - place
        elif wire_type in _FIXED_LENGTH:
            length = _FIXED_LENGTH[wire_type]
        else:
            raise google.protobuf.message.DecodeError("unknown wire type")
        if place + length > stop:
            raise google.protobuf.message.DecodeError("truncated field")
        yield number, whole, place, place + length
        place += length


def _varint(content: mmap.mmap, place: int, stop: int) -> tuple[int, int]:
    """A number in base 128, its least digits first, the high bit set in all but the last; and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= stop:
            break
        byte = content[place]
        number, place = number | (byte & 0x7F) << shift, place + 1
        if byte < 0x80:
            return number, place
    raise google.protobuf.message.DecodeError("truncated number")


class _Mapping(mmap.mmap):
    """A mapping that knows its file."""

    path: str


def map_tensors(model: ir.Model) -> None:
    """Make views of one mapping for each file of what external tensors the main graph's initializers are."""
    mappings: dict[str, _Mapping] = {}
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _mapped(value.const_value, mappings)


def _mapped(tensor: ir.ExternalTensor, mappings: dict[str, _Mapping]) -> ir.TensorProtocol:
    if tensor.path not in mappings:
        with Path(tensor.path).open("rb") as file:
            mappings[tensor.path] = _Mapping(file.fileno(), 0, access=mmap.ACCESS_READ)
            mappings[tensor.path].path = tensor.path
    dtype = tensor.dtype.numpy().newbyteorder("<")
    array = np.frombuffer(mappings[tensor.path], dtype, tensor.size, tensor.offset or 0)
    return ir.Tensor(array.reshape(tensor.shape.numpy()), dtype=tensor.dtype, name=tensor.name)


def is_mapped(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor's numbers lie in a mapped file, at an address that fits their type."""
    return isinstance(tensor, ir.Tensor) and _mapping(tensor.raw) is not None and tensor.numpy().flags.aligned


def release(array: object) -> None:
    """Let the system take the pages of a mapped file back, as far as they have been read; they can be read again."""
    mapping = _mapping(array)
    if mapping is not None and hasattr(mapping, "madvise"):
        mapping.madvise(mmap.MADV_DONTNEED)


def _mapping(array: object) -> mmap.mmap | None:
    """The mapped file that an array is a view of."""
    while isinstance(array, np.ndarray):
        array = array.base
    owner = array.obj if isinstance(array, memoryview) else array
    return owner if isinstance(owner, mmap.mmap) else None


def writable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same numbers in memory of their own; of a mapped file the system copies only what is written, when it is."""
    mapping = _mapping(array)
    if not isinstance(mapping, _Mapping):
        return np.array(array, order="C")
    offset = array.ctypes.data - np.frombuffer(mapping, np.uint8).ctypes.data
    return np.memmap(mapping.path, array.dtype, "c", offset, array.shape)
