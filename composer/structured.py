"""StructuredPolicy: the policies of several actors as one, from observations by actor to actions by actor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from composer.actors import Actor, ActorKey, Actors, Present, shortened
from composer.distributions import Distribution
from composer.group_policy import GroupPolicy, SeparatePolicies, refuse_other_axes
from composer.network import REGISTRIES, State, Tensors
from composer.policy import Policy
from perception_blocks.inference import submodule_at
from perception_blocks.port import Shape
from perception_blocks.registry import did_you_mean
from perception_blocks.wiring import module_name

__all__ = ["StructuredPolicy"]


@dataclass(frozen=True)
class _Seat:
    """Where an actor's network is: it is one of a group's ``policies``."""

    group: GroupPolicy
    row: int
    policy: Policy


@dataclass
class _Turn:
    """What one actor does in one call."""

    present: Present
    seat: _Seat
    state: State | None
    resets: Any
    inputs: Tensors = field(default_factory=dict)
    leading: tuple[int, ...] = ()
    outputs: Tensors = field(default_factory=dict)
    after: State = field(default_factory=dict)
    action: Any = None

    @property
    def policy(self) -> Policy:
        return self.seat.policy


class StructuredPolicy(nn.Module):
    """What acts for the steps and agents of an environment: ``policy.act({actor: observation})`` is {actor: action}.

    Everyone who is present is answered, in the order given and under the keys given. ``policy[key]`` is the `Policy` of
    a step, an agent or a group. With memory, calls take and return one flat state, ``{"<actor>/<node>/h": ...}``; what
    belongs to actors that are absent passes through. The policy keeps no state of its own.
    """

    def __init__(self, actors: Actors, groups: Sequence[GroupPolicy]) -> None:
        super().__init__()
        self.actors = actors
        self.groups = tuple(groups)
        self._alone = groups[0].name is None
        if self._alone:  # not a child: its registries are ours
            for registry in REGISTRIES:
                object.__setattr__(self, registry, getattr(groups[0].module, registry))
        else:
            for group in groups:
                self._modules[module_name(str(group.name))] = group.module
        self._seats = {
            actor.name: _Seat(group, row, policy)
            for group in groups
            for row, (actor, policy) in enumerate(zip(group.actors, group.policies, strict=True))
        }
        self._state_shapes = {
            f"{name}/{node}": shape
            for name, seat in self._seats.items()
            if not actors[name].is_open
            for node, shape in seat.policy.state_shapes.items()
        }
        self._has_memory = any(seat.policy.has_memory for seat in self._seats.values())

    # --- what it is ---

    @property
    def policies(self) -> dict[str, Policy]:
        """The Policy of each actor by flat name; actors of one group share one unless they are separate."""
        return {actor.name: self._seats[actor.name].policy for actor in self.actors}

    def __getitem__(self, key: ActorKey) -> Policy:
        """The Policy of an actor, a group or a step. That of a separate agent is over the agent's part of the weights.

        Raises KeyError for an unknown name, and for a group or step whose actors have networks of their own.
        """
        found = self.actors.find(key)
        if found is not None:
            return self._whole(found[1])
        name = str(key)
        members = [a for group in self.groups if group.name == name for a in group.actors]
        members = members or [actor for actor in self.actors if actor.step == name]
        if not members:
            known = [*self.actors.names, *(str(g.name) for g in self.groups if g.name is not None)]
            near = did_you_mean(name, known) or f"; there is {shortened(self.actors.names)}"
            raise KeyError(f"there is no actor or group {key!r}{near}")
        if len({id(self._seats[actor.name].policy) for actor in members}) > 1:
            names = shortened(actor.name for actor in members)
            raise KeyError(
                f"the actors of {key!r} have networks of their own; ask for one of {names}"
            )
        return self._whole(members[0])

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

    @property
    def has_memory(self) -> bool:
        return self._has_memory

    @property
    def state_shapes(self) -> dict[str, Shape]:
        """Shapes of the carried state of all actors that are counted, without leading axes."""
        return dict(self._state_shapes)

    @property
    def device(self) -> torch.device:
        return self._seats[self.actors.names[0]].policy.device

    @property
    def dtype(self) -> torch.dtype:
        return self._seats[self.actors.names[0]].policy.dtype

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
            self._compute([turn for turn in turns if not turn.policy.users_own("act")])
            for turn in turns:
                if turn.policy.users_own("act"):
                    _ask(turn)
                else:
                    distribution = _distribution(turn, masks, temperature)
                    turn.action = turn.policy.action_of(
                        distribution, turn.present.value, deterministic, generator
                    )
            actions = {turn.present.key: turn.action for turn in turns}
        return (actions, self._after(state, turns)) if self.has_memory else actions

    def initial_state(
        self,
        batch_size: int | Sequence[int] = (),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        actors: Iterable[ActorKey] | None = None,
    ) -> State:
        """A zero state for ``batch_size`` environments, of ``actors`` or else of all whose number is known."""
        if actors is None:
            actors = [actor.key for actor in self.actors if not actor.is_open]
        present = self.actors.present(dict.fromkeys(actors), "states")
        return {
            f"{one.name}/{node}": value
            for one in present
            for node, value in self._seats[one.actor.name]
            .policy.initial_state(batch_size, device, dtype)
            .items()
        }

    def from_environment(self, actions: Mapping[Any, Any]) -> dict[Any, Any]:
        """Actions of an environment by actor as the distributions have them, as `Policy.from_environment` does."""
        present = self.actors.present(actions, "actions")
        return {
            one.key: self._seats[one.actor.name].policy.from_environment(one.value)
            for one in present
        }

    def update_normalizers(self, observations: Mapping[Any, Any], group: Any = None) -> None:
        """Count the observations of everyone present into the statistics."""
        for one in self.actors.present(observations, "observations"):
            with _blamed(one.name):
                self._seats[one.actor.name].policy.update_normalizers(one.value, group)

    def merge_normalizers(self, other: StructuredPolicy) -> None:
        """Count in what the normalisers of ``other`` have seen."""
        if self.actors.names != other.actors.names:
            raise ValueError("these are policies of other actors, whose statistics are not merged")
        theirs = other.policies
        merged = {id(policy): (policy, theirs[name]) for name, policy in self.policies.items()}
        for policy, others in merged.values():
            policy.merge_normalizers(others)

    def reset_distributions(self, seed: int) -> None:
        """Set the parameters of distributions to where learning starts."""
        for group in self.groups:
            name = () if group.name is None else (group.name,)
            if isinstance(group.module, Policy):
                group.module.reset_distributions(seed, *name)
            else:
                for index, policy in enumerate(group.module.policies):
                    policy.reset_distributions(seed, *name, index)

    # --- one call ---

    def _turns(self, observations: Any, state: State | None, resets: Any) -> list[_Turn]:
        """Everyone present, each with its share of the state; nothing is computed so far."""
        present = self.actors.present(observations, "observations")
        self._check_memory(state)
        by_actor = isinstance(resets, Mapping)
        own_resets = self._by_name(resets, "resets") if by_actor else {}
        turns = []
        for one in present:
            seat = self._seats[one.actor.name]
            policy, own = seat.policy, None
            if policy.has_memory:
                names = {node: f"{one.name}/{node}" for node in policy.state_shapes}
                own = {node: state[name] for node, name in names.items() if name in state}  # type: ignore[index,operator]
                if not own and one.actor.is_open:
                    raise ValueError(
                        f"the state has nothing of {one.name!r}; a new actor begins with "
                        f"initial_state(batch_size, actors=[{one.name!r}])"
                    )
                if by_actor and one.name not in own_resets:
                    raise ValueError(f"resets lack {one.name!r}; it is present and has memory")
            reset = own_resets.get(one.name) if by_actor else resets
            turns.append(_Turn(one, seat, own, reset if policy.has_memory else None))
        return turns

    def _compute(self, turns: list[_Turn], unroll: bool = False) -> None:
        """Outputs and states, by one call for those who share a network or have stacked ones."""
        batches: dict[tuple[int, str], list[_Turn]] = {}
        for turn in turns:
            with _blamed(turn.present.name):
                _read(turn, unroll)
            # The agents of an open step that come as one array have an axis more than the others.
            one = turn.present
            alone = one.name if one.actor.is_open and one.name == one.actor.name else ""
            batches.setdefault((id(turn.seat.group), alone), []).append(turn)
        for batch in batches.values():
            refuse_other_axes({turn.present.name: turn.leading for turn in batch})
            batch = sorted(batch, key=lambda turn: turn.seat.row)
            results = batch[0].seat.group.evaluate(
                [turn.seat.row for turn in batch],
                [turn.inputs for turn in batch],
                [turn.state for turn in batch],
                [turn.resets for turn in batch],
                unroll,
            )
            for turn, (outputs, after) in zip(batch, results, strict=True):
                turn.outputs, turn.after = outputs, after

    def _after(self, state: State | None, turns: list[_Turn]) -> State:
        after = dict(state or {})
        for turn in turns:
            after |= {f"{turn.present.name}/{node}": value for node, value in turn.after.items()}
        return after

    def _check_memory(self, state: State | None) -> None:
        if not self.has_memory:
            if state:
                raise ValueError("this policy has no memory; call it without a state")
            return
        if state is None:
            raise ValueError(
                "this policy has memory; call policy(observations, state, resets), beginning with "
                "initial_state(batch_size)"
            )
        known = self.state_shapes
        open_steps = tuple(f"{actor.name}/" for actor in self.actors if actor.is_open)
        for name in state:
            if name not in known and not name.startswith(open_steps):
                near = did_you_mean(name, known) or f"; it has {shortened(known)}"
                raise ValueError(f"{name!r} is not in the state of this policy{near}")

    def _by_name(self, values: Any, what: str) -> dict[str, Any]:
        if values is None:
            return {}
        return {one.name: one.value for one in self.actors.present(values, what)}

    def _whole(self, actor: Actor) -> Policy:
        seat = self._seats[actor.name]
        module = seat.group.module
        return module.policy_of(seat.row) if isinstance(module, SeparatePolicies) else module

    # --- as a module ---

    def train(self, mode: bool = True) -> StructuredPolicy:
        if self._alone:
            self.groups[0].module.train(mode)
        return super().train(mode)

    def get_submodule(self, target: str) -> nn.Module:
        return submodule_at(self, target)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StructuredPolicy:
        if self._alone:
            self.groups[0].module._apply(fn, recurse)
            return self
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        module = self.groups[0].module if self._alone else super()
        module._save_to_state_dict(*arguments, **keywords)

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        module = self.groups[0].module if self._alone else super()
        module._load_from_state_dict(*arguments, **keywords)


def _read(turn: _Turn, unroll: bool) -> None:
    """The inputs of its network, its leading axes, and resets for these."""
    turn.inputs = turn.policy.read(turn.present.value)
    turn.leading = turn.policy.leading(turn.inputs)
    if turn.policy.has_memory:
        call = f"{'unroll' if unroll else 'policy'}(observations, state, resets)"
        turn.policy.check_state(turn.state, turn.leading[:-1] if unroll else turn.leading, call)
        turn.resets = turn.policy.read_resets(turn.resets, turn.leading)


def _distribution(turn: _Turn, masks: Mapping[str, Any], temperature: float) -> Distribution:
    mask = masks.get(turn.present.name)
    with _blamed(turn.present.name):
        return turn.policy.distribution_of(turn.outputs, turn.inputs, mask, temperature)


def _ask(turn: _Turn) -> None:
    """Let the user's own class act."""
    result = turn.policy.act(turn.present.value, turn.state, turn.resets)
    turn.action, turn.after = result if turn.policy.has_memory else (result, {})


@contextmanager
def _blamed(name: str) -> Iterator[None]:
    """What goes wrong inside is the matter of the actor ``name``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"for {name!r}: {error}") from error
