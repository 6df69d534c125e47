from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gradfuse.graph import ALL_PARAMETERS, Fuse, GradientGraph, insert_fuses
from gradfuse.runtime.optimizers import SGD, AdamW
from gradfuse.runtime.session import EvaluationSession, TrainingSession
from gradfuse.runtime.step_graph import EvaluationGraph, StepGraph

pytest.importorskip("onnxruntime")

OPTIMIZERS = {
    "sgd": (SGD(), "SGD", {}),
    "momentum": (SGD(0.9), "SGD", {"momentum": 0.9}),
    "nesterov": (SGD(0.9, nesterov=True), "SGD", {"momentum": 0.9, "nesterov": True}),
    "decay": (SGD(0.9, 0.01), "SGD", {"momentum": 0.9, "weight_decay": 0.01}),
    "adamw": (AdamW(), "AdamW", {}),
    "adamw-options": (
        AdamW(0.8, 0.95, 1e-6, 0.1),
        "AdamW",
        {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
}


def torch_twin(torch: ModuleType, name: str, initial: dict[str, Any]) -> Any:
    nn = torch.nn
    if name == "mlp":
        twin = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        layers = {"fc1": twin[0], "fc2": twin[2]}
    else:
        parts = [
            nn.Conv2d(1, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(96, 10),
        ]
        twin = nn.Sequential(*parts)
        layers = {"conv": twin[0], "bn": twin[1], "fc": twin[5]}
    for key, value in initial.items():
        layer, _, tensor = key.partition("_")
        getattr(layers[layer], tensor).data.copy_(torch.from_numpy(value.copy()))
    return twin


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_each_of_100_losses_is_that_of_torch(name, optimizer, model, examples):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    ours, kind, options = OPTIMIZERS[optimizer]
    x, y = examples(512, *((1, 8, 8) if name == "cnn" else (64,)))
    source = model(name)
    step = StepGraph.of(GradientGraph.of(source), ours)
    session = TrainingSession(step, (x, y), threads=1)
    twin = torch_twin(torch, name, {key: step.initial[key] for key in (*source.parameters, *source.state)})
    theirs = getattr(torch.optim, kind)(twin.parameters(), lr=0.01, **options)
    rng = np.random.default_rng(2)
    for _ in range(100):
        indices = rng.permutation(512)[:32]
        loss = torch.nn.functional.cross_entropy(
            twin(torch.from_numpy(x[indices])), torch.from_numpy(y[indices])
        )
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        assert session.run(indices, 0.01).loss == pytest.approx(loss.item(), rel=1e-4)
    if name == "cnn":
        state = session.copy_state()
        np.testing.assert_allclose(state["bn_running_var"], twin[1].running_var.numpy(), rtol=1e-4)
        np.testing.assert_allclose(
            state["bn_running_mean"], twin[1].running_mean.numpy(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", ["mlp", "dropout"])
def test_a_step_leaves_what_it_reads_untouched(name, model, examples):
    step = StepGraph.of(GradientGraph.of(model(name)), AdamW())
    session = TrainingSession(step, examples(64), threads=1)
    session.run(np.arange(32), 0.01)
    for _ in range(2):
        read, before = session.state, session.copy_state()
        session.run(np.arange(32), 0.01)
        written = session.copy_state()
        for key, value in read.items():
            np.testing.assert_array_equal(value.numpy(), before[key])
            assert (written[key] != before[key]).any()


def test_the_data_and_the_model_stay_as_they_are(model, examples):
    source, (x, y) = model("cnn"), examples(64, 1, 8, 8)
    weights = {
        name: source.onnx.graph.initializers[name].const_value.numpy().copy() for name in source.parameters
    }
    copies = x.copy(), y.copy()
    session = TrainingSession(StepGraph.of(GradientGraph.of(source), SGD(0.9)), (x, y), threads=1)
    for _ in range(3):
        session.run(np.arange(64), 0.1)
    np.testing.assert_array_equal(x, copies[0])
    np.testing.assert_array_equal(y, copies[1])
    for name, value in weights.items():
        np.testing.assert_array_equal(source.onnx.graph.initializers[name].const_value.numpy(), value)


def test_batches_of_another_size_take_their_turn(model, examples):
    """The state that a large batch leaves is the one that a small batch starts from."""
    step = StepGraph.of(GradientGraph.of(model("mlp")), SGD(0.9))
    x, y = examples(100)
    mixed, plain = (TrainingSession(step, (x, y), threads=1) for _ in range(2))
    batches = [np.arange(64), np.arange(64, 100), np.arange(36), np.arange(64)]
    results = [mixed.run(batch, 0.05) for batch in batches]
    for batch, result in zip(batches, results, strict=True):
        plain.load(plain.copy_state())
        assert plain.run(batch, 0.05) == result


def test_gradient_norm_is_taken_before_the_parameters_fuses(model, examples):
    gradients = GradientGraph.of(model("mlp"))
    fuses = [Fuse("value", "fc1_weight", 1e-3), Fuse("global-norm", ALL_PARAMETERS, 1e-3)]
    data = examples(64)
    norms = [
        TrainingSession(StepGraph.of(graph, SGD()), data, threads=1).run(np.arange(64), 0.1).gradient_norm
        for graph in (gradients, insert_fuses(gradients, fuses))
    ]
    assert norms[0] == norms[1] > 1e-2


def test_fused_steps_are_as_long_as_the_fuse_allows(model, examples):
    gradients = insert_fuses(GradientGraph.of(model("mlp")), [Fuse("global-norm", ALL_PARAMETERS, 1e-3)])
    step = StepGraph.of(gradients, SGD())
    session = TrainingSession(step, examples(64), threads=1)
    session.run(np.arange(64), 1.0)
    after = session.copy_state()
    moved = sum(((after[name] - step.initial[name]) ** 2).sum() for name in after)
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-2)


def test_dropout_follows_the_seed_and_the_step(model, examples):
    step = StepGraph.of(GradientGraph.of(model("dropout")), SGD())
    sessions = [TrainingSession(step, examples(64), threads=1, seed=seed) for seed in (0, 1)]

    def loss(seed: int, number: int) -> float:
        sessions[seed].load(step.initial)
        return sessions[seed].run(np.arange(64), 0.1, number).loss

    assert step.random
    assert loss(0, 1) == loss(0, 1)
    assert len({loss(seed, number) for seed in (0, 1) for number in (1, 2)}) == 4


def test_evaluation_uses_the_inference_form(model, examples):
    """Neither batch statistics nor dropout: one example has the loss that it has in company."""
    source, data = model("dropout"), examples(8)
    graph = EvaluationGraph.of(source, "cross-entropy")
    session = EvaluationSession(graph, data, threads=1)
    state = TrainingSession(StepGraph.of(GradientGraph.of(source), SGD()), data, threads=1).state
    together = session.run(np.arange(8), state)
    alone = [session.run(np.array([index]), state) for index in range(8)]
    assert together.loss == pytest.approx(np.mean([result.loss for result in alone]), rel=1e-5)
    assert together.correct == sum(result.correct for result in alone)


@pytest.mark.parametrize(
    ("loss", "target"),
    [("mse", np.float32), ("l1", np.float32), ("bce-with-logits", np.float32), ("output", None)],
)
def test_every_loss_trains(loss, target, model, examples):
    x, _ = examples(64)
    data = (x,) if target is None else (x, np.random.default_rng(0).integers(0, 2, (64, 10)).astype(target))
    session = TrainingSession(StepGraph.of(GradientGraph.of(model("mlp"), loss), SGD(0.9)), data, threads=1)
    losses = [session.run(np.arange(64), 0.05).loss for _ in range(20)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("optimizer", [SGD(0.9), AdamW()])
def test_models_in_double_precision_train(optimizer, model, examples):
    import onnx_ir as ir

    source, (x, y) = model("mlp"), examples(64)
    for value in (*source.onnx.graph.inputs, *source.onnx.graph.outputs):
        value.dtype = ir.DataType.DOUBLE
    for value in source.onnx.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float64), name=value.name)
        value.dtype = ir.DataType.DOUBLE
    data = (x.astype(np.float64), y)
    double = TrainingSession(StepGraph.of(GradientGraph.of(source), optimizer), data, threads=1)
    single = TrainingSession(StepGraph.of(GradientGraph.of(model("mlp")), optimizer), (x, y), threads=1)
    results = [(double.run(np.arange(64), 0.01), single.run(np.arange(64), 0.01)) for _ in range(5)]
    assert double.copy_state()["fc1_weight"].dtype == np.float64
    for ours, theirs in results:
        assert ours[:3] == pytest.approx(theirs[:3], rel=1e-4)


def test_correct_counts_predictions_before_the_update(model, examples):
    data = examples(64)
    source = model("mlp")
    session = TrainingSession(StepGraph.of(GradientGraph.of(source), SGD()), data, threads=1)
    weights = session.copy_state()
    hidden = np.maximum(data[0] @ weights["fc1_weight"].T + weights["fc1_bias"], 0)
    logits = hidden @ weights["fc2_weight"].T + weights["fc2_bias"]
    assert session.run(np.arange(64), 0.1).correct == (logits.argmax(1) == data[1]).sum()


@pytest.mark.parametrize("optimizer", [SGD(0.9), AdamW()])
def test_what_the_optimizer_remembers_never_turns_subnormal(optimizer, model, examples):
    """No gradient reaches the first weights from inputs that are zero."""
    x, y = examples(64)
    step = StepGraph.of(GradientGraph.of(model("mlp")), optimizer)
    session = TrainingSession(step, (0 * x, y), threads=1)
    memory = next(name for name in step.memory if name.startswith("fc1_weight"))
    state = {**step.initial, memory: np.full((32, 64), 1e-39, np.float32)}
    state[memory][0] = 1e-20
    for current in range(2):
        session.load(state)
        for _ in range(current):
            session.run(np.arange(64), 0.1)
        session.run(np.arange(64), 0.1, step=63)
        after = session.copy_state()[memory]
        assert (after[0] > 1e-21).all()
        assert (after[1:] == 0).all()


def test_a_large_state_takes_the_same_steps(model, examples, monkeypatch):
    step, data = StepGraph.of(GradientGraph.of(model("cnn")), AdamW()), examples(64, 1, 8, 8)
    usual = TrainingSession(step, data, threads=1)
    monkeypatch.setattr("gradfuse.runtime.session._LARGE_STATE", 0)
    large = TrainingSession(step, data, threads=1)
    for number in range(3):
        assert large.run(np.arange(64), 0.01, number) == usual.run(np.arange(64), 0.01, number)
    for name, array in usual.arrays().items():
        np.testing.assert_array_equal(large.arrays()[name], array)


@pytest.mark.parametrize("optimizer", [SGD(), SGD(0.9, 0.01), AdamW()], ids=["plain", "momentum", "adamw"])
def test_row_by_row_a_parameter_is_updated_to_the_same_values(optimizer, model, examples, monkeypatch):
    monkeypatch.setattr("gradfuse.runtime.step_graph._LARGE", 4 * 64 * 32)
    monkeypatch.setattr("gradfuse.runtime.step_graph._LONG", 2)
    gradients, data = GradientGraph.of(model("mlp")), examples(64)
    graphs = [StepGraph.of(gradients, optimizer, by_rows=by_rows) for by_rows in (True, False)]
    assert [sum(node.op_type == "Scan" for node in graph.onnx.graph) for graph in graphs] == [1, 0]
    rows, whole = (TrainingSession(graph, data, threads=1) for graph in graphs)
    for number in range(3):
        assert rows.run(np.arange(64), 0.01, number) == whole.run(np.arange(64), 0.01, number)
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(rows.arrays()[name], array)
