"""A composed model as the actor and the critic of rsl_rl: `class_name: "composer.adapters.rsl_rl:Actor"`.

rsl_rl makes the two one after the other, from two configs, with the same observations in hand. The actor composes the
model and leaves a note on these observations; the critic takes the note away. So both are parts of one model, each
parameter is in one of them, and no two runners share anything.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from composer.adapters.host import are_read_as_stored
from composer.adapters.needs import refuse_for
from composer.adapters.rsl_rl.checks import (
    by_group,
    critic_problems,
    model_given,
    refuse,
    refuse_no_sequences,
    setting_problems,
)
from composer.adapters.rsl_rl.exported import OnnxPolicy, traced_policy
from composer.adapters.rsl_rl.groups import (
    keys_of,
    observation_space_of,
    read_space,
    seen_by,
)
from composer.critic.base import CriticModule, SpaceCritic
from composer.distributions.base import ActionDistribution, Distribution
from composer.distributions.continuous import (
    BetaDistribution,
    GaussianDistribution,
    SquashedGaussianDistribution,
)
from composer.lowered.network import WithTwin
from composer.model import Model, compose
from composer.network.module import under
from composer.network.network import Inputs, State, Tensors, share_of
from composer.policy.policy import Policy
from composer.policy.structured import one_policy
from perception_blocks.base_block import is_traced
from perception_blocks.registry import missing_extra

try:
    from tensordict import TensorDictBase

    from composer.adapters.rsl_rl.memory import Hidden, MemoryModule, picked, unpadded
except ImportError as error:
    raise missing_extra("composer.adapters.rsl_rl", error, "rsl-rl") from error

__all__ = ["Actor", "Critic"]

NOTE = (
    "_composer_actor"  # the attribute of the observations that leads from the actor to the critic
)


class Actor(MemoryModule):
    """The policy of a composed model as an actor of rsl_rl.

    ``spec`` is a spec as text or path, ``allow``, ``seed`` as for `compose`, ``weights`` a checkpoint whose weights are
    loaded. The model is composed for the observation groups of actor and critic, each a Box without bounds (bytes: an
    image from 0 to 255; booleans: flags), and for a Box of ``output_dim`` numbers without bounds.
    ``observation_space``, of all or by group, and ``action_space`` say more: spaces of gymnasium or their plain form.

    Observations are (n, ...) tensors by group; with ``masks`` (T, m) they are padded sequences (T, m, ...) beginning
    with ``hidden_state``, each (1, m, width), and outputs are (T, n, ...). Raises ValueError with every reason why
    rsl_rl cannot train the model, and SpecError for a spec with mistakes.
    """

    def __init__(
        self,
        obs: TensorDictBase,
        obs_groups: Mapping[str, list[str]],
        obs_set: str,
        output_dim: int,
        spec: Any = None,
        *,
        allow: Iterable[str] = (),
        seed: int | None = None,
        weights: str | Path | None = None,
        observation_space: Space | Mapping[str, Any] | None = None,
        action_space: Space | Mapping[str, Any] | None = None,
        **others: object,
    ) -> None:
        super().__init__()
        reasons = [*model_given(spec), *setting_problems(others)]
        action = spaces.Box(-np.inf, np.inf, (output_dim,))
        try:
            if action_space is not None:
                action = read_space(action_space, "action_space")
        except ValueError as error:
            reasons.append(str(error))
        groups = list(dict.fromkeys(obs_groups[obs_set]))
        if obs_set == "actor":
            groups = list(dict.fromkeys([*groups, *obs_groups["critic"]]))
        seen: Space = spaces.Dict()
        try:
            seen = observation_space_of(groups, by_group(obs), observation_space)
        except ValueError as error:
            reasons.append(str(error))
        refuse_for("rsl_rl", reasons)
        # A student or a teacher acts alone: the critic would only ask for observations that it has not.
        overrides = () if obs_set == "actor" else (("critic", None),)
        model = compose(
            spec, observation_space=seen, action_space=action, allow=allow, seed=seed,
            overrides=overrides,
        )  # fmt: skip
        if weights is not None:
            model.load_weights(weights, strict=obs_set == "actor")
        self._adopt(model, obs, obs_groups, obs_set, output_dim, groups)

    @classmethod
    def of(
        cls,
        model: Model,
        obs: TensorDictBase,
        obs_groups: Mapping[str, list[str]],
        obs_set: str,
        output_dim: int,
    ) -> Actor:
        """The actor of a ``model`` that was composed already; `__init__` composes one."""
        actor = cls.__new__(cls)
        MemoryModule.__init__(actor)
        groups = list(dict.fromkeys([*obs_groups["actor"], *obs_groups["critic"]]))
        actor._adopt(model, obs, obs_groups, obs_set, output_dim, groups)
        return actor

    def _adopt(
        self,
        model: Model,
        obs: TensorDictBase,
        obs_groups: Mapping[str, list[str]],
        obs_set: str,
        output_dim: int,
        groups: list[str],
    ) -> None:
        refuse(model, obs, obs_groups, obs_set, output_dim, groups)
        policy = one_policy(model.policy)
        # The model itself is no child: policy and critic are, each of one part, so that no parameter is in both.
        object.__setattr__(self, "model", model)
        self.policy = policy
        self._runs = WithTwin(policy)
        self.obs_groups = list(obs_groups[obs_set])
        self.num_actions = output_dim
        self.keys = keys_of(policy.observer.tree, groups)
        self._state_shapes = policy.state_shapes
        self._event_dims = len(policy.action_space.shape or ())
        self._distribution: Distribution | None = None
        self._action, family = next(iter(policy.distributions.items()))
        object.__setattr__(self, "_family", family)  # a child of the policy
        self._is_plain = are_read_as_stored(policy, policy.read_keys)
        self._needs_critic = obs_set == "actor" and model.critic is not None
        self._shares = model.critic is not None and bool(model.critic.shared)
        self._handed: tuple[TensorDictBase, Tensors, State] | None = None
        if self._needs_critic:
            setattr(obs, NOTE, weakref.ref(self))

    policy: Policy
    _family: ActionDistribution

    def forward(
        self,
        obs: TensorDictBase,
        masks: Tensor | None = None,
        hidden_state: Hidden | Tensor | None = None,
        stochastic_output: bool = False,
    ) -> Tensor:
        """Actions (n, actions), drawn or, without ``stochastic_output``, the mode; the state moves on."""
        policy = self.policy
        sequences = masks is not None and self.is_recurrent
        if masks is not None:
            refuse_no_sequences(masks)
        observations = picked(obs, self.keys, policy.read_keys, masks, sequences)
        inputs = Inputs(observations) if self._is_plain else policy.read(observations)
        state, after = None, {}
        if self.is_recurrent:
            batch = next(iter(observations.values())).shape[0]
            state = self._state(batch, hidden_state if sequences else self._hidden)
        outputs, after = self.run(inputs, state, sequences)
        if self._shares and stochastic_output:
            self._handed = (obs, outputs, after)
        if sequences:
            outputs = {name: unpadded(value, masks) for name, value in outputs.items()}  # type: ignore[arg-type]
        elif self.is_recurrent:
            self._keep(after)
        act = self._act_alone if is_traced() else self._act
        return act(outputs, inputs, stochastic_output)

    def _act(self, outputs: Tensors, inputs: Tensors, stochastic: bool) -> Tensor:
        if torch.is_grad_enabled():  # in an update: the rollout before has looked for NaN
            distribution = self._family(outputs[self._action], None, 1.0)
        else:
            distribution = self.policy.distribution_of(outputs, inputs, None, 1.0)
        object.__setattr__(self, "_distribution", distribution)  # a module's own way is slow
        action = distribution.sample() if stochastic else distribution.mode()
        return action if self._event_dims == 1 else self._flat(action)

    # A draw within a graph has the graph's own random numbers.
    _act_alone: Callable[..., Tensor] = torch.compiler.disable(_act)  # type: ignore[assignment]

    def taken(self, obs: TensorDictBase) -> tuple[Tensors, State] | None:
        """What the policy just gave for the very observations ``obs``, once: the critic need not run it again."""
        handed, self._handed = self._handed, None
        return handed[1:] if handed is not None and handed[0] is obs else None

    def train(self, mode: bool = True) -> Actor:
        if mode and self._needs_critic:
            raise ValueError(
                "the spec has a critic, but the config's critic is another one, so that the spec's would not be "
                'trained; write critic: {class_name: "composer.adapters.rsl_rl:Critic"}'
            )
        return super().train(mode)

    # --- the distribution of the last call ---

    @property
    def output_mean(self) -> Tensor:
        """The mode of the last distribution (n, actions)."""
        return self._flat(self._last.mode())

    @property
    def output_std(self) -> Tensor:
        """Its standard deviation (n, actions); of squashed normals before squashing."""
        return self._flat(_deviation(self._last))

    @property
    def output_entropy(self) -> Tensor:
        """Its entropy (n,)."""
        return self._last.entropy()

    @property
    def output_distribution_params(self) -> tuple[Tensor, ...]:
        """The numbers that stand for it: of normals their means and log-deviations, of others a row (n, P)."""
        normals = _normals(self._last)
        return (self._last.row(),) if normals is None else (normals.mean, normals.log_std)

    def get_output_log_prob(self, outputs: Tensor) -> Tensor:
        """The log probability (n,) of actions (n, actions)."""
        if self._event_dims != 1:
            outputs = outputs.reshape(*outputs.shape[:-1], *self.policy.action_space.shape)  # type: ignore[misc]
        # These are draws of rollouts, which looked for NaN before they drew.
        return self._last.log_prob_of_draw(outputs)

    def get_kl_divergence(
        self, old_params: tuple[Tensor, ...], new_params: tuple[Tensor, ...]
    ) -> Tensor:
        """The divergence (n,) between two distributions by their `output_distribution_params`."""
        both = (old_params, new_params)
        if len(new_params) == 1:
            old, new = (self.policy.distribution_of_row(row) for (row,) in both)
            return old.kl(new)
        # Squashing both in the same way changes nothing.
        before, after = (
            GaussianDistribution(mean, log_std, self._event_dims) for mean, log_std in both
        )
        return before.kl(after)

    @property
    def _last(self) -> Distribution:
        if self._distribution is None:
            raise ValueError("this actor has not acted yet; call actor(obs) first")
        return self._distribution

    def _flat(self, action: Tensor) -> Tensor:
        return action.flatten(-self._event_dims) if self._event_dims else action.unsqueeze(-1)

    def update_normalization(self, obs: TensorDictBase) -> None:
        observer = self.policy.observer
        if observer.keys:
            self.model.update_normalizers({key: obs[self.keys[key]] for key in observer.counted})

    # --- files ---

    def as_onnx(self, verbose: bool = False) -> nn.Module:
        """The policy for `export_policy_to_onnx`: ``obs`` and states in, ``actions`` and states out."""
        return OnnxPolicy(self.policy, self.keys, self.obs_groups, self.num_actions)

    def as_jit(self) -> nn.Module:
        """The policy for `export_policy_to_jit`: a traced module with `reset` that holds the state."""
        return traced_policy(self.policy, self.keys, self.obs_groups, self.num_actions)

    @property
    def cnns(self) -> nn.Module:
        raise ValueError(
            "share_cnn_encoders is said by the spec: shares: [...] under 'policy' lets the critic read values of it; "
            "leave it out of the algorithm's config"
        )


class Critic(MemoryModule):
    """The critic of the model whose policy is the `Actor`, which alone has a spec.

    Its own config has ``class_name`` alone; a ``spec`` is taken if it is the actor's. What it reads of the policy is
    trained as part of the actor.
    """

    def __init__(
        self,
        obs: TensorDictBase,
        obs_groups: Mapping[str, list[str]],
        obs_set: str,
        output_dim: int,
        spec: Any = None,
        **others: object,
    ) -> None:
        super().__init__()
        note = obs.__dict__.pop(NOTE, None)
        actor: Actor | None = None if note is None else note()
        if actor is None:
            raise ValueError(
                "a composed critic is a part of the actor's model, and the actor is another one or has no critic; "
                'write actor: {class_name: "composer.adapters.rsl_rl:Actor", spec: ...} with a spec that has a critic'
            )
        refuse_for("rsl_rl", critic_problems(actor.model, spec, others))
        critic = actor.model.critic
        assert isinstance(critic, SpaceCritic)
        actor._needs_critic = False
        object.__setattr__(self, "model", actor.model)
        object.__setattr__(self, "actor", actor)
        self.critic = critic
        self._runs = WithTwin(critic)
        shapes = critic.state_shapes
        if critic.shared and actor.is_recurrent:  # it can run the policy alone too
            shapes = {**under("policy", actor.policy.state_shapes), **under("critic", shapes)}
        else:
            shapes = under("critic", shapes)
        self._state_shapes = shapes
        handed = actor.policy.read_keys if critic.shared else ()
        self._reads = tuple(dict.fromkeys([*seen_by(critic), *handed]))
        self._is_plain = not critic.shared and are_read_as_stored(actor.policy, self._reads)
        self._gives_column = type(critic).number_of is CriticModule.number_of

    actor: Actor
    critic: SpaceCritic

    def forward(
        self,
        obs: TensorDictBase,
        masks: Tensor | None = None,
        hidden_state: Hidden | Tensor | None = None,
        stochastic_output: bool = False,
    ) -> Tensor:
        """Values (n, 1); arguments are as for `Actor`."""
        actor, critic = self.actor, self.critic
        sequences = masks is not None and self.is_recurrent
        state: State = {}
        observations = picked(obs, actor.keys, self._reads, masks, sequences)
        if self.is_recurrent:
            batch = next(iter(observations.values())).shape[0]
            state = self._state(batch, hidden_state if sequences else self._hidden)
        outputs, after = self._shared(obs, observations, state, sequences)
        seen = Inputs(observations) if self._is_plain else critic.read(observations, outputs)
        share = share_of("critic", state) if critic.has_memory else None
        values, more = self.run(seen, share, sequences)
        column = self._gives_column  # what it gives as it is, and rsl_rl takes
        value = values["value"] if column else critic.number_of(values).unsqueeze(-1)
        if sequences:
            return unpadded(value, masks)  # type: ignore[arg-type]
        if self.is_recurrent:
            self._keep({**under("policy", after), **under("critic", more)})
        return value

    def _shared(
        self, obs: TensorDictBase, observations: Tensors, state: State, sequences: bool
    ) -> tuple[Tensors | None, State]:
        """What the policy gives the critic, and its state after: from the actor's call just before, or run again."""
        if not self.critic.shared:
            return None, {}
        policy = self.actor.policy
        handed = self.actor.taken(obs)
        if handed is not None and policy.has_memory == self.is_recurrent:
            return handed
        share = share_of("policy", state) if policy.has_memory else None
        return self.actor.run(policy.read(observations), share, sequences)


def _normals(distribution: Distribution) -> GaussianDistribution | None:
    """The normals of a distribution that is made of them alone."""
    if type(distribution) is SquashedGaussianDistribution:
        return distribution.base
    return distribution if type(distribution) is GaussianDistribution else None


def _deviation(distribution: Distribution) -> Tensor:
    if isinstance(distribution, SquashedGaussianDistribution):
        distribution = distribution.base
    if isinstance(distribution, GaussianDistribution):
        return distribution.stddev
    if isinstance(distribution, BetaDistribution):
        alpha, beta = distribution.concentrations
        total = alpha + beta
        width = 2 * torch.as_tensor(distribution.bounds.half)
        return width * (alpha * beta / (total + 1)).sqrt() / total
    return torch.zeros_like(distribution.mode())
