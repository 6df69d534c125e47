"""The command line survives what native code does not: one line and exit code 2."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

EMPTY_AT_RUN_TIME = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[batch, 4] x) => (float[batch, 3] y)
<int64[1] zero = {0}, int64[1] one = {1}> {
    h = MatMul (x, w)
    least = ReduceMin <keepdims = 0> (h)
    number = Cast <to = 7> (least)
    none = Mul (number, zero)
    nothing = Slice (h, zero, none, one)
    turned = Transpose <perm = [1, 0]> (nothing)
    largest, place = TopK <axis = 1> (turned, one)
    s = ReduceSum <keepdims = 0> (largest)
    y = Add (h, s)
}
"""


def start(*command):
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_guarded(body):
    """A process that runs these statements as its guarded command."""
    lines = [
        "import os, signal, sys, time",
        "from gradfuse.cli.guard import run_guarded",
        "signal.signal(signal.SIGINT, signal.default_int_handler)",  # ignored where the tests run in the background
        "def command():",
        *(f"    {line}" for line in body.splitlines()),
        "sys.exit(run_guarded(command))",
    ]
    return start(sys.executable, "-c", "\n".join(lines))


def test_a_tensor_that_turns_out_empty_is_told_by_name(write_model, tmp_path):
    path = write_model(EMPTY_AT_RUN_TIME, weights=[("w", (4, 3))])
    process = start(sys.executable, "-m", "gradfuse", "convert", str(path), "-o", str(tmp_path / "out.onnx"))
    _, error = process.communicate()
    assert process.returncode == 2
    assert "no elements in 'turned', which TopK node" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.onnx").exists()


def test_a_crash_is_told_in_one_line():
    process = start_guarded("os.kill(os.getpid(), signal.SIGFPE)")
    error = process.communicate()[1]
    assert process.returncode == 2
    assert error.startswith("gradfuse: stopped by SIGFPE")
    assert error.count("\n") == 1


def test_memory_that_runs_out_is_told_in_one_line():
    process = start_guarded("os.kill(os.getpid(), signal.SIGKILL)")
    assert "memory" in process.communicate()[1]
    assert process.returncode == 2


def test_output_and_exit_code_of_a_command_pass_through():
    process = start_guarded("print('done')\nreturn 1")
    assert process.communicate() == ("done\n", "")
    assert process.returncode == 1


def test_an_interrupt_of_the_guard_reaches_the_command():
    body = (
        "try:\n    print('ready', flush=True)\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    return 130"
    )
    process = start_guarded(body)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130


def test_the_command_ends_with_its_guard():
    process = start_guarded("print(os.getpid(), flush=True)\ntime.sleep(60)")
    assert process.stdout.readline().strip().isdigit()
    process.kill()
    # The pipe closes when the last process that holds it has ended.
    process.communicate(timeout=20)
