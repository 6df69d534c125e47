"""`gradfuse doctor`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

_PACKAGES = (
    ("onnx", "core", ""),
    ("onnx-ir", "core", ""),
    ("numpy", "core", ""),
    ("torch", "torch", "converting PyTorch models"),
    ("onnxscript", "torch", "converting PyTorch models"),
    ("tensorflow", "tensorflow", "converting Keras models"),
    ("keras", "tensorflow", "converting Keras models"),
    ("tf2onnx", "tensorflow", "converting Keras models"),
    ("scikit-learn", "train", "the digits data"),
    ("pyarrow", "train", ".parquet data"),
)
"""Distribution, the extra that brings it, and what it is needed for."""

_ALTERNATIVES = {"tensorflow": ("tensorflow-cpu", "tensorflow-intel")}
_RUNTIMES = ("onnxruntime-training", "onnxruntime-training-cpu", "onnxruntime-gpu", "onnxruntime")


def doctor() -> None:
    """Say which versions and execution providers there are, what is missing, and how to get it."""
    from rich.console import Console
    from rich.table import Table

    table = Table("package", "version", "remark", box=None, pad_edge=False)
    table.add_row("Python", platform.python_version(), "")
    table.add_row("gradfuse", _version("gradfuse") or "not installed", "")
    for name, extra, purpose in _PACKAGES:
        version = _version(name, *_ALTERNATIVES.get(name, ()))
        table.add_row(
            name,
            version or "missing",
            "" if version else f"needed for {purpose}: pip install 'gradfuse[{extra}]'",
        )
    table.add_row(*_runtime_row())
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    console.print("execution providers:", ", ".join(_providers()) or "none")
    if "CUDAExecutionProvider" not in _providers():
        console.print(
            "for CUDA: pip install 'gradfuse[cuda]' in place of [train] (Linux, Python 3.10 or 3.11)"
        )


def _version(*names: str) -> str | None:
    installed = (found for name in names for found in importlib.metadata.distributions(name=name))
    return next((found.version for found in installed), None)


def _runtime_row() -> tuple[str, str, str]:
    found = [(name, version) for name in _RUNTIMES if (version := _version(name))]
    if not found:
        return "onnxruntime", "missing", "needed for training: pip install 'gradfuse[train]'"
    name, version = found[0]
    others = ", ".join(other for other, _ in found[1:])
    return name, version, f"shares its module name with {others}: uninstall all but one" if others else ""


def _providers() -> list[str]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    return list(onnxruntime.get_available_providers())
