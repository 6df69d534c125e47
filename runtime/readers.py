"""Reading data files. They are hostile: nothing is unpickled, and no file makes the reader take more memory than it admits to.

    digits                  scikit-learn's 8x8 handwritten digits (Alpaydin and Kaynak 1998), 1797 examples,
                            scaled to mean 0 and variance 1 over all pixels, as the report assumes its inputs to be
    data.npz                arrays by name: inputs as `x`, or by the names of the model's inputs; the target as `y`
    x.npy,y.npy             inputs and target; `x.npy` alone where the loss takes no target
    images-idx3-ubyte[.gz]  MNIST's format (LeCun 1998), labels beside it, or a folder with both; bytes become grey in [0, 1]
    data.csv, data.parquet  a row for each example; the target is the column `y`, `target` or `label`, else the last one
    module:callable         a function without arguments, also file.py:callable, that returns (x, y) or arrays by name

Files are taken as they are; only the bytes of IDX files are scaled, since the format says that they are grey values.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..graph.callables import call, find_callable
from ..graph.errors import InputError
from .optimizers import Array

__all__ = ["INPUT_NAMES", "Examples", "from_arrays", "load_data"]

INPUT_NAMES = ("x", "data", "inputs", "features", "images", "x_train")
"""What the array of a model's only input may be called, besides the input's own name."""

TARGET_NAMES = ("y", "target", "targets", "label", "labels", "class", "y_train")
"""What the array or column of the target may be called."""

_MAX_BYTES = 16 << 30
"""What a data set may take in memory."""

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True)
class Examples:
    """Arrays as they were read, examples along the first axis.

    Attributes:
        inputs: Everything but the target, by name.
        target: What the model should say; None where there is none.
        columns: Names of a table's columns that became the input.
    """

    inputs: Mapping[str, Array]
    target: Array | None = None
    columns: tuple[str, ...] = ()


def load_data(source: str | Path) -> Examples:
    """Read a data set from what a user writes; see the list above.

    Raises:
        InputError: There is no such source, it is damaged, or it does not hold what its kind should.
    """
    text = str(source)
    if text == "digits":
        return _read_digits()
    if text.count(",") == 1 and all(part.endswith(".npy") for part in text.split(",")):
        features, target = (Path(part.strip()) for part in text.split(","))
        return Examples({"x": _read_npy(features)}, _read_npy(target))
    path = Path(text)
    if not path.exists() and ":" in text:
        return _call(text)
    if path.is_dir():
        return _read_idx_folder(path)
    if not path.is_file():
        raise InputError(f"no such data: {text}", expected="a file, digits, or module:callable")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty", expected="examples")
    return _reader(path)(path)


def from_arrays(data: Any, source: str) -> Examples:
    """Examples from (x, y), from arrays by name, or from Examples.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, Mapping):
        return _by_name({str(name): np.asarray(array) for name, array in data.items()}, source)
    if isinstance(data, tuple) and len(data) == 2:
        return Examples({"x": np.asarray(data[0])}, None if data[1] is None else np.asarray(data[1]))
    raise InputError(
        f"{source} is a {type(data).__name__}", expected="(x, y) or a mapping of names to arrays"
    )


def _reader(path: Path) -> Callable[[Path], Examples]:
    if "idx" in path.name:
        return _read_idx_pair
    if path.suffix not in _READERS:
        raise InputError(
            f"{path} is of an unknown kind",
            expected=f"one of {', '.join(_READERS)}, an IDX file, or module:callable",
        )
    return _READERS[path.suffix]


def _read_digits() -> Examples:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the digits come with scikit-learn, which is not installed",
            remedy="pip install 'gradfuse[train]'",
        ) from error
    digits = load_digits()
    return Examples({"x": (digits.images - digits.images.mean()) / digits.images.std()}, digits.target)


def _by_name(arrays: Mapping[str, Array], source: str) -> Examples:
    target = next((name for name in TARGET_NAMES if name in arrays), None)
    inputs = {name: array for name, array in arrays.items() if name != target}
    if not inputs:
        raise InputError(
            f"{source} holds no inputs", expected="an array named x, or one for each input of the model"
        )
    return Examples(inputs, None if target is None else arrays[target])


def _damaged(path: Path, kind: str, error: BaseException) -> InputError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return InputError(f"{path} is no {kind} file, or a damaged one: {reason}", remedy="write it again")


def _check_size(path: Path, size: int) -> None:
    if size > _MAX_BYTES:
        raise InputError(
            f"{path} would take {size / 2**30:.1f} GiB of memory", expected=f"at most {_MAX_BYTES >> 30} GiB"
        )


def _read_npy_alone(path: Path) -> Examples:
    return Examples({"x": _read_npy(path)})


def _read_npy(path: Path) -> Array:
    try:
        # Mapping the file checks its header against its length before anything is allocated.
        mapped: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        _check_size(path, mapped.nbytes)
        return np.array(mapped)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}", expected="a .npy file") from error
    except (ValueError, OSError, EOFError, OverflowError) as error:
        raise _damaged(path, ".npy", error) from error


def _read_npz(path: Path) -> Examples:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(path, sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
    except (
        ValueError,
        OSError,
        EOFError,
        OverflowError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise _damaged(path, ".npz", error) from error
    return _by_name(loaded, str(path))


def _read_csv(path: Path) -> Examples:
    reader = _pyarrow("csv")
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        first = next(csv.reader([file.readline(1 << 20)]), [])
    options = reader.ReadOptions(autogenerate_column_names=all(_is_number(field) for field in first))
    try:
        return _from_table(path, reader.read_csv(path, read_options=options))
    except _pyarrow("lib").ArrowException as error:
        raise _damaged(path, ".csv", error) from error


def _read_parquet(path: Path) -> Examples:
    reader = _pyarrow("parquet")
    try:
        facts = reader.read_metadata(path)
        _check_size(path, facts.num_rows * facts.num_columns * 8)
        return _from_table(path, reader.read_table(path))
    except (_pyarrow("lib").ArrowException, OSError) as error:
        raise _damaged(path, ".parquet", error) from error


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise InputError(
            "tables are read by pyarrow, which is not installed", remedy="pip install 'gradfuse[train]'"
        ) from error


def _from_table(path: Path, table: Any) -> Examples:
    names = list(table.column_names)
    if table.num_rows == 0 or len(names) < 2:
        raise InputError(
            f"{path} has {table.num_rows} rows and {len(names)} columns", expected="examples in rows"
        )
    target = next((name for name in names if name.lower() in TARGET_NAMES), names[-1])
    features = [name for name in names if name != target]
    columns = {name: _numbers(path, name, table.column(name)) for name in names}
    return Examples(
        {"x": np.stack([columns[name] for name in features], 1)}, columns[target], tuple(features)
    )


def _numbers(path: Path, name: str, column: Any) -> Array:
    try:
        return np.asarray(column.to_numpy(), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"column {name!r} of {path} holds {column.type}",
            expected="numbers",
            remedy="number its values 0, 1, ...",
        ) from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_idx_folder(folder: Path) -> Examples:
    images = sorted(path for path in folder.iterdir() if "images" in path.name and "idx" in path.name)
    training = [path for path in images if path.name.startswith("train")] or images
    if not training:
        raise InputError(
            f"no IDX images in the folder {folder}", expected="a file like train-images-idx3-ubyte"
        )
    return _read_idx_pair(training[0])


def _read_idx_pair(path: Path) -> Examples:
    images, name = (
        _read_idx(path),
        path.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz"),
    )
    candidates = [path.with_name(name), path.with_name(f"{name}.gz")]
    labels = next((other for other in candidates if other.is_file() and other != path), None)
    if labels is None:
        raise InputError(
            f"no labels beside {path}",
            expected="its twin, as train-labels-idx1-ubyte for train-images-idx3-ubyte",
        )
    scaled = images / np.float32(255) if images.dtype == np.uint8 else images
    return Examples({"x": scaled}, _read_idx(labels))


def _read_idx(path: Path) -> Array:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            return _parse_idx(path, file)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(path, "IDX", error) from error


def _parse_idx(path: Path, file: BinaryIO | gzip.GzipFile) -> Array:
    """Two zero bytes, the element type, the rank, each dimension as a big-endian int32, the elements."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or not magic[3]:
        raise ValueError("its first bytes are not those of IDX")
    dtype, header = np.dtype(_IDX_TYPES[magic[2]]), file.read(4 * magic[3])
    shape = tuple(int(length) for length in np.frombuffer(header, ">u4"))
    size = math.prod(shape) * dtype.itemsize
    _check_size(path, size)
    content = file.read(size + 1)
    if len(shape) != magic[3] or len(content) != size:
        raise ValueError(f"its header says {shape}, which is not what follows")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _call(source: str) -> Examples:
    expected = "a function without arguments that returns (x, y) or arrays by name"
    return from_arrays(call(source, find_callable(source, expected), expected), source)


_READERS: dict[str, Callable[[Path], Examples]] = {
    ".npz": _read_npz,
    ".npy": _read_npy_alone,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""Reader of each kind of file, by suffix; IDX files are known by `idx` in their name."""
