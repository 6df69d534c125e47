import json

import numpy as np
import onnx
import onnxruntime
import pytest

from .conftest import MLP


def test_convert_writes_a_model_that_remembers_its_parameters(gradfuse, write_model, tmp_path):
    code, out, _ = gradfuse("convert", write_model(), "-o", tmp_path / "out.onnx")
    assert code == 0
    assert "2 parameters" in out
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert json.loads({p.key: p.value for p in model.metadata_props}["gradfuse.model"])["parameters"] == [
        "w1",
        "w2",
    ]


def test_report_exits_with_1_on_an_exploding_model_only(gradfuse, write_model):
    code, out, _ = gradfuse("report", write_model())
    assert code == 0
    assert "STABLE" in out
    code, out, _ = gradfuse("report", write_model(scale=100.0, name="wild.onnx"))
    assert code == 1
    assert "EXPLODES" in out
    assert gradfuse("report", "--fail-on", "never", write_model(scale=100.0))[0] == 0


def test_report_writes_json_to_a_file(gradfuse, write_model, tmp_path):
    path = tmp_path / "report.json"
    assert gradfuse("report", write_model(), "--format", "json", "-o", path)[0] == 0
    report = json.loads(path.read_text())
    assert report["schema"] == "gradfuse-report/1"
    assert {entry["tensor"] for entry in report["profile"]} >= {"w1", "w2"}


def test_fuse_writes_a_graph_with_named_fuses_that_runs(gradfuse, write_model, tmp_path):
    path = tmp_path / "fused.onnx"
    code, out, _ = gradfuse(
        "fuse", write_model(), "-o", path, "--clip", "norm=0.25", "--at", "w1", "--at", "r"
    )
    assert code == 0
    assert "fuse/w1" in out
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    fuses = [node for node in model.graph.node if node.domain == "gradfuse"]
    assert sorted(node.name for node in fuses) == ["fuse/r", "fuse/w1"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options)
    feeds = {"x": np.ones((2, 4), np.float32), "target": np.array([0, 1])}
    (gradient,) = session.run(["w1_grad"], feeds)
    assert np.linalg.norm(gradient) <= 0.25 * (1 + 1e-6)


def test_train_learns_and_writes_what_it_says(gradfuse, write_model, write_data, tmp_path):
    run = tmp_path / "run"
    code, out, _ = gradfuse(
        "train", write_model(), "--data", write_data(), "--out", run, "--epochs", "20", "--lr", "0.1"
    )
    assert code == 0
    assert "epoch 20" in out
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0].keys() == {"epoch", "loss", "gradient_norm", "batches"}
    assert metrics[1]["train_loss"] == pytest.approx(metrics[0]["loss"], rel=0.5)
    assert metrics[-1]["train_loss"] < 0.5 * metrics[1]["train_loss"]
    onnxruntime.InferenceSession(run / "model.onnx").run(None, {"x": np.ones((2, 4), np.float32)})


def test_what_the_comparison_found_is_in_the_model_and_in_the_run(
    gradfuse, write_model, write_data, tmp_path
):
    for options, found in (
        ([], "1 array agrees: worst relative error 0.0e+00"),
        (["--no-verify"], "not compared"),
    ):
        run, path = tmp_path / f"run{len(options)}", tmp_path / f"model{len(options)}.onnx"
        assert found in gradfuse("convert", write_model(), "-o", path, *options)[1]
        command = ["--data", write_data(), "--out", run, "--epochs", "1"]
        gradfuse("train", path, *command)
        assert json.loads((run / "run.json").read_text())["parity"].startswith(found)
        gradfuse("train", write_model(), *command, "--overwrite", *options)
        assert json.loads((run / "run.json").read_text())["parity"].startswith(found)


def test_convert_says_what_it_changed(gradfuse, write_model, tmp_path):
    text = MLP.replace("batch", "1")
    assert (
        "exported for a batch of 1, now for any"
        in gradfuse("convert", write_model(text), "-o", tmp_path / "m.onnx")[1]
    )


def test_a_pattern_chooses_what_every_command_trains(gradfuse, refused, write_model, write_data, tmp_path):
    model = write_model()
    assert "1 parameters" in gradfuse("convert", model, "-o", tmp_path / "m.onnx", "--train", "w2")[1]
    for command in (
        ["report", model],
        ["fuse", model, "-o", tmp_path / "f.onnx"],
        ["train", model, "--data", write_data(), "--out", tmp_path / "run"],
    ):
        assert "no parameter matches 'w3'; a pattern for w" in refused(*command, "--train", "w3")


def test_train_refuses_a_folder_with_a_run_unless_told(gradfuse, refused, write_model, write_data, tmp_path):
    command = ["train", write_model(), "--data", write_data(), "--out", tmp_path / "run", "--epochs", "1"]
    assert gradfuse(*command)[0] == 0
    before = (tmp_path / "run" / "model.onnx").read_bytes()
    assert "--overwrite" in refused(*command)
    assert (tmp_path / "run" / "model.onnx").read_bytes() == before
    assert gradfuse(*command, "--overwrite")[0] == 0


def test_train_exits_with_1_where_it_diverges(gradfuse, write_model, write_data, tmp_path):
    wild = write_model(scale=1e4, name="wild.onnx")
    code, out, _ = gradfuse("train", wild, "--data", write_data(), "--out", tmp_path / "run", "--lr", "1e9")
    assert code == 1
    assert "diverged at step" in out
    assert not (tmp_path / "run" / "model.onnx").exists()


def test_doctor_names_versions_and_providers(gradfuse):
    code, out, _ = gradfuse("doctor")
    assert code == 0
    assert onnx.__version__ in out
    assert "CPUExecutionProvider" in out


def test_explain_prints_the_page_of_a_rule(gradfuse, refused):
    code, out, _ = gradfuse("explain", "GF101")
    assert code == 0
    assert "GF101" in out
    assert "GF102" in refused("explain", "GF999")


def test_fuse_lists_and_removes_the_fuses_of_a_file(gradfuse, refused, write_model, tmp_path):
    fused, plain = tmp_path / "fused.onnx", tmp_path / "plain.onnx"
    options = ["--clip", "quantile=0.9", "--at", "w1", "--at", "r"]
    assert gradfuse("fuse", write_model(), "-o", fused, *options)[0] == 0
    assert gradfuse("fuse", fused, "--list")[1].splitlines() == [
        "  fuse/r  quantile 0.9",
        "  fuse/w1  quantile 0.9",
    ]
    code, out, _ = gradfuse("fuse", fused, "-o", plain, "--remove", "w*")
    assert code == 0
    assert out.splitlines() == [f"wrote {plain}: 1 fuse left", "  fuse/r  quantile 0.9"]
    assert gradfuse("fuse", fused, "-o", plain, "--remove", "*")[1].endswith("no fuse is left\n")
    model = onnx.load(plain)
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions
    assert not [
        value for value in (*model.graph.input, *model.graph.output) if value.name.startswith("fuse/")
    ]
    assert gradfuse("fuse", plain, "--list")[1] == "  no fuse\n"
    assert "no fuse on 'w9'" in refused("fuse", fused, "-o", plain, "--remove", "w9")
    assert "no file to write to; -o FILE, or --list" in refused("fuse", fused)


def test_remedies_are_trained_and_written_in_inference_form(gradfuse, write_model, write_data, tmp_path):
    out_folder = tmp_path / "run"
    options = ["--swap-activation", "relu=prelu:0.1", "--insert", "batch-norm", "--where", "after"]
    clip = ["--clip", "global-norm=0.001"]
    code, out, _ = gradfuse(
        "train", write_model(), "--data", write_data(), "--out", out_folder, "--epochs", "2", *options, *clip
    )
    assert code == 0
    assert "fuse/global-norm bit in 100 % of" in out
    model = onnx.load(out_folder / "model.onnx")
    assert [node.op_type for node in model.graph.node][1:3] == ["PRelu", "BatchNormalization"]
    assert all(attribute.name != "training_mode" for node in model.graph.node for attribute in node.attribute)
