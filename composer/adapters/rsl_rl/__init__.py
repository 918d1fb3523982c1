"""Models as actors and critics of rsl_rl (extra `rsl-rl`)."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = ["Actor", "Critic", "vector_env"]

if TYPE_CHECKING:
    from composer.adapters.rsl_rl.environments import vector_env
    from composer.adapters.rsl_rl.models import Actor, Critic
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__, {"models": "Actor Critic", "environments": "vector_env"}
    )
