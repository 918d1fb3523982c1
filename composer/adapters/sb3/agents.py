"""Composed models trained by Stable-Baselines3 (PPO, A2C, DQN, SAC, TD3) and sb3-contrib (MaskablePPO, RecurrentPPO).

`agent` makes one of their agents whose policy is a composed model, ``agent.policy.model``. Needs the extra ``sb3``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeAlias, TypeGuard

import gymnasium
import numpy as np
import torch

from composer.adapters.host import FlatEnv, refuse_other_spaces
from composer.adapters.needs import refuse, refuse_actors
from composer.adapters.sb3.contrib import MaskableActorCritic, RecurrentActorCritic
from composer.adapters.sb3.off_policy import QPolicy, SACPolicy, TD3Policy
from composer.adapters.sb3.policies import WRAP, ActorCritic, HostPolicy, description, stored_form
from composer.limits import GivenLimits
from composer.model import Model, compose
from composer.source.load import GivenSpec, Override, load_source
from composer.spaces.lookup import (
    Spaces,
    environment_spaces,
    make_environment,
    own_environment,
)
from composer.spaces.recalling import with_previous
from composer.trust import allow_list, import_allowed
from perception_blocks.registry import missing_extra

try:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.utils import obs_as_tensor
    from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
except ImportError as error:
    raise missing_extra("composer.adapters.sb3", error, "sb3") from error

__all__ = ["POLICIES", "UpdateNormalizers", "agent", "wrap"]

POLICIES: dict[str, type[HostPolicy]] = {
    "PPO": ActorCritic,
    "A2C": ActorCritic,
    "MaskablePPO": MaskableActorCritic,
    "RecurrentPPO": RecurrentActorCritic,
    "DQN": QPolicy,
    "SAC": SACPolicy,
    "TD3": TD3Policy,
}
"""The policy class of each algorithm, by the algorithm's name."""

Env: TypeAlias = gymnasium.Env | VecEnv
GivenModel: TypeAlias = "GivenSpec | Model"
OPTIMIZER_SETTINGS = ("optimizer_class", "optimizer_kwargs")


def agent(
    algorithm: type,
    spec: GivenModel,
    env: Env | str | None = None,
    *,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    limits: GivenLimits = None,
    policy_kwargs: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """An agent ``algorithm(policy, env, **settings)`` of Stable-Baselines3 whose policy is a composed model.

    ``spec`` is anything that `composer.compose` takes, or a `Model`, whose weights the agent begins with (and does not
    train where they are frozen). ``env`` is an environment of gymnasium, its id, or a VecEnv of Stable-Baselines3; None
    makes the spec's own. What cannot be stored (nested observations, several actions) is made flat by `wrap`. ``seed``
    is for the initial weights and the algorithm. ``limits`` are the limits of `composer.compose`; loading the agent
    composes within them too. ``policy_kwargs`` may give ``optimizer_class`` and ``optimizer_kwargs``.

    ``agent.save`` and ``algorithm.load`` work as usual; ``agent.policy.model.save`` writes a checkpoint.
    Raises ValueError with every reason why the algorithm cannot train the model.
    """
    name = _name_of(algorithm)
    allow, overrides = allow_list(allow), tuple(overrides)
    import_allowed(allow)
    _refuse_network_settings(policy_kwargs or {})
    env = _environment(spec, env, overrides, allow)
    env_spaces = _model_spaces(env, spec, limits)
    model = _composed(
        spec, env_spaces, allow, overrides=overrides, seed=seed, dtype=dtype, limits=limits
    )
    refuse(model, name, "sb3")
    bounds = True
    if isinstance(env, VecEnv):
        bounds = unwrap_vec_normalize(env) is None
        refuse_other_spaces(
            (model.observation_space, model.action_space), env_spaces, "of the model", bounds=bounds
        )
    else:
        env = wrap(env, model)
    observations, actions = stored_form(model)
    needed, seen = (observations.space, actions.space), (env.observation_space, env.action_space)
    refuse_other_spaces(needed, seen, advice=WRAP, bounds=bounds)
    arguments: dict[str, Any] = {"spec": model, "allow": allow}
    if model is not spec:
        model.materialize()
    elif any(parameter.is_meta for parameter in model.parameters()):
        arguments = description(model, allow)
    else:
        arguments["spec"] = copy.deepcopy(model)
    arguments |= policy_kwargs or {}
    trained = algorithm(POLICIES[name], env, seed=seed, policy_kwargs=arguments, **settings)
    trained.policy_kwargs.update(description(model, allow))  # which the host saves
    return trained


def wrap(
    env: gymnasium.Env,
    spec: GivenModel,
    allow: Iterable[str] = (),
    limits: GivenLimits = None,
) -> gymnasium.Env:
    """``env`` with observations and actions that Stable-Baselines3 can store; ``env`` itself if it has such spaces.

    ``spec`` is the model's, or the `Model`. `agent` wraps a single environment; use this for environments of a VecEnv
    (``make_vec_env(id, wrapper_class=wrap, wrapper_kwargs={"spec": spec})``) and for ``algorithm.load(path, env)``.
    """
    env_spaces = _model_spaces(env, spec, limits)
    refuse_actors(env_spaces[0], "sb3")
    model = _composed(spec, env_spaces, allow, limits=limits)
    if model.spec.previous and not _is_flat(env):
        env = with_previous(env, model.spec.previous)
        env_spaces = environment_spaces(env, model.size_limits)
    refuse_other_spaces((model.observation_space, model.action_space), env_spaces, "of the model")
    observations, actions = stored_form(model)
    if _is_flat(env) or not (observations.is_flat or actions.is_flat):
        return env
    return FlatEnv(env, observations, actions)


class UpdateNormalizers(BaseCallback):
    """Updates the running statistics of the spec's ``normalize`` with the agent's observations, between two rollouts.

    The statistics of ``normalize_value`` count the returns of rollouts, for on-policy algorithms. Statistics
    do not change while a rollout is collected and trained on. Without this callback they never change.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[np.ndarray | dict[str, np.ndarray]] = []
        self._returns: np.ndarray | None = None

    def _on_step(self) -> bool:
        self._seen.append(self.locals["new_obs"])
        return True

    def _on_rollout_end(self) -> None:
        buffer = getattr(self.model, "rollout_buffer", None)
        self._returns = None if buffer is None else buffer.returns

    def _on_rollout_start(self) -> None:
        policy = self.model.policy
        assert isinstance(policy, HostPolicy)
        model = policy.model
        if policy.policy.observer.keys:
            for seen in self._seen:
                model.update_normalizers(policy.read(obs_as_tensor(seen, policy.device)))
        normalizer = getattr(model.critic, "value_normalizer", None)
        if self._returns is not None and normalizer is not None:
            model.update_normalizers(returns=self._returns)
        self._seen, self._returns = [], None

    _on_training_end = _on_rollout_start


# --- the model and its environment ---


def _name_of(algorithm: object) -> str:
    """The name of the algorithm that a class is, or is derived from."""
    classes = algorithm.__mro__ if isinstance(algorithm, type) else ()
    for cls in classes:
        if cls.__name__ in POLICIES:
            return cls.__name__
    shown = algorithm.__name__ if isinstance(algorithm, type) else repr(algorithm)
    raise ValueError(
        f"algorithm is a class of Stable-Baselines3 or sb3-contrib, one of {', '.join(POLICIES)}; got {shown}"
    )


def _refuse_network_settings(policy_kwargs: dict[str, Any]) -> None:
    """Raise ValueError for settings of the host's own policies, such as ``net_arch``."""
    # Of n_critics, which DDPG is given too, the policy says itself what it must be.
    wrong = [name for name in policy_kwargs if name not in (*OPTIMIZER_SETTINGS, "n_critics")]
    if wrong:
        known = " and ".join(map(repr, OPTIMIZER_SETTINGS))
        raise ValueError(
            f"policy_kwargs takes {known}, not {', '.join(map(repr, wrong))}: "
            "the spec describes the policy"
        )


def _environment(
    spec: GivenModel, env: Env | str | None, overrides: Iterable[Override], allow: Iterable[str]
) -> Env:
    """The environment itself, made if it is an id or the spec's own."""
    if env is None:
        source = spec.source if isinstance(spec, Model) else load_source(spec, overrides, allow)
        env = own_environment(source, allow)
        if env is None:
            raise ValueError("agent needs an env, or a spec with an 'environment'")
    if isinstance(env, str):
        return make_environment(env)
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise ValueError(
            "Stable-Baselines3 has vector environments of its own; make one of them instead of gymnasium's: "
            "stable_baselines3.common.env_util.make_vec_env(id, n_envs)"
        )
    return env


def _model_spaces(env: Env, spec: GivenModel, limits: GivenLimits) -> Spaces:
    """The spaces that a model is composed for, within its ``limits``: of the environment inside of `FlatEnv`."""
    if isinstance(env, VecEnv):
        if env.has_attr("model_spaces"):
            return env.get_attr("model_spaces")[0]
    elif _is_flat(env):
        return env.get_wrapper_attr("model_spaces")
    if limits is None and isinstance(spec, Model):
        limits = spec.size_limits
    return environment_spaces(env, limits)


def _composed(spec: GivenModel, env_spaces: Spaces, allow: Iterable[str], **settings: Any) -> Model:
    """The model of ``spec``, without weights: it is only looked at. A `Model` is itself."""
    if isinstance(spec, Model):
        return spec
    spaces = {"observation_space": env_spaces[0], "action_space": env_spaces[1]}
    return compose(spec, **spaces, allow=allow, device="meta", **settings)


def _is_flat(env: object) -> TypeGuard[gymnasium.Env]:
    return isinstance(env, gymnasium.Env) and env.has_wrapper_attr("model_spaces")
