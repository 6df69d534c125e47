"""The command line: each command parses its arguments, calls the Python API and prints; no command holds logic of its own.

Exit codes: 0 clean, 1 findings at or above `--fail-on`, 2 the tool could not do its work.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

import typer

from .compare import compare
from .convert import convert
from .doctor import doctor
from .explain import explain
from .fuse import fuse
from .guard import run_guarded
from .late import import_late
from .report import report
from .train import train

__all__ = ["app", "main", "run"]

_ALLOCATIONS = 100_000
"""Objects from which on garbage is looked for among them; Python's own number is 700."""

app = typer.Typer(
    name="gradfuse",
    help="Train PyTorch and Keras models on ONNX Runtime; know beforehand where their gradients will explode.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (convert, report, fuse, train, compare, explain, doctor):
    app.command()(command)


def run() -> int:
    """Run the command that this process was started with; a crash of native code becomes one line and exit code 2."""
    # Modules and graphs live until the end: to look for garbage among them, over and over, is a tenth of a report's time.
    gc.set_threshold(_ALLOCATIONS)
    import_late()
    return run_guarded(main)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None for that of this process.

    Returns:
        The exit code.
    """
    try:
        return app(arguments, standalone_mode=False) or 0
    except typer.TyperException as error:
        return _refuse(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # Whoever read our output has closed it; what Python would flush at exit has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "GRADFUSE_TRACEBACK" in os.environ:
            raise
        return _refuse(_describe(error))


def _describe(error: Exception) -> str:
    from ..graph.errors import GradfuseError

    if isinstance(error, GradfuseError):
        return str(error)
    return (
        f"internal error, {type(error).__name__}: {error}; "
        "this is a bug in gradfuse: please report it with the output under GRADFUSE_TRACEBACK=1"
    )


def _refuse(message: str) -> int:
    print("gradfuse:", " ".join(message.split()), file=sys.stderr)
    return 2
