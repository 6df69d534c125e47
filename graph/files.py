"""Reading and writing ONNX files: what comes in is hostile until proven otherwise, what goes out is never half there."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import google.protobuf.message
import onnx
import onnx_ir as ir

from .errors import InputError
from .mapping import MAPPED, is_large, map_tensors, parse_model
from .source import source_layer

__all__ = ["MAX_IR_VERSION", "atomic_path", "load_model", "save_model"]

MAX_IR_VERSION = 10
"""The newest IR version that onnxruntime-training 1.19 reads."""

_EXTERNAL_ABOVE = 1 << 30
"""Bytes of weights beyond which they go to a file of their own; protobuf itself ends at 2 GiB."""


_MOST = 1 << 31

_COUNTS = {
    **dict.fromkeys(("blocksize", "dilations", "group", "kernel_shape", "num_groups", "strides"), 1),
    **dict.fromkeys(("output_padding", "pads"), -_MOST),
    "sampling_ratio": 0,
}
"""The least value of attributes that count."""

_LONGEST_NAME = 4096


def load_model(path: str | Path) -> ir.Model:
    """Read and check an ONNX file. Large weights are mapped, not read (`mapping`).

    Raises:
        InputError: There is no such file, it is not ONNX, it is damaged, or its external data lies outside its folder.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such file: {path}", expected="an ONNX model file")
    try:
        proto = parse_model(path)
    except (google.protobuf.message.DecodeError, RuntimeError) as error:
        raise InputError(
            f"{path} is not an ONNX file or is truncated", remedy="export the model again"
        ) from error
    if not (proto.ir_version and proto.opset_import and proto.graph.node and proto.graph.output):
        raise InputError(
            f"{path} is not an ONNX model",
            expected="an ir_version, an opset, at least one node and one output",
        )
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if onnx.external_data_helper.uses_external_data(tensor):
            _check_external_data(tensor, path)
        else:
            _check_data(tensor, path)
    try:
        _read_small_tensors(proto, path.parent)
        model = ir.serde.deserialize_model(proto)
        ir.external_data.set_base_dir(model.graph, path.parent)
        onnx.checker.check_model(_without_external_data(proto))
    except _INVALID as error:
        reason = str(_root_cause(error)).strip().splitlines()
        raise _invalid(path, reason[0] if reason else type(error).__name__) from error
    _check_names(model, path)
    _check_nodes(model, path)
    _check_attributes(model, path)
    map_tensors(model)
    return model


def _read_small_tensors(proto: onnx.ModelProto, folder: Path) -> None:
    """Take external tensors into the message, all but large weights."""
    large = [
        tensor for tensor in proto.graph.initializer if is_large(ir.serde.deserialize_tensor(tensor), MAPPED)
    ]
    kept = {id(tensor) for tensor in large}
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if onnx.external_data_helper.uses_external_data(tensor) and id(tensor) not in kept:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.ClearField("data_location")
            del tensor.external_data[:]


def _without_external_data(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What the standard's checker judges: initializers in external files, which it would read, are inputs to it."""
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    inputs = {value.name for value in light.graph.input}
    for index in reversed(range(len(light.graph.initializer))):
        tensor = light.graph.initializer[index]
        if onnx.external_data_helper.uses_external_data(tensor):
            if tensor.name not in inputs:
                info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                light.graph.input.append(info)
            del light.graph.initializer[index]
    return light


def _invalid(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is not a valid ONNX model: {reason}", remedy="export the model again")


def _check_names(model: ir.Model, path: Path) -> None:
    """Refuse names that cannot be shown, or that would do something to the terminal that shows them."""
    for name in _names(model):
        if not isinstance(name, str) or not name.isprintable() or len(name) > _LONGEST_NAME:
            shown = repr(name)[:40]
            raise _invalid(
                path, f"the name {shown} holds control characters, or more than {_LONGEST_NAME} in all"
            )


def _names(model: ir.Model) -> Iterator[str]:
    for identifier in model.functions:
        yield from identifier
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            yield value.name or ""
        for node in graph:
            yield from (node.name or "", node.domain, node.op_type, source_layer(node))
            yield from (value.name or "" for value in node.outputs)


def _check_nodes(model: ir.Model, path: Path) -> None:
    """What the standard's checker lets pass, and every reader takes for granted."""
    for node in (node for graph in model.graphs() for node in graph):
        if node.op_type == "Constant" and node.domain == "" and len(node.attributes) != 1:
            raise _invalid(path, f"the Constant {node.outputs[0].name!r} has {len(node.attributes)} values")
    for value in model.graph.inputs:
        lengths = [] if value.shape is None else [dim for dim in value.shape if isinstance(dim, int)]
        if min(lengths, default=0) < 0:
            raise _invalid(path, f"the input {value.name!r} has a negative length")


def _check_attributes(model: ir.Model, path: Path) -> None:
    """Refuse numbers that onnxruntime takes unseen: it divides by a 0, or by what overflows to one, and ends the process."""
    functions = (node for function in model.functions.values() for node in function.all_nodes())
    for node in (*model.graph.all_nodes(), *functions):
        for name in node.attributes.keys() & _COUNTS if node.domain == "" else ():
            numbers = _integers(node.attributes[name])
            least = 0 if node.op_type == "Col2Im" and name == "pads" else _COUNTS[name]
            if not all(least <= number < _MOST for number in numbers):
                raise _invalid(path, f"{node.op_type} node {node.name!r} has {name} {list(numbers)}")


def _integers(attribute: ir.Attr | None) -> Sequence[int]:
    if attribute is None or attribute.is_ref():
        return []
    if attribute.type is ir.AttributeType.INTS:
        return attribute.as_ints()
    return [attribute.as_int()] if attribute.type is ir.AttributeType.INT else []


_INVALID = (
    ir.serde.SerdeError,
    onnx.checker.ValidationError,
    ValueError,
    KeyError,
    TypeError,
)
"""What onnx and onnx_ir raise when a model breaks the standard."""


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _check_data(tensor: onnx.TensorProto, path: Path) -> None:
    try:
        onnx.numpy_helper.to_array(tensor)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path}: the data of {tensor.name!r} does not fit its type and shape",
            remedy="export the model again",
        ) from error


def _check_external_data(tensor: onnx.TensorProto, path: Path) -> None:
    folder = path.parent.resolve()
    try:
        info = onnx.external_data_helper.ExternalDataInfo(tensor)
        offset, size = int(info.offset or 0), _bytes(tensor)
        damaged = min(offset, *tensor.dims) < 0 or (info.length is not None and int(info.length) != size)
    except ValueError:
        damaged = True
    if damaged:
        raise InputError(
            f"{path}: the place of the data of {tensor.name!r} does not fit its type and shape",
            remedy="export the model again",
        )
    target = (folder / info.location).resolve()
    if Path(info.location).is_absolute() or not target.is_relative_to(folder):
        raise InputError(
            f"{path}: the data of {tensor.name!r} lies outside the model's folder",
            expected="a file below it",
        )
    if not target.is_file():
        raise InputError(
            f"{path}: the data file {info.location!r} is missing", remedy="copy it beside the model"
        )
    if offset + size > target.stat().st_size:
        raise InputError(
            f"{path}: the data file {info.location!r} is truncated", remedy="copy or export it again"
        )


def _bytes(tensor: onnx.TensorProto) -> int:
    return -(-math.prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth // 8)


def save_model(model: ir.Model, path: str | Path) -> Path:
    """Write an ONNX file atomically; weights beyond 1 GiB go to `<name>.data` beside it.

    Raises:
        InputError: The folder cannot be written.
    """
    path = Path(path)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    size = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if size <= _EXTERNAL_ABOVE:
        with atomic_path(path) as temporary:
            ir.save(model, temporary, format="protobuf")
        return path
    # The weights are written under their final name inside a temporary folder, since the model records that name.
    with atomic_path(path) as temporary:
        data = path.with_name(path.name + ".data")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".gradfuse-") as folder:
            ir.save(model, Path(folder) / path.name, format="protobuf", external_data=data.name)
            (Path(folder) / data.name).replace(data)
            (Path(folder) / path.name).replace(temporary)
    return path


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place only if the block ends without an error.

    Raises:
        InputError: The file cannot be written: no such folder, no permission, no space.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}", remedy="choose another output path"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
