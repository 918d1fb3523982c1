"""Models as networks of rl_games (extra `rl-games`)."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["register"]

if TYPE_CHECKING:
    from composer.adapters.rl_games.models import register
else:
    __getattr__, __dir__ = lazy_attributes(__name__, {"models": "register"})
