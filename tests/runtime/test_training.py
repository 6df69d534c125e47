from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from gradfuse.graph import (
    ALL_PARAMETERS,
    Fuse,
    GradientGraph,
    InputError,
    TrainableModel,
    evaluate,
    insert_fuses,
)
from gradfuse.runtime import SGD, AdamW, Schedule, score, train

pytest.importorskip("onnxruntime")

DEADLY = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import numpy as np
from conftest import build
from gradfuse.graph import GradientGraph
from gradfuse.runtime import AdamW, Schedule, train

class Deadly(Schedule):
    def at(self, progress):
        if progress.step == {step}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().at(progress)

def die(metrics):
    if metrics.epoch == {epoch}:
        os.kill(os.getpid(), signal.SIGKILL)

data = np.load({data!r})
train(GradientGraph.of(build("dropout")), (data["x"], data["y"]), out={out!r}, epochs=4, batch_size=32,
      optimizer=AdamW(), schedule=Deadly(0.01, "cosine", warmup=3), on_epoch=die, threads=1)
"""


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def status(folder: Path) -> dict[str, object]:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize(
    ("step", "epoch"),
    [(17, 0), (-1, 1), (-1, 3)],
    ids=["within epoch 3", "first checkpoint", "before checkpoint 3"],
)
def test_a_killed_training_goes_on_to_the_bit(step, epoch, model, examples, tmp_path):
    """With Dropout, batch normalisation, AdamW and a cosine schedule."""
    x, y = examples(256)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    out = tmp_path / "killed"
    paths = {"folder": str(Path(__file__).parent), "data": str(tmp_path / "data.npz"), "out": str(out)}
    script = DEADLY.format(step=step, epoch=epoch, **paths)
    dead = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert status(out)["status"] == "running"
    assert not (out / "model.onnx").exists()
    options = {
        "epochs": 4,
        "batch_size": 32,
        "optimizer": AdamW(),
        "schedule": Schedule(0.01, "cosine", warmup=3),
        "threads": 1,
    }
    gradients = GradientGraph.of(model("dropout"))
    resumed = train(gradients, (x, y), out=out, resume=True, **options)
    straight = train(gradients, (x, y), out=tmp_path / "straight", **options)
    for name, weight in straight.weights.items():
        assert weight.tobytes() == resumed.weights[name].tobytes(), name
    for ours, theirs in zip(lines(out), lines(tmp_path / "straight"), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert (out / "model.onnx").read_bytes() == (tmp_path / "straight" / "model.onnx").read_bytes()
    assert status(out)["status"] == "finished"


def test_the_trained_model_is_an_inference_model_for_any_onnx_runtime(model, examples, tmp_path):
    x, y = examples(256, 1, 8, 8)
    result = train(GradientGraph.of(model("cnn")), (x, y), out=tmp_path, epochs=2, threads=1)
    written = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert [node.op_type for node in written.graph.node] == [node.op_type for node in model("cnn").onnx.graph]
    loaded = TrainableModel.load(tmp_path / "model.onnx")
    assert loaded.parameters == result.model.parameters
    for name, weight in result.weights.items():
        np.testing.assert_array_equal(loaded.onnx.graph.initializers[name].const_value.numpy(), weight)
    assert np.abs(result.weights["bn_running_mean"]).max() > 0
    logits = evaluate(loaded.onnx, {"x": x})["y"]
    assert score(result.model, (x, y)).accuracy == pytest.approx((logits.argmax(1) == y).mean())


def test_what_was_measured_before_the_first_step_is_epoch_0_of_the_metrics(model, examples, tmp_path):
    gradients, data = GradientGraph.of(model("mlp")), examples(64)
    options = {"out": tmp_path, "threads": 1, "probed": {"loss": 2.5, "gradient_norm": None}}
    train(gradients, data, epochs=1, **options)
    resumed = train(gradients, data, epochs=3, resume=True, **options)
    assert lines(tmp_path)[0] == {"epoch": 0, "loss": 2.5, "gradient_norm": None}
    assert lines(tmp_path)[1:] == [vars(metrics) for metrics in resumed.history]
    assert [metrics.epoch for metrics in resumed.history] == [1, 2, 3]


def test_metrics_say_how_the_training_went(model, examples, tmp_path):
    x, y = examples(100)
    seen = []
    result = train(
        GradientGraph.of(model("mlp")),
        (x, y),
        out=tmp_path,
        epochs=3,
        batch_size=32,
        schedule=Schedule(0.1, "exponential", decay=0.5),
        on_epoch=seen.append,
        threads=1,
    )
    assert (
        lines(tmp_path)
        == [vars(metrics) for metrics in result.history]
        == [vars(metrics) for metrics in seen]
    )
    assert [metrics.epoch for metrics in seen] == [1, 2, 3]
    assert [metrics.step for metrics in seen] == [3, 6, 9]  # 80 examples: two batches of 32 and one of 16
    assert [metrics.learning_rate for metrics in seen] == [0.1, 0.05, 0.025]
    assert seen[-1].train_loss < seen[0].train_loss
    assert 0 <= seen[0].validation_accuracy <= 1
    assert result.gradient_norm == max(metrics.gradient_norm for metrics in seen)
    assert status(tmp_path) | {"settings": None} == {
        "schema": "gradfuse-run/1",
        "status": "finished",
        "parity": "not compared with its source",
        "epoch": 3,
        "step": 9,
        "diverged_at": None,
        "settings": None,
    }


def test_a_training_that_diverges_stops_and_says_where(model, examples, tmp_path):
    x, y = examples(128)
    target = 1e3 * np.eye(10, dtype=np.float32)[y]
    (tmp_path / "model.onnx").touch()
    result = train(
        GradientGraph.of(model("mlp"), "mse"),
        (x, target),
        out=tmp_path,
        overwrite=True,
        batch_size=8,
        schedule=Schedule(1e3),
        threads=1,
    )
    assert result.diverged
    assert 0 < result.diverged_at < 20
    assert len(result.history) == 1
    assert result.gradient_norm == np.inf
    assert lines(tmp_path)[0]["train_loss"] is None
    assert status(tmp_path)["status"] == "diverged"
    assert status(tmp_path)["diverged_at"] == result.diverged_at
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_weights_that_the_last_update_breaks_count_as_diverged(validation, model, examples, tmp_path):
    x, y = examples(40)
    options = {"epochs": 1, "batch_size": 64, "validation": validation, "threads": 1}
    graph = GradientGraph.of(model("mlp"))
    result = train(graph, (x, y), out=tmp_path, schedule=Schedule(1e39), **options)
    assert result.diverged_at == 1
    assert not (tmp_path / "model.onnx").exists()


def test_an_interrupted_training_leaves_its_folder_in_order(model, examples, tmp_path):
    def interrupt(metrics):
        if metrics.epoch == 2:
            raise KeyboardInterrupt

    gradients, data = GradientGraph.of(model("mlp")), examples(128)
    with pytest.raises(KeyboardInterrupt):
        train(gradients, data, out=tmp_path, epochs=3, on_epoch=interrupt, threads=1)
    assert status(tmp_path)["status"] == "interrupted"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    resumed = train(gradients, data, out=tmp_path, epochs=3, resume=True, threads=1)
    assert [metrics.epoch for metrics in resumed.history] == [1, 2, 3]


def test_a_folder_with_a_run_is_not_touched(model, examples, tmp_path):
    gradients, data = GradientGraph.of(model("mlp")), examples(64)
    train(gradients, data, out=tmp_path, epochs=1, threads=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(
        InputError, match=r"holds another run; an empty folder; --overwrite deletes it, --resume"
    ):
        train(gradients, data, out=tmp_path, epochs=1, threads=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    train(gradients, data, out=tmp_path, epochs=2, overwrite=True, threads=1)
    assert len(lines(tmp_path)) == 2


def test_bad_data_leaves_no_folder(model, tmp_path):
    with pytest.raises(InputError, match="no such data"):
        train(GradientGraph.of(model("mlp")), "nowhere.npz", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_resuming_with_other_settings_is_refused(model, examples, tmp_path):
    gradients, data = GradientGraph.of(model("mlp")), examples(64)
    train(gradients, data, out=tmp_path, epochs=1, threads=1)
    with pytest.raises(InputError, match="has seed 0, this one 1"):
        train(gradients, data, out=tmp_path, epochs=2, seed=1, resume=True, threads=1)
    with pytest.raises(InputError, match="has data_sha256"):
        train(gradients, (data[0] + 1, data[1]), out=tmp_path, epochs=2, resume=True, threads=1)
    longer = train(gradients, data, out=tmp_path, epochs=2, resume=True, threads=1)
    assert len(longer.history) == 2


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_checkpoint_is_refused(content, model, examples, tmp_path):
    gradients, data = GradientGraph.of(model("mlp")), examples(64)
    train(gradients, data, out=tmp_path, epochs=1, threads=1)
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="no checkpoint, or a damaged one; --overwrite begins anew"):
        train(gradients, data, out=tmp_path, epochs=2, resume=True, threads=1)


def test_trains_to_the_seed_documents_accuracy_on_digits(model):
    pytest.importorskip("sklearn")
    result = train(GradientGraph.of(model("cnn")), "digits", epochs=10, schedule=Schedule(0.03), threads=1)
    assert result.history[-1].validation_accuracy >= 0.97


def test_the_source_model_keeps_its_weights(model, examples):
    source = model("mlp")
    before = source.onnx.graph.initializers["fc1_weight"].const_value.numpy().copy()
    result = train(GradientGraph.of(source), examples(64), epochs=1, threads=1)
    np.testing.assert_array_equal(source.onnx.graph.initializers["fc1_weight"].const_value.numpy(), before)
    assert (result.weights["fc1_weight"] != before).any()


def test_batch_normalisation_never_sees_a_single_example(model, examples):
    """65 examples in batches of 32 leave one over."""
    x, y = examples(65)
    result = train(
        GradientGraph.of(model("dropout")), (x, y), epochs=1, batch_size=32, validation=0.0, threads=1
    )
    assert result.history[0].step == 2
    assert not result.diverged
    with pytest.raises(InputError, match="since the model has batch normalisation"):
        train(GradientGraph.of(model("dropout")), (x, y), batch_size=1, threads=1)
    assert (
        train(GradientGraph.of(model("mlp")), (x, y), epochs=1, batch_size=1, threads=1).history[0].step == 52
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs 0; at least 1"),
        ({"batch_size": 0}, "batch size 0; at least 1"),
        ({"validation": 1.0}, "validation share 1; a number in [0, 1)"),
        ({"validation": 0.999}, "64 examples, 64 of them held out for validation; some to train on"),
        ({"device": "tpu"}, "unknown device 'tpu'; one of cpu, cuda"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message, model, examples):
    with pytest.raises(InputError) as error:
        train(GradientGraph.of(model("mlp")), examples(64), **options)
    assert str(error.value) == message


def test_losses_without_right_and_wrong_have_no_accuracy(model, examples):
    x, y = examples(64)
    target = np.eye(10, dtype=np.float32)[y]
    options = {"epochs": 1, "threads": 1, "optimizer": SGD()}
    mse = train(GradientGraph.of(model("mlp"), "mse"), (x, target), **options).history[0]
    assert mse.train_accuracy is mse.validation_accuracy is None
    bce = train(GradientGraph.of(model("mlp"), "bce-with-logits"), (x, target), **options).history[0]
    assert 0 <= bce.train_accuracy <= 1


def test_progress_goes_to_stderr_and_prints_to_stdout(model, examples, capsys):
    gradients, data = GradientGraph.of(model("mlp")), examples(64)
    train(
        gradients,
        data,
        epochs=1,
        progress=True,
        threads=1,
        on_epoch=lambda metrics: sys.stdout.write(f"epoch {metrics.epoch}\n"),
    )
    assert capsys.readouterr().out == "epoch 1\n"


def test_metrics_count_how_often_each_fuse_bit(model, examples, tmp_path):
    x, y = examples(100)
    fuses = [
        Fuse("value", "fc1_weight", 1e-6),
        Fuse("norm", "fc2_weight", 1e3),
        Fuse("quantile", ALL_PARAMETERS, 0.05),
    ]
    options = {"epochs": 4, "batch_size": 16, "threads": 1}
    gradients = insert_fuses(GradientGraph.of(model("mlp")), fuses)
    result = train(gradients, (x, y), out=tmp_path, **options)
    assert [sum(line["fuse_bites"].values()) >= 5 for line in lines(tmp_path)] == [True] * 4
    assert result.fuse_bites["fuse/fc1_weight"] == 1.0
    assert result.fuse_bites["fuse/fc2_weight"] == 0.0
    assert 0.0 < result.fuse_bites["fuse/global-norm"] < 1.0
    assert train(GradientGraph.of(model("mlp")), (x, y), **options).fuse_bites == {}


def test_fuses_that_remember_resume_to_the_bit(model, examples, tmp_path):
    def interrupt(metrics):
        if metrics.epoch == 3:
            raise KeyboardInterrupt

    fuses = [Fuse("quantile", "fc1_weight", 0.1), Fuse("zscore", ALL_PARAMETERS, 0.5)]
    gradients, data = insert_fuses(GradientGraph.of(model("dropout")), fuses), examples(200)
    options = {"epochs": 6, "batch_size": 16, "threads": 1, "schedule": Schedule(1e-4)}
    with pytest.raises(KeyboardInterrupt):
        train(gradients, data, out=tmp_path / "cut", on_epoch=interrupt, **options)
    resumed = train(gradients, data, out=tmp_path / "cut", resume=True, **options)
    straight = train(gradients, data, out=tmp_path / "straight", **options)
    assert min(straight.fuse_bites.values()) > 0
    assert resumed.fuse_bites == straight.fuse_bites
    for name, weight in straight.weights.items():
        assert weight.tobytes() == resumed.weights[name].tobytes(), name


def test_reduce_on_plateau_follows_the_validation_loss_through_a_resume(model, examples, tmp_path):
    def interrupt(metrics):
        if metrics.epoch == 4:
            raise KeyboardInterrupt

    schedule = Schedule(1.0, "reduce-on-plateau", decay=0.5, patience=0)
    gradients, data = GradientGraph.of(model("mlp")), examples(200)
    options = {"epochs": 8, "schedule": schedule, "threads": 1}
    with pytest.raises(KeyboardInterrupt):
        train(gradients, data, out=tmp_path, on_epoch=interrupt, **options)
    history = train(gradients, data, out=tmp_path, resume=True, **options).history
    best, rate = np.inf, 1.0
    for metrics in history:
        assert metrics.learning_rate == rate
        rate = rate if metrics.validation_loss < best * (1 - 1e-4) else rate / 2
        best = min(best, metrics.validation_loss)
    assert rate < 0.5
