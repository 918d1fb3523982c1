"""Models as policies and critics of Tianshou (extra `tianshou`)."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["ComposedCritic", "ComposedPolicy", "critic", "policy"]

if TYPE_CHECKING:
    from composer.adapters.tianshou.models import ComposedCritic, ComposedPolicy, critic, policy
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__, {"models": "ComposedCritic ComposedPolicy critic policy"}
    )
