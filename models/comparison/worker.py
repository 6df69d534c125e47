"""Runs the cells of one trainer in a process of its own: frameworks that share one slow each other down.

    python -m gradfuse.models.comparison.worker < job.json

The job holds the settings, the name of the trainer and those of the remedies. Each cell is one line of JSON on standard output
as soon as it is done; an error that the user can mend is the line {"error": ...}.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

from ...graph.errors import GradfuseError
from .cell import Settings, run_cell
from .networks import read_network
from .remedies import REMEDIES

__all__ = ["main"]


def main() -> None:
    """Run the job that standard input holds."""
    job = json.load(sys.stdin)
    # What frameworks print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    settings = Settings(**job["settings"])
    try:
        network = read_network(settings.network, settings.data, settings.loss)
        for remedy in REMEDIES:
            if remedy.name in job["remedies"]:
                cell = run_cell(settings, network, remedy, job["trainer"])
                print(json.dumps(dataclasses.asdict(cell)), file=answers, flush=True)
    except GradfuseError as error:
        print(json.dumps({"error": str(error)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
