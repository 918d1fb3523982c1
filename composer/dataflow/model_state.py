"""Weights and optimisers of an experiment's models, as folders that any number of processes reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from composer.checkpoint.container import CheckpointError
from composer.dataflow.models import ExperimentModel
from composer.parallel.state import load, save

__all__ = ["load_states", "save_states"]


def save_states(models: Mapping[str, ExperimentModel], folder: str | Path) -> None:
    """Write each model, with its optimiser, as a folder of its name below ``folder``. Nothing is pickled.

    Raises CheckpointError where it cannot be written.
    """
    for name, model in models.items():
        save(Path(folder) / name, model.model, model.optimizer)


def load_states(models: Mapping[str, ExperimentModel], folder: str | Path) -> None:
    """Read what `save_states` wrote. Raises CheckpointError, which names the model, for what does not fit."""
    for name, model in models.items():
        try:
            load(Path(folder) / name, model.model, model.optimizer)
        except CheckpointError as error:
            raise CheckpointError(f"the model {name!r}: {error}") from error
