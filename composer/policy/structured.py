"""StructuredPolicy: the policies of several actors as one, from observations by actor to actions by actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from composer.distributions.base import Distribution
from composer.distributions.joint import no_noise_to_hold, refuse_no_size
from composer.network.groups import ActorCall, Batch, GroupNetworks, rows_of
from composer.network.network import Inputs, State, Tensors, with_actor
from composer.network.structured import ByActor, StructuredModule, blamed, unstack
from composer.policy.policy import Policy
from composer.spaces.actors import ActorKey, Actors
from composer.spaces.kinds import Space
from composer.spaces.tree import holds_tensors, stacked, to_environments
from perception_blocks.base_block import is_traced
from perception_blocks.direct import is_plain
from perception_blocks.words import listing

if TYPE_CHECKING:
    from perception_blocks.blocks.scale import Group

__all__ = ["AnyPolicy", "PolicyBatch", "StructuredPolicy", "one_policy"]


class StructuredPolicy(StructuredModule[Policy]):
    """A policy of several actors (steps, agents): ``policy.act({actor: observation})`` returns {actor: action}.

    It returns an action for each actor that is given, in their order and under their keys. ``policy[key]`` is the
    `Policy` of a step, an agent or a group. With memory, calls take and return one flat state,
    ``{"<actor>/<node>/h": ...}``; the state of absent actors does not change. The policy stores no state.
    """

    part = "policy"
    class_that_acts: str | None  # a network class that defines ``act``, by name

    def __init__(self, actors: Actors, groups: Sequence[GroupNetworks[Policy]]) -> None:
        super().__init__(actors, groups)
        classes = (policy.class_that_acts for policy in self.policies.values())
        self.class_that_acts = next(filter(None, classes), None)

    # --- what it is ---

    @property
    def policies(self) -> dict[str, Policy]:
        """The Policy of each actor by flat name; actors of one group share one unless they are separate.

        A shared one that reads ``actor`` does not know which it acts for: ``policy[key]`` does.
        """
        return {actor.name: self._member_of(actor) for actor in self.actors}

    def __getitem__(self, key: ActorKey) -> Policy:
        """The Policy of an actor, a group or a step. That of a separate agent is over the agent's part of the weights.

        Raises KeyError for an unknown name, and for a group or step whose actors have networks of their own.
        """
        return self._whole(self.actor_of(key))

    @property
    def observation_space(self) -> dict[ActorKey, Space]:
        return self.actors.observation_space

    @property
    def action_space(self) -> dict[ActorKey, Space]:
        return self.actors.action_space

    @property
    def logits_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Actor -> action -> the shape of its logits, without leading axes."""
        return {name: policy.logits_shapes for name, policy in self.policies.items()}

    @property
    def shares(self) -> tuple[str, ...]:
        """The values that any of the policies shares with the critic."""
        shared = [name for policy in self.policies.values() for name in policy.shares]
        return tuple(dict.fromkeys(shared))

    # --- what it does ---

    def forward(
        self,
        observations: ByActor[object],
        state: State | None = None,
        resets: object = None,
        *,
        unroll: bool = False,
    ) -> Any:
        """Logits and shared values, {actor: {action: (...) + (k,)}}; with memory (these, state)."""
        calls = self._calls(observations, state, resets)
        self._compute(calls, unroll)
        unstack(calls)
        outputs = {call.entry.key: call.outputs for call in calls}
        return self._returned(outputs, self._after(state, calls), unroll)

    def distribution(
        self,
        observations: ByActor[object],
        state: State | None = None,
        resets: object = None,
        *,
        unroll: bool = False,
        mask: ByActor[object] | None = None,
        temperature: float = 1.0,
    ) -> Any:
        """{actor: distribution over its actions}; with memory (these, state). ``mask`` is by actor too."""
        _, distributions, after = self.outputs_and_distributions(
            observations, state, resets, unroll=unroll, mask=mask, temperature=temperature
        )
        return self._returned(distributions, after)

    def outputs_and_distributions(
        self,
        observations: ByActor[object],
        state: State | None,
        resets: object,
        *,
        unroll: bool,
        mask: ByActor[object] | None,
        temperature: float = 1.0,
    ) -> tuple[dict[Any, Tensors], dict[Any, Distribution], State]:
        """By actor the outputs of its network and the distribution that they stand for, and the state after."""
        calls, after = self._evaluated(observations, state, resets, unroll)
        unstack(calls)
        masks = self.actors.by_name(mask, "masks")
        outputs = {call.entry.key: call.outputs for call in calls}
        distributions = {c.entry.key: _distribution(c, masks, temperature) for c in calls}
        return outputs, distributions, after

    def act(
        self,
        observations: ByActor[object],
        state: State | None = None,
        resets: object = None,
        *,
        deterministic: bool = False,
        mask: ByActor[object] | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Any:
        """{actor: an action that its space accepts}, batched and tensor-valued as its observation is.

        With memory it returns (actions, state). ``deterministic`` takes modes, ``mask`` is by actor. An actor whose
        network class defines ``act`` is asked by that.
        """
        with torch.no_grad():
            rest, asked = self._by_manner(observations)
            calls: list[ActorCall[Policy]] = []
            after: State = {} if state is None else state
            if not asked or rest:
                calls, after = self._evaluated(rest, state, resets)
            _draw(calls, self.actors.by_name(mask, "masks"), temperature, deterministic, generator)
            if asked:
                asked_calls = self._calls(asked, state, resets)
                for call in asked_calls:
                    result = call.member.act(call.entry.value, call.state, call.resets)
                    call.action, call.after = call.member._split(result)
                after, calls = self._after(after, asked_calls), [*calls, *asked_calls]
            by_key = {call.entry.key: call.action for call in calls}
            actions = {key: by_key[key] for key in observations}
        return self._returned(actions, after)

    def _by_manner(self, observations: ByActor[object]) -> tuple[ByActor[object], dict[Any, Any]]:
        """Observations of actors for which this policy draws, and of those whose network class defines ``act``."""
        if not self.class_that_acts:
            return observations, {}
        rest, asked = {}, {}
        for entry in self.actors.entries(observations, "observations"):
            policy = self._member_of(entry.actor)
            (asked if policy.users_own("act") else rest)[entry.key] = entry.value
        return rest, asked

    def _evaluated(
        self, observations: object, state: State | None, resets: object, unroll: bool = False
    ) -> tuple[list[ActorCall[Policy]], State]:
        """The calls of all present actors with the outputs of their networks, and the state after.

        With hooks the outputs come from a call of this module, else from what it would run: then batches stay batches.
        """
        calls = self._calls(observations, state, resets)
        if is_plain(self, StructuredPolicy) and not is_traced():
            self._compute(calls, unroll)
            return calls, self._after(state, calls)
        result = self(observations, state, resets, unroll=unroll)
        outputs, after = self._split(result, unroll)
        for call in calls:
            call.outputs = outputs[call.entry.key]
            with blamed(call.entry.name):
                call.member.refuse_other_logits(call.outputs)
        return calls, after

    def _read_together(self, batch: Sequence[ActorCall[Policy]], unroll: bool) -> bool:
        policy = batch[0].actor_network.group.module
        if len(batch) == 1 or not isinstance(policy, Policy) or is_traced():
            return False
        if policy.users_own("preprocess"):
            return False
        try:
            values = [call.entry.value for call in batch]
            inputs = policy.read(policy.observer.tree.side_by_side(values, policy.read_keys))
            if policy.reads_actor:
                rows = torch.tensor([call.actor_network.row for call in batch])
                inputs = with_actor(inputs, policy.network.in_ports, rows)
            if not policy.leading(inputs):
                return False  # these were the parts of one observation
            states = [call.state or {} for call in batch]
            state = {node: stacked([s.get(node) for s in states]) for node in policy.state_shapes}
            resets = _alike_or_none([call.resets for call in batch])
            outputs, after = policy.run(inputs, state, resets, unroll)
        except ValueError:
            return False  # read one by one, the message names the actor
        together = Batch(inputs, outputs)
        for call, call.after in zip(batch, rows_of(after, len(batch)), strict=True):
            call.batch = together
        return True

    def lower(self) -> StructuredPolicy:
        """The policy itself: networks of one form already run in one call. For one actor: ``policy[key].lower()``."""
        return self

    def from_environment(self, actions: ByActor[object]) -> dict[Any, Any]:
        """Actions of an environment by actor in the form of the distributions; see `Policy.from_environment`."""
        converted = {}
        for entry in self.actors.entries(actions, "actions"):
            with blamed(entry.name):
                policy = self._member_of(entry.actor)
                converted[entry.key] = policy.from_environment(entry.value)
        return converted

    def to_environment(self, actions: ByActor[object]) -> dict[Any, Any]:
        """Actions of the distributions by actor, as the environment takes them; see `Policy.to_environment`."""
        converted = {}
        for entry in self.actors.entries(actions, "actions"):
            with blamed(entry.name):
                policy = self._member_of(entry.actor)
                converted[entry.key] = policy.to_environment(entry.value)
        return converted

    def distribution_of_row(self, rows: ByActor[Tensor]) -> dict[Any, Distribution]:
        """By actor the distribution whose ``row()`` is given; see `Policy.distribution_of_row`."""
        distributions = {}
        for entry in self.actors.entries(rows, "rows"):
            with blamed(entry.name):
                policy = self._member_of(entry.actor)
                distributions[entry.key] = policy.distribution_of_row(entry.value)
        return distributions

    def resample_exploration(
        self, batch_size: int = 1, generator: torch.Generator | None = None
    ) -> None:
        """Draw and hold the noise of all actors that can; see `Policy.resample_exploration`.

        Actors that share a policy share its noise.
        """
        refuse_no_size(batch_size)
        policies = {id(policy): policy for policy in self.policies.values()}.values()
        able = [p for p in policies if any(f.holds_noise for _, f in p.distributions.items())]
        if not able:
            actions = [
                f"{name}/{key}" for name, p in self.policies.items() for key in p.distributions
            ]
            raise ValueError(no_noise_to_hold(actions))
        for policy in able:
            policy.resample_exploration(batch_size, generator)

    def release_exploration(self) -> None:
        """Let every sample of all actors have fresh noise again."""
        for policy in self.policies.values():
            policy.release_exploration()

    def update_normalizers(self, observations: ByActor[object], group: Group = None) -> None:
        """Update the statistics with observations of all present actors; nothing changes if one is wrong."""
        seen: dict[int, list[Tensors]] = {}
        for entry in self.actors.entries(observations, "observations"):
            policy = self._member_of(entry.actor)
            with blamed(entry.name):
                rows = policy.observer.seen(entry.value, policy.dtype, policy.device)
            seen.setdefault(id(policy), []).append(rows)
        # All policies in one order: other processes, in which other actors may be present, count along with this one.
        for number, policy in {id(policy): policy for policy in self.policies.values()}.items():
            policy.observer.count(seen.get(number, []), group)

    def merge_normalizers(self, other: AnyPolicy) -> None:
        """Merge the statistics of ``other``, a policy that has seen other observations."""
        if isinstance(other, Policy) or self.actors.names != other.actors.names:
            raise ValueError("these are policies of other actors, whose statistics are not merged")
        theirs = other.policies
        merged = {id(policy): (policy, theirs[name]) for name, policy in self.policies.items()}
        for policy, others in merged.values():
            policy.merge_normalizers(others)

    def reset_distributions(self, seed: int) -> None:
        """Initialise the parameters of the distributions."""
        for group in self.groups:
            name = () if group.name is None else (group.name,)
            if isinstance(group.module, Policy):
                group.module.reset_distributions(seed, *name)
            else:
                for index, policy in enumerate(group.module.members):
                    policy.reset_distributions(seed, *name, index)


AnyPolicy: TypeAlias = Policy | StructuredPolicy


def one_policy(policy: AnyPolicy) -> Policy:
    """``policy`` as the policy of one actor. Raises ValueError for a policy of several actors."""
    if isinstance(policy, StructuredPolicy):
        actors = listing(policy.observation_space)
        raise ValueError(
            f"this policy acts for several actors ({actors}); take the policy of one of them: model.policy[actor]"
        )
    return policy


def _draw(
    calls: Sequence[ActorCall[Policy]],
    masks: Mapping[str, Any],
    temperature: float,
    deterministic: bool,
    generator: torch.Generator | None,
) -> None:
    """Fill in the action of each. Nothing is drawn unless all distributions are known; batches are drawn first."""
    batches: dict[tuple[int, bool], PolicyBatch] = {}
    for call in calls:
        key = id(call.member), call.entry.is_whole_step  # which has an axis of its own
        batches.setdefault(key, PolicyBatch([])).calls.append(call)
    together: list[PolicyBatch] = []
    alone: list[ActorCall[Policy]] = []
    for batch in batches.values():
        if batch.decide(masks, temperature):
            together.append(batch)
        else:
            alone += batch.calls
    unstack(alone)
    distributions = [_distribution(call, masks, temperature) for call in alone]
    for batch in together:
        batch.draw(deterministic, generator)
    for call, distribution in zip(alone, distributions, strict=True):
        value = call.entry.value
        with blamed(call.entry.name):
            call.action = call.member.action_of(distribution, value, deterministic, generator)


def _distribution(
    call: ActorCall[Policy], masks: Mapping[str, Any], temperature: float
) -> Distribution:
    mask = masks.get(call.entry.name)
    with blamed(call.entry.name):
        return call.member.distribution_of(call.outputs, call.entry.value, mask, temperature)


@dataclass
class PolicyBatch:
    """The calls of actors that share a policy. `decide`, then `draw`, which fills in the action of each call."""

    calls: list[ActorCall[Policy]]
    distribution: Distribution | None = None

    def decide(self, masks: Mapping[str, Any], temperature: float) -> bool:
        """Find one distribution over the actions of all calls.

        False where they differ in form or something is wrong: then each is computed alone, and messages name the actor.
        ``masks`` are by actor.
        """
        policy = self.calls[0].member
        alone = len(self.calls) == 1 or policy.users_own("preprocess")
        if alone or policy.draws_in_stages:  # in which messages of later heads name the actor
            return False
        try:
            batch, mask = self.calls[0].batch or self._stacked(policy), self._mask(masks)
            outputs = batch.outputs
            if mask is not None and any(outputs[key].dim() > 2 for key in policy.distributions):
                return False
            self.distribution = policy.distribution_of(outputs, batch.inputs, mask, temperature)
        except ValueError:
            return False
        return True

    def draw(self, deterministic: bool, generator: torch.Generator | None) -> None:
        """Fill in the action of each call."""
        assert self.distribution is not None
        policy = self.calls[0].member
        flat = policy.drawn(self.distribution, deterministic, generator)
        as_numpy = not holds_tensors(self.calls[0].entry.value)
        actions = to_environments(policy.action_tree, flat, as_numpy)
        for call, action in zip(self.calls, actions, strict=True):
            call.action = action

    def _stacked(self, policy: Policy) -> Batch:
        """The logits and the observed masks of all calls, on a new first axis."""
        values = [call.entry.value for call in self.calls]
        if len({holds_tensors(value) for value in values}) > 1:
            raise ValueError("tensors give tensors, arrays give arrays")
        names, keys = policy.distributions, policy.masks.values()
        outputs = {name: stacked([call.outputs[name] for call in self.calls]) for name in names}
        inputs = policy.observer.tree.side_by_side(values, keys) if keys else Inputs()
        return Batch(policy.read(inputs, keys), outputs)

    def _mask(self, masks: Mapping[str, Any]) -> Any:
        given = [masks.get(call.entry.name) for call in self.calls]
        by_action = [mask for mask in given if isinstance(mask, Mapping)]
        if len(by_action) < len(given):
            return _alike_or_none(given)
        names = {name: None for mask in by_action for name in mask}
        return {name: stacked([mask.get(name) for mask in by_action]) for name in names}


def _alike_or_none(values: Sequence[Any]) -> Any:
    return None if all(value is None for value in values) else stacked(values)
