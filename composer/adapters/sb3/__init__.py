"""Models as policies of Stable-Baselines3 and sb3-contrib (extra `sb3`)."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["POLICIES", "UpdateNormalizers", "agent", "wrap"]

if TYPE_CHECKING:
    from composer.adapters.sb3.agents import POLICIES, UpdateNormalizers, agent, wrap
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {"agents": "POLICIES UpdateNormalizers agent wrap"},
    )
