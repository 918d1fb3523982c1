"""Actors that share one policy, acting as one batch: read once, run once, drawn once, then divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from composer.distributions import Distribution
from composer.network import State
from composer.policy import Policy
from composer.spaces import alike, holds_tensors, to_environments
from composer.turns import Turn

__all__ = ["Crew", "crews"]


@dataclass
class Crew:
    """Those present who share a policy. `decide`, then `draw`; each fills in the turns' actions and states after."""

    turns: list[Turn]
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


def crews(turns: Sequence[Turn]) -> list[Crew]:
    """The turns by policy, in the order given."""
    found: dict[tuple[int, bool], Crew] = {}
    for turn in turns:
        one = turn.present
        whole_step = one.actor.is_open and one.name == one.actor.name  # has an axis of its own
        found.setdefault((id(turn.network), whole_step), Crew([])).turns.append(turn)
    return list(found.values())


def _alike_or_none(values: Sequence[Any]) -> Any:
    return None if all(value is None for value in values) else alike(values)
