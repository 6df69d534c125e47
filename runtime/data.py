"""Fitting data to a model, and dividing it into training and validation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..graph.errors import InputError
from ..graph.losses import Loss, loss_named
from ..graph.model import TensorSpec, TrainableModel
from .optimizers import Array
from .readers import INPUT_NAMES, Examples, from_arrays, load_data

__all__ = ["batches", "consecutive", "fit_data", "fixed_batch", "split", "whole_batches"]


def fit_data(
    data: Any, model: TrainableModel, target: TensorSpec | None, loss: str | Loss
) -> tuple[Array, ...]:
    """Bring data into the shapes and element types that a model and its loss take.

    Args:
        data: A source for `load_data`, (x, y), a mapping of names to arrays, or Examples.
        model: Its inputs are what the data must fit.
        target: The loss's target; None where it takes none.
        loss: The loss, or its name.

    Returns:
        An array for each input of the model, then the target. They may share memory with `data`.

    Raises:
        InputError: The data cannot be read, has another shape, holds NaN or infinity, or has labels without a class.
    """
    function = loss_named(loss)
    source = str(data) if isinstance(data, str | Path) else "the data"
    examples = load_data(data) if isinstance(data, str | Path) else from_arrays(data, source)
    arrays = [_fit(array, spec, examples) for spec, array in _pair(model.inputs, examples)]
    if target is not None:
        if examples.target is None:
            raise InputError(
                f"{source} holds no target", expected=f"one for the loss {function.name}: {target}"
            )
        arrays.append(_fit(examples.target, target, Examples({})))
    _check_rows(arrays)
    if target is not None and function.classes:
        _check_labels(arrays[-1], model.outputs[0].dims[1], function.ignored)
    return tuple(arrays)


def fixed_batch(model: TrainableModel) -> int | None:
    """The only batch size that a model takes; None where it takes any."""
    fixed = [spec.dims[0] for spec in model.inputs if spec.dims and isinstance(spec.dims[0], int)]
    return int(fixed[0]) if fixed else None


def whole_batches(model: TrainableModel, indices: Array) -> Array:
    """Without the last examples where they do not fill the only batch that the model takes."""
    return indices[: len(indices) // (fixed_batch(model) or 1) * (fixed_batch(model) or 1)]


def split(count: int, validation: float, seed: int) -> tuple[Array, Array]:
    """Divide examples at random.

    Args:
        count: Number of examples.
        validation: Share held out, in [0, 1); above 0 it holds out at least one example.
        seed: Decides which.

    Returns:
        The positions to train on, and those held out.

    Raises:
        InputError: Nothing is left to train on, or the share is out of range.
    """
    if not 0 <= validation < 1:
        raise InputError(f"validation share {validation:g}", expected="a number in [0, 1)")
    held_out = max(round(count * validation), 1) if validation else 0
    if count - held_out < 1:
        raise InputError(
            f"{count} examples, {held_out} of them held out for validation", expected="some to train on"
        )
    order = np.random.default_rng([seed, 0]).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def batches(indices: Array, size: int, seed: int, epoch: int) -> Iterator[Array]:
    """The positions of each batch of an epoch, shuffled by seed and epoch (1, 2, ...); the last batch may be smaller."""
    return consecutive(np.random.default_rng([seed, epoch]).permutation(indices), size)


def consecutive(indices: Array, size: int) -> Iterator[Array]:
    """Batches of `size` in the order of `indices`; the last one may be smaller."""
    return (indices[start : start + size] for start in range(0, len(indices), size))


def _pair(specs: tuple[TensorSpec, ...], examples: Examples) -> list[tuple[TensorSpec, Array]]:
    """Each input of the model with its array; the array of an only input may have another name."""
    arrays = dict(examples.inputs)
    if len(specs) == 1:
        names = (specs[0].name, *INPUT_NAMES, *(arrays if len(arrays) == 1 else ()))
        if found := next((name for name in names if name in arrays), None):
            return [(specs[0], arrays[found])]
    if missing := [spec.name for spec in specs if spec.name not in arrays]:
        raise InputError(
            f"the data lacks the model's input {missing[0]!r}, and has {', '.join(arrays)}",
            expected=f"an array for each of {', '.join(spec.name for spec in specs)}",
        )
    return [(spec, arrays[spec.name]) for spec in specs]


def _fit(array: Array, spec: TensorSpec, examples: Examples) -> Array:
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
        raise InputError(f"the data for {spec} has elements of type {array.dtype}", expected="numbers")
    if array.ndim == 0 or array.size == 0:
        raise InputError(
            f"the data for {spec} is empty: {array.shape}", expected="examples along the first axis"
        )
    cast = _cast(array, spec)
    if spec.dtype.is_floating_point():
        _check_finite(cast, spec, examples.columns)
    return np.ascontiguousarray(_reshape(cast, spec))


def _cast(array: Array, spec: TensorSpec) -> Array:
    dtype = spec.dtype.numpy()
    if array.dtype == dtype:
        return array
    # What leaves the range of the element type becomes infinity, which _check_finite reports with its place.
    with np.errstate(over="ignore", invalid="ignore"):
        cast: Array = array.astype(dtype)
    if not spec.dtype.is_floating_point() and (cast != array).any():
        row = int((cast != array).reshape(len(array), -1).any(1).argmax())
        raise InputError(
            f"row {row} of the data for {spec} is {array[row]}", expected=f"{spec.dtype.name.lower()} numbers"
        )
    return cast


def _reshape(array: Array, spec: TensorSpec) -> Array:
    """Flatten, unflatten, or add and drop axes of length 1; anything else might scramble the data."""
    have, want = array.shape[1:], spec.dims[1:]
    if len(have) == len(want) and all(a == b for a, b in zip(have, want, strict=True) if isinstance(b, int)):
        return array
    static = [dim for dim in want if isinstance(dim, int)]
    same_count = len(static) == len(want) and math.prod(static) == math.prod(have)
    long_axes = [[dim for dim in dims if dim != 1] for dims in (list(have), static)]
    if same_count and (long_axes[0] == long_axes[1] or min(len(axes) for axes in long_axes) <= 1):
        return array.reshape(len(array), *static)
    raise InputError(
        f"an example has the shape {_text(have)}, the model takes {spec}",
        expected=f"{_text(want)} for each example",
        remedy="transpose the axes"
        if same_count
        else "reshape the data, or convert the model for this shape",
    )


def _text(dims: tuple[Any, ...]) -> str:
    return "x".join("?" if dim is None else str(dim) for dim in dims) or "one number"


def _check_finite(array: Array, spec: TensorSpec, columns: tuple[str, ...]) -> None:
    finite = np.isfinite(array).reshape(len(array), -1)
    if finite.all():
        return
    row, column = divmod(int(finite.argmin()), finite.shape[1])
    name = f" ({columns[column]})" if columns else ""
    raise InputError(
        f"{array.reshape(len(array), -1)[row, column]} in the data for {spec}, row {row}, column {column}{name},"
        " counting from 0",
        expected="finite numbers",
        remedy="remove or fill in such rows",
    )


def _check_rows(arrays: list[Array]) -> None:
    if len({len(array) for array in arrays}) > 1:
        rows = ", ".join(str(len(array)) for array in arrays)
        raise InputError(f"inputs and target have {rows} rows", expected="the same number of rows")


def _check_labels(labels: Array, classes: int | str | None, ignored: int | None) -> None:
    wrong = (labels < 0) | ((labels >= classes) if isinstance(classes, int) else False)
    wrong &= labels != ignored
    if wrong.any():
        row = int(wrong.reshape(len(labels), -1).any(1).argmax())
        label = labels[row] if labels.ndim == 1 else labels[row][wrong[row]][0]
        raise InputError(
            f"label {label} in row {row}, counting from 0",
            expected=f"labels 0 to {classes - 1} for the model's {classes} classes"
            if isinstance(classes, int)
            else "labels of at least 0",
        )
