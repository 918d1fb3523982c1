"""A run of training: a spec, an environment and a trainer in, a folder with a trained model out."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["Outcome", "TRAINERS", "TrainingError", "resume", "train"]

if TYPE_CHECKING:
    from composer.training.session import Outcome, resume, train
    from composer.training.trainer import TRAINERS, TrainingError
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"session": "Outcome resume train", "trainer": "TRAINERS TrainingError"},
    )
