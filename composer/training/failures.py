"""What goes wrong while a run runs, in words: weights that diverge, no memory, an environment in another process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from composer.distributions.base import NoNumberError
from composer.distributions.discrete import NoLegalChoiceError
from composer.errors import RefusedError
from composer.training.recorder import Recorder
from composer.training.telling import told_by_a_process
from composer.training.trainer import TrainingError
from perception_blocks.blocks.decoder import FullCacheError

__all__ = ["as_training_errors", "refuse_no_memory", "told"]

DIVERGED = 1e15  # weights above overflow in what is computed of them


@contextmanager
def as_training_errors(recorder: Recorder) -> Iterator[None]:
    """Tell in words what the model cannot act on, such as a mask that is all false, or weights that have diverged."""
    try:
        with told():
            yield
    except (NoLegalChoiceError, FullCacheError) as error:
        raise TrainingError(str(error)) from error
    except (MemoryError, RuntimeError, ValueError) as error:
        refuse_no_memory(error)
        if not isinstance(error, RefusedError) and (wrong := recorder.diverged(DIVERGED)):
            raise TrainingError(f"training has diverged: {wrong}") from error
        if "without overflow" in str(error):  # in a step of an optimiser
            raise TrainingError(
                f"the optimiser takes no step of this size ({error}); choose a lower learning_rate"
            ) from error
        if isinstance(error, NoNumberError):
            raise TrainingError(str(error)) from error
        raise


def refuse_no_memory(error: BaseException) -> None:
    """Raise TrainingError where memory was the reason: numpy's own error, or one of torch's."""
    text = str(error).strip()
    if isinstance(error, MemoryError) or re.search("can't allocate|out of memory", text):
        reason = text.partition("\n")[0] or "no memory is left"
        raise TrainingError(
            f"there is not enough memory ({reason}); choose fewer --envs, or smaller settings of the algorithm"
        ) from error


@contextmanager
def told() -> Iterator[None]:
    """Raise what an environment in another process has told as a TrainingError; its end is seen as another error."""
    try:
        yield
    except Exception as error:
        if (text := told_by_a_process()) is not None:
            raise TrainingError(text) from error
        raise
