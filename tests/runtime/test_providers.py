from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
import pytest

from gradfuse.graph import ConversionError, GradientGraph, InputError
from gradfuse.runtime import session
from gradfuse.runtime.optimizers import AdamW
from gradfuse.runtime.providers import onnxruntime_for, open_session
from gradfuse.runtime.session import TrainingSession
from gradfuse.runtime.step_graph import StepGraph

onnxruntime = pytest.importorskip("onnxruntime")


def test_a_missing_provider_says_which_exist_and_what_to_install(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(InputError) as error:
        onnxruntime_for("cuda")
    assert str(error.value) == (
        f"no CUDAExecutionProvider in the installed onnxruntime {onnxruntime.__version__};"
        " one of its providers: CPUExecutionProvider; pip uninstall onnxruntime-training-cpu,"
        " then pip install 'gradfuse[cuda]' (Linux, Python < 3.12)"
    )


def test_a_missing_onnxruntime_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"onnxruntime is not installed; pip install 'gradfuse\[train\]'"):
        onnxruntime_for("cpu")


def test_large_constants_are_read_where_they_lie(model, monkeypatch):
    """A graph that has them inside would compute with the old values."""
    monkeypatch.setattr("gradfuse.runtime.providers._IN_MEMORY", 0)
    monkeypatch.setattr("gradfuse.graph.rewriting.is_large", lambda tensor, above: tensor.size > 100)
    onnx, x = model("mlp").onnx.clone(), np.ones((3, 64), np.float32)
    for value in onnx.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    opened, results = open_session(onnx, threads=1), []
    for scale in (1, 2):
        onnx.graph.initializers["fc2_weight"].const_value.numpy()[...] *= scale
        binding = opened.binding()
        binding.bind_cpu_input("x", x)
        binding.bind_output("y")
        opened.run(binding)
        results.append(binding.copy_outputs_to_cpu()[0])
    bias = onnx.graph.initializers["fc2_bias"].const_value.numpy()
    np.testing.assert_allclose(results[1] - bias, 2 * (results[0] - bias), rtol=1e-4, atol=1e-6)


def test_a_tensor_that_turns_out_empty_does_not_end_the_process():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20]>
        g (float[batch, 3] x, int64[1] n) => (float y) <int64[1] zero = {0}> {
            h = Slice (x, zero, n, zero) y = ReduceMax <keepdims = 0> (h)
        }""")
    opened = open_session(model, threads=1)
    binding = opened.binding()
    binding.bind_cpu_input("x", np.ones((2, 3), np.float32))
    binding.bind_cpu_input("n", np.zeros(1, np.int64))
    binding.bind_output("y")
    with pytest.raises(ConversionError, match="no elements in 'h', which ReduceMax"):
        opened.run(binding)


class DeviceMemory:
    """Makes OrtValues as on a device: copies, which only an update reaches."""

    @staticmethod
    def ortvalue_from_numpy(array, device):
        return onnxruntime.OrtValue.ortvalue_from_numpy(array if device == "cpu" else array.copy(), "cpu")


class Device:
    """onnxruntime with a device whose memory the host cannot see."""

    OrtValue = DeviceMemory
    set_seed = staticmethod(onnxruntime.set_seed)


@pytest.mark.parametrize("name", ["mlp", "dropout"])
def test_no_step_needs_the_host_to_see_device_memory(name, model, examples, monkeypatch):
    step, data = StepGraph.of(GradientGraph.of(model(name)), AdamW()), examples(64)
    batches = [np.arange(32), np.arange(32, 64), np.arange(10)]
    on_cpu = TrainingSession(step, data, threads=1)
    expected = [on_cpu.run(batch, 0.01 / (1 + number), number) for number, batch in enumerate(batches)]
    monkeypatch.setattr(session, "onnxruntime_for", lambda device: Device)
    monkeypatch.setattr(
        session,
        "open_session",
        lambda graph, device, threads, **options: open_session(graph, "cpu", threads, **options),
    )
    on_device = TrainingSession(step, data, "cuda", threads=1)
    assert [
        on_device.run(batch, 0.01 / (1 + number), number) for number, batch in enumerate(batches)
    ] == expected
    for name, value in on_cpu.copy_state().items():
        np.testing.assert_array_equal(on_device.copy_state()[name], value)
