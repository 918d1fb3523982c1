"""What judges: critics of states and of actions, of one actor or of several, one file for each kind."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["CRITICS", "Critic", "CriticModule"]

if TYPE_CHECKING:
    from composer.critic.base import CRITICS, CriticModule
    from composer.critic.state import Critic
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"base": "CRITICS CriticModule", "state": "Critic"},
    )
