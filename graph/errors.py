"""The one family of errors that gradfuse raises for what a user can mend.

Each error is a single line in three parts: what was wrong, what was expected, what to do. The command line prints that
line and exits with code 2; from Python it is an ordinary exception.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["ConversionError", "GradfuseError", "InputError", "ParityError", "UnsupportedError", "some"]


class GradfuseError(Exception):
    """A problem that the user can mend.

    Args:
        wrong: What was found, naming the file, node, parameter or value.
        expected: What was expected instead; may be empty where `wrong` says it all.
        remedy: What to do about it; may be empty.
    """

    def __init__(self, wrong: str, *, expected: str = "", remedy: str = "") -> None:
        self.wrong, self.expected, self.remedy = wrong, expected, remedy
        super().__init__("; ".join(_one_line(part) for part in (wrong, expected, remedy) if part))


class InputError(GradfuseError):
    """A file, data set, option or model is not what it should be."""


class UnsupportedError(GradfuseError):
    """An operator, attribute or element type has no gradient in gradfuse."""


class ConversionError(GradfuseError):
    """A framework's exporter refused the model, or lost a part of it."""


class ParityError(ConversionError):
    """A conversion computes something else than the model that it came from."""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def some(names: Iterable[str]) -> str:
    """The first few of many names, for the part of an error that says what was expected."""
    listed = list(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
