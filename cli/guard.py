"""Runs a command in a child process, so that the end of native code is told in one line.

A file that is overwritten while it is mapped ends a process, and so does the system where memory runs out, or a kernel of
onnxruntime that meets what it was not written for. Python cannot catch these. (The kernels known to end it on empty tensors are
kept from them: `graph/checks`.)
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["run_guarded"]

_PR_SET_PDEATHSIG = 1

_CRASHES = ("SIGFPE", "SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGKILL")


def run_guarded(command: Callable[[], int]) -> int:
    """Run `command`, and survive what it does not.

    In this process itself where the system cannot fork, and under GRADFUSE_TRACEBACK, for debuggers. The child returns from
    here too: whatever runs after it runs in both.

    Returns:
        The command's exit code; 2 where a crash ended it, 128 and the number of any other signal that did.
    """
    if not hasattr(os, "fork") or "GRADFUSE_TRACEBACK" in os.environ:
        return command()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _end_with_parent()
        return command()
    with _forwarding_to(child):
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _tell(signal.Signals(-code))


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _forwarding_to(child: int) -> Iterator[None]:
    """Pass on the signals that ask to stop. A terminal sends its own to both processes."""

    def forward(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT or not _in_foreground():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    heeded = [
        n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, forward) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether a terminal takes its interrupts to this process's group."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


def _tell(ended_by: signal.Signals) -> int:
    if ended_by.name not in _CRASHES:
        return 128 + ended_by
    why = (
        "the system ended it, most likely because memory ran out"
        if ended_by == signal.SIGKILL
        else "native code crashed, most likely an operator of onnxruntime on a tensor that it was not written for"
    )
    print(
        f"gradfuse: stopped by {ended_by.name}: {why}; nothing that was written before is lost",
        file=sys.stderr,
    )
    return 2
