"""skrl's PPO and A2C over composed models, with and without memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import torch
from torch import Tensor

from composer.adapters.needs import NEEDS, problems, refuse_for
from composer.adapters.skrl.checks import preprocessor_problems, sequence_length_of
from composer.adapters.skrl.composed import ComposedModel, models
from composer.host.optimizing import nothing_to_train
from composer.limits import GivenLimits
from composer.model import Model
from composer.policy.structured import one_policy
from composer.source.load import GivenSpec, Override
from perception_blocks.registry import missing_extra

try:
    from skrl.agents.torch import Agent
    from skrl.agents.torch.a2c import A2C, A2C_CFG, A2C_RNN
    from skrl.agents.torch.ppo import PPO, PPO_CFG, PPO_RNN
    from skrl.envs.wrappers.torch import Wrapper
    from skrl.memories.torch import Memory, RandomMemory
except ImportError as error:
    raise missing_extra("composer.adapters.skrl", error, "skrl") from error

__all__ = ["agent", "agent_of"]


class _Counting:
    """Counts what was collected into the statistics of the spec's ``normalize`` and ``normalize_value``."""

    policy: ComposedModel
    memory: Memory

    def update(self, *, timestep: int, timesteps: int) -> None:
        super().update(timestep=timestep, timesteps=timesteps)  # type: ignore[misc]
        model = self.policy.model
        if one_policy(model.policy).observer.keys:
            names = (
                ["observations"] if self.policy.state_space is None else ["observations", "states"]
            )
            rows = [self.memory.get_tensor_by_name(name).flatten(0, 1) for name in names]
            inputs = dict(zip(names, rows, strict=True))
            model.update_normalizers(self.policy.read(inputs))
        if model.critic is not None and model.critic.value_normalizer is not None:
            model.update_normalizers(returns=self.memory.get_tensor_by_name("returns"))


class _Cured(_Counting):
    """A recurrent agent of skrl that stores the state before each step.

    skrl's own makes one dict of the states before and after a step when it has recorded the first, and so stores the
    state after. Here the two stay apart.
    """

    _rnn_final_states: dict[str, list[Tensor]]

    def record_transition(self, **transition: Any) -> None:
        super().record_transition(**transition)  # type: ignore[misc]
        self._rnn_final_states = {"policy": [], "value": []}


class _Ppo(_Counting, PPO):
    pass


class _A2c(_Counting, A2C):
    pass


class _PpoRnn(_Cured, PPO_RNN):
    pass


class _A2cRnn(_Cured, A2C_RNN):
    pass


# By the name of skrl's class: the config, and the agents without and with memory.
ALGORITHMS: Mapping[str, tuple[type, type, type]] = {
    "PPO": (PPO_CFG, _Ppo, _PpoRnn),
    "A2C": (A2C_CFG, _A2c, _A2cRnn),
}


def agent(
    algorithm: type[Agent],
    spec: GivenSpec | Model,
    env: Wrapper,
    *,
    cfg: Any = None,
    memory: Memory | None = None,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    seed: int | None = None,
    limits: GivenLimits = None,
    states: bool = True,
    sequence_length: int | None = None,
) -> Agent:
    """An agent of skrl, PPO or A2C, whose policy and value are a composed model: ``agent.policy.model``.

    A model with memory gets skrl's recurrent form of the algorithm, cured of storing states one step late; it learns
    from sequences of ``sequence_length`` steps, by default the longest that the rollout divides into. ``cfg`` is skrl's
    config of the algorithm, as a dict or as its class; ``memory`` is by default a RandomMemory of ``cfg.rollouts``
    steps. The other arguments are those of `models`. The statistics of the spec's ``normalize`` and ``normalize_value``
    count each rollout after its update.

    Raises ValueError with every reason why the algorithm cannot train the model so, and SpecError for a spec with
    mistakes.
    """
    name = name_of(algorithm)
    composed = models(
        spec, env, allow=allow, overrides=overrides, seed=seed, limits=limits, states=states
    )
    config = config_of(name, cfg)
    if memory is None:
        memory = RandomMemory(memory_size=config.rollouts, num_envs=env.num_envs, device=env.device)
    return agent_of(
        name, composed, config, memory, sequence_length,
        observation_space=env.observation_space, action_space=env.action_space,
        state_space=composed["policy"].state_space, device=env.device,
    )  # fmt: skip


def agent_of(
    name: str,
    composed: Mapping[str, ComposedModel],
    config: Any,
    memory: Memory,
    sequence_length: int | None,
    *,
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    state_space: gymnasium.Space | None,
    device: str | torch.device,
) -> Agent:
    """The agent of the algorithm ``name`` over what `models` has ``composed``."""
    policy = composed["policy"]
    model = policy.model
    reasons = [
        *problems(model, name, NEEDS["skrl"].algorithms),
        *preprocessor_problems(model, config),
        *nothing_to_train(model),
    ]
    if memory.memory_size != config.rollouts:
        reasons.append(
            f"the memory has {memory.memory_size} steps, but rollouts is {config.rollouts}; make both the same"
        )
    length = 1
    if model.has_memory:
        length, wrong = sequence_length_of(
            sequence_length, config.rollouts, memory.num_envs, config.mini_batches
        )
        reasons += wrong
    elif sequence_length is not None:
        reasons.append(
            "sequence_length is for models with memory, which this one has not; leave it out"
        )
    refuse_for(f"{name} of skrl", reasons)
    policy.sequence_length, policy.is_cured = length, True
    policy.enable_training_mode(False)  # as skrl has it while it collects
    _, plain, recurrent = ALGORITHMS[name]
    cls = recurrent if model.has_memory else plain
    agent: Any = cls(
        models=dict(composed), memory=memory, cfg=config, device=device,
        observation_space=observation_space, state_space=state_space, action_space=action_space,
    )  # fmt: skip
    model.prepare_optimizer(agent.optimizer)
    return agent


def name_of(algorithm: type) -> str:
    """The name of a class of skrl, without its form for memory. Raises ValueError for what cannot train a model."""
    name = getattr(algorithm, "__name__", str(algorithm)).removesuffix("_RNN")
    if name not in ALGORITHMS:
        raise ValueError(
            f"a composed model is trained by PPO and A2C of skrl, not by {name}, which wants networks of its own forms "
            "in other roles; use PPO or A2C, or composer.adapters.sb3 or composer.adapters.torchrl for SAC, TD3 and DQN"
        )
    return name


def config_of(name: str, cfg: Any) -> Any:
    """The config of an algorithm, which may be given as a dict."""
    if cfg is None or isinstance(cfg, Mapping):
        return ALGORITHMS[name][0](**(cfg or {}))
    return cfg
