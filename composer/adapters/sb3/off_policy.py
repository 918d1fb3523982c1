"""Composed models as policies of DQN, SAC and TD3: actors, critics and their targets as these algorithms call them.

The algorithms call parts of a policy (`QNetwork`, `Actor`, `QFunctions`), each with an optimiser and parameters of its
own. Here a part is a view: the weights are the model's, once, under the model's names.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from composer.adapters.sb3.policies import HostPolicy, PyTorchObs, Schedule
from composer.critic.state_action import StateActionCritic
from composer.distributions.base import Distribution
from composer.distributions.gsde import GSDE
from composer.host.step import read_together
from composer.network.network import Inputs, Tensors
from composer.policy.policy import Policy

__all__ = ["ContinuousPolicy", "QPolicy", "SACPolicy", "TD3Policy"]


class SubNetwork:
    """A part of ``policy`` with the weights of ``module``."""

    optimizer: torch.optim.Optimizer

    def __init__(self, policy: Any, module: nn.Module) -> None:
        self.policy = policy
        self.module = module

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.module.parameters()

    def state_dict(self) -> dict[str, Tensor]:
        """The host looks here for the statistics of batch normalisation, which it copies into targets."""
        return self.module.state_dict()


class QNetwork(SubNetwork):
    """Values (B, choices): the logits of a policy."""

    def __call__(self, obs: PyTorchObs) -> Tensor:
        (logits,) = self.module(self.policy.read(obs)).values()
        return logits.float()


class QPolicy(HostPolicy):
    """A composed model for DQN: the policy's logits are the values of its choices, so that its mode is greedy."""

    algorithm = "DQN"

    def _build(self, lr_schedule: Schedule) -> None:
        self.policy_target = _target_of(self.policy)
        self.q_net = QNetwork(self, self.policy)
        self.q_net_target = QNetwork(self, self.policy_target)
        self.optimizer = self.make_optimizer(self.model.parameters(), lr_schedule)

    def _predict(self, observation: PyTorchObs, deterministic: bool = True, **host: Any) -> Tensor:
        values = self.q_net(observation)
        (family,) = dict(self.policy.distributions.items()).values()
        family.refuse_no_numbers(values)
        return self.actions.to_host(values.argmax(-1))


class Actor(SubNetwork):
    """The actor, in the host's scale from -1 to 1."""

    module: Policy

    def __init__(self, policy: ContinuousPolicy, module: Policy) -> None:
        super().__init__(policy, module)
        self.lowered = module.lower()
        self.reset_noise = policy.reset_noise  # SAC asks the actor, PPO the policy

    def __call__(self, obs: PyTorchObs, deterministic: bool = False) -> Tensor:
        distribution = self.distribution(obs)
        action = distribution.mode() if deterministic else distribution.rsample()
        return self.policy.scaled(action)

    def get_std(self) -> Tensor:
        """What the host logs with ``use_sde``: the standard deviations of the exploration matrix."""
        families = [family for _, family in self.module.distributions.items()]
        deviations = [f.matrix_std(torch.float32) for f in families if isinstance(f, GSDE)]
        return torch.cat([deviation.detach().flatten() for deviation in deviations])

    def distribution(self, obs: PyTorchObs) -> Distribution:
        inputs, _ = self.policy.seen(obs)
        return self.module.distribution_of(self.lowered(inputs), inputs, None, 1.0)

    def action_log_prob(self, obs: PyTorchObs) -> tuple[Tensor, Tensor]:
        """Actions and the logarithm of their density in the host's scale, shape (B,)."""
        distribution = self.distribution(obs)
        action = distribution.rsample()
        log_prob = distribution.log_prob(action).float() + self.policy.log_half
        return self.policy.scaled(action), log_prob


class QFunctions(SubNetwork):
    """Q values of actions in the host's scale: one (B, 1) for each copy of an ensemble.

    Layers of the policy that the critic reads learn from the actor's loss alone, as in the host's own policies.
    """

    def __init__(self, policy: ContinuousPolicy, critic: StateActionCritic, actor: Policy) -> None:
        super().__init__(policy, critic.online)
        self.critic = critic
        self.actor = actor

    def __call__(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, ...]:
        critic = self.critic
        inputs, observed = self.policy.seen(obs)
        shared = None
        if critic.shared:
            with torch.no_grad():
                shared = self.actor(inputs)
        if observed is None:
            observed = critic.read(self.policy.read(obs), shared)
        vectors = critic.vectors_of(self.policy.unscaled(actions))
        values = critic(Inputs(critic.with_shared(observed, shared) | vectors))["q_value"].float()
        return values.unbind(-2) if critic.copies > 1 else (values,)

    def q1_forward(self, obs: PyTorchObs, actions: Tensor) -> Tensor:
        return self(obs, actions)[0]


class ContinuousPolicy(HostPolicy):
    """Base of the policies of SAC and TD3.

    The host stores actions, and adds noise to them, in a scale from -1 to 1; the model has the environment's scale,
    in which actions are predicted: the host scales what it stores. Only `scaled` and `unscaled` convert between them.
    """

    def _build(self, lr_schedule: Schedule) -> None:
        space = self.action_space
        assert isinstance(space, spaces.Box)
        low, high = (torch.as_tensor(bound).flatten() for bound in (space.low, space.high))
        self.register_buffer("_low", low, persistent=False)
        self.register_buffer("_half", high / 2 - low / 2, persistent=False)
        self.log_half = float(self._half.double().log().sum())
        self.actor = Actor(self, self.policy)
        self.actor.optimizer = self.make_optimizer(self.actor.parameters(), lr_schedule)
        critic = self.model.critic
        assert isinstance(critic, StateActionCritic)  # as `refuse` says
        self.critic = QFunctions(self, critic, self.policy)
        self.critic.optimizer = self.make_optimizer(self.critic.parameters(), lr_schedule)
        self.critic_target = QFunctions(self, critic.target, self._target_actor())

    def seen(self, obs: PyTorchObs) -> tuple[Inputs, Tensors | None]:
        """What actors and critics read of ``obs``: in an update the same batch is asked for several times.

        It is read again where another object comes, or a tensor that was written to since.
        """
        tensors = [obs] if isinstance(obs, Tensor) else obs.values()
        written = [None if t.is_inference() else t._version for t in tensors]  # None: not counted
        if obs is not self._seen[0] or written != self._seen[1] or None in written:
            read = read_together(self.policy, self.model.critic, self.read(obs))  # type: ignore[arg-type]
            self._seen = (obs, written, read)
        return self._seen[2]

    _seen: tuple[Any, Any, Any] = (None, None, None)

    _low: Tensor
    _half: Tensor

    def _target_actor(self) -> Policy:
        """The policy whose values the target critic reads."""
        return self.policy

    def scaled(self, action: Tensor | Mapping[str, Tensor]) -> Tensor:
        """A distribution's action as the host stores it, (B, *its shape), from -1 to 1; gradients flow through."""
        host = self.actions.to_host(action)
        rows = (host.flatten(1) - self._low) / self._half - 1
        return rows.reshape(len(rows), -1)

    def unscaled(self, actions: Tensor) -> Any:
        """The way back, to what the critic and the distributions take."""
        rows = self._low + (actions.reshape(len(actions), -1) + 1) * self._half
        return self.actions.from_host(rows, self.policy.dtype, (len(rows),))


class SACPolicy(ContinuousPolicy):
    """A composed model for SAC: the policy acts, the critic of kind state_action and its target judge."""

    algorithm = "SAC"


class TD3Policy(ContinuousPolicy):
    """A composed model for TD3: a deterministic policy, which gets a target, and a critic of kind state_action.

    ``n_critics``, which DDPG gives, must be the number in the spec's ``ensemble``.
    """

    algorithm = "TD3"

    def __init__(self, *arguments: Any, n_critics: int | None = None, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        copies = self.critic.critic.copies
        if n_critics not in (None, copies):
            raise ValueError(
                f"n_critics is {n_critics}, but the critic of the spec has ensemble: {copies}; "
                f"write ensemble: {n_critics}"
            )

    def _target_actor(self) -> Policy:
        self.policy_target = _target_of(self.policy)
        self.actor_target = Actor(self, self.policy_target)
        return self.policy_target


def _target_of(policy: Policy) -> Policy:
    """A copy of a policy that only follows it; both read through the same normalisers."""
    shared = [policy.observer, policy.observer.normalizers, policy.action_tree]
    target = copy.deepcopy(policy, {id(part): part for part in shared})
    return target.requires_grad_(False).eval()
