"""The way back from a loss that trains copies of a critic: into the model's own weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDict, TensorDictParams
from torch import Tensor, nn
from torchrl.objectives import LossModule

from composer.adapters.torchrl.modules import ensemble_of
from composer.critic.base import SpaceCritic
from composer.critic.state_action import StateActionCritic

__all__ = ["adopt"]


def adopt(critic: SpaceCritic | None, loss: LossModule) -> None:
    """Copy the weights that ``loss`` has trained into ``critic`` and its target.

    Raises ValueError, with nothing written, for a loss of other modules.
    """
    online = _weights(critic, getattr(loss, "qvalue_network_params", None))
    if online is None or not isinstance(critic, StateActionCritic):
        raise ValueError(
            "this loss was not created from the critic_copies of this model; give it "
            "qvalue_network=list(modules.critic_copies) and as many num_qvalue_nets"
        )
    target = _weights(critic.target, getattr(loss, "target_qvalue_network_params", None))
    _holder(critic).load_state_dict(online)
    if target is not None:
        _holder(critic.target).load_state_dict(target)


def _weights(
    critic: SpaceCritic | None, params: TensorDictParams | None
) -> dict[str, Tensor] | None:
    """The stacked ``params`` of a loss by the names of ``critic``; None where they do not fit."""
    if params is None or not isinstance(critic, StateActionCritic):
        return None
    stacked = params.get(("module", "weights"), TensorDict()).data.flatten_keys(".")
    if any(len(copies) != critic.copies for copies in stacked.values()):
        return None
    state = {
        f"{index}.{name}" if critic.copies > 1 else name: copy
        for name, copies in stacked.items()
        for index, copy in enumerate(copies)
    }
    return state if _shapes(state) == _shapes(_holder(critic).state_dict()) else None


def _holder(critic: StateActionCritic) -> nn.Module:
    """The module whose weights the loss copied."""
    return ensemble_of(critic) or critic.online


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
