"""What a transfer rule says of a use of its op that it does not cover."""

from __future__ import annotations

__all__ = ["UnknownTransferError"]


class UnknownTransferError(Exception):
    """A rule does not cover this use of its op; the text says why, for the report."""
