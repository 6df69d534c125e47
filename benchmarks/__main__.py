"""`python -m benchmarks NAME`: runs one benchmark; without a name it lists them."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "step": "time of a training step, against PyTorch, Keras and onnxruntime's own training API",
    "kernels": "gradients of single ops, each written in several ways",
    "analysis": "predicted against measured gradients, and the time of a report",
    "cost": "time and memory of a report, for models of 1 to 1,000 million parameters",
    "verdict": "how often the verdict of a report is right, statically and with the probe",
    "remedies": "whether the first remedy of a report helps",
    "fuses": "what the fuse plan does for trainings, and what fuses cost",
    "coverage": "which one-layer models get right gradients, against onnxruntime's builder and onnx-ad",
    "second_opinion": "onnxruntime's builder over the table of cases that our gradients are tested with",
    "conversion": "time of a conversion, against the framework's own exporter",
    "large": "memory that a model of more than 2 GB takes",
    "applications": "networks of keras.applications, converted and trained beside Keras",
    "recurrence": "a recurrent layer written out step by step, against the same layer as a Scan",
    "fuzz": "gradients of random nodes against finite differences, family by family",
    "portability": "the same graphs on the newest plain onnxruntime",
}
"""Each benchmark is the module of its name, with a function `main` that takes the arguments after it."""


def main(arguments: list[str]) -> int:
    """Run the benchmark that the first argument names."""
    if not arguments or arguments[0] not in BENCHMARKS:
        print("usage: python -m benchmarks NAME\n")
        for name, what in BENCHMARKS.items():
            print(f"  {name:12} {what}")
        return 2
    return int(importlib.import_module(f"{__package__}.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
