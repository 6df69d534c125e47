from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gradfuse.graph import InputError
from gradfuse.runtime.readers import load_data

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 2, 1])


class Bomb:
    """Fails the test if anything unpickles it."""

    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


def check(examples) -> None:
    (x,) = examples.inputs.values()
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(examples.target, Y)


def test_digits_have_mean_0_and_variance_1():
    pytest.importorskip("sklearn")
    examples = load_data("digits")
    (x,) = examples.inputs.values()
    assert x.shape == (1797, 8, 8)
    assert (x.mean(), x.var()) == pytest.approx((0.0, 1.0))
    assert len(np.unique(x)) == 17
    assert set(examples.target) == set(range(10))


@pytest.mark.parametrize(
    ("x", "y"), [("x", "y"), ("data", "target"), ("features", "labels"), ("x_train", "y_train")]
)
def test_npz(x, y, tmp_path):
    np.savez(tmp_path / "d.npz", **{x: X, y: Y})
    check(load_data(tmp_path / "d.npz"))


def test_npz_may_name_the_models_inputs(tmp_path):
    np.savez_compressed(tmp_path / "d.npz", left=X, right=X, y=Y)
    examples = load_data(tmp_path / "d.npz")
    assert sorted(examples.inputs) == ["left", "right"]


def test_npy_pair(tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", Y)
    check(load_data(f"{tmp_path / 'a.npy'},{tmp_path / 'b.npy'}"))
    assert load_data(tmp_path / "a.npy").target is None


def test_csv_with_and_without_a_header(tmp_path):
    pytest.importorskip("pyarrow")
    rows = "".join(f"{a},{b},{c},{label}\n" for (a, b, c), label in zip(X, Y, strict=True))
    (tmp_path / "plain.csv").write_text(rows)
    (tmp_path / "named.csv").write_text("a,b,c,kind\n" + rows)
    swapped = "".join(f"{label},{a},{b},{c}\n" for (a, b, c), label in zip(X, Y, strict=True))
    (tmp_path / "first.csv").write_text("Target,a,b,c\n" + swapped)
    for name in ("plain", "named", "first"):
        check(load_data(tmp_path / f"{name}.csv"))
    assert load_data(tmp_path / "first.csv").columns == ("a", "b", "c")


def test_a_gap_in_a_table_is_not_a_number_with_a_name(tmp_path, model):
    pytest.importorskip("pyarrow")
    from gradfuse.graph import GradientGraph
    from gradfuse.runtime import train

    header = ",".join([f"pixel{i}" for i in range(64)] + ["label"])
    full, gap = ",".join(["0"] * 65), ",".join(["0"] * 5 + [""] + ["0"] * 59)
    (tmp_path / "d.csv").write_text("\n".join([header, full, full, gap]) + "\n")
    with pytest.raises(InputError, match=r"^nan in the data for x .*, row 2, column 5 \(pixel5\)"):
        train(GradientGraph.of(model("mlp")), tmp_path / "d.csv")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"a": X[:, 0], "y": Y, "b": X[:, 1], "c": X[:, 2]})
    parquet.write_table(table, tmp_path / "d.parquet")
    check(load_data(tmp_path / "d.parquet"))


def idx(array: np.ndarray, code: int) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(zipped, tmp_path):
    images = np.arange(4 * 6, dtype=np.uint8).reshape(4, 2, 3)
    end = ".gz" if zipped else ""
    for name, content in (("images-idx3", idx(images, 8)), ("labels-idx1", idx(Y.astype(np.uint8), 8))):
        for part in ("train", "t10k"):
            data = gzip.compress(content) if zipped else content
            (tmp_path / f"{part}-{name}-ubyte{end}").write_bytes(data)
    for source in (tmp_path / f"train-images-idx3-ubyte{end}", tmp_path):
        examples = load_data(source)
        np.testing.assert_allclose(examples.inputs["x"], images / 255, rtol=1e-7)
        np.testing.assert_array_equal(examples.target, Y)


def test_big_endian_elements_of_idx(tmp_path):
    (tmp_path / "images-idx2").write_bytes(idx(X.astype(">f4"), 13))
    (tmp_path / "labels-idx2").write_bytes(idx(Y.astype(">i4"), 12))
    check(load_data(tmp_path / "images-idx2"))


def test_a_callable_gives_the_data(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\n"
        "def pair():\n    return np.arange(12.0).reshape(4, 3), np.array([0, 1, 2, 1])\n"
        "def named():\n    return dict(zip(('x', 'y'), pair()))\n"
        "def nothing():\n    return None\n"
        "def broken():\n    return 1 / 0\n"
    )
    check(load_data(f"{tmp_path / 'my_data.py'}:pair"))
    monkeypatch.syspath_prepend(tmp_path)
    check(load_data("my_data:named"))
    for source, message in (
        ("my_data:nothing", "my_data:nothing is a NoneType; (x, y) or a mapping of names to arrays"),
        ("my_data:missing", "my_data has no 'missing'; one of pair, named, nothing, broken"),
        (
            "no_such_module:f",
            "no module named 'no_such_module'; a module in the current folder or an installed one;"
            " for a file write no_such_module.py:callable",
        ),
        (
            "my_data:broken",
            "my_data:broken raised ZeroDivisionError: division by zero;"
            " a function without arguments that returns (x, y) or arrays by name",
        ),
    ):
        with pytest.raises(InputError) as error:
            load_data(source)
        assert str(error.value) == message


def hostile(folder: Path) -> dict[str, bytes]:
    """Files that are damaged, lie about their size, or want to run code."""
    npy, table, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, X)
    np.savez(table, x=np.array([Bomb()], dtype=object))
    np.save(pickled, np.array([Bomb()], dtype=object))
    member = io.BytesIO()
    with zipfile.ZipFile(member, "w") as archive:
        archive.writestr("x.npy", npy.getvalue()[:-8])
    return {
        "truncated.npy": npy.getvalue()[:-8],
        "header.npy": npy.getvalue()[:20],
        "huge.npy": npy.getvalue().replace(b"(4, 3), }    ", b"(4000000, 3)}"),
        "pickled.npy": pickled.getvalue(),
        "pickled.npz": table.getvalue(),
        "truncated.npz": table.getvalue()[:50],
        "member.npz": member.getvalue(),
        "raw-pickle.npy": pickle.dumps(Bomb()),
        "text.parquet": b"PAR1 no, this is text",
        "ragged.csv": b"a,b,y\n1,2,3\n1,2\n",
        "huge-idx3": struct.pack(">HBB3I", 0, 8, 3, 60000, 28, 28) + b"\0" * 100,
        "longer-idx1": idx(Y.astype(np.uint8), 8) + b"\0",
        "magic-idx3": b"\x89PNG" * 20,
        "short-idx3": b"\0\0\x08\x03\0\0",
        "text-idx3.gz": b"this is no gzip file",
        "cut-idx3.gz": gzip.compress(idx(Y.astype(np.uint8), 8))[:-12],
    }


HOSTILE = sorted(hostile(Path()))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(hostile(tmp_path)[name])
    with pytest.raises(InputError, match="or a damaged one") as error:
        load_data(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_beyond_memory_are_refused_before_reading(tmp_path):
    path = tmp_path / "bomb-idx3.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**10, 2**10)))
    with pytest.raises(InputError, match=r"would take 2097152\.0 GiB of memory"):
        load_data(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.npz", b"", "is empty; examples"),
        (
            "d.xls",
            b"content",
            "is of an unknown kind; one of .npz, .npy, .csv, .parquet, an IDX file, or module:callable",
        ),
        ("one.csv", b"1\n2\n", "has 2 rows and 1 columns; examples in rows"),
        ("head.csv", b"a,b\n", "has 0 rows and 2 columns; examples in rows"),
        ("text.csv", b"a,y\n1,cat\n2,dog\n", "holds string; numbers; number its values 0, 1, ..."),
    ],
)
def test_unusable_files_are_refused(name, content, message, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load_data(tmp_path / name)
    assert str(error.value).endswith(message)


def test_missing_sources_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no such data: nothing\.npz"):
        load_data("nothing.npz")
    with pytest.raises(InputError, match=r"no such file: .*a\.npy; a \.npy file"):
        load_data(f"{tmp_path}/a.npy,{tmp_path}/b.npy")
    with pytest.raises(InputError, match="no IDX images in the folder"):
        load_data(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros((1, 2, 2), np.uint8), 8))
    with pytest.raises(InputError, match="no labels beside"):
        load_data(tmp_path)
