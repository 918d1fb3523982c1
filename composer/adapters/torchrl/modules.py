"""TorchRL's modules around one policy and one critic: actors, values, Q values, all over the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tensordict import TensorDictBase, unravel_key
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
    dispatch,
    set_skip_existing,
)
from tensordict.nn.probabilistic import interaction_type
from torch import Tensor, nn
from torch.distributions import Distribution as TorchDistribution
from torchrl.data import Composite
from torchrl.envs import TensorDictPrimer
from torchrl.modules import (
    ActorValueOperator,
    ProbabilisticActor,
    QValueActor,
    SafeProbabilisticTensorDictSequential,
    ValueOperator,
)

from composer.adapters.torchrl.copies import critic_of_copy, ensemble_of
from composer.adapters.torchrl.distribution import ComposedDistribution
from composer.adapters.torchrl.fields import Encoding, Field, Key, fields_of, shown
from composer.adapters.torchrl.functions import (
    PARAMS,
    MemoryUse,
    TensorCritic,
    TensorFunction,
    TensorPolicy,
    critic_of,
    state_specs,
)
from composer.critic.base import SpaceCritic
from composer.critic.state_action import Q_VALUES
from composer.distributions.discrete import NoLegalChoiceError, require_choice
from composer.model import Model
from composer.policy.policy import Policy
from composer.policy.structured import one_policy
from composer.spaces.tree import SpaceTree
from composer.spaces.values import as_flags
from perception_blocks.words import hint

__all__ = ["ModulesBuilder", "TensorModule", "TensorValue", "sequence"]

LEGAL = "legal_actions"


@dataclass
class ModulesBuilder:
    """Builds the modules of ``model``; fields say under which key and in which form a TensorDict holds a value.

    Raises ValueError for ``keys`` that name nothing, and for what an encoding cannot tell.
    """

    model: Model
    encoding: Encoding
    keys: Mapping[str, Key]
    mask_training: bool = False
    return_log_prob: bool = True
    burn_in: int = 0
    temperature_key: Key | None = None

    def __post_init__(self) -> None:
        keys, encoding = self.keys, self.encoding
        self.policy = policy = one_policy(self.model.policy)
        tree, action_tree, critic = policy.observer.tree, policy.action_tree, critic_of(self.model)
        known = [*tree.leaves, *action_tree.leaves, "action_mask"]
        for name in keys:
            if name not in known:
                raise ValueError(
                    f"keys names {name!r}, which is no observation or action{hint(name, known)}"
                )
        read = _read_by_policy(policy)
        if critic is not None:
            read += _with_masks(tree, critic.network.in_ports)
        self.observations = fields_of(tree, dict.fromkeys(read), encoding=encoding, keys=keys)
        others = {name: key for name, key in keys.items() if name not in tree.leaves}
        self.actions = fields_of(action_tree, action_tree.leaves, encoding=encoding, keys=others)
        self.mask_key = _mask_key(policy, self.observations, keys)

    # --- the policy ---

    def actor(self, *, training: bool, network: TensorModule | None = None) -> ProbabilisticActor:
        """Draws actions; with gradients, and over sequences, where it is for ``training``.

        ``network`` computes the logits in the place of the policy's own.
        """
        if network is None:
            network = self._network(
                self._logits_keys(), self._use(training), self._is_masked(training)
            )
        return ComposedActor(
            network,
            out_keys=[field.key for field in self.actions.values()],
            spec=self._action_spec(),
            default_interaction_type=InteractionType.RANDOM,
            return_log_prob=self.return_log_prob,
            **self._head(self._is_masked(training)),
        )

    def _trunk(self, training: bool) -> TensorModule:
        """The policy's network up to its logits, with all that the critic reads of it."""
        outputs = self._logits_keys() | {name: name for name in self.policy.shares}
        return self._network(outputs, self._use(training), self._is_masked(training))

    def _use(self, training: bool, writes: bool = True) -> MemoryUse:
        return MemoryUse(training, self.burn_in, writes) if training else MemoryUse()

    def _is_masked(self, training: bool) -> bool:
        return self.mask_training or not training

    def _network(self, outputs: Mapping[str, Key], use: MemoryUse, masked: bool) -> TensorModule:
        """The policy's network; it reads the masks of actions where the actor is ``masked``."""
        read = _read_by_policy(self.policy, masked)
        fields = {name: self.observations[name] for name in read}
        masks = self.policy.masks if masked and not self._is_single else {}
        places = {observation: self._place(action, "mask") for action, observation in masks.items()}
        return TensorModule(TensorPolicy(self.policy, fields, outputs, use, places))

    @property
    def _is_single(self) -> bool:
        return len(self.actions) == 1

    def _place(self, action: str, what: str) -> Key:
        """Where the distribution of ``action`` finds its logits, or its mask among several actions."""
        nested: Any = (PARAMS, self.actions[action].key, what)
        return what if self._is_single else unravel_key(nested)  # type: ignore[return-value]

    def _logits_keys(self) -> dict[str, Key]:
        return {name: self._place(name, "logits") for name in self.actions}

    def _head(self, masked: bool) -> dict[str, Any]:
        """Keys, class and arguments of the distribution, for ProbabilisticActor."""
        policy = self.policy
        masks = dict.fromkeys(self.actions, self.mask_key) if self._is_single else policy.masks
        settings: list[dict[str, Any]] = [
            {"family": policy.distributions[name], "field": field, "mask_key": masks.get(name)}
            for name, field in self.actions.items()
        ]
        if self._is_single:
            keys = {"logits": "logits", "mask": masked and self.mask_key}
            keys["temperature"] = self.temperature_key
            given = {name: key for name, key in keys.items() if key}
            kind, arguments = ComposedDistribution, settings[0]
        else:
            parts = {each["field"].key: partial(ComposedDistribution, **each) for each in settings}
            kind, given, arguments = CompositeDistribution, [PARAMS], {"distribution_map": parts}
        return {"in_keys": given, "distribution_class": kind, "distribution_kwargs": arguments}

    def _action_spec(self) -> Composite:
        spec = Composite()
        for field in self.actions.values():
            spec[field.key] = field.spec
        return spec

    # --- the critic ---

    def critic(self, *, training: bool) -> TensorDictModuleBase:
        """Values; where the critic shares values of the policy, with the policy's network before it."""
        return self._after_trunk(self._value(self._use(training)), training)

    def collecting(self, actor: ProbabilisticActor) -> TensorDictModuleBase:
        """``actor`` for inference, and after it the critic's memory; values would be in the way of GAE."""
        if self.model.critic is None or not self._critic.has_memory:
            return actor
        memory = self._tensor_critic(self._critic, MemoryUse())
        memory.outputs = {}
        critic = self._after_trunk(TensorModule(memory), training=False)
        return sequence(actor, critic)

    def _after_trunk(self, value: TensorDictModule, training: bool) -> TensorDictModuleBase:
        if not self._critic.shared:
            return value
        return sequence(self._trunk(training), value)

    def copies(self) -> tuple[ValueOperator, ...]:
        """The copies of an ensemble as critics of their own, with copies of its weights."""
        critic = self._critic
        ensemble = ensemble_of(critic)
        if ensemble is None or critic.shared:
            return ()
        use, rows = self._use(training=True, writes=False), range(ensemble.copies)
        return tuple(self._value(use, critic_of_copy(critic, ensemble, row), row) for row in rows)

    def actor_critic(self, actor: ProbabilisticActor) -> ActorValueOperator:
        """Policy and critic in one pass of what they share; ``actor`` is the one for training."""
        head = SafeProbabilisticTensorDictSequential(actor.module[-1])  # type: ignore[index]
        return ActorValueOperator(self._trunk(True), head, self._value(self._use(True)))

    def q_actor(self, *, training: bool) -> QValueActor:
        """Takes the choice of the highest Q value, among the legal ones if there is a mask.

        Without a critic the policy's logits are the values. For training the states of the data stay as they are.
        """
        ((name, field),) = self.actions.items()
        use = self._use(training, writes=False)
        if self.model.critic is None:
            value = self._network({name: "action_value"}, use, masked=False)
        else:
            value = self._after_trunk(self._value(use), training)
        if self.mask_key is not None:
            legal = TensorDictModule(
                _Legal(field.leaf.key, self.mask_key), in_keys=[self.mask_key], out_keys=[LEGAL]
            )
            value = sequence(value, legal)
        return QValueActor(
            value,
            spec=self._action_spec(),
            action_space="categorical" if field.form == "index" else "one_hot",
            action_key=field.key,
            action_mask_key=None if self.mask_key is None else LEGAL,
        )

    @property
    def _critic(self) -> SpaceCritic:
        critic = critic_of(self.model)
        assert critic is not None
        return critic

    def _value(
        self, use: MemoryUse, critic: SpaceCritic | None = None, copy: int | None = None
    ) -> ValueOperator:
        """The model's critic, or one of its copies, as a module."""
        return TensorValue(self._tensor_critic(critic or self._critic, use, copy))

    def _tensor_critic(
        self, critic: SpaceCritic, use: MemoryUse, copy: int | None = None
    ) -> TensorCritic:
        read = _with_masks(critic.observer.tree, critic.network.in_ports)
        fields = {name: self.observations[name] for name in read}
        is_given = any(source.kind == "action" for source in critic.input_sources().values())
        actions = self.actions if is_given else {}
        return TensorCritic(critic, fields, self._value_keys(critic), use, actions, copy)

    def _value_keys(self, critic: SpaceCritic) -> dict[str, Key]:
        """Every output of the critic -> its key."""
        known: dict[str, Key] = {"value": "state_value", "q_value": "state_action_value"}
        for name, field in self.actions.items():
            key = "action_value" if self._is_single else unravel_key(("action_value", field.key))
            known[name + Q_VALUES] = key
        return {name: known.get(name, name) for name in critic.out_ports}


class TensorModule(TensorDictModule):
    """The network of a policy or critic; with memory it has what TorchRL's `get_primers_from_module` looks for."""

    module: TensorFunction

    def __init__(self, function: TensorFunction) -> None:
        keys: dict[str, Any] = {"in_keys": function.in_keys, "out_keys": function.out_keys}
        super().__init__(function, **keys)

    @dispatch(auto_batch_size=False)
    @set_skip_existing(None)
    def forward(
        self, tensordict: TensorDictBase, *, tensordict_out: TensorDictBase | None = None
    ) -> TensorDictBase:
        return _with(tensordict, tensordict_out, self.module(tensordict))

    @property
    def make_tensordict_primer(self) -> Callable[[], TensorDictPrimer]:
        if not self.module.states:
            raise AttributeError("only modules with memory have make_tensordict_primer")
        return partial(TensorDictPrimer, state_specs(self.module.part), expand_specs=True)


class ComposedActor(ProbabilisticActor):
    """A `ProbabilisticActor` that goes without its inner modules where it draws, or makes, one distribution."""

    @dispatch(auto_batch_size=False)
    @set_skip_existing(None)
    def forward(
        self, tensordict: TensorDictBase, tensordict_out: TensorDictBase | None = None, **more: Any
    ) -> TensorDictBase:
        parts: Any = self.module
        network, head = parts
        is_drawn = (interaction_type() or head.default_interaction_type) is InteractionType.RANDOM
        if more or not (is_drawn and head.return_log_prob and _are_direct(network, head)):
            return super().forward(tensordict, tensordict_out, **more)
        values = network.module(tensordict)
        distribution = _distribution(head, tensordict, values)
        values[head.out_keys[0]], values[head.log_prob_key] = (
            distribution.rsample_and_log_prob()
            if distribution.has_rsample
            else distribution.sample_and_log_prob()
        )
        return _with(tensordict, tensordict_out, values)

    def get_dist(
        self, tensordict: TensorDictBase, tensordict_out: TensorDictBase | None = None, **more: Any
    ) -> TorchDistribution:
        parts: Any = self.module
        network, head = parts
        if more or tensordict_out is not None or not _are_direct(network, head):
            return super().get_dist(tensordict, tensordict_out, **more)
        return _distribution(head, tensordict, network.module(tensordict))


class TensorValue(TensorModule, ValueOperator):
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


def _are_direct(network: Any, head: Any) -> bool:
    """Whether the modules of an actor have one distribution, and nobody waits for their calls."""
    hooks = network._forward_hooks or network._forward_pre_hooks or head._forward_hooks
    return head.distribution_class is ComposedDistribution and not hooks


def _distribution(
    head: Any, tensordict: TensorDictBase, values: Mapping[Key, Tensor]
) -> ComposedDistribution:
    """What ``head`` makes of ``values`` of the network, and of the mask in ``tensordict``."""
    logits, *others = zip(head.dist_keys, head.in_keys, strict=True)
    given = {name: tensordict.get(key, None) for name, key in others}
    return ComposedDistribution(values[logits[1]], **given, **head.distribution_kwargs)


def _with(
    tensordict: TensorDictBase, other: TensorDictBase | None, values: Mapping[Key, Tensor]
) -> TensorDictBase:
    """``other``, or without one ``tensordict``, with ``values``."""
    written = tensordict if other is None else other
    for key, value in values.items():
        written.set(key, value)
    return written


def sequence(*modules: Any) -> TensorDictSequential:
    """The modules one after the other; TorchRL's annotation of them is wrong."""
    return TensorDictSequential(*modules)


def _read_by_policy(policy: Policy, masked: bool = True) -> list[str]:
    """The observations that it reads; the masks of actions only where it is ``masked``."""
    tree = policy.observer.tree
    if policy.users_own("preprocess") is not None:
        return list(tree.leaves)
    return _with_masks(tree, policy.read_keys if masked else policy.network.in_ports)


def _with_masks(tree: SpaceTree, names: Iterable[str]) -> list[str]:
    """The observations among ``names``, and the masks of what varies in size."""
    read = [name for name in names if name in tree.leaves]
    masks = [mask for name in read if (mask := tree.ports[name].mask) is not None]
    return list(dict.fromkeys([*read, *masks]))


def _mask_key(
    policy: Policy, observations: Mapping[str, Field], keys: Mapping[str, Key]
) -> Key | None:
    """The key of the mask of the only action: as the spec says, else an observation ``action_mask`` that fits."""
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
