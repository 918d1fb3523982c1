"""StructuredPolicy: the policies of several actors as one, from observations by actor to actions by actor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from composer.distributions.base import Distribution
from composer.network.network import State, Tensors
from composer.network.structured import ActorCall, StructuredModule, blamed
from composer.policy.policy import Policy
from composer.spaces.actors import ActorKey
from composer.spaces.tree import alike, holds_tensors, to_environments

__all__ = ["StructuredPolicy", "PolicyBatch", "policy_batches"]


class StructuredPolicy(StructuredModule):
    """A policy of several actors (steps, agents): ``policy.act({actor: observation})`` returns {actor: action}.

    It returns an action for each actor that is given, in their order and under their keys. ``policy[key]`` is the
    `Policy` of a step, an agent or a group. With memory, calls take and return one flat state,
    ``{"<actor>/<node>/h": ...}``; the state of absent actors does not change. The policy stores no state.
    """

    role = "policy"

    # --- what it is ---

    @property
    def policies(self) -> dict[str, Policy]:
        """The Policy of each actor by flat name; actors of one group share one unless they are separate."""
        return {actor.name: self._seats[actor.name].network for actor in self.actors}

    def __getitem__(self, key: ActorKey) -> Policy:
        """The Policy of an actor, a group or a step. That of a separate agent is over the agent's part of the weights.

        Raises KeyError for an unknown name, and for a group or step whose actors have networks of their own.
        """
        return self._whole(self.actor_of(key))

    @property
    def observation_space(self) -> dict[ActorKey, Any]:
        return self.actors.observation_space

    @property
    def action_space(self) -> dict[ActorKey, Any]:
        return self.actors.action_space

    @property
    def logits_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Actor -> action -> the shape of its logits, without leading axes."""
        return {name: policy.logits_shapes for name, policy in self.policies.items()}

    @property
    def shares(self) -> tuple[str, ...]:
        """The values that any of the policies hands to the critic."""
        shared = [name for policy in self.policies.values() for name in policy.shares]
        return tuple(dict.fromkeys(shared))

    # --- what it does ---

    def forward(
        self, observations: Mapping[Any, Any], state: State | None = None, resets: Any = None
    ) -> Any:
        """Logits and shared values, {actor: {action: (...) + (k,)}}; with memory (these, state)."""
        turns = self._turns(observations, state, resets)
        self._compute(turns)
        outputs = {turn.present.key: turn.outputs for turn in turns}
        return (outputs, self._after(state, turns)) if self.has_memory else outputs

    def unroll(
        self, observations: Mapping[Any, Any], state: State, resets: Any = None
    ) -> tuple[dict[Any, Tensors], State]:
        """All steps of (..., T) of everyone present, and the state after the last; resets (..., T)."""
        turns = self._turns(observations, state, resets)
        self._compute(turns, unroll=True)
        return {turn.present.key: turn.outputs for turn in turns}, self._after(state, turns)

    def distribution(
        self,
        observations: Mapping[Any, Any],
        state: State | None = None,
        resets: Any = None,
        *,
        unroll: bool = False,
        mask: Mapping[Any, Any] | None = None,
        temperature: float = 1.0,
    ) -> Any:
        """{actor: distribution over its actions}; with memory (these, state). ``mask`` is by actor too."""
        turns = self._turns(observations, state, resets)
        self._compute(turns, unroll)
        masks = self._by_name(mask, "masks")
        found = {turn.present.key: _distribution(turn, masks, temperature) for turn in turns}
        return (found, self._after(state, turns)) if self.has_memory else found

    def act(
        self,
        observations: Mapping[Any, Any],
        state: State | None = None,
        resets: Any = None,
        *,
        deterministic: bool = False,
        mask: Mapping[Any, Any] | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Any:
        """{actor: an action that its space accepts}, batched and tensor-valued as its observation is.

        With memory it returns (actions, state). ``deterministic`` takes modes, ``mask`` is by actor. An actor whose
        network class defines ``act`` is asked by that.
        """
        with torch.no_grad():
            turns = self._turns(observations, state, resets)
            masks = self._by_name(mask, "masks")
            together, alone, asked = _by_manner(turns, masks, temperature)
            self._compute(alone)
            distributions = [_distribution(turn, masks, temperature) for turn in alone]
            for crew in together:
                crew.draw(deterministic, generator)
            for turn, distribution in zip(alone, distributions, strict=True):
                turn.action = turn.network.action_of(
                    distribution, turn.present.value, deterministic, generator
                )
            for turn in asked:
                _ask(turn)
            actions = {turn.present.key: turn.action for turn in turns}
        return (actions, self._after(state, turns)) if self.has_memory else actions

    def lower(self) -> StructuredPolicy:
        """Itself: networks of one form are one call already. That of one actor alone is ``policy[key].lower()``."""
        return self

    def from_environment(self, actions: Mapping[Any, Any]) -> dict[Any, Any]:
        """Actions of an environment by actor as the distributions have them, as `Policy.from_environment` does."""
        present = self.actors.present(actions, "actions")
        found = {}
        for one in present:
            with blamed(one.name):
                found[one.key] = self._seats[one.actor.name].network.from_environment(one.value)
        return found

    def update_normalizers(self, observations: Mapping[Any, Any], group: Any = None) -> None:
        """Count the observations of everyone present into the statistics; nothing if those of one are wrong."""
        seen: dict[int, list[Tensors]] = {}
        for one in self.actors.present(observations, "observations"):
            policy = self._seats[one.actor.name].network
            with blamed(one.name):
                rows = policy.observer.seen(one.value, policy.dtype, policy.device)
            seen.setdefault(id(policy), []).append(rows)
        # Everyone's, in one order: other processes, which may have others present, count along with this one.
        for number, policy in {id(policy): policy for policy in self.policies.values()}.items():
            policy.observer.count(seen.get(number, []), group)

    def merge_normalizers(self, other: StructuredPolicy) -> None:
        """Merge the statistics of ``other``, a policy that has seen other observations."""
        if self.actors.names != other.actors.names:
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
                for index, policy in enumerate(group.module.parts):
                    policy.reset_distributions(seed, *name, index)


def _by_manner(
    turns: Sequence[ActorCall], masks: Mapping[str, Any], temperature: float
) -> tuple[list[PolicyBatch], list[ActorCall], list[ActorCall]]:
    """Those who have decided together; who decides alone; whose own class is to be asked."""
    together, rest = [], []
    for crew in policy_batches(turns):
        if crew.decide(masks, temperature):
            together.append(crew)
        else:
            rest += crew.turns
    asked = [turn for turn in rest if turn.network.users_own("act")]
    return together, [turn for turn in rest if not turn.network.users_own("act")], asked


def _distribution(turn: ActorCall, masks: Mapping[str, Any], temperature: float) -> Distribution:
    mask = masks.get(turn.present.name)
    with blamed(turn.present.name):
        return turn.network.distribution_of(turn.outputs, turn.inputs, mask, temperature)


def _ask(turn: ActorCall) -> None:
    """Let the user's own class act."""
    result = turn.network.act(turn.present.value, turn.state, turn.resets)
    turn.action, turn.after = result if turn.network.has_memory else (result, {})


@dataclass
class PolicyBatch:
    """Those present who share a policy. `decide`, then `draw`; each fills in the turns' actions and states after."""

    turns: list[ActorCall]
    distribution: Distribution | None = None
    after: State | None = None

    def decide(self, masks: Mapping[str, Any], temperature: float) -> bool:
        """Find the distribution over all of their actions.

        False where they are unlike, or something is wrong: then each alone is to decide, which says what is wrong with
        whom. ``masks`` are by actor.
        """
        policy: Policy = self.turns[0].network
        if len(self.turns) == 1 or policy.users_own("act") or policy.users_own("preprocess"):
            return False
        try:
            inputs, mask = self._inputs(policy), self._mask(masks)
            leading = policy.leading(inputs)
            # Without leading axes, these were the parts of one observation.
            if not leading or (mask is not None and len(leading) > 1):
                return False
            state, resets = self._state(policy), _alike_or_none([t.resets for t in self.turns])
            outputs, self.after = policy.evaluate(inputs, state, resets, "policy")
            self.distribution = policy.distribution_of(outputs, inputs, mask, temperature)
        except ValueError:
            return False
        return True

    def draw(self, deterministic: bool, generator: torch.Generator | None) -> None:
        """Fill in what each of them does, and its state after."""
        policy, after = self.turns[0].network, self.after or {}
        flat = policy.drawn(self.distribution, deterministic, generator)
        as_numpy = not holds_tensors(self.turns[0].present.value)
        actions = to_environments(policy.action_tree, flat, as_numpy)
        for row, (turn, action) in enumerate(zip(self.turns, actions, strict=True)):
            turn.action = action
            turn.after = {node: value[row] for node, value in after.items()}

    def _inputs(self, policy: Policy) -> dict[str, torch.Tensor]:
        values = [turn.present.value for turn in self.turns]
        if len({holds_tensors(value) for value in values}) > 1:
            raise ValueError("tensors are answered by tensors, arrays by arrays")
        return policy.read(policy.observer.tree.side_by_side(values, policy.read_keys))

    def _state(self, policy: Policy) -> State | None:
        states = [turn.state or {} for turn in self.turns]
        return {node: alike([own.get(node) for own in states]) for node in policy.state_shapes}

    def _mask(self, masks: Mapping[str, Any]) -> Any:
        own = [masks.get(turn.present.name) for turn in self.turns]
        by_action = [mask for mask in own if isinstance(mask, Mapping)]
        if len(by_action) < len(own):
            return _alike_or_none(own)
        names = {name: None for mask in by_action for name in mask}
        return {name: alike([mask.get(name) for mask in by_action]) for name in names}


def policy_batches(turns: Sequence[ActorCall]) -> list[PolicyBatch]:
    """The turns by policy, in the order given."""
    found: dict[tuple[int, bool], PolicyBatch] = {}
    for turn in turns:
        one = turn.present
        whole_step = one.actor.is_open and one.name == one.actor.name  # has an axis of its own
        found.setdefault((id(turn.network), whole_step), PolicyBatch([])).turns.append(turn)
    return list(found.values())


def _alike_or_none(values: Sequence[Any]) -> Any:
    return None if all(value is None for value in values) else alike(values)
