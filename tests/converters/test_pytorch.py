import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from gradfuse.converters import convert, from_pytorch
from gradfuse.converters.pytorch import example_for
from gradfuse.graph import (
    ConversionError,
    GradientGraph,
    InputError,
    TrainableModel,
    UnsupportedError,
    evaluate,
)
from gradfuse.graph.model import FROZEN, UNBIASED_VARIANCE
from gradfuse.graph.source import source_layer
from gradfuse.models import mlp


class Mixed(nn.Module):
    """Everything that a converter can lose: BatchNorm, dropout, shared, frozen and unused weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4, momentum=0.3)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.drop = nn.Dropout(0.25)
        self.fc = nn.Linear(64, 8)
        self.frozen_bn = nn.BatchNorm1d(8)
        self.frozen_drop = nn.Dropout(0.5)
        self.first = nn.Linear(8, 8, bias=False)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(3, 3)
        self.fc.bias.requires_grad_(False)

    def forward(self, x):
        h = torch.relu(self.plain(torch.relu(self.bn(self.conv(x)))))
        h = self.drop(nn.functional.max_pool2d(h, 2).flatten(1))
        h = self.frozen_drop(self.frozen_bn(self.fc(h)))
        return nn.functional.dropout(self.second(torch.tanh(self.first(h))), 0.1, self.training)


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    module = Mixed().train()
    module.frozen_bn.eval()
    module.frozen_drop.eval()
    for bn in (module.bn, module.plain, module.frozen_bn):
        bn.running_mean.uniform_(-1, 1)
        bn.running_var.uniform_(0.5, 2)
    return module


@pytest.fixture(scope="module")
def conversion(module):
    return convert(module, example_input=(1, 8, 8))


@pytest.fixture(scope="module")
def model(conversion):
    return conversion.model


def nodes(model, op_type):
    return [node for node in model.onnx.graph if node.op_type == op_type]


def test_outputs_gradients_and_statistics_agree_with_autograd(conversion):
    assert conversion.parity.error <= conversion.parity.tolerance
    assert conversion.parity.compared == 1 + 9 + 4 + 1


def test_parameters_keep_their_names_and_values(module, model):
    expected = {name: p for name, p in module.named_parameters() if p.requires_grad and "unused" not in name}
    assert set(model.parameters) == set(expected)
    for name, parameter in expected.items():
        np.testing.assert_array_equal(
            model.onnx.graph.initializers[name].const_value.numpy(), parameter.detach()
        )


def test_frozen_parameters_are_kept_but_do_not_train(model):
    assert "fc.bias" in model.onnx.graph.initializers
    assert "fc.bias" not in model.parameters


def test_shared_weights_are_one_parameter_under_the_first_name(model):
    assert "first.weight" in model.parameters
    assert "second.weight" not in model.onnx.graph.initializers


def test_the_model_shares_no_memory_with_the_module():
    source = nn.Linear(3, 2)
    model = from_pytorch(source, torch.zeros(2, 3))
    before = model.onnx.graph.initializers["weight"].const_value.numpy().copy()
    source.weight.data.zero_()
    np.testing.assert_array_equal(model.onnx.graph.initializers["weight"].const_value.numpy(), before)


def test_batchnorm_is_alive_with_its_momentum_and_marks(model):
    trained, plain, frozen = nodes(model, "BatchNormalization")
    assert trained.attributes["momentum"].value == pytest.approx(0.7)
    assert plain.attributes["momentum"].value == pytest.approx(0.9)
    assert [value.name for value in trained.inputs[1:]] == [
        "bn.weight",
        "bn.bias",
        "bn.running_mean",
        "bn.running_var",
    ]
    assert [UNBIASED_VARIANCE in node.metadata_props for node in (trained, plain, frozen)] == [
        True,
        True,
        False,
    ]
    assert [FROZEN in node.metadata_props for node in (trained, plain, frozen)] == [False, False, True]
    assert model.state == ("bn.running_mean", "bn.running_var", "plain.running_mean", "plain.running_var")


def test_dropout_is_alive_in_inference_form(model):
    layer, functional = nodes(model, "Dropout")
    assert [len(node.inputs) for node in (layer, functional)] == [2, 2]
    ratios = [ir.convenience.get_const_tensor(node.inputs[1]).numpy() for node in (layer, functional)]
    np.testing.assert_allclose(ratios, [0.25, 0.1])


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size_gives_what_the_module_in_eval_mode_gives(module, model, batch):
    x = torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
    modes = {layer: layer.training for layer in module.modules()}
    expected = module.eval()(x).detach().numpy()
    for layer, mode in modes.items():
        layer.training = mode
    (output,) = evaluate(model.onnx, {"x": x.numpy()}).values()
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_running_statistics_move_as_in_pytorch(model, module):
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    results = evaluate(GradientGraph.of(model).onnx, {"x": x.numpy(), "target": np.zeros(6, np.int64)})
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    torch.func.functional_call(module, buffers, (x,))
    for name in model.state[:2]:  # those before the first dropout
        np.testing.assert_allclose(results[f"{name}_new"], buffers[name], rtol=1e-5, atol=1e-6)
        assert not np.allclose(results[f"{name}_new"], module.get_buffer(name))


def test_the_module_stays_as_it_was():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval()
    module[2].train()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [layer.training for layer in module.modules()]
    random = torch.get_rng_state()
    convert(module)
    assert [layer.training for layer in module.modules()] == modes
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_module_in_eval_mode_as_a_whole_is_converted_as_it_trains():
    model = from_pytorch(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).eval(), torch.zeros(2, 4)
    )
    assert model.state == ("1.running_mean", "1.running_var")
    assert len(nodes(model, "Dropout")) == 1


def test_nodes_know_their_layer_and_nothing_of_the_machine(model):
    assert {source_layer(node) for node in nodes(model, "Gemm")} == {"fc", "first", "second"}
    text = ir.serde.serialize_model(model.onnx).SerializeToString()
    for debris in (b"pkg.torch", b".py", b"File ", b"site-packages"):
        assert debris not in text


@pytest.mark.parametrize("opset", [18, 21])
def test_the_file_is_valid_and_no_newer_than_onnxruntime_training_reads(opset, tmp_path):
    model = from_pytorch(mlp.pytorch(), torch.zeros(2, 64), opset=opset)
    path = model.save(tmp_path / "m.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    proto = onnx.load(path)
    assert proto.ir_version <= 10
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [opset]
    assert TrainableModel.load(path).parameters == ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


def test_several_inputs_share_the_batch():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.fc = nn.Embedding(5, 3), nn.Linear(3, 1)

        def forward(self, tokens, x):
            return self.fc(self.table(tokens).mean(1) + x)

    conversion = convert(Two(), example_input=(np.full((2, 4), 4), np.zeros((2, 3))))
    assert [str(spec) for spec in conversion.model.inputs] == ["tokens int64[batch, 4]", "x float[batch, 3]"]
    assert conversion.parity.loss == "mse"


def test_attention_with_dropout_and_features_dropped_whole_agree_with_autograd():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout1d(0.2)
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True, activation="gelu")
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.layer(self.drop(x)).mean(1))

    conversion = convert(Encoder(), example_input=(3, 4))
    assert conversion.parity.error < 1e-4
    assert len(nodes(conversion.model, "Dropout")) == 5
    graph = GradientGraph.of(conversion.model).onnx
    whole = next(node for node in graph.graph if node.op_type == "Dropout")
    assert [dim if isinstance(dim, int) else dim.value for dim in whole.outputs[0].shape] == ["batch", 3, 1]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)), nn.FeatureAlphaDropout(0.2)),
            r"node .*\(layer 2\) draws random numbers",
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.RReLU()), "the RReLU layer '1' draws a slope for each number"),
        (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None)),
            "the BatchNorm1d layer '1' has momentum=None",
        ),
        (nn.Sequential(nn.Embedding(5, 4, max_norm=1)), "the Embedding layer '0' has max_norm"),
        (
            nn.Sequential(nn.Embedding(5, 4, scale_grad_by_freq=True)),
            "the Embedding layer '0' scales its gradient by frequencies",
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))),
            r"the forward of Sequential changes its buffer '1\.parametrizations\.weight\.0\._u'.*; .*; .*in eval mode",
        ),
    ],
)
def test_what_cannot_train_alike_is_refused(module, message):
    with pytest.raises(UnsupportedError, match=message):
        convert(module)


def test_a_quantised_module_is_refused():
    module = nn.Sequential(nn.Linear(4, 4), torch.ao.nn.quantized.Quantize(1.0, 0, torch.quint8))
    with pytest.raises(UnsupportedError, match=r"the Quantize layer '1' is quantised; .* floats"):
        convert(module)


def test_an_operator_that_the_exporter_lacks_is_named():
    class Pool(nn.Module):
        def forward(self, x):
            return nn.functional.fractional_max_pool2d(x, 2, output_size=2)

    with pytest.raises(
        ConversionError, match=r"cannot translate fractional_max_pool2d: .*; replace the operator"
    ):
        convert(Pool(), example_input=(3, 4, 4))


def test_what_forward_takes_by_star_are_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, first, *others):
            return self.fc(first) + sum(others)

    conversion = convert(Sum(), example_input=(np.zeros((2, 4)), np.zeros((2, 3)), np.zeros((2, 3))))
    assert [spec.dims for spec in conversion.model.inputs] == [("batch", 4), ("batch", 3), ("batch", 3)]


def test_alpha_dropout_keeps_mean_and_variance_and_is_nothing_in_inference():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.drop = nn.Parameter(torch.ones(4)), nn.AlphaDropout(0.4)

        def forward(self, x):
            return self.drop(x * self.scale)

    model = from_pytorch(Scaled(), torch.zeros(2, 4))
    x = np.random.default_rng(0).standard_normal((20000, 4)).astype(np.float32)
    (inferred,) = evaluate(model.onnx, {"x": x}).values()
    np.testing.assert_array_equal(inferred, x)
    trained = evaluate(GradientGraph.of(model, "output").onnx, {"x": x})[model.outputs[0].name]
    assert (abs(trained.mean()), trained.var()) == pytest.approx((0, 1), abs=0.03)
    a = (0.6 * (1 + 0.4 * 1.7580993**2)) ** -0.5
    dropped = np.isclose(trained, a * (0.4 - 1) * 1.7580993)
    assert dropped.mean() == pytest.approx(0.4, abs=0.01)
    np.testing.assert_allclose(trained[~dropped], a * (x[~dropped] + 0.4 * 1.7580993), rtol=1e-5, atol=1e-5)


def test_conversion_is_silent(capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from_pytorch(mlp.pytorch(), torch.zeros(2, 64))
    assert not caught
    assert capfd.readouterr() == ("", "")


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(x).view(2, 2)


class DataDependent(FixedBatch):
    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (FixedBatch(), (4,), r"the forward of FixedBatch works for one batch size only; .*x.flatten\(1\)"),
        (
            DataDependent(),
            (4,),
            r"torch.export refuses DataDependent at test_pytorch.py:\d+: Could not guard on data-dependent expression",
        ),
        (nn.Linear(4, 2), (3,), r"torch.export refuses Linear: .*; .*example input \[2, 3\]"),
    ],
)
def test_what_torch_refuses_is_one_line_with_advice(module, shape, message, capfd):
    with pytest.raises(ConversionError, match=message) as caught:
        convert(module, example_input=shape)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_unsupported_opset_is_refused():
    with pytest.raises(InputError, match="opset 17; 18 to 21"):
        from_pytorch(nn.Linear(2, 2), torch.zeros(2, 2), opset=17)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.ReLU(), nn.Linear(7, 2)), (2, 7)),
        (nn.Sequential(nn.LayerNorm((3, 5)), nn.Flatten()), (2, 3, 5)),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)), (2, 6)),
        (nn.Sequential(nn.Embedding(9, 3), nn.Flatten()), (2, 8)),
    ],
)
def test_the_input_shape_follows_from_the_first_layer(module, shape):
    assert example_for(module).shape == shape


def test_tokens_take_their_range_from_the_embedding():
    example = example_for(nn.Sequential(nn.Embedding(9, 3)), (5,))
    assert example.shape == (2, 5)
    assert example.max() == 8


def test_a_convolution_needs_an_example():
    with pytest.raises(
        InputError,
        match=r"does not follow from its first layer Conv2d; example_input, --input-shape as 1x28x28, or a callable",
    ):
        convert(nn.Sequential(nn.Conv2d(1, 2, 3)))


def test_the_gradient_of_a_while_loop_is_that_of_all_its_iterations():
    class Repeated(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            def again(i, y):
                return i + 1, self.fc(y).tanh()

            return torch.while_loop(lambda i, y: i < 3, again, (torch.tensor(0), x))[1]

    torch.manual_seed(0)
    module, x = Repeated(), torch.randn(3, 4)
    graph = GradientGraph.of(from_pytorch(module, x), "output")
    found = evaluate(graph.onnx, {graph.source.inputs[0].name: x.numpy()})
    y = x
    for _ in range(3):
        y = module.fc(y).tanh()
    (expected,) = torch.autograd.grad(y.mean(), module.fc.weight)
    np.testing.assert_allclose(found[graph.gradients["fc.weight"]], expected, rtol=1e-4, atol=1e-7)


class _Spread(nn.Module):
    def __init__(self, spread):
        super().__init__()
        self.fc, self.spread = nn.Linear(4, 4), spread

    def forward(self, x):
        return self.fc(x) * self.spread(x)


@pytest.mark.parametrize(
    ("spread", "taken_apart"),
    [
        (lambda x: (x * 1.0).clamp_(x.mean(), x.sum()), True),  # ours, writing in place
        (torch.std, True),  # ours, behind a composite
        (lambda x: x.clamp(x.mean(), x.sum()), True),  # ours
        (lambda x: x.flatten(1).std(1, keepdim=True), True),  # two composites
        (torch.sigmoid, False),
        (lambda x: torch.relu_(x * 1.0), False),  # the exporter's own pass takes the write away
        (nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.0)), False),
    ],
    ids=["write", "composite", "bounds", "composites", "nothing", "harmless write", "layers"],
)
def test_a_module_is_taken_apart_only_where_that_changes_something(spread, taken_apart, monkeypatch):
    calls, original = [], torch.export.ExportedProgram.run_decompositions

    def counted(program, *tables):
        calls.append(tables)
        return original(program, *tables)

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", counted)
    assert convert(_Spread(spread).eval(), example_input=np.ones((2, 4), np.float32)).parity
    assert len(calls) == 1 + taken_apart
