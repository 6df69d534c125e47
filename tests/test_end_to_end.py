"""The main job across all rooms, judged by the frameworks: the same losses, the same trained model."""

import numpy as np
import onnxruntime
import pytest

import gradfuse
from gradfuse.converters import convert
from gradfuse.models import cnn, deep_mlp, mlp
from gradfuse.runtime import SGD, AdamW, StepGraph, TrainingSession, load_data

STEPS, BATCH = 100, 64


def draw_data():
    """Digits in a seeded order, enough of them for every step, grey in [0, 1].

    With a background of exactly 0 the windows of a max-pool tie exactly. With any other constant they differ by rounding, and
    which of them is the largest depends on the order in which a framework adds up.
    """
    examples = load_data("digits")
    rows = np.concatenate([np.random.default_rng(epoch).permutation(1797) for epoch in range(4)])[
        : STEPS * BATCH
    ]
    x = examples.inputs["x"].reshape(-1, 64)[rows]
    x = (x - x.min()) / (x.max() - x.min())
    return x.astype(np.float32), examples.target[rows].astype(np.int64)


def ours(module, optimizer, lr):
    model = convert(module).model
    step = StepGraph.of(gradfuse.GradientGraph.of(model), optimizer)
    session = TrainingSession(step, draw_data())
    return [session.run(np.arange(i * BATCH, (i + 1) * BATCH), lr, i).loss for i in range(STEPS)]


def pytorch_losses(module, optimizer, lr):
    import torch

    module.train()
    if isinstance(optimizer, SGD):
        native = torch.optim.SGD(module.parameters(), lr, momentum=optimizer.momentum)
    else:
        native = torch.optim.AdamW(module.parameters(), lr, weight_decay=optimizer.weight_decay)
    x, y = (torch.from_numpy(array) for array in draw_data())
    losses = []
    for i in range(STEPS):
        rows = slice(i * BATCH, (i + 1) * BATCH)
        native.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x[rows]), y[rows])
        loss.backward()
        native.step()
        losses.append(loss.item())
    return losses


def keras_losses(model, optimizer, lr):
    import keras

    if isinstance(optimizer, SGD):
        native = keras.optimizers.SGD(lr, momentum=optimizer.momentum)
    else:
        native = keras.optimizers.AdamW(
            lr, optimizer.weight_decay, optimizer.beta1, optimizer.beta2, epsilon=optimizer.eps
        )
    model.compile(native, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = draw_data()
    losses = []
    for i in range(STEPS):
        rows = slice(i * BATCH, (i + 1) * BATCH)
        model.reset_metrics()
        losses.append(float(model.train_on_batch(x[rows], y[rows])))
    return losses


PYTORCH = {"sgd": (SGD(0.9), 0.01), "adamw": (AdamW(), 1e-3)}
# Keras computes 1 - beta2^t in float32, which is 5e-5 off at the first step unless beta2 is a sum of few powers of two.
KERAS = {"sgd": (SGD(0.9), 0.01), "adamw": (AdamW(beta2=1 - 2.0**-7, epsilon_hat=True), 1e-3)}


def smooth_pytorch():
    """`cnn` without a kink."""
    import torch

    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def smooth_keras():
    """The same layers."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    convolutions = [
        layer
        for width in (16, 32)
        for layer in (
            layers.Conv2D(width, 3, padding="same"),
            layers.BatchNormalization(),
            layers.Activation("tanh"),
            layers.AveragePooling2D(2),
        )
    ]
    shaped = [keras.Input((64,)), layers.Reshape((8, 8, 1))]
    return keras.Sequential([*shaped, *convolutions, layers.Flatten(), layers.Dense(10)])


NETWORKS = {
    "mlp-pytorch": (mlp.pytorch, pytorch_losses, PYTORCH),
    "mlp-keras": (mlp.keras, keras_losses, KERAS),
    "smooth-cnn-pytorch": (smooth_pytorch, pytorch_losses, PYTORCH),
    "smooth-cnn-keras": (smooth_keras, keras_losses, KERAS),
}
KINKED = {
    "cnn-pytorch": (lambda: cnn.pytorch(dropout=0.0), pytorch_losses, PYTORCH),
    "cnn-keras": (lambda: cnn.keras(dropout=0.0), keras_losses, KERAS),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_of_100_losses_is_the_frameworks(network, optimizer):
    build, native, optimizers = NETWORKS[network]
    module = build()
    mine = ours(module, *optimizers[optimizer])
    theirs = native(module, *optimizers[optimizer])
    assert theirs[-1] < 0.6 * theirs[0]
    np.testing.assert_allclose(mine, theirs, rtol=1e-5)


@pytest.mark.parametrize("network", KINKED)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_losses_are_the_frameworks_until_rounding_decides_at_a_kink(network, optimizer):
    """A hundred thousand activations a step: sooner or later one lies within rounding of a ReLU's kink or a max-pool's tie.

    At which step depends on the processor. What it moves grows from step to step.
    """
    build, native, optimizers = KINKED[network]
    module = build()
    mine = ours(module, *optimizers[optimizer])
    theirs = native(module, *optimizers[optimizer])
    np.testing.assert_allclose(mine[:20], theirs[:20], rtol=1e-4)
    np.testing.assert_allclose(mine, theirs, rtol=0.05)


def test_keras_own_adamw_defaults_on_its_network():
    mine = ours(mlp.keras(), AdamW(epsilon_hat=True), 1e-3)
    np.testing.assert_allclose(mine, keras_losses(mlp.keras(), AdamW(), 1e-3), rtol=1e-4)


def predict(module, x):
    if hasattr(module, "state_dict"):
        import torch

        module.eval()
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy()
    return np.asarray(module(x, training=False))


@pytest.mark.parametrize(
    "build",
    [mlp.pytorch, mlp.keras, cnn.pytorch, cnn.keras],
    ids=lambda build: f"{build.__module__}.{build.__name__}",
)
def test_digits_are_learnt_and_the_weights_go_home(build, tmp_path):
    module = build()
    is_cnn = build.__module__.endswith("cnn")
    trained = gradfuse.train(module, "digits", out=tmp_path / "run", epochs=10)
    assert trained.history[-1].validation_accuracy >= (0.97 if is_cnn else 0.95)
    x = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx")
    (served,) = session.run(None, {session.get_inputs()[0].name: x})
    assert np.abs(served - predict(module, x)).max() > 1e-2
    trained.to_source(module)
    np.testing.assert_allclose(served, predict(module, x), atol=1e-5)


@pytest.mark.parametrize("build", [deep_mlp.pytorch, deep_mlp.keras])
def test_an_exploding_network_is_announced_fails_bare_and_stays_finite_fused(build):
    model = gradfuse.convert(build())
    report = gradfuse.analyse(model)
    assert report.summary.verdict == "explodes"
    with pytest.raises(AssertionError, match="GF101"):
        report.check(fail_on="error")
    bare = gradfuse.train(model, "digits", epochs=10)
    assert bare.diverged or bare.history[-1].train_loss > bare.history[0].first_loss
    fused = gradfuse.train(gradfuse.fuse(model, clip="auto"), "digits", epochs=10)
    assert not fused.diverged
    assert all(np.isfinite(array).all() for array in fused.weights.values())
    assert fused.history[-1].train_loss < fused.history[0].train_loss
