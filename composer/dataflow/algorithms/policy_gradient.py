"""The formulae of PPO over packed sequences.

Of a sequence of n tokens, the actions are its tokens but the first: n - 1 numbers. The state before an action is read
at the token before it; the last token is the state after all actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from composer.dataflow.algorithms.models import ExperimentModel
from composer.dataflow.algorithms.packing import drop_first, drop_last

__all__ = ["ValueNorm", "actor_losses", "adapted_kl", "advantages", "critic_losses", "normalized"]
__all__ += ["token_rewards"]


def token_rewards(
    kl: Tensor, scores: Tensor, lengths: Tensor, kl_ctl: float, max_reward_clip: float
) -> Tensor:
    """The reward of each action: ``-kl_ctl * kl``, and at the last action of each sequence its score as well.

    ``kl`` is ``logp - ref_logp`` of actions, 0 for tokens of prompts; ``scores`` (S,), of sequences of ``lengths``
    (S,) tokens, are clipped at ``max_reward_clip``.
    """
    rewards = -kl_ctl * kl
    ends = ((lengths - 1).cumsum(0) - 1).to(kl.device)
    return rewards.index_add(0, ends, scores.to(kl).clamp(-max_reward_clip, max_reward_clip))


def advantages(
    rewards: Tensor, values: Tensor, lengths: Tensor, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates (Schulman et al., 2016) of all actions, and their returns, advantage + value.

    ``values`` (N,) are at all tokens: the last of a sequence is what is worth after its end, 0 if nothing. The sum
    ``A[t] = delta[t] + (discount * gae_lambda) * A[t + 1]`` is taken by doubling: log2 of the longest sequence steps,
    whatever the number of sequences.

    >>> both = advantages(torch.tensor([0.0, 1.0, 2.0]), torch.zeros(5), torch.tensor([3, 2]), 1.0, 0.5)
    >>> both[0].tolist()
    [0.5, 1.0, 2.0]
    """
    before, after = drop_last(values, lengths), drop_first(values, lengths)
    sums = rewards + discount * after - before
    actions = lengths - 1
    ends = actions.cumsum(0).repeat_interleave(actions)
    # How many actions of the same sequence come after each.
    following = (ends - torch.arange(len(ends)) - 1).to(values.device)
    decay, reach = discount * gae_lambda, 1
    while reach < len(sums) and bool((following >= reach).any()):
        further = torch.cat([sums[reach:], sums.new_zeros(reach)])
        sums = torch.where(following >= reach, sums + decay**reach * further, sums)
        reach *= 2
    return sums, sums + before


def normalized(values: Tensor, mask: Tensor, eps: float = 1e-5) -> Tensor:
    """``values`` with mean 0 and variance 1 over those that the ``mask`` has; 0 elsewhere."""
    chosen = values[mask].double()
    if len(chosen) == 0:
        return torch.zeros_like(values)
    scaled = (values.double() - chosen.mean()) / (chosen.var(unbiased=False) + eps).sqrt()
    return torch.where(mask, scaled, 0.0).to(values.dtype)


def actor_losses(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, eps_clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped loss of each action (Schulman et al., 2017), the ratio of probabilities, whether that was clipped."""
    ratio = (logp - old_logp).exp()
    clipped = ratio.clamp(1.0 - eps_clip, 1.0 + eps_clip)
    losses = torch.maximum(-advantage * ratio, -advantage * clipped)
    return losses, ratio.detach(), (-advantage * clipped > -advantage * ratio).detach()


def critic_losses(
    values: Tensor, old_values: Tensor, returns: Tensor, value_eps_clip: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error of each value, at least that of a value within the clip, and whether that was larger."""
    clipped = old_values + (values - old_values).clamp(-value_eps_clip, value_eps_clip)
    plain, kept = 0.5 * (values - returns) ** 2, 0.5 * (clipped - returns) ** 2
    return torch.maximum(plain, kept), (kept > plain).detach()


def adapted_kl(kl_ctl: float, kl: float, target: float, horizon: float, sequences: int) -> float:
    """The next weight of the KL penalty (Ziegler et al., 2019), after ``sequences`` whose mean is ``kl``.

    >>> round(adapted_kl(0.1, kl=12.0, target=6.0, horizon=1000, sequences=100), 6)
    0.102
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_ctl * (1.0 + error * sequences / horizon)


@dataclass(frozen=True)
class ValueNorm:
    """Running mean and variance of returns, which a critic's values are scaled by (PopArt without its correction).

    "exp" forgets, by ``beta`` for each batch, with the bias of the first ones corrected; "ma" weighs all numbers
    equally. The statistics are kept with the optimiser of the critic.
    """

    kind: Literal["exp", "ma"] = "exp"
    beta: float = 0.99995
    eps: float = 1e-5

    def statistics(self, model: ExperimentModel) -> tuple[float, float]:
        """Mean and standard deviation; 0 and 1 before the first update."""
        weight = model.recall("value_norm_weight", 0.0)
        if weight == 0.0:
            return 0.0, 1.0
        mean = model.recall("value_norm_sum", 0.0) / weight
        variance = model.recall("value_norm_sum_of_squares", 0.0) / weight - mean**2
        return mean, math.sqrt(max(variance, 0.0) + self.eps)

    def update(self, model: ExperimentModel, returns: Tensor) -> None:
        """Count the ``returns`` of a batch."""
        if len(returns) == 0:
            return
        returns = returns.double()
        moments = {
            "weight": 1.0,
            "sum": returns.mean().item(),
            "sum_of_squares": returns.square().mean().item(),
        }
        kept, new = (self.beta, 1.0 - self.beta) if self.kind == "exp" else (1.0, len(returns))
        for name, moment in moments.items():
            key = f"value_norm_{name}"
            model.remember(key, kept * model.recall(key, 0.0) + new * moment)
