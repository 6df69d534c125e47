import numpy as np
import onnx
import pytest

from gradfuse.cli import main

MLP = """
<ir_version: 10, opset_import: ["" : 18]>
mlp (float[batch, 4] x) => (float[batch, 3] y) {
    [first] h = Gemm <transB = 1> (x, w1)
    [act] r = Relu (h)
    [second] y = Gemm <transB = 1> (r, w2)
}
"""


@pytest.fixture
def write_model(tmp_path):
    """Write ONNX text as a file, with random weights of these shapes and standard deviation."""

    def write(text=MLP, weights=(("w1", (8, 4)), ("w2", (3, 8))), scale=0.5, name="mlp.onnx"):
        model = onnx.parser.parse_model(text)
        generator = np.random.default_rng(0)
        for weight, shape in weights:
            array = generator.normal(0, scale, shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, weight))
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return write


@pytest.fixture
def write_data(tmp_path):
    """Write 64 separable examples; `change` may spoil them."""

    def write(change=None, name="data.npz"):
        generator = np.random.default_rng(0)
        y = generator.integers(0, 3, 64)
        x = (np.eye(3, 4)[y] + generator.normal(0, 0.1, (64, 4))).astype(np.float32)
        arrays = {"x": x, "y": y}
        if change is not None:
            change(arrays)
        path = tmp_path / name
        np.savez(path, **arrays)
        return path

    return write


@pytest.fixture
def gradfuse(capsys):
    """Run a command; returns exit code, standard output and standard error."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(gradfuse):
    """Run a command that must fail with exit code 2 and one line on standard error; returns that line."""

    def run(*arguments):
        code, out, err = gradfuse(*arguments)
        assert code == 2, (out, err)
        assert len(err.splitlines()) == 1
        assert "Traceback" not in err
        assert "internal error" not in err
        return err

    return run
