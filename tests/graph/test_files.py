"""Reading hostile files, and writing files that are never half there."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from gradfuse.graph import InputError, TrainableModel, evaluate, files
from gradfuse.graph.files import MAX_IR_VERSION, atomic_path, load_model, save_model
from gradfuse.graph.mapping import LARGE, MAPPED, is_mapped, release

Array = np.ndarray[Any, Any]
Build = Callable[..., TrainableModel]


@pytest.fixture
def saved(mlp: TrainableModel, tmp_path: Path) -> Path:
    return mlp.save(tmp_path / "model.onnx")


@pytest.fixture
def wide(build: Build) -> TrainableModel:
    """A model whose weights are worth a file of their own."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("w1", (3, 90)), ("w2", (90, 2)))
    }
    return build("h = MatMul (x, w1) y = MatMul (h, w2)", weights)


@pytest.fixture
def external(wide: TrainableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved model whose weights lie in a file beside it."""
    monkeypatch.setattr(files, "_EXTERNAL_ABOVE", 0)
    return wide.save(tmp_path / "external.onnx")


def test_round_trip(mlp: TrainableModel, saved: Path, batch: dict[str, Array]) -> None:
    loaded = TrainableModel.load(saved)
    assert loaded.parameters == mlp.parameters
    feeds = {"x": batch["x"]}
    np.testing.assert_array_equal(evaluate(loaded.onnx, feeds)["y"], evaluate(mlp.onnx, feeds)["y"])


def test_round_trip_with_external_data(wide: TrainableModel, external: Path) -> None:
    assert sorted(path.name for path in external.parent.iterdir()) == ["external.onnx", "external.onnx.data"]
    loaded = TrainableModel.load(external)
    for name in wide.parameters:
        before, after = (model.onnx.graph.initializers[name].const_value for model in (wide, loaded))
        assert before is not None
        assert after is not None
        np.testing.assert_array_equal(after.numpy(), before.numpy())


def test_a_model_with_external_data_can_be_saved_over_itself(external: Path) -> None:
    loaded = TrainableModel.load(external)
    expected = {
        name: loaded.onnx.graph.initializers[name].const_value.numpy().copy() for name in loaded.parameters
    }
    loaded.save(external)
    again = TrainableModel.load(external)
    for name, array in expected.items():
        np.testing.assert_array_equal(again.onnx.graph.initializers[name].const_value.numpy(), array)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*absent\.onnx"):
        load_model(tmp_path / "absent.onnx")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"hello", b"PK\x03\x04", bytes(1000)], ids=repr)
def test_not_an_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not an ONNX"):
        load_model(path)


def test_a_file_cut_anywhere(saved: Path) -> None:
    content = saved.read_bytes()
    for length in range(0, len(content) - 1, 7):
        saved.write_bytes(content[:length])
        _loads_or_says_why(saved)


def test_a_file_with_damaged_bytes(saved: Path) -> None:
    content, rng = saved.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(0, 256)
        saved.write_bytes(damaged)
        _loads_or_says_why(saved)


def _loads_or_says_why(path: Path) -> None:
    with contextlib.suppress(InputError):
        TrainableModel.load(path)


def _edited(path: Path, edit: Callable[[onnx.ModelProto], object]) -> Path:
    proto = onnx.load(str(path), load_external_data=False)
    edit(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def _location(proto: onnx.ModelProto, value: str) -> None:
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = value


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "sub/../../secret", "link"])
def test_data_outside_the_folder(external: Path, location: str) -> None:
    folder = external.parent / "inner"
    folder.mkdir()
    (external.parent / "secret").write_bytes(bytes(10_000))
    (folder / "link").symlink_to(external.parent / "secret")
    inner = folder / "model.onnx"
    inner.write_bytes(external.read_bytes())
    _edited(inner, lambda proto: _location(proto, location))
    with pytest.raises(InputError, match="lies outside the model's folder"):
        load_model(inner)


def test_missing_data(external: Path) -> None:
    Path(f"{external}.data").unlink()
    with pytest.raises(InputError, match=r"data file 'external\.onnx\.data' is missing"):
        load_model(external)


def test_truncated_data(external: Path) -> None:
    data = Path(f"{external}.data")
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(InputError, match="is truncated"):
        load_model(external)


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "-8"), ("length", "1"), ("length", "x"), ("offset", "1e3")]
)
def test_a_wrong_place_in_the_data(external: Path, key: str, value: str) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        entries = {entry.key: entry for entry in proto.graph.initializer[0].external_data}
        entry = entries.get(key) or proto.graph.initializer[0].external_data.add(key=key)
        entry.value = value

    _edited(external, edit)
    with pytest.raises(InputError, match="place of the data of 'w1'"):
        load_model(external)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda p: p.ClearField("opset_import"), "opset"),
        (lambda p: p.ClearField("ir_version"), "ir_version"),
        (lambda p: p.graph.ClearField("node"), "node"),
        (lambda p: p.graph.node[0].input.append("ghost"), "valid"),
        (lambda p: p.graph.node[0].input.__setitem__(0, "y"), "valid"),
        (lambda p: p.graph.node[0].output.__setitem__(0, "x"), "valid"),
        (lambda p: setattr(p.graph.node[0], "op_type", "NoSuchOp"), "NoSuchOp"),
        (lambda p: setattr(p.graph.node[0], "domain", "com.example"), "com.example"),
        (lambda p: setattr(p.graph.node[0], "op_type", ""), "valid"),
        (lambda p: p.graph.ClearField("output"), "output"),
        (lambda p: p.graph.output[0].ClearField("name"), "valid"),
        (lambda p: setattr(p.graph.initializer[0], "raw_data", b"abc"), "w1"),
        (lambda p: p.graph.initializer[0].dims.__setitem__(0, 1 << 40), "w1"),
        (lambda p: p.graph.initializer[0].dims.__setitem__(0, -3), "w1"),
        (lambda p: setattr(p.graph.initializer[0], "data_type", 99), "w1"),
    ],
    ids=range(15),
)
def test_a_broken_model(saved: Path, edit: Callable[[onnx.ModelProto], object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        load_model(_edited(saved, edit))


def test_damaged_facts(saved: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        proto.metadata_props[0].value = '{"parameters": 3}'

    _edited(saved, edit)
    with pytest.raises(InputError, match="metadata is damaged"):
        TrainableModel.load(saved)


def test_a_model_without_facts(saved: Path) -> None:
    _edited(saved, lambda proto: proto.ClearField("metadata_props"))
    with pytest.raises(InputError, match="does not say which of its tensors are parameters"):
        TrainableModel.load(saved)


def test_the_ir_version_is_one_that_onnxruntime_reads(mlp: TrainableModel, tmp_path: Path) -> None:
    mlp.onnx.ir_version = 13
    path = save_model(mlp.onnx, tmp_path / "model.onnx")
    assert onnx.load(str(path)).ir_version == MAX_IR_VERSION


def _write_half(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        _write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    path, ordinary = tmp_path / "deep" / "result.txt", tmp_path / "ordinary"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    ordinary.touch()
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"cannot write .*choose another output path"),
        atomic_path(tmp_path / "file" / "x"),
    ):
        pass


def test_a_folder_where_the_file_should_be(mlp: TrainableModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        mlp.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_with_external_data_leaves_nothing(
    mlp: TrainableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_EXTERNAL_ABOVE", 0)
    monkeypatch.setattr(ir, "save", fail)
    with pytest.raises(InputError, match="No space left"):
        mlp.save(tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("padding", range(4))
def test_large_weights_inside_of_a_file_are_mapped(build: Build, tmp_path: Path, padding: int) -> None:
    weights = {"w1": np.arange(3.0 * LARGE).reshape(3, LARGE), "w2": np.ones((LARGE, 2)), "b": np.ones(2)}
    model = build(
        "h = MatMul (x, w1) m = MatMul (h, w2) y = Add (m, b)",
        {name: array.astype(np.float32) for name, array in weights.items()},
    )
    model.onnx.producer_name = "a" * padding  # moves the weights in the file
    saved = model.save(tmp_path / "model.onnx")
    loaded = load_model(saved).graph.initializers
    model.save(saved)  # the mapping is of the file that was there
    release(loaded["w1"].const_value.numpy())
    for name, array in weights.items():
        np.testing.assert_array_equal(loaded[name].const_value.numpy(), array)
    assert not is_mapped(loaded["b"].const_value)
    aligned = saved.read_bytes().find(weights["w1"].astype(np.float32)[0, 1:9].tobytes()) % 4 == 0
    assert is_mapped(loaded["w1"].const_value) == aligned


@pytest.mark.parametrize("size", [100, MAPPED - 1, MAPPED, LARGE])
def test_a_weight_is_written_as_it_was_whether_it_has_been_read_or_mapped(
    build: Build, tmp_path: Path, size: int
) -> None:
    """A report's hash of the model is of what is written."""
    model = build("h = MatMul (x, w) y = ReduceMean (h)", {"w": np.ones((1, size), np.float32)})
    loaded = load_model(model.save(tmp_path / "model.onnx"))
    assert is_mapped(loaded.graph.initializers["w"].const_value) in (False, size >= MAPPED)
    written, kept = (ir.serde.serialize_model(each).SerializeToString() for each in (loaded, model.onnx))
    assert written == kept


def test_a_large_file_cut_or_damaged(build: Build, tmp_path: Path) -> None:
    """Sizes of fields that contradict each other are refused before anything is mapped."""
    weights = {"w1": np.zeros((3, LARGE), np.float32), "w2": np.zeros((LARGE, 2), np.float32)}
    saved = build("h = MatMul (x, w1) y = MatMul (h, w2)", weights).save(tmp_path / "model.onnx")
    content, rng = saved.read_bytes(), np.random.default_rng(0)
    places = [place for place, byte in enumerate(content) if byte]
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.choice(places)] = rng.integers(0, 256)
        saved.write_bytes(damaged[: rng.choice([len(content), rng.integers(len(content))])])
        _loads_or_says_why(saved)
