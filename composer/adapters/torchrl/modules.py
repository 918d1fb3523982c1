"""TorchRL's modules around one policy and one critic: actors, values, Q values, all over the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from torch import Tensor, nn
from torchrl.data import Composite
from torchrl.envs import TensorDictPrimer
from torchrl.modules import (
    ActorValueOperator,
    ProbabilisticActor,
    QValueActor,
    SafeProbabilisticTensorDictSequential,
    ValueOperator,
)

from composer.adapters.torchrl.distribution import ComposedDistribution
from composer.adapters.torchrl.fields import Encoding, Field, Key, fields_of, shown
from composer.adapters.torchrl.functions import (
    PARAMS,
    TensorCritic,
    TensorFunction,
    TensorPolicy,
    state_specs,
)
from composer.critic.base import SpaceCritic
from composer.critic.state_action import Q_VALUES, StateActionCritic
from composer.distributions.discrete import NoLegalChoiceError, require_choice
from composer.model import Model
from composer.network.network import Network, State, Tensors
from composer.policy.policy import Policy
from composer.policy.structured import one_policy
from composer.spaces.tree import SpaceTree
from composer.spaces.values import as_flags
from perception_blocks.ensemble.ensemble import EnsembleBlock
from perception_blocks.words import hint

__all__ = ["ModulesBuilder", "ensemble_of"]

LEGAL = "legal_actions"


@dataclass(frozen=True)
class ModulesBuilder:
    """Makes modules of ``model``; fields say where observations and actions are in a TensorDict, and how."""

    model: Model
    observations: Mapping[str, Field]
    actions: Mapping[str, Field]
    mask_key: Key | None
    mask_training: bool
    return_log_prob: bool

    @classmethod
    def of(
        cls,
        model: Model,
        encoding: Encoding,
        keys: Mapping[str, Key],
        *,
        mask_training: bool,
        return_log_prob: bool,
    ) -> ModulesBuilder:
        """Raises ValueError for ``keys`` that name nothing, and for what an encoding cannot tell."""
        policy = one_policy(model.policy)
        tree, action_tree = policy.observer.tree, policy.action_tree
        known = [*tree.leaves, *action_tree.leaves, "action_mask"]
        for name in keys:
            if name not in known:
                raise ValueError(
                    f"keys names {name!r}, which is no observation or action{hint(name, known)}"
                )
        read = _read_by_policy(policy)
        if isinstance(model.critic, SpaceCritic):
            read += _with_masks(tree, model.critic.network.in_ports)
        observations = fields_of(tree, dict.fromkeys(read), encoding=encoding, keys=keys)
        others = {name: key for name, key in keys.items() if name not in tree.leaves}
        actions = fields_of(action_tree, action_tree.leaves, encoding=encoding, keys=others)
        mask = _mask_key(policy, observations, keys)
        return cls(model, observations, actions, mask, mask_training, return_log_prob)

    # --- the policy ---

    def actor(self, *, training: bool) -> ProbabilisticActor:
        """Draws actions; with gradients, and over sequences, where it is for ``training``."""
        masked = self.mask_training or not training
        outputs = self._logits_keys()
        masks = self._mask_outputs() if masked else {}
        part = self._policy_part(outputs, training, masked, masks)
        keys = [field.key for field in self.actions.values()]
        named: dict[str, Any] = {"log_prob_key": _log_prob(keys[0])} if self._is_single else {}
        return ProbabilisticActor(
            _module(part),
            in_keys=self._distribution_keys(masked),
            out_keys=keys,
            spec=self._action_spec(),
            default_interaction_type=InteractionType.RANDOM,
            return_log_prob=self.return_log_prob,
            **self._distribution(),
            **named,
        )

    def trunk(self, *, training: bool) -> TensorDictModule:
        """The policy's network up to its logits, with all that the critic reads of it."""
        outputs = self._logits_keys() | {name: name for name in self.model.policy.shares}
        masked = self.mask_training or not training
        masks = self._mask_outputs() if masked else {}
        return _module(self._policy_part(outputs, training, masked, masks))

    def _policy_part(
        self, outputs: Mapping[str, Key], training: bool, masked: bool, masks: Mapping[str, Key]
    ) -> TensorPolicy:
        policy = one_policy(self.model.policy)
        fields = {name: self.observations[name] for name in _read_by_policy(policy, masked)}
        return TensorPolicy(policy, fields, outputs, recurrent=training, masks=masks)

    @property
    def _is_single(self) -> bool:
        return len(self.actions) == 1

    def _logits_keys(self) -> dict[str, Key]:
        if self._is_single:
            return dict.fromkeys(self.actions, "logits")
        return {name: _params(field.key, "logits") for name, field in self.actions.items()}

    def _mask_outputs(self) -> dict[str, Key]:
        """Of several actions: the observations that are masks, and where the distributions look for them."""
        if self._is_single:
            return {}
        masks = one_policy(self.model.policy).masks.items()
        return {name: _params(self.actions[action].key, "mask") for action, name in masks}

    def _distribution_keys(self, masked: bool) -> Any:
        if not self._is_single:
            return [PARAMS]
        return {"logits": "logits"} | ({"mask": self.mask_key} if masked and self.mask_key else {})

    def _distribution(self) -> dict[str, Any]:
        """Class and arguments of the distribution, for ProbabilisticActor."""
        families = one_policy(self.model.policy).distributions
        if self._is_single:
            ((name, field),) = self.actions.items()
            arguments: dict[str, Any] = {"family": families[name], "field": field}
            arguments["mask_key"] = self.mask_key
            return {"distribution_class": ComposedDistribution, "distribution_kwargs": arguments}
        masks = one_policy(self.model.policy).masks
        parts = {
            field.key: partial(
                ComposedDistribution,
                family=families[name],
                field=field,
                mask_key=masks.get(name),
            )
            for name, field in self.actions.items()
        }
        return {
            "distribution_class": CompositeDistribution,
            "distribution_kwargs": {"distribution_map": parts},
        }

    def _action_spec(self) -> Composite:
        spec = Composite()
        for field in self.actions.values():
            spec[field.key] = field.spec
        return spec

    # --- the critic ---

    def critic(self, *, training: bool) -> TensorDictModuleBase:
        """Values; where the critic shares values of the policy, with the policy's network before it."""
        return self._after_trunk(self.value(training=training), training)

    def value(self, *, training: bool) -> ValueOperator:
        return _value_operator(self._critic_part(self._critic, training))

    def collecting(self, actor: ProbabilisticActor) -> TensorDictModuleBase:
        """``actor`` for inference, and after it the critic's memory; values would be in the way of GAE."""
        if self.model.critic is None or not self._critic.has_memory:
            return actor
        part = self._critic_part(self._critic, training=False)
        part.outputs = {}
        return _sequence(actor, self._after_trunk(_module(part), training=False))

    def _after_trunk(self, value: TensorDictModule, training: bool) -> TensorDictModuleBase:
        if not self._critic.shared:
            return value
        return _sequence(self.trunk(training=training), value)

    def copies(self) -> tuple[ValueOperator, ...]:
        """The copies of an ensemble as critics of their own, with copies of its weights."""
        critic = self._critic
        ensemble = ensemble_of(critic)
        if ensemble is None or critic.shared or critic.has_memory:
            return ()
        return tuple(
            _value_operator(self._critic_part(_single(critic, ensemble, index), True))
            for index in range(ensemble.copies)
        )

    def actor_critic(self, actor: ProbabilisticActor) -> ActorValueOperator:
        """Policy and critic in one pass of what they share; ``actor`` is the one for training."""
        last: Any = actor.module[-1]
        head = SafeProbabilisticTensorDictSequential(last)
        return ActorValueOperator(self.trunk(training=True), head, self.value(training=True))

    def q_actor(self) -> QValueActor:
        """Takes the choice of the highest Q value, among those that are legal where there is a mask.

        Without a critic the policy's logits are the values.
        """
        ((name, field),) = self.actions.items()
        value: Any = (
            _module(self._policy_part({name: "action_value"}, False, False, {}))
            if self.model.critic is None
            else self.critic(training=False)
        )
        if self.mask_key is not None:
            legal = TensorDictModule(
                _Legal(field.leaf.key, self.mask_key), in_keys=[self.mask_key], out_keys=[LEGAL]
            )
            value = _sequence(value, legal)
        return QValueActor(
            value,
            spec=self._action_spec(),
            action_space="categorical" if field.form == "index" else "one_hot",
            action_key=field.key,
            action_mask_key=None if self.mask_key is None else LEGAL,
        )

    @property
    def _critic(self) -> SpaceCritic:
        critic = self.model.critic
        assert isinstance(critic, SpaceCritic)
        return critic

    def _critic_part(self, critic: SpaceCritic, training: bool) -> TensorCritic:
        read = _with_masks(critic.observer.tree, critic.network.in_ports)
        fields = {name: self.observations[name] for name in read}
        actions = {}
        if isinstance(critic, StateActionCritic) and not critic.actions.are_choices:
            actions = dict(self.actions)
        return TensorCritic(
            critic, fields, self._value_keys(critic), recurrent=training, actions=actions
        )

    def _value_keys(self, critic: SpaceCritic) -> dict[str, Key]:
        """Every output of the critic -> its key."""
        keys: dict[str, Key] = {name: name for name in critic.out_ports}
        if not isinstance(critic, StateActionCritic):
            return keys | {"value": "state_value"}
        if not critic.actions.are_choices:
            return keys | {"q_value": "state_action_value"}
        for name, field in self.actions.items():
            keys[name + Q_VALUES] = (
                "action_value" if self._is_single else _nested("action_value", field.key)
            )
        return keys


class OneCopy(Network):
    """One of the copies of an ensemble, with its outputs called as the ensemble's are."""

    def __init__(self, whole: Network, copy: Any, inner: Mapping[str, str]) -> None:
        self.module = copy
        self.in_ports = whole.in_ports
        self.out_ports = {name: copy.out_ports[own] for name, own in inner.items()}
        self.state_shapes = {}
        self._inner = dict(inner)

    def run(self, inputs: Mapping[str, Tensor]) -> Tensors:
        outputs = self.module(inputs)
        return {name: outputs[own] for name, own in self._inner.items()}

    def advance(
        self, inputs: Mapping[str, Tensor], state: State, resets: Tensor | None, unroll: bool
    ) -> tuple[Tensors, State]:
        return self.run(inputs), {}


class Primed:
    """A TensorDictModule of a Part; with memory it has what TorchRL's `get_primers_from_module` looks for."""

    module: TensorFunction

    @property
    def make_tensordict_primer(self) -> Callable[[], TensorDictPrimer]:
        part = self.module
        if not part.states:
            raise AttributeError("only modules with memory have make_tensordict_primer")
        return partial(TensorDictPrimer, state_specs(part.part, part.role), expand_specs=True)


class PartModule(Primed, TensorDictModule):
    """A policy's or critic's network."""


class PartValue(Primed, ValueOperator):
    """A critic whose first output is its value."""


class _Legal(nn.Module):
    """A mask of any dtype as booleans. Raises ValueError where it leaves nothing."""

    def __init__(self, action: str, key: Key) -> None:
        super().__init__()
        self.action = action
        self.key = key

    def forward(self, mask: Tensor) -> Tensor:
        legal = as_flags(f"observation {shown(self.key)}", mask)
        try:
            require_choice(legal, self.action)
        except NoLegalChoiceError as error:
            raise error.of(f"observation {self.key!r}") from None
        return legal


def ensemble_of(critic: Any) -> EnsembleBlock | None:
    """What holds the weights of a critic of several copies."""
    if getattr(critic, "copies", 1) == 1:
        return None
    return next(
        m for n, m in critic._modules.items() if n != "target" and isinstance(m, EnsembleBlock)
    )


def _single(critic: SpaceCritic, ensemble: EnsembleBlock, index: int) -> StateActionCritic:
    """The critic of one copy of ``ensemble``."""
    assert isinstance(critic, StateActionCritic)
    network = critic.network
    names = list(network.out_ports)
    nodes = getattr(network.module, "nodes", None)
    inner = dict(zip(nodes[0].step.outputs, nodes[0].step.inner[1])) if nodes else {}
    copy = ensemble.copy_of(index)
    return StateActionCritic(
        OneCopy(network, copy, {name: inner.get(name, name) for name in names}),
        critic.observer, critic.reader, critic.actions, shared=(), dtype=critic.dtype,
    )  # fmt: skip


def _sequence(*modules: Any) -> TensorDictSequential:
    return TensorDictSequential(*modules)


def _module(part: TensorFunction) -> TensorDictModule:
    keys: dict[str, Any] = {"in_keys": part.in_keys, "out_keys": part.out_keys}
    return PartModule(part, **keys)


def _value_operator(part: TensorFunction) -> ValueOperator:
    return PartValue(part, in_keys=part.in_keys, out_keys=part.out_keys)


def _read_by_policy(policy: Policy, masked: bool = True) -> list[str]:
    """What it reads; the masks of actions only where it is ``masked``."""
    tree = policy.observer.tree
    if policy.users_own("preprocess") is not None:
        return list(tree.leaves)
    return _with_masks(tree, policy.read_keys if masked else policy.network.in_ports)


def _with_masks(tree: SpaceTree, names: Any) -> list[str]:
    """The observations among ``names``, and the masks of what varies in size."""
    read = [name for name in names if name in tree.leaves]
    masks = [mask for name in read if (mask := tree.ports[name].mask) is not None]
    return list(dict.fromkeys([*read, *masks]))


def _mask_key(
    policy: Policy, observations: Mapping[str, Field], keys: Mapping[str, Key]
) -> Key | None:
    """Where the mask of the only action is: where the spec says, else in an observation ``action_mask`` that fits."""
    leaves = policy.action_tree.leaves
    if len(leaves) > 1:
        return None
    ((name, leaf),) = leaves.items()
    if name in policy.masks:
        return observations[policy.masks[name]].key
    if leaf.kind == "box":
        return None
    if "action_mask" in keys:
        return keys["action_mask"]
    parts = getattr(policy.observation_space, "spaces", {})
    mask = parts.get("action_mask") if isinstance(parts, Mapping) else None
    fits = mask is not None and mask.shape == policy.logits_shapes[name]
    return "action_mask" if fits else None


def _nested(first: str, key: Key, *last: str) -> Key:
    own = (key,) if isinstance(key, str) else key
    return (first, *own, *last)


def _params(key: Key, name: str) -> Key:
    return _nested(PARAMS, key, name)


def _log_prob(key: Key) -> Key:
    return f"{key}_log_prob" if isinstance(key, str) else (*key[:-1], f"{key[-1]}_log_prob")
