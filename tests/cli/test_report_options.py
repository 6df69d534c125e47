"""The options of `gradfuse report` and the probe of `gradfuse train`."""

import json

import numpy as np
import pytest


def report(gradfuse, *arguments):
    code, out, _ = gradfuse("report", *arguments, "--format", "json")
    return code, json.loads(out)


def test_probe_measures_and_decides(gradfuse, write_model):
    code, found = report(gradfuse, write_model(), "--probe")
    assert code == 0
    assert found["summary"]["basis"] == "measured"
    assert all(e["measured_grad_rms"] is not None for e in found["profile"] if e["kind"] == "parameter")


def test_data_gives_statistics_without_a_probe(gradfuse, write_model, write_data):
    loud = write_data(lambda arrays: arrays.update(x=arrays["x"] * 1e4), name="loud.npz")
    code, found = report(gradfuse, write_model(), "--data", loud)
    assert code == 1
    assert found["summary"]["basis"] == "predicted"
    assert found["probe"] is None
    assert found["assumptions"]["labels"] == "by frequency"
    code, found = report(gradfuse, write_model(), "--data", loud, "--probe")
    assert (code, found["probe"]["inputs"]) == (1, "the data")


def test_statistics_are_a_number_several_or_a_file(gradfuse, refused, write_model, tmp_path):
    np.save(tmp_path / "mean.npy", np.arange(4.0))
    (tmp_path / "variance.txt").write_text("1\n2\n3\n4\n")
    _, found = report(
        gradfuse,
        write_model(),
        "--input-mean",
        tmp_path / "mean.npy",
        "--input-variance",
        tmp_path / "variance.txt",
    )
    assert found["assumptions"]["input"] == "N(1.5,2.5) on average"
    _, found = report(gradfuse, write_model(), "--input-mean", "0.5", "--label-frequencies", "2,1,1")
    assert found["assumptions"]["input"] == "N(0.5,1)"
    assert "one number, or one for each channel" in refused("report", write_model(), "--input-mean", "1,2")
    assert "--input-mean 'much'" in refused("report", write_model(), "--input-mean", "much")


def test_a_threshold_turns_the_build_red(gradfuse, refused, write_model):
    code, found = report(gradfuse, write_model(), "--threshold", "GF101.norm=0.01")
    assert (code, found["summary"]["verdict"]) == (1, "explodes")
    assert "a name and a number" in refused("report", write_model(), "--threshold", "GF101.norm")
    assert "unknown threshold" in refused("report", write_model(), "--threshold", "GF101.size=1")
    assert "unknown precision" in refused("report", write_model(), "--precision", "int4")


@pytest.mark.parametrize(("options", "probed"), [((), True), (("--no-probe",), False)])
def test_train_probes_before_it_starts(gradfuse, write_model, write_data, tmp_path, options, probed):
    command = [
        "train",
        write_model(),
        "--data",
        write_data(),
        "--out",
        tmp_path / "run",
        "--epochs",
        "1",
        *options,
    ]
    code, out, _ = gradfuse(*command)
    assert code == 0
    assert out.startswith("probe: loss ") is probed


def test_train_says_that_gradients_explode(gradfuse, write_model, write_data, tmp_path):
    wild = write_model(scale=1e4, name="wild.onnx")
    _, out, _ = gradfuse("train", wild, "--data", write_data(), "--out", tmp_path / "run", "--epochs", "1")
    assert "gradfuse report says why" in out.splitlines()[1]


ANY_SIZE = """
<ir_version: 10, opset_import: ["" : 18]>
net (float[batch, 3, height, width] x) => (float[batch, 4] y) {
    c = Conv (x, w1)
    p = GlobalAveragePool (c)
    f = Flatten (p)
    y = MatMul (f, w2)
}
"""


@pytest.mark.parametrize("options", [[], ["--probe"]])
def test_an_image_of_any_size_needs_a_shape(gradfuse, refused, write_model, options):
    path = write_model(ANY_SIZE, [("w1", (5, 3, 3, 3)), ("w2", (5, 4))])
    line = refused("report", path, *options)
    assert "float[batch, 3, height, width]" in line
    assert "--input-shape" in line
    small, large = (
        {entry["tensor"]: entry["grad_rms"] for entry in found["profile"]}
        for _, found in (
            report(gradfuse, path, "--input-shape", shape, *options) for shape in ("3x8x8", "3x32x32")
        )
    )
    assert small["w1"] > 2 * large["w1"]


def test_training_says_that_no_parameter_receives_a_gradient(gradfuse, write_model, write_data, tmp_path):
    data = ["--data", write_data(), "--epochs", "1", "--out"]
    _, out, _ = gradfuse("train", write_model(scale=0.0), *data, tmp_path / "none")
    assert "no parameter receives a gradient, and nothing will be learnt" in out
    _, out, _ = gradfuse("train", write_model(), *data, tmp_path / "some")
    assert "nothing will be learnt" not in out
