"""A composed model as policy and critic of Tianshou's on-policy algorithms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import getitem
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from composer.adapters.host import HostActions, HostObservations
from composer.adapters.needs import NEEDS, problems, refuse, refuse_actors, refuse_for
from composer.critic.base import SpaceCritic
from composer.distributions.base import Distribution
from composer.host.step import step_of, value_of
from composer.limits import GivenLimits
from composer.lowered.network import WithTwin
from composer.model import Model, compose
from composer.policy.policy import Policy
from composer.policy.structured import one_policy
from composer.source.load import GivenSpec, Override
from composer.spaces.tree import format_space
from perception_blocks.registry import missing_extra

try:
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.data import Batch
except ImportError as error:
    raise missing_extra("composer.adapters.tianshou", error, "tianshou") from error

__all__ = ["ComposedCritic", "ComposedPolicy", "critic", "policy", "refuse_for_algorithm"]


def policy(
    spec: GivenSpec | Model,
    env: gymnasium.Env | str | None = None,
    *,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    limits: GivenLimits = None,
    seed: int | None = None,
    deterministic_eval: bool = True,
    action_scaling: bool = False,
    action_bound_method: Literal["clip", "tanh"] | None = None,
) -> ComposedPolicy:
    """The policy of PPO, A2C, Reinforce, NPG and TRPO of Tianshou; its ``model`` is what learns.

    ``spec`` and the arguments up to ``seed`` are as for `composer.compose`; a `Model` is trained itself. Outside of
    training steps it acts by the mode of its distribution, unless ``deterministic_eval`` is False. Raises ValueError
    for memory, for observations that Tianshou cannot store, and for ``action_scaling`` and ``action_bound_method``:
    a model's actions are on the scale of the environment.
    """
    if isinstance(spec, Model):
        model = spec
    else:
        model = compose(spec, env=env, allow=allow, overrides=overrides, limits=limits, seed=seed)
    refuse_actors(model.observation_space, "tianshou")
    refuse_for("Tianshou", _reasons(model, action_scaling, action_bound_method))
    HostObservations(one_policy(model.policy).observer.tree, "Tianshou")  # of one size
    return ComposedPolicy(model, deterministic_eval=deterministic_eval)


def critic(policy: ComposedPolicy) -> ComposedCritic:
    """The critic of the model of ``policy``, for PPO, A2C, NPG and TRPO. Layers that both share learn once.

    Raises ValueError where the spec has none, or one of another kind.
    """
    if not isinstance(policy, ComposedPolicy):
        raise ValueError(
            f"critic takes what composer.adapters.tianshou.policy returned, got a {type(policy).__name__}"
        )
    refuse(policy.model, "PPO", "tianshou")
    return ComposedCritic(policy.model)


def refuse_for_algorithm(model: Model, name: str) -> None:
    """Raise ValueError with every reason why ``ppo`` or ``a2c`` cannot train ``model``: policy, spaces and critic."""
    refuse_actors(model.observation_space, "tianshou")
    row = NEEDS["tianshou"]
    reasons = [*_reasons(model), *problems(model, name.upper(), row.algorithms)]
    refuse_for(row.title.format(name), [each.replace(name.upper(), name) for each in reasons])


def _reasons(model: Model, scaling: bool = False, bound: str | None = None) -> Iterable[str]:
    if model.has_memory:
        yield (
            "it has memory, which Tianshou's on-policy algorithms do not carry through an update; "
            "use the trainer rl_games, or recurrent_ppo of the trainer sb3"
        )
    if scaling or bound is not None:
        yield (
            "action_scaling and action_bound_method would scale and bound actions again, which are on the scale of "
            "the environment; leave them out"
        )
    tree = one_policy(model.policy).observer.tree
    action_space = one_policy(model.policy).action_space
    if isinstance(action_space, spaces.Dict | spaces.Tuple):
        yield (
            f"it stores actions as one array, got {format_space(action_space)}; use the trainer sb3"
        )
    for key, leaf in tree.leaves.items():
        if any(isinstance(part, int) for part in leaf.path):
            yield f"it stores no Tuple, of which {key!r} is a part; make it a Dict in the environment"


class ComposedPolicy(ProbabilisticActorPolicy):
    """A composed model as Tianshou calls its policies. ``model`` is the `Model`."""

    def __init__(self, model: Model, *, deterministic_eval: bool = True) -> None:
        policy = one_policy(model.policy)
        actions = HostActions(policy.action_tree)
        super().__init__(
            actor=_Part(policy),  # type: ignore[arg-type]  # which only holds the weights
            dist_fn=_no_distribution,
            deterministic_eval=deterministic_eval,
            action_space=policy.action_space,
            observation_space=policy.observation_space,
            action_scaling=False,
            action_bound_method=None,
        )
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "_policy", policy)
        self._acting = WithTwin(policy)
        self._actions = actions
        self._observations = _Observations(policy)
        self._seen: list[Mapping[str, Tensor]] = []
        self._has_learned = False

    model: Model
    _policy: Policy

    def forward(self, batch: Any, state: Any = None, **settings: Any) -> Any:
        """``act`` for observations; ``dist`` for a batch that has actions already, to learn from.

        Raises ValueError where an algorithm with target networks hands one over as ``model``.
        """
        if "model" in settings:
            raise ValueError(
                "a composed policy learns by Tianshou's on-policy algorithms, and this one has a target network; use "
                "PPO, A2C, Reinforce, NPG or TRPO, or DQN, SAC and TD3 of the trainer sb3"
            )
        observations = self._observations.read(batch.obs)
        is_learning = "act" in batch.get_keys()
        if self._policy.observer.keys:
            self._note(observations, is_learning)
        deterministic = self.deterministic_eval and not self.is_within_training_step
        step = step_of(
            self._acting.now(), None, self._policy.as_observed(observations), None, None, None,
            unroll=False, mask=None, deterministic=deterministic, entropy=False,
        )  # fmt: skip
        if is_learning:
            distribution = ComposedDistribution(self, step.distribution)
            return Batch(act=torch.as_tensor(batch.act), state=None, dist=distribution)
        return Batch(act=self._actions.to_host(step.action), state=None, dist=None)

    def map_action(self, act: Any) -> Any:
        """Stored actions (n, ...) as the environments take them: whole, clipped to their bounds."""
        rows = torch.as_tensor(np.asarray(act))
        return self.model.to_environment(self.from_host(rows))

    def map_action_inverse(self, act: Any) -> Any:
        """Actions of the environments, such as samples of their space, as they are stored."""
        return self._actions.to_host(self._policy.from_environment(np.asarray(act))).numpy()

    def from_host(self, act: Tensor) -> Any:
        """Stored actions (n, ...) as the model's distribution has them."""
        return self._actions.from_host(act, self._policy.dtype, (len(act),))

    def count_observations(self) -> None:
        """Count for ``normalize:`` what was collected and learnt from. The next rollout does it by itself."""
        if self._has_learned:
            for seen in self._seen:
                self.model.update_normalizers(seen)
            self.forget()

    def forget(self) -> None:
        """Count nothing of what was collected and not counted yet."""
        self._seen, self._has_learned = [], False

    def _note(self, observations: Mapping[str, Tensor], is_learning: bool) -> None:
        """Keep what was collected until it was learnt from, so that no statistics change within an update."""
        if is_learning:
            self._has_learned = True
        elif self.is_within_training_step:
            self.count_observations()
            self._seen.append(observations)


class ComposedCritic(nn.Module):
    """The critic of a composed model as Tianshou calls critics: observations to values (n, 1)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert isinstance(model.critic, SpaceCritic)  # as `refuse` says
        self.part = model.critic
        self._judging = WithTwin(model.critic)
        object.__setattr__(self, "_policy", one_policy(model.policy))
        self._observations = _Observations(self._policy)

    _policy: Policy

    def forward(self, obs: Any, act: Any = None, info: Any = None) -> Tensor:
        observations = self._policy.as_observed(self._observations.read(obs))
        critic = self._judging.now()
        values = value_of(self._policy, critic, observations, None, None, unroll=False)
        return values.float().unsqueeze(-1)


class ComposedDistribution(torch.distributions.Distribution):
    """A distribution of a model over actions as Tianshou stores them; ``composed`` is the model's own."""

    def __init__(self, policy: ComposedPolicy, distribution: Distribution) -> None:
        self._host, self.composed = policy, distribution
        shape = distribution.row().shape[:1] if distribution.has_density else torch.Size()
        super().__init__(batch_shape=shape, validate_args=False)

    def log_prob(self, value: Any) -> Tensor:
        return self.composed.log_prob(self._host.from_host(torch.as_tensor(value))).float()

    def entropy(self) -> Tensor:
        return self.composed.entropy().float()


@torch.distributions.register_kl(ComposedDistribution, ComposedDistribution)
def _kl(first: ComposedDistribution, second: ComposedDistribution) -> Tensor:
    return first.composed.kl(second.composed)


class _Part(nn.Module):
    """Where Tianshou finds the weights of a policy."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part


class _Observations:
    """The way from Tianshou's batches to tensors by flat key."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._leaves = policy.observer.tree.leaves

    def read(self, observations: Any) -> dict[str, Tensor]:
        values = {
            key: reduce(getitem, leaf.path, observations) for key, leaf in self._leaves.items()
        }
        device = self._policy.device
        return {key: torch.as_tensor(value, device=device) for key, value in values.items()}


def _no_distribution(*arguments: Any) -> Any:
    raise AssertionError("the model has distributions of its own")
