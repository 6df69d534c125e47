"""`gradfuse explain`."""

from __future__ import annotations

from typing import Annotated

import typer


def explain(
    code: Annotated[str, typer.Argument(metavar="CODE", help="A rule's code, as GF101.", show_default=False)],
) -> None:
    """Explain a rule: what it sees, why that is bad, an example, the cure, references."""
    from ..analysis import explain as page

    typer.echo(page(code))
