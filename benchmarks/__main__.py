"""Runs a benchmark by name."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "kernels": "gradients of single ops, each written in several ways",
}
"""What each module of this folder measures; its `main` prints a table."""


def main() -> None:
    """Run the benchmark that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        listed = "\n".join(f"  {known}  {what}" for known, what in BENCHMARKS.items())
        sys.exit(f"usage: python -m benchmarks NAME\n{listed}")
    importlib.import_module(f"benchmarks.{name}").main(*sys.argv[2:])


if __name__ == "__main__":
    main()
