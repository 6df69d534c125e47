"""Differentiates ONNX files with one tool; `coverage` starts a process of it for each, onnx-ad's in an environment of its own.

    python coverage_worker.py TOOL FOLDER NAME...      gradients of FOLDER/NAME.onnx, into FOLDER/NAME.TOOL.npz, or why not,
                                                       into FOLDER/NAME.TOOL.txt
    python coverage_worker.py time FOLDER NAME STEPS   median milliseconds of a run of FOLDER/NAME.onnx

It imports nothing but onnx, onnxruntime, numpy, and the tool.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Arrays = dict[str, Any]


def gradfuse_gradients(
    path: Path, inputs: Arrays, parameters: Arrays
) -> tuple[bytes, dict[str, str], Arrays]:
    """The gradient graph, the output with the gradient of each parameter, and what to feed."""
    from gradfuse.graph import GradientGraph, TrainableModel

    graph = GradientGraph.of(TrainableModel.load(path), "output")
    return _saved(graph, path), dict(graph.gradients), {**inputs, **parameters}


def _saved(graph: Any, path: Path) -> bytes:
    return Path(graph.save(path.with_suffix(".tmp"))).read_bytes()


def onnx_ad_gradients(path: Path, inputs: Arrays, parameters: Arrays) -> tuple[bytes, dict[str, str], Arrays]:
    """The same by onnx-ad: it takes the seed of the loss as an input, and an axis for several seeds at the end."""
    import onnx_ad  # type: ignore[import-not-found]  # only in an environment of its own

    model = _in_training_form(onnx.load(path), inputs)
    _make_inputs(model, parameters)
    loss = model.graph.output[0].name
    graph = onnx_ad.reverse(model, inputs=list(parameters), outputs=[loss], layout="onnx")
    seed = graph.graph.input[-1].name
    names = [output.name for output in graph.graph.output][-len(parameters) :]
    gradients = dict(zip(parameters, names, strict=True))
    return (
        graph.SerializeToString(),
        gradients,
        {**inputs, **parameters, seed: np.ones(1, np.float32)},
    )


def ort_gradients(path: Path, inputs: Arrays, parameters: Arrays) -> tuple[bytes, dict[str, str], Arrays]:
    """The same by the builder that onnxruntime's training artifacts come from."""
    from onnxruntime.training.onnxblock._training_graph_utils import build_gradient_graph

    model = _in_training_form(onnx.load(path), inputs)
    loss = model.graph.output[0].name
    graph, _ = build_gradient_graph(model, set(parameters), set(), [loss])
    return graph.SerializeToString(), {name: f"{name}_grad" for name in parameters}, {**inputs, **parameters}


TOOLS: dict[str, Callable[[Path, Arrays, Arrays], tuple[bytes, dict[str, str], Arrays]]] = {
    "gradfuse": gradfuse_gradients,
    "onnx-ad": onnx_ad_gradients,
    "onnxruntime": ort_gradients,
}


def _in_training_form(model: onnx.ModelProto, inputs: Arrays) -> onnx.ModelProto:
    """BatchNormalization with the batch's statistics, and every shape a number: what others need to know."""
    _train_batch_norms(model)
    for value in model.graph.input:
        if value.name in inputs:
            value.CopyFrom(_info(value.name, value.type.tensor_type.elem_type, inputs[value.name].shape))
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _make_inputs(model: onnx.ModelProto, parameters: Arrays) -> None:
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in parameters]
    model.graph.input.extend(
        _info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name in parameters
    )
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _info(name: str, kind: int, shape: Any) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, kind, tuple(shape))


def _train_batch_norms(model: onnx.ModelProto) -> None:
    for index, node in enumerate(model.graph.node):
        frozen = any(entry.key == "gradfuse.frozen" for entry in node.metadata_props)
        if node.op_type == "BatchNormalization" and not frozen:
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
            node.output.extend([f"mean_{index}", f"variance_{index}"])


def _session(graph: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def differentiate(tool: str, folder: Path, name: str) -> None:
    """Write the gradients of one file, or why there are none; with the graph, if `keep` is in the folder."""
    with np.load(folder / f"{name}.npz") as file:
        given: Arrays = {key: file[key] for key in file.files}
    parts = [
        {key.partition(":")[2]: array for key, array in given.items() if key.startswith(f"{part}:")}
        for part in ("input", "parameter")
    ]
    result = folder / f"{name}.{tool}"
    try:
        graph, gradients, feeds = TOOLS[tool](folder / f"{name}.onnx", *parts)
        session = _session(graph)
        taken = {value.name for value in session.get_inputs()}
        taken |= {value.name for value in session.get_overridable_initializers()}
        feeds = {key: array for key, array in feeds.items() if key in taken}
        found = session.run(list(gradients.values()), feeds)
    except Exception as error:  # whatever a tool raises is its answer
        lines = str(error).strip().splitlines()
        Path(f"{result}.txt").write_text(lines[0] if lines else type(error).__name__, encoding="utf-8")
        return
    arrays: Arrays = dict(zip(gradients, found, strict=True))
    np.savez(f"{result}.npz", **arrays)
    if (folder / "keep").exists():
        Path(f"{result}.onnx").write_bytes(graph)
        np.savez(f"{result}.feeds.npz", **feeds)


def measure(folder: Path, name: str, steps: int) -> float:
    """Median milliseconds of a run that computes every output."""
    session = _session((folder / f"{name}.onnx").read_bytes())
    with np.load(folder / f"{name}.feeds.npz") as arrays:
        feeds = {key: arrays[key] for key in arrays.files}
    times = []
    for _ in range(steps + 3):
        started = time.perf_counter()
        session.run(None, feeds)
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times[3:]))


if __name__ == "__main__":
    task, where, *names = sys.argv[1:]
    if task == "time":
        print(measure(Path(where), names[0], int(names[1])))
    else:
        for each in names:
            differentiate(task, Path(where), each)
