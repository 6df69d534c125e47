"""Everything that issue-writers call bad input: one clear line, exit code 2, nothing half-written."""

import numpy as np
import pytest


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def check_nothing_written(folder):
    assert list(folder.iterdir()) == []


def test_no_such_file(refused, out):
    line = refused("convert", "no-such-model.onnx", "-o", out / "m.onnx")
    assert "no-such-model.onnx" in line
    check_nothing_written(out)


def test_not_an_onnx_file(refused, tmp_path, out):
    path = tmp_path / "notes.onnx"
    path.write_text("this is a text, not a model")
    for command in (
        ["report", path],
        ["convert", path, "-o", out / "m.onnx"],
        ["fuse", path, "-o", out / "m.onnx"],
    ):
        assert "notes.onnx" in refused(*command)
    check_nothing_written(out)


def test_a_training_graph_in_the_place_of_a_model(refused, gradfuse, write_model, out, tmp_path):
    fused = tmp_path / "fused.onnx"
    gradfuse("fuse", write_model(), "-o", fused, "--clip", "norm=1")
    for command in (["report", fused], ["fuse", fused, "-o", out / "m.onnx"]):
        line = refused(*command)
        assert "fused.onnx is a training graph" in line
        assert "--list and --remove" in line
    check_nothing_written(out)


def test_a_truncated_onnx_file(refused, write_model, out):
    path = write_model()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused("convert", path, "-o", out / "m.onnx")
    check_nothing_written(out)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def build():\n    return 3\n", "int"),
        ("def build():\n    raise RuntimeError('no GPU on board')\n", "no GPU on board"),
        ("other = 1\n", "build"),
        ("def build(:\n", "SyntaxError"),
    ],
)
def test_a_callable_that_returns_no_model(refused, tmp_path, out, body, expected):
    path = tmp_path / "net.py"
    path.write_text(body)
    assert expected in refused("convert", f"{path}:build", "-o", out / "m.onnx")
    check_nothing_written(out)


def test_an_op_without_a_gradient_is_named_with_its_node(refused, write_model, out):
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    g (float[2, 4] x) => (float[2, 4] y) {
        h = MatMul (x, w)
        [odd] y = Hardmax (h)
    }
    """
    path = write_model(text, [("w", (4, 4))])
    for command in (["fuse", path, "-o", out / "m.onnx"], ["report", path]):
        line = refused(*command)
        assert "Hardmax" in line
        assert "odd" in line
    check_nothing_written(out)


def test_data_whose_shape_does_not_fit_shows_both_shapes(refused, write_model, write_data, out):
    data = write_data(lambda arrays: arrays.update(x=arrays["x"][:, :3]))
    line = refused("train", write_model(), "--data", data, "--out", out / "run")
    assert "3" in line
    assert "4" in line
    check_nothing_written(out)


def test_labels_out_of_range(refused, write_model, write_data, out):
    def spoil(arrays):
        arrays["y"][5] = 7

    line = refused("train", write_model(), "--data", write_data(spoil), "--out", out / "run")
    assert "label 7" in line
    assert "row 5" in line
    check_nothing_written(out)


def test_a_nan_in_the_data_is_found_with_row_and_column(refused, write_model, write_data, out):
    def spoil(arrays):
        arrays["x"][6, 2] = np.nan

    line = refused("train", write_model(), "--data", write_data(spoil), "--out", out / "run")
    assert "row 6" in line
    assert "column 2" in line
    check_nothing_written(out)


@pytest.mark.parametrize(
    ("options", "exists"),
    [
        (["--optimizer", "adagrad"], ["sgd", "adamw"]),
        (["--loss", "wishful"], ["cross-entropy", "mse"]),
        (["--schedule", "yearly"], ["constant", "cosine"]),
        (["--clip", "hope=1"], ["value", "global-norm"]),
        (["--clip", "norm=much"], ["norm=1.0"]),
        (["--clip", "norm=-1"], ["positive"]),
        (["--clip", "norm=1", "--at", "nothing*"], ["w1"]),
        (["--data", "nowhere.npz"], ["nowhere.npz"]),
        (["--device", "cuda"], ["CPUExecutionProvider", "gradfuse[cuda]"]),
        (["--device", "abacus"], ["cpu", "cuda"]),
        (["--lr", "fast"], ["--lr", "number"]),
        (["--epochs", "0"], ["--epochs", "1"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["--optimizer", "adamw", "--momentum", "0.5"], ["momentum"]),
    ],
)
def test_unknown_names_and_numbers_out_of_range(refused, write_model, write_data, out, options, exists):
    line = refused("train", write_model(), "--data", write_data(), "--out", out / "run", *options)
    for part in exists:
        assert part in line
    check_nothing_written(out)


@pytest.mark.parametrize("options", [["--format", "papyrus"], ["--fail-on", "whim"]])
def test_report_options_list_what_exists(refused, write_model, options):
    assert any(word in refused("report", write_model(), *options) for word in ("json", "error"))


def test_a_report_whose_severity_is_unknown_is_not_printed(gradfuse, write_model):
    assert gradfuse("report", write_model(), "--fail-on", "whim")[:2] == (2, "")


def test_an_output_that_cannot_be_written(refused, write_model, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    assert "file" in refused("convert", write_model(), "-o", blocker / "m.onnx")
