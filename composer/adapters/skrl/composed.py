"""A composed model as skrl's policy and value: both roles in one module, so that each parameter is trained once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
from gymnasium import Space, spaces
from torch import Tensor

from composer.adapters.host import (
    HostActions,
    HostObservations,
    are_read_as_stored,
    refuse_other_spaces,
)
from composer.adapters.needs import refuse_for
from composer.adapters.skrl.checks import reading_problems, space_problems
from composer.critic.base import SpaceCritic
from composer.distributions.base import Distribution
from composer.host.step import Step, step_of, value_of
from composer.limits import GivenLimits
from composer.lowered.network import WithTwin
from composer.model import Model, compose
from composer.network.network import Inputs, State
from composer.policy.policy import Policy
from composer.policy.structured import one_policy
from composer.source.load import GivenSpec, Override
from perception_blocks.registry import missing_extra

try:
    from gymnasium.vector import AutoresetMode
    from skrl.envs.wrappers.torch import Wrapper
    from skrl.models.torch import Model as SkrlModel
except ImportError as error:
    raise missing_extra("composer.adapters.skrl", error, "skrl") from error

__all__ = ["ComposedModel", "models"]

OBSERVATION, STATE = "observation", "state"


def models(
    spec: GivenSpec | Model,
    env: Wrapper,
    *,
    allow: Iterable[str] = (),
    overrides: Iterable[Override] = (),
    seed: int | None = None,
    limits: GivenLimits = None,
    states: bool = True,
    sequence_length: int = 1,
) -> dict[str, ComposedModel]:
    """``{"policy": ..., "value": ...}`` for skrl's PPO and A2C: one module in both roles.

    ``spec`` is anything that `composer.compose` takes, or a `Model`, whose weights are trained. ``env`` is an
    environment of ``skrl.envs.wrappers.torch.wrap_env``. Where it has a ``state_space`` and ``states`` is true, the
    model's observations are ``{"observation": ..., "state": ...}``, the second for the critic alone.
    ``sequence_length`` is for models with memory; `agent` finds one. Raises ValueError with every reason why skrl
    cannot train the model, and SpecError for a spec with mistakes.
    """
    found = [*space_problems(env.observation_space, "observation")]
    state_space = env.state_space if states else None
    seen: Space = env.observation_space
    if state_space is not None:
        found += space_problems(state_space, "observation", STATE)
        seen = spaces.Dict({OBSERVATION: env.observation_space, STATE: state_space})
    found += space_problems(env.action_space, "action")
    refuse_for("skrl", found)
    model = spec
    if not isinstance(model, Model):
        model = compose(
            spec, observation_space=seen, action_space=env.action_space, allow=allow,
            overrides=overrides, seed=seed, limits=limits,
        )  # fmt: skip
    given = (model.observation_space, model.action_space)
    refuse_other_spaces(given, (seen, env.action_space))
    found += reading_problems(model, None if state_space is None else STATE)
    if model.has_memory and _resets_late(env):
        found.append(
            "the environment resets in a step of its own, whose observation would get into the memory; make it with "
            "autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP"
        )
    refuse_for("skrl", found)
    composed = ComposedModel(
        model, env.observation_space, env.action_space, state_space,
        device=env.device, num_envs=env.num_envs, sequence_length=sequence_length,
    )  # fmt: skip
    return {"policy": composed, "value": composed}


def _resets_late(env: Wrapper) -> bool:
    """Whether a vector environment of gymnasium gives the first observation one step after the last."""
    mode = (getattr(env._env, "metadata", None) or {}).get("autoreset_mode")
    return env.num_envs > 1 and isinstance(mode, AutoresetMode) and mode is AutoresetMode.NEXT_STEP


class ComposedModel(SkrlModel):
    """A composed model as skrl's policy and value; `models` makes it.

    skrl gives observations (B, n), states (B, m) and actions (B, k), each one vector of float32. Of a model with memory
    its state is one row of numbers for each environment; in an update the B steps are sequences, one after the other.
    """

    def __init__(
        self,
        model: Model,
        observation_space: Space,
        action_space: Space,
        state_space: Space | None = None,
        *,
        device: str | torch.device | None = None,
        num_envs: int = 1,
        sequence_length: int = 1,
    ) -> None:
        super().__init__(
            observation_space=observation_space, state_space=state_space,
            action_space=action_space, device=device,
        )  # fmt: skip
        self.model = model
        self.num_envs = num_envs
        self.sequence_length = sequence_length
        self.is_cured = False  # `agents.agent` says so; see there
        policy = one_policy(model.policy)
        self._acting = WithTwin(policy)
        critic = model.critic
        self._judging = WithTwin(critic) if isinstance(critic, SpaceCritic) else None
        self._dtype = policy.dtype
        self._is_plain = _is_plain(model)
        leaves = list(policy.action_tree.leaves.values())
        # A choice alone is converted without a look: it was drawn here.
        is_choice = len(leaves) == 1 and leaves[0].kind == "discrete"
        self._first_choice: int | None = int(leaves[0].start) if is_choice else None
        self._observations = HostObservations(policy.observer.tree, "skrl", as_vector=True)
        self._actions = HostActions(policy.action_tree, as_vector=True)
        self._last: tuple[Tensor, bool, Step] | None = None
        self._distribution: Distribution | None = None

    def get_specification(self) -> dict[str, Any]:
        """The form of the state, for skrl's agents with memory; empty without memory."""
        if not self.model.has_memory:
            return {}
        if not self.is_cured:
            raise ValueError(
                "skrl's recurrent agents store the state one step late, so that the first update would not see what "
                "the rollout saw; composer.adapters.skrl.agent(PPO, spec, env) makes one that does not"
            )
        size = (1, self.num_envs, self.model.state_width)
        return {"rnn": {"sequence_length": self.sequence_length, "sizes": [size]}}

    def act(self, inputs: Mapping[str, Any], *, role: str = "") -> tuple[Tensor, dict[str, Any]]:
        """Actions (B, k) with their log-probabilities (B, 1), or as ``value`` values (B, 1).

        Policy and critic run in one pass: the value of the very observations that the policy has just read is there.
        """
        if role == "value":
            return self._value(inputs), {}
        taken = inputs.get("taken_actions")
        count = inputs["observations"].shape[0]
        leading, state, resets = self._memory(inputs)
        observations = self.read(inputs, leading)
        action = None
        if taken is not None:
            action = self._taken(taken, leading)
        step = step_of(
            *self._parts(), observations, action, state, resets, unroll=len(leading) > 1,
            mask=None, deterministic=False, entropy=False, drawn=True,
        )  # fmt: skip
        self._last = (inputs["observations"], torch.is_grad_enabled(), step)
        self._distribution = step.distribution
        outputs = Outputs(self._mean, log_prob=step.log_prob.reshape(count, 1))
        if state is not None and step.state is not None and resets is None:
            outputs["rnn"] = [self.model.pack_state(step.state).unsqueeze(0)]
        if taken is not None:
            return taken, outputs
        return self._given(step.action), outputs

    def _value(self, inputs: Mapping[str, Any]) -> Tensor:
        last, self._last = self._last, None
        count = inputs["observations"].shape[0]
        if last is not None and last[0] is inputs["observations"]:
            _, has_graph, step = last
            if has_graph == torch.is_grad_enabled() and step.value is not None:
                return step.value.reshape(count, 1)
        leading, state, resets = self._memory(inputs)
        observations = self.read(inputs, leading)
        policy, critic = self._parts()
        assert critic is not None  # as `refuse` says
        value = value_of(policy, critic, observations, state, resets, unroll=len(leading) > 1)
        return value.reshape(count, 1)

    def _parts(self) -> tuple[Policy, SpaceCritic | None]:
        """Policy and critic, lowered where they can be."""
        return self._acting.now(), None if self._judging is None else self._judging.now()

    def _memory(
        self, inputs: Mapping[str, Any]
    ) -> tuple[tuple[int, ...], State | None, Tensor | None]:
        """The leading axes of the observations, the state before them, and which of them begin an episode."""
        count = inputs["observations"].shape[0]
        if not self.model.has_memory:
            return (count,), None, None
        if "rnn" not in inputs:
            raise ValueError(
                "this model has memory, which this agent does not carry; "
                "composer.adapters.skrl.agent(PPO, spec, env) makes one that does"
            )
        rows = inputs["rnn"][0][0]
        if inputs.get("terminated") is None:
            return (count,), self.model.unpack_state(rows), None
        leading = (count // self.sequence_length, self.sequence_length)
        over = (inputs["terminated"] | inputs["truncated"]).reshape(leading)
        resets = torch.zeros_like(over)
        resets[:, 1:] = over[:, :-1]
        first = rows.reshape(*leading, -1)[:, 0]
        return leading, self.model.unpack_state(first), resets

    def _mean(self) -> Tensor:
        assert self._distribution is not None
        return self._given(self._distribution.mode())

    def _given(self, action: Any) -> Tensor:
        """The distribution's actions as skrl has them, (B, k)."""
        if self._first_choice is None:
            return self._actions.to_host(action).flatten(0, -2)
        return (action.reshape(-1, 1) + self._first_choice).float()

    def _taken(self, taken: Tensor, leading: tuple[int, ...]) -> Any:
        """skrl's actions (B, k) as the model's distribution has them, (*leading, ...)."""
        if self._first_choice is None:
            return self._actions.from_host(taken, self._dtype, leading)
        return taken.long().reshape(leading) - self._first_choice

    def read(
        self, inputs: Mapping[str, Any], leading: tuple[int, ...] = (-1,)
    ) -> dict[str, Tensor]:
        """skrl's ``observations`` (B, n) and ``states`` (B, m) as the model's, (*leading, ...) by flat key."""
        seen = inputs["observations"]
        if self.state_space is not None:
            seen = torch.cat([seen, inputs["states"]], -1)
        tensors = self._observations.read(seen, leading=leading)
        return Inputs(tensors) if self._is_plain else tensors

    def get_entropy(self, *, role: str = "") -> Tensor:
        """The entropy of the last distribution (B, 1)."""
        if self._distribution is None:
            return torch.zeros((), device=self.device)
        return self._distribution.entropy().reshape(-1, 1)

    def distribution(self, *, role: str = "") -> Spread:
        """What skrl logs of the last distribution."""
        return Spread(self._distribution)

    def compute(self, inputs: Mapping[str, Any], *, role: str = "") -> NoReturn:
        raise NotImplementedError("a composed model has act(inputs, role=...)")

    def init_state_dict(self, inputs: Mapping[str, Any] | None = None, *, role: str = "") -> None:
        """Nothing: no layer is lazy."""

    def init_parameters(self, method_name: str = "normal_", *args: Any, **kwargs: Any) -> None:
        _refuse_init("init_parameters")

    def init_weights(self, method_name: str = "orthogonal_", *args: Any, **kwargs: Any) -> None:
        _refuse_init("init_weights")

    def init_biases(self, method_name: str = "constant_", *args: Any, **kwargs: Any) -> None:
        _refuse_init("init_biases")


def _is_plain(model: Model) -> bool:
    """Whether policy and critic read all observations, and as skrl stores them."""
    policy, critic = one_policy(model.policy), model.critic
    everything = set(policy.observer.tree.leaves)
    return (
        are_read_as_stored(policy, everything)
        and set(policy.read_keys) == everything
        and isinstance(critic, SpaceCritic)
        and not critic.shared
        and set(critic.read_keys) == everything
    )


class Outputs(dict[str, Any]):
    """What `ComposedModel.act` gives beside actions; ``mean_actions`` are computed when they are asked for."""

    def __init__(self, mean: Callable[[], Tensor], **values: Any) -> None:
        super().__init__(values)
        self._mean = mean

    def __missing__(self, key: str) -> Tensor:
        if key != "mean_actions":
            raise KeyError(key)
        return self.setdefault(key, self._mean())

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key == "mean_actions" else super().get(key, default)


class Spread:
    """The standard deviation of a distribution, of squashed normals before squashing; NaN for one of choices."""

    def __init__(self, distribution: Distribution | None) -> None:
        base = getattr(distribution, "base", distribution)
        stddev = getattr(base, "stddev", None)
        self.stddev: Tensor = torch.tensor(torch.nan) if stddev is None else stddev


def _refuse_init(name: str) -> NoReturn:
    raise ValueError(
        f"{name} would draw the weights anew, which begin as the spec says; write init under 'policy' and "
        "'critic' of the spec, and leave out the call"
    )
