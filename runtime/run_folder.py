"""What a training writes into its folder, so that it can be looked at while it runs and go on after it was killed.

    run.json                  schema gradfuse-run/1: status (running, finished, diverged or interrupted), settings, parity
                              (what the comparison of model and source found, or that there was none), epoch, step,
                              diverged_at (number of the step whose loss was not finite, counting from 0, or null)
    metrics.jsonl             one line for each epoch, written when it ends: the fields of `EpochMetrics`, null for what is not
                              a finite number or was not measured; before them, as epoch 0, what a probe measured, if one did
    checkpoint.safetensors    the state after the last whole epoch, with epoch, step and settings as metadata
    model.onnx                the trained model for inference; only a training that finished has one

Every file but metrics.jsonl is replaced atomically. A line of metrics.jsonl is written before its checkpoint, and lines beyond
the checkpoint are dropped when the training goes on, so that a kill at any moment loses at most the epoch under way.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..graph.errors import InputError
from ..graph.files import atomic_path
from .optimizers import Array

__all__ = ["Checkpoint", "EpochMetrics", "RunFolder"]

_SCHEMA = "gradfuse-run/1"
_RUN, _METRICS, _CHECKPOINT = "run.json", "metrics.jsonl", "checkpoint.safetensors"
_MODEL, _WEIGHTS = "model.onnx", "model.onnx.data"


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of a training.

    Attributes:
        epoch: Its number, counting from 1.
        step: Number of steps since the training began, this epoch's included.
        learning_rate: Of the epoch's last step.
        first_loss: Loss of the epoch's first batch.
        train_loss: Mean over the examples, each batch before its update; None where it is not finite.
        train_accuracy: Share of right predictions; None where the loss knows no right and wrong.
        validation_loss: Mean over the examples held out, in inference form; None where there are none or it is not finite.
        validation_accuracy: Share of right predictions among them.
        gradient_norm: Largest norm of all gradients together, before the fuses on them; None where it is not finite.
        seconds: Time spent on training.
        fuse_bites: In how many of the epoch's steps each fuse changed a gradient, by its name.
    """

    epoch: int
    step: int
    learning_rate: float
    first_loss: float | None
    train_loss: float | None
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    gradient_norm: float | None
    seconds: float
    fuse_bites: Mapping[str, int]

    @property
    def decisive_loss(self) -> float | None:
        """The validation loss; without validation that of the training."""
        return self.train_loss if self.validation_loss is None else self.validation_loss


@dataclass(frozen=True)
class Checkpoint:
    """A training between two epochs.

    Attributes:
        state: Parameters, running statistics and what the optimizer remembers, by name.
        epoch: Number of epochs done.
        step: Number of steps done.
    """

    state: Mapping[str, Array]
    epoch: int
    step: int


class RunFolder:
    """The folder of one training.

    Args:
        path: The folder; made where it is missing.
        settings: All that the outcome depends on, as JSON values.
        parity: What the comparison of the model with its source found; empty where there was none.
        overwrite: Delete the run that the folder holds.
        resume: Go on with the run that the folder holds; without one, begin.

    Raises:
        InputError: The folder holds a run and neither is asked for, or that run has other settings, or it cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        *,
        parity: str = "",
        overwrite: bool = False,
        resume: bool = False,
    ) -> None:
        self.path, self._settings = Path(path), dict(settings)
        self._parity = parity or "not compared with its source"
        self._files = {name: self.path / name for name in (_RUN, _METRICS, _CHECKPOINT, _MODEL, _WEIGHTS)}
        holds_run = any(file.exists() for file in self._files.values())
        if holds_run and not (overwrite or resume):
            raise InputError(
                f"{path} holds another run",
                expected="an empty folder",
                remedy="--overwrite deletes it, --resume goes on with it",
            )
        self._checkpoint = None if overwrite else self._read_checkpoint()
        stale = self._files if self._checkpoint is None else (_MODEL, _WEIGHTS)
        for name in stale:
            self._files[name].unlink(missing_ok=True)
        self.write_status("running")

    @property
    def model(self) -> Path:
        """Where the trained model goes."""
        return self._files[_MODEL]

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Where the training goes on; None where it begins."""
        return self._checkpoint

    def take_history(self) -> list[EpochMetrics]:
        """The metrics of the epochs up to the checkpoint; later lines are dropped from the file."""
        lines = self._files[_METRICS].read_text(encoding="utf-8").splitlines() if self._checkpoint else []
        done = self._checkpoint.epoch if self._checkpoint else 0
        try:
            probed = lines[:1] if lines and json.loads(lines[0])["epoch"] == 0 else []
            kept = lines[: len(probed) + done]
            history = [EpochMetrics(**json.loads(line)) for line in kept[len(probed) :]]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{self._files[_METRICS]} is damaged", remedy="--overwrite begins anew"
            ) from error
        with atomic_path(self._files[_METRICS]) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        return history

    def append(self, metrics: EpochMetrics) -> None:
        """Add the line of an epoch."""
        with self._files[_METRICS].open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(metrics), allow_nan=False) + "\n")

    def append_probe(self, numbers: Mapping[str, float | None]) -> None:
        """Add the line of epoch 0."""
        with self._files[_METRICS].open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": 0, **numbers}, allow_nan=False) + "\n")

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""
        from safetensors.numpy import save_file

        facts = {"epoch": checkpoint.epoch, "step": checkpoint.step, "settings": self._settings}
        with atomic_path(self._files[_CHECKPOINT]) as temporary:
            save_file(dict(checkpoint.state), temporary, metadata={_SCHEMA: json.dumps(facts)})

    def write_status(self, status: str, **facts: Any) -> None:
        """Replace run.json."""
        content = {
            "schema": _SCHEMA,
            "status": status,
            **facts,
            "parity": self._parity,
            "settings": self._settings,
        }
        with atomic_path(self._files[_RUN]) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _read_checkpoint(self) -> Checkpoint | None:
        from safetensors import SafetensorError, safe_open

        path = self._files[_CHECKPOINT]
        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as file:
                facts = json.loads(file.metadata()[_SCHEMA])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
            checkpoint = Checkpoint(state, int(facts["epoch"]), int(facts["step"]))
            theirs = dict(facts["settings"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is no checkpoint, or a damaged one", remedy="--overwrite begins anew"
            ) from error
        self._check_settings(theirs)
        return checkpoint

    def _check_settings(self, theirs: Mapping[str, Any]) -> None:
        mine = json.loads(json.dumps(self._settings))
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                raise InputError(
                    f"the run in {self.path} has {name} {theirs.get(name)}, this one {mine.get(name)}",
                    expected="the same settings, since a run goes on exactly as it began",
                    remedy="use its settings, or --overwrite",
                )


def finite(number: float) -> float | None:
    """The number, or None where JSON cannot hold it."""
    return number if math.isfinite(number) else None
