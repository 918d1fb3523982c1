"""The numbers of a run as event files for TensorBoard, which Weights & Biases reads as well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from composer.training.trainer import TrainingError
from perception_blocks.registry import missing_extra

__all__ = ["EVENTS", "Events", "require_tensorboard"]

EVENTS = "tensorboard"  # the folder in a run's folder


def require_tensorboard() -> None:
    """Raise MissingExtraError where tensorboard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise missing_extra("--tensorboard", error, "train") from error


class Events:
    """Event files in the folder ``path``. What an earlier part of the run has written from ``first`` on is hidden."""

    def __init__(self, path: Path, first: int = 0) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._path = path
        try:
            self._writer = SummaryWriter(str(path), purge_step=first)
        except OSError as error:
            raise self._not_written(error) from error

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers by name after ``step`` steps or iterations; those that are not finite are left out."""
        try:
            for name, value in numbers.items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise self._not_written(error) from error

    def flush(self) -> None:
        """Bring all numbers to the disk. Raises TrainingError where they cannot be written."""
        try:
            self._writer.flush()
        except OSError as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> TrainingError:
        return TrainingError(f"{str(self._path)!r} cannot be written: {error.strerror or error}")
