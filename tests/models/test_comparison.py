import dataclasses
import json

import pytest

from gradfuse.graph import GradfuseError, InputError
from gradfuse.models import cnn, mlp, rnn
from gradfuse.models.comparison import (
    REMEDIES,
    TRAINERS,
    Cell,
    Comparison,
    compare,
    render,
    renderer_for,
)
from gradfuse.models.comparison.cell import Settings
from gradfuse.models.comparison.networks import read_network

SETTINGS = Settings("mlp", "digits", "cross-entropy", 1, 64, 0.01, 0.9, 0)


def cell(remedy, trainer, losses=(2.0, 1.0), **changes):
    known = {
        "verdict": "stable",
        "log10_gain": 0.5,
        "gradient_norm": 1.5,
        "diverged_at": None,
        "loss": 0.9,
        "accuracy": 0.5,
    }
    return Cell(remedy, trainer, losses=losses, milliseconds=1.0, **{**known, **changes})


def comparison(**losses):
    cells = [cell("none", trainer, losses.get(trainer.replace("-", "_"), (2.0, 1.0))) for trainer in TRAINERS]
    return Comparison(SETTINGS, {(c.remedy, c.trainer): c for c in cells})


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (mlp, [remedy.name for remedy in REMEDIES]),
        (
            cnn,
            ["none", "leaky-relu", "prelu", "exponential-decay", "cosine-decay", "clipping", "all four"],
        ),
        (rnn, ["none", "exponential-decay", "cosine-decay", "clipping"]),
    ],
    ids=["mlp", "cnn", "rnn"],
)
def test_a_network_takes_the_remedies_that_it_knows_and_does_not_have(module, names):
    assert [remedy.name for remedy in REMEDIES if remedy.changes(module.keras)] == names


def test_every_trainer_takes_the_same_steps_and_an_interrupted_comparison_goes_on(tmp_path):
    options = {"epochs": 1, "remedies": ["all four"], "out": tmp_path}
    found = compare("mlp", **options)
    assert [trainer for _, trainer in found.cells] == list(TRAINERS)
    for trainer in ("onnxruntime-pytorch", "onnxruntime-keras"):
        assert found.difference("all four", trainer) < 1e-5
    assert all(len(result.losses) == 23 for result in found.cells.values())
    assert [result.verdict for result in found.cells.values()] == ["stable", None, "stable", None]

    lines = (tmp_path / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cells.jsonl").write_text("".join(lines[:3]) + lines[3][:40])
    run = []
    again = compare(
        "mlp", **options, on_cell=lambda cell, done, total: run.append((cell.trainer, done, total))
    )
    assert run == [("keras", 4, 4)]
    assert again.cells["all four", "keras"].losses == found.cells["all four", "keras"].losses
    assert len((tmp_path / "cells.jsonl").read_text().splitlines()) == 4

    with pytest.raises(InputError, match=r"holds another comparison; .*; another folder, or --overwrite"):
        compare("mlp", **options | {"lr": 0.1})


def test_the_data_decide_the_options_that_a_network_has():
    flat = read_network("cnn", "digits", "cross-entropy")
    assert flat.x.shape == (1797, 64)
    assert flat.options == {"classes": 10, "inputs": 64, "size": 8}
    sequences = read_network("rnn", "gradfuse.models.adding:data", "mse")
    assert sequences.x.shape == (2000, 30, 2)
    assert sequences.options == {"outputs": 1, "length": 30, "inputs": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "dense"}, r"gradfuse.models.dense has no 'pytorch'"),
        ({"network": "nothing.here"}, r"nothing"),
        ({"remedies": ["prayer"]}, r"unknown remedy 'prayer'; one of none, leaky-relu"),
        ({"loss": "l1"}, r"loss 'l1'; cross-entropy or mse"),
        ({"batch_size": 1}, r"1 epochs in batches of 1; at least 1 epoch, and at least 2 examples"),
        ({"lr": 0.0}, r"learning rate 0; a number above 0"),
    ],
    ids=["no builder", "no module", "remedy", "loss", "batch size", "learning rate"],
)
def test_bad_input_is_one_line(options, message):
    with pytest.raises(GradfuseError, match=message):
        compare(**{"epochs": 1, **options})


def test_losses_are_compared_to_the_frameworks_own_until_one_is_not_finite():
    found = comparison(onnxruntime_pytorch=(2.0, 1.01), keras=(2.5, 1.0))
    assert found.difference("none", "pytorch") is None
    assert found.difference("none", "onnxruntime-pytorch") == pytest.approx(0.01)
    assert found.difference("none", "onnxruntime-keras") == pytest.approx(0.2)
    diverged = dataclasses.replace(
        found.cells["none", "onnxruntime-pytorch"], losses=(2.0, None), diverged_at=1
    )
    one_sided = Comparison(SETTINGS, {**found.cells, ("none", "onnxruntime-pytorch"): diverged})
    assert one_sided.difference("none", "onnxruntime-pytorch") == float("inf")


def test_the_terminal_markdown_and_html_show_every_cell(tmp_path):
    found = comparison()
    found.cells["none", "keras"] = cell("none", "keras", (3.0, None), diverged_at=1)
    text = render(found)
    assert "mlp on digits. SGD, learning rate 0.01" in text
    assert [text.count(kind.title) >= 1 for kind in TRAINERS.values()] == [True] * 4
    assert "█✕" in text
    markdown = renderer_for(tmp_path / "x.md")(found)
    assert "| none | ORT (PyTorch) | 3.16 stable | 1.5 |  | 0.9000 | 0.5000 |" in markdown
    html = renderer_for(tmp_path / "x.html")(found)
    assert "<td>ORT (Keras)</td>" in html
    with pytest.raises(InputError, match=r"cannot write a comparison as .*x.txt; a .md or .html file"):
        renderer_for(tmp_path / "x.txt")


def test_names_are_escaped_on_the_page(tmp_path):
    found = Comparison(dataclasses.replace(SETTINGS, network="<script>alert(1)</script>"), comparison().cells)
    html = renderer_for(tmp_path / "x.html")(found)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


def test_what_is_written_is_json(tmp_path):
    record = json.loads(json.dumps(dataclasses.asdict(cell("none", "keras", (1.0, None)))))
    assert record["losses"] == [1.0, None]
