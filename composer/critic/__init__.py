"""What judges: critics of states and of actions, of one actor or of several, one file for each kind."""

from typing import TYPE_CHECKING

from perception_blocks.lazy import lazy_attributes

__all__ = [
    "CRITICS",
    "Critic",
    "CriticModule",
    "CriticSetup",
    "DeltaStateCritic",
    "SharedStateActionCritic",
    "SharedStateCritic",
]
__all__ += ["StateActionCritic", "ValueRequirements"]

if TYPE_CHECKING:
    from composer.critic.base import CRITICS, CriticModule, CriticSetup
    from composer.critic.delta_state import DeltaStateCritic
    from composer.critic.shared_state import SharedStateCritic
    from composer.critic.shared_state_action import SharedStateActionCritic
    from composer.critic.state import Critic
    from composer.critic.state_action import StateActionCritic
    from composer.critic.values import ValueRequirements
else:
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        {
            "base": "CRITICS CriticModule CriticSetup",
            "delta_state": "DeltaStateCritic",
            "shared_state": "SharedStateCritic",
            "shared_state_action": "SharedStateActionCritic",
            "state": "Critic",
            "state_action": "StateActionCritic",
            "values": "ValueRequirements",
        },
    )
