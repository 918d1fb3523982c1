"""`composer train --trainer composer`: PPO for several actors (MAPPO, IPPO) on PettingZoo's parallel environments."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["ActorsTrainer", "Settings"]

if TYPE_CHECKING:
    from composer.training.actors.settings import Settings
    from composer.training.actors.trainer import ActorsTrainer
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__, {"settings": "Settings", "trainer": "ActorsTrainer"}
    )
