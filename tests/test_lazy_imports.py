"""Frameworks and runtimes are imported by the call that needs them, and by nothing else."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import pytest

HEAVY = ("torch", "tensorflow", "keras", "tf2onnx", "onnxruntime", "onnxscript", "sklearn", "pyarrow")

BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def model_file(tmp_path):
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    mlp (float[batch, 4] x) => (float[batch, 3] y) {
        h = Gemm <transB = 1> (x, w1)
        r = Relu (h)
        y = Gemm <transB = 1> (r, w2)
    }
    """
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    for name, shape in (("w1", (8, 4)), ("w2", (3, 8))):
        weight = generator.normal(0, 0.5, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    path = tmp_path / "mlp.onnx"
    onnx.save(model, path)
    return path


def test_help_imports_nothing_heavy():
    code = """
    import sys
    import gradfuse.cli
    gradfuse.cli.main(["--help"])
    heavy = {"torch", "tensorflow", "keras", "onnxruntime", "onnx", "onnx_ir", "numpy"} & set(sys.modules)
    assert not heavy, heavy
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "report" in result.stdout


def test_report_needs_neither_framework_nor_runtime(model_file):
    code = BLOCK + "import gradfuse.cli\nsys.exit(gradfuse.cli.main(sys.argv[1:]))"
    result = run_python(code, "report", str(model_file), "--format", "json", "--fail-on", "never")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["schema"] == "gradfuse-report/1"


def test_a_report_leaves_symbolic_arithmetic_to_those_who_need_it(model_file):
    code = """
    import sys
    from gradfuse.cli import late, main
    late.import_late()
    code = main(sys.argv[1:])
    assert "sympy.core" not in sys.modules
    import onnx_ir
    assert onnx_ir.SymbolicDim("n") * 2 + 1 == "2*n + 1"
    assert "sympy.core" in sys.modules
    sys.exit(code)
    """
    result = run_python(code, "report", str(model_file), "--fail-on", "never")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["convert", "gradfuse.models.mlp:pytorch", "-o", "out.onnx"], "gradfuse[torch]"),
        (["convert", "gradfuse.models.mlp:keras", "-o", "out.onnx"], "gradfuse[tensorflow]"),
    ],
)
def test_a_missing_framework_is_one_line_that_names_the_extra(arguments, extra, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = BLOCK + "import gradfuse.cli\nsys.exit(gradfuse.cli.main(sys.argv[1:]))"
    result = run_python(code, *arguments)
    assert result.returncode == 2
    assert extra in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_training_without_a_runtime_names_the_extra(model_file, tmp_path):
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((8, 4), np.float32), y=np.zeros(8, np.int64))
    code = BLOCK + "import gradfuse.cli\nsys.exit(gradfuse.cli.main(sys.argv[1:]))"
    result = run_python(code, "train", str(model_file), "--data", str(data), "--out", str(tmp_path / "run"))
    assert result.returncode == 2
    assert "gradfuse[train]" in result.stderr
    assert len(result.stderr.splitlines()) == 1
