"""Runs step and gradient graphs with nothing but onnxruntime and numpy, and prints the losses; `portability` starts it twice.

Usage: python portability_worker.py FOLDER, which holds for each case a gradient graph, a step graph and their inputs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(folder: Path) -> None:
    """Print one JSON object: version, and for each case the losses of its steps and the norms of the first gradients."""
    onnxruntime.set_default_logger_severity(3)
    results = {path.stem: run(folder, path.stem) for path in sorted(folder.glob("*.npz"))}
    print(json.dumps({"onnxruntime": onnxruntime.__version__, "cases": results}))


def run(folder: Path, name: str) -> dict[str, list[float]]:
    """Take the steps of a case, each from the state that the last one left."""
    with np.load(folder / f"{name}.npz") as arrays:
        inputs = {key: arrays[key] for key in arrays.files}
    facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    gradients = onnxruntime.InferenceSession(
        folder / f"{name}.gradients.onnx", providers=["CPUExecutionProvider"]
    )
    step = onnxruntime.InferenceSession(folder / f"{name}.step.onnx", providers=["CPUExecutionProvider"])
    state, data = {key: inputs[key] for key in facts["next"]}, {key: inputs[key] for key in facts["data"]}
    batches = [{key: array[number] for key, array in data.items()} for number in range(facts["steps"])]
    norms = [float(np.linalg.norm(array)) for array in gradients.run(facts["gradients"], batches[0])]
    losses = []
    for batch in batches:
        rate = {facts["learning_rate"]: np.array(0.01)}
        outputs = step.run([facts["loss"], *facts["next"].values()], {**batch, **state, **rate})
        losses.append(float(outputs[0]))
        state = dict(zip(facts["next"], outputs[1:], strict=True))
    return {"losses": losses, "norms": norms}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
