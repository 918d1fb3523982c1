"""RLlib's PPO learner for composed modules: what a spec says of the optimiser holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from torch import nn

from composer.adapters.rllib.module import ComposedModule

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.core.rl_module.rl_module import RLModule

__all__ = ["ComposedLearner"]


class ComposedLearner(PPOTorchLearner):
    """RLlib's PPO learner, whose optimisers leave out what is frozen and scale learning rates as the specs say."""

    def get_parameters(self, module: RLModule) -> list[nn.Parameter]:
        """The parameters that are trained: RLlib takes none without a gradient."""
        return [each for each in super().get_parameters(module) if each.requires_grad]  # type: ignore[misc]

    def configure_optimizers_for_module(
        self, module_id: str, config: AlgorithmConfig | None = None
    ) -> None:
        super().configure_optimizers_for_module(module_id, config)  # type: ignore[arg-type]
        module = self.module[module_id].unwrapped()
        if isinstance(module, ComposedModule):
            for _, optimizer in self.get_optimizers_for_module(module_id):
                module.model.prepare_optimizer(optimizer)
            module.needs_learner = False
