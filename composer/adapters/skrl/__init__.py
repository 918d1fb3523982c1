"""Models as policy and value of skrl's agents (extra `skrl`)."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["Runner", "agent", "models"]

if TYPE_CHECKING:
    from composer.adapters.skrl.agents import agent
    from composer.adapters.skrl.composed import models
    from composer.adapters.skrl.runner import Runner
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__, {"agents": "agent", "composed": "models", "runner": "Runner"}
    )
