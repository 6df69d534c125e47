"""The report: its contract, its renderers, its verdicts, and what it does with hostile names."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradfuse.analysis import FindingsError, RiskReport, TrainingSetup, analyse, probe
from gradfuse.analysis.moments import Assumptions
from gradfuse.graph import GradientGraph, InputError

from .analysis_networks import gradient_graph, mlp

KEYS = [
    "schema", "tool", "model", "assumptions", "summary", "probe", "profile", "attribution", "findings",
    "not_recomputed", "fuses", "fuse_plan",
]  # fmt: skip


def exploding() -> GradientGraph:
    torch.manual_seed(0)
    return gradient_graph(mlp(nn.ReLU, depth=14, gain=3.0), (16,))


def stable() -> GradientGraph:
    torch.manual_seed(0)
    return gradient_graph(mlp(nn.ReLU, depth=3, gain=math.sqrt(2.0)), (16,))


class Exponential(nn.Module):
    """Overflows float32 in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.exp(layer(x))
        return x


class LastState(nn.Module):
    """Classes from the last state of a recurrent layer that forgets."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNN(8, 16, batch_first=True)
        self.head = nn.Linear(16, 10)
        nn.init.orthogonal_(self.cell.weight_hh_l0, 0.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x)[0][:, -1])


@pytest.fixture(scope="module")
def explodes() -> RiskReport:
    return analyse(exploding())


@pytest.fixture(scope="module")
def overflows() -> RiskReport:
    torch.manual_seed(0)
    return analyse(gradient_graph(Exponential(), (16,)))


def parsed(report: RiskReport) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    document: dict[str, Any] = json.loads(report.render("json"), parse_constant=refuse)
    return document


def test_json_has_exactly_the_keys_of_the_schema(explodes: RiskReport) -> None:
    document = parsed(explodes)
    assert list(document) == KEYS
    assert document["schema"] == "gradfuse-report/1"
    summary = ["verdict", "risk", "log10_gain", "global_norm", "overflow", "overflow_phase", "basis"]
    assert list(document["summary"]) == summary
    assert document["probe"] is None
    profile = ["tensor", "kind", "depth", "grad_rms", "low", "high", "value_rms"]
    profile += ["measured_grad_rms", "measured_value_rms"]
    assert all(list(entry) == profile for entry in document["profile"])
    remedy = ["kind", "text", "gradfuse", "pytorch", "keras", "predicted_log10_gain"]
    remedy += ["predicted_global_norm", "cures"]
    finding = ["code", "severity", "node", "op_type", "phase", "message", "evidence", "remedies"]
    assert all(list(entry) == finding for entry in document["findings"])
    assert all(list(entry) == remedy for found in document["findings"] for entry in found["remedies"])
    assert all(
        list(entry) == ["name", "kind", "target", "threshold", "reason"] for entry in document["fuses"]
    )


def test_json_is_deterministic(explodes: RiskReport) -> None:
    assert explodes.render("json") == analyse(exploding()).render("json")


def test_infinite_numbers_are_null(overflows: RiskReport) -> None:
    document = parsed(overflows)
    assert document["summary"]["verdict"] == "explodes"
    assert document["summary"]["log10_gain"] is None
    assert document["profile"][0]["grad_rms"] is None


def test_the_parts_of_the_attribution_sum_to_the_whole(explodes: RiskReport) -> None:
    rows = parsed(explodes)["attribution"]
    parts = ("weight", "activation", "normalisation", "residual", "recurrence")
    for row in rows:
        assert row["log10_gain"] == pytest.approx(sum(row[part] for part in parts), abs=1e-4)
    assert sum(row["log10_gain"] for row in rows) == pytest.approx(explodes.summary.log10_gain, abs=1e-3)


def test_every_parameter_is_predicted_with_an_interval(explodes: RiskReport) -> None:
    predicted = {entry.tensor: entry for entry in explodes.profile if entry.kind == "parameter"}
    assert set(predicted) == {f"{index}.{part}" for index in range(0, 28, 2) for part in ("weight", "bias")}
    assert all(entry.low < entry.grad_rms < entry.high for entry in predicted.values())


def test_verdicts(explodes: RiskReport, relu_stack: Callable[..., GradientGraph]) -> None:
    assert (explodes.summary.verdict, explodes.summary.risk > 0.99) == ("explodes", True)
    report = analyse(stable())
    assert (report.summary.verdict, report.summary.risk < 0.2) == ("stable", True)
    assert analyse(relu_stack(10, 3.0**-0.5)).summary.verdict == "vanishes"


def test_risk_rises_with_the_gain(relu_stack: Callable[..., GradientGraph]) -> None:
    risks = [analyse(relu_stack(8, gain)).summary.risk for gain in (1.0, 1.6, 2.0, 2.5, 3.5)]
    assert risks == sorted(risks)
    assert risks[0] < 0.5 < risks[-1]


def test_check_raises_with_a_text_that_a_person_understands(explodes: RiskReport) -> None:
    with pytest.raises(
        FindingsError, match=r"EXPLODES.*\n(.*\n)+GF101 error: the gradient's RMS grows .*-fold"
    ) as caught:
        explodes.check(fail_on="error")
    assert isinstance(caught.value, AssertionError)
    analyse(stable()).check(fail_on="note")
    explodes.check(fail_on="never")


def test_unknown_severities_and_formats_are_refused(explodes: RiskReport) -> None:
    with pytest.raises(InputError, match="unknown severity 'fatal'; one of note, warning, error, never"):
        explodes.fails("fatal")
    with pytest.raises(InputError, match="unknown report format 'xml'; one of text, json"):
        explodes.render("xml")


def test_numbers_out_of_range_are_refused() -> None:
    graph = stable()
    with pytest.raises(InputError, match="batch size 0; at least 1"):
        analyse(graph, Assumptions(batch_size=0))
    with pytest.raises(InputError, match="input variance -1"):
        analyse(graph, Assumptions(variance=-1.0))
    with pytest.raises(InputError, match="learning rate 0; a positive number"):
        TrainingSetup(lr=0.0)
    with pytest.raises(InputError, match="momentum 1; a number in"):
        TrainingSetup(momentum=1.0)
    with pytest.raises(InputError, match="unknown precision 'int8'; one of float32, float16, bfloat16"):
        TrainingSetup(precision="int8")


def test_unknown_thresholds_are_refused() -> None:
    with pytest.raises(InputError, match=r"unknown threshold 'GF101.size'; one of GF101.growth"):
        analyse(stable(), thresholds={"GF101.size": 1.0})
    with pytest.raises(InputError, match=r"threshold GF101.growth=-1; a positive number"):
        analyse(stable(), thresholds={"GF101.growth": -1.0})


def test_the_report_says_whether_the_model_was_compared_with_its_source(explodes: RiskReport) -> None:
    assert "parity: not compared with its source" in explodes.render("text")
    compared = replace(explodes, model={**explodes.model, "parity": "3 arrays agree"})
    assert "parity: 3 arrays agree" in compared.render("text")


def test_text_fits_80_columns_and_says_the_verdict_first(explodes: RiskReport) -> None:
    lines = explodes.render("text").splitlines()
    assert lines[0].startswith("gradfuse: EXPLODES")
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("fuse plan") for line in lines)
    assert all(line.isascii() and line == line.rstrip() for line in lines)


def test_names_from_the_model_are_escaped() -> None:
    torch.manual_seed(0)
    graph = exploding()
    hostile = "[bold red]evil[/]\x1b[31m\r\nname"
    parameter = graph.source.onnx.graph.initializers["0.weight"]
    parameter.name = hostile
    model = type(graph.source)(
        graph.source.onnx, tuple(hostile if n == "0.weight" else n for n in graph.source.parameters)
    )
    report = analyse(GradientGraph.of(model))
    text = report.render("text")
    assert "\x1b" not in text
    assert "\r" not in text
    assert r"[bold red]evil[/]\x1b[31m\r\nname"[:20] in text
    assert hostile in {entry["tensor"] for entry in parsed(report)["profile"]}


def test_a_network_without_any_gradient_is_not_called_stable(text_graph):
    dead = np.full(16, -1e3, np.float32)
    graph = text_graph(
        "h = Gemm(x, w1, b)\n r = Relu(h)\n y = MatMul(r, w2)", given={"b": dead}, w1=(16, 16), w2=(16, 10)
    )
    report = analyse(graph)
    assert report.summary.global_norm == 0
    assert report.summary.verdict == "vanishes"


def test_a_loss_that_compares_the_classes_of_one_output_is_named(text_graph):
    body = "h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2)"
    graph = text_graph(body, y="float[batch,1]", loss="cross-entropy", w1=(16, 16), w2=(16, 1))
    report = analyse(graph)
    (finding,) = report.findings
    assert (report.summary.verdict, finding.code, finding.severity) == ("vanishes", "GF108", "warning")
    assert "the loss cross-entropy compares classes, and the model has one output" in finding.message
    assert "VANISHES - no parameter receives a gradient" in report.render().replace("\n", " ")


def test_what_shrinks_over_time_steps_stands_apart_from_what_shrinks_over_layers():
    torch.manual_seed(0)
    report = analyse(gradient_graph(LastState(), (12, 8)))
    text = report.render().replace("\n", " ")
    assert report.summary.verdict == "stable"
    assert report.summary.log10_gain < -2.0 < report.summary.log10_gain - report.summary.through_time
    assert re.search(
        r"growth 0\.\d+ from last layer to first and [\d.e-]+ from last time step to first", text
    )


def test_layers_that_vanish_are_a_warning_where_a_probe_measures_them_beside_a_recurrence():
    torch.manual_seed(0)
    module = LastState()
    with torch.no_grad():
        module.head.weight *= 1e-3
    graph = gradient_graph(module, (12, 8))
    report = analyse(graph, measurement=probe(graph, Assumptions()))
    assert [finding.severity for finding in report.findings if finding.code == "GF108"] == ["warning"]


def test_the_first_line_names_the_thresholds_in_force():
    report = analyse(stable(), thresholds={"GF101.growth": 30.0, "GF108.shrink": 50.0})
    text = report.render().replace("\n", " ")
    assert "gradients grow less than 30-fold and shrink less than 50-fold" in text
    assert parsed(report)["assumptions"]["thresholds"]["GF108.shrink"] == 50.0
